"""AsyncServer: a Flower Server without rounds; every update is merged the moment it arrives."""

import functools
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.common import Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.typing import NDArrays
from flwr.server import Server
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion
from flwr.server.history import History
from flwr.server.strategy import Strategy
from flwr.serverapp import Grid

from pollen.bundle import Tensor
from pollen.encoding import named
from pollen.errors import PollenError, StoreError
from pollen.messages import Scalar
from server import flower_private
from server.async_strategy import AsynchronousStrategy
from server.client_manager import AsyncClientManager
from server.evaluation import Evaluator, Score
from server.fleet import Fleet, Node
from server.gateway_fleet import GatewayFleet
from server.gateway_grid import GatewayGrid
from server.grid_fleet import GridFleet
from server.history import AsyncHistory
from server.merge_loop import Limits, MergeLoop
from server.model import GlobalModel
from server.rules.rule import Vector
from server.store import StateStore, Stored

LOG = logging.getLogger("pollen.server")

FIRST_NODE_S = 300.0


class AsyncServer(Server):
    """Asynchronous federated learning on any Grid: `start_grid(grid=…, server=AsyncServer(…))`, or `run(grid)`.

    strategy: a Flower strategy; its `initialize_parameters`, `configure_fit` (for the config it sends) and `evaluate`
    (on the server's data, beside the merging) are used. async_strategy: how updates are merged.
    It stops after `total_train_time` seconds or `merges` merges or when `stop` is set; with none of the three after
    `num_rounds` updates a node, as many as a synchronous run of so many rounds would take.
    waiting_interval: seconds between evaluations. publish_interval: seconds between snapshots for devices.
    state: the SQLite file to resume from; None keeps it in memory. history: where to record (`AsyncHistory(path)`
    writes JSON lines). snapshots: how many published versions stay available as base models.
    """

    def __init__(
        self,
        strategy: Strategy,
        client_manager: AsyncClientManager,
        async_strategy: AsynchronousStrategy,
        total_train_time: float | None = None,
        waiting_interval: float = 5.0,
        *,
        merges: int | None = None,
        publish_interval: float = 1.0,
        state: Path | None = None,
        history: AsyncHistory | None = None,
        snapshots: int = 32,
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(client_manager=client_manager, strategy=strategy)
        self.async_strategy = async_strategy
        self.history = history or AsyncHistory()
        self.model: GlobalModel | None = None
        self._clients = client_manager
        self._limits = Limits(total_train_time, merges, publish_interval, waiting_interval)
        self._state = state
        self._snapshots = snapshots
        self._endless = stop is not None
        self._stop = stop or threading.Event()

    def run(self, grid: Grid) -> AsyncHistory:
        """Train on `grid` until a limit or `stop`; returns the history."""
        self._train(grid, num_rounds=1)
        return self.history

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:  # noqa: ARG002 - Flower's signature
        """Flower's entry point: train on the Grid of the registered clients; returns (history, seconds)."""
        started = time.monotonic()
        self._train(self._grid_of_clients(), num_rounds)
        return self.history, time.monotonic() - started

    def disconnect_all_clients(self, timeout: float | None) -> None:
        """Devices come and go by themselves: there is nobody to disconnect."""

    def _train(self, grid: Grid, num_rounds: int) -> None:
        bundle = grid.link.bundle if isinstance(grid, GatewayGrid) else None
        store = StateStore(self._state)
        try:
            stored = store.load()
            initial = self._initial_arrays(None if bundle is None else bundle.weights, stored)
            tensors = (
                tuple(Tensor(str(i), array.shape) for i, array in enumerate(initial))
                if bundle is None
                else bundle.manifest.weights
            )
            self.model = self._model(store, stored, tensors, initial, bundle.digest if bundle else b"")
            task_config = functools.partial(self._task_config, grid)
            fleet: Fleet
            if isinstance(grid, GatewayGrid):
                fleet = GatewayFleet(grid.link, task_config, grid.update_limit_bytes)
            else:
                fleet = GridFleet(grid, self._clients, task_config)
            evaluator = Evaluator(functools.partial(self._evaluate, tensors))
            loop = MergeLoop(
                fleet=fleet,
                model=self.model,
                strategy=self.async_strategy,
                store=store,
                history=self.history,
                evaluator=evaluator,
                limits=self._effective_limits(num_rounds),
                stop=self._stop,
            )
            loop.run(stored.open_tasks if stored else [])
            self.parameters = ndarrays_to_parameters(list(self.model.named_weights().values()))
        finally:
            store.close()
            self.history.close()

    def _effective_limits(self, num_rounds: int) -> Limits:
        limits = self._limits
        if limits.train_time_s is None and limits.merges is None and not self._endless:
            merges = num_rounds * max(1, self._clients.num_available())
            return Limits(None, merges, limits.publish_interval_s, limits.evaluate_interval_s)
        return limits

    def _grid_of_clients(self) -> Grid:
        """The Grid behind the first client that registers; PollenError when none does."""
        deadline = time.monotonic() + FIRST_NODE_S
        # `start_grid` asks the Grid for nodes whenever `num_available` is called, by itself only every 5 s.
        while self._clients.num_available() == 0:
            if time.monotonic() >= deadline:
                raise PollenError(f"no node came within {FIRST_NODE_S:.0f} s; start devices or SuperNodes first")
            self._clients.wait_for(1, 1)
        for client in self._clients.all().values():
            grid = flower_private.grid_of(client)
            if grid is not None:
                return grid
        raise PollenError("AsyncServer works on a Flower Grid: use start_grid(grid=…, server=…) or run(grid)")

    def _initial_arrays(self, bundled: Vector | None, stored: Stored | None) -> NDArrays:
        if stored is not None:
            return [stored.weights]
        parameters = self.strategy.initialize_parameters(self._clients)
        if parameters is not None:
            return parameters_to_ndarrays(parameters)
        if bundled is not None:
            return [bundled]
        return parameters_to_ndarrays(self._get_initial_parameters(server_round=0, timeout=None))

    def _model(
        self, store: StateStore, stored: Stored | None, tensors: Sequence[Tensor], initial: NDArrays, bundle: bytes
    ) -> GlobalModel:
        """The model where the store left it, or a new one that is written there."""
        weights = np.concatenate([np.asarray(array, np.float32).ravel() for array in initial])
        if stored is None:
            model = GlobalModel(tensors, weights, keep=self._snapshots)
            store.begin(bundle, 0, model.weights, self.async_strategy.state())
            return model
        if stored.bundle != bundle:
            raise StoreError("the state store belongs to another model; give another state_dir or the old bundle")
        model = GlobalModel(tensors, weights, stored.version, keep=self._snapshots)
        for version, snapshot in stored.issued:
            model.remember(version, snapshot)
        self.async_strategy.restore(stored.strategy)
        LOG.info("resumed at version %d with %d open tasks", stored.version, len(stored.open_tasks))
        return model

    def _task_config(self, grid: Grid, version: int, nodes: Sequence[Node]) -> dict[int, dict[str, Scalar]]:
        """What the Flower strategy's `configure_fit` says for these nodes, and them alone."""
        chosen = _Chosen([flower_private.proxy(node.id, grid) for node in nodes])
        empty = Parameters(tensors=[], tensor_type="numpy.ndarray")
        configs: dict[int, dict[str, Scalar]] = {}
        for client, instructions in self.strategy.configure_fit(version, empty, chosen):
            config = instructions.config.items()
            configs[int(client.cid)] = {k: v for k, v in config if isinstance(v, bool | int | float | str)}
        return configs

    def _evaluate(self, tensors: Sequence[Tensor], version: int, weights: Vector) -> Score | None:
        arrays = list(named(weights, tensors).values())
        result = self.strategy.evaluate(version, ndarrays_to_parameters(arrays))
        return None if result is None else (float(result[0]), dict(result[1]))


class _Chosen(ClientManager):
    """The clients that are free now, as the only ones there are: whatever a strategy samples, it gets all of them."""

    def __init__(self, clients: list[ClientProxy]) -> None:
        self._clients = clients

    def num_available(self) -> int:
        return len(self._clients)

    def register(self, client: ClientProxy) -> bool:  # noqa: ARG002
        return False

    def unregister(self, client: ClientProxy) -> None:
        pass

    def all(self) -> dict[str, ClientProxy]:
        return {client.cid: client for client in self._clients}

    def wait_for(self, num_clients: int, timeout: int) -> bool:  # noqa: ARG002
        return True

    def sample(
        self,
        num_clients: int,  # noqa: ARG002
        min_num_clients: int | None = None,  # noqa: ARG002
        criterion: Criterion | None = None,
    ) -> list[ClientProxy]:
        return [client for client in self._clients if criterion is None or criterion.select(client)]
