"""AsyncServer: a Flower Server without rounds; every update is merged the moment it arrives."""

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, cast

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common import Parameters, ndarrays_to_parameters
from flwr.server import Server
from flwr.server.history import History
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as MessageStrategy

from pollen.bundle import Tensor
from pollen.errors import PollenError, StoreError
from server import flower_async, flower_private
from server.async_strategy import AsynchronousStrategy
from server.client_manager import AsyncClientManager
from server.devices import Devices
from server.dialect import Dialect
from server.early_stop import EarlyStop, EarlyStopping
from server.evaluation import Evaluator
from server.evaluation_results import aggregate
from server.evaluation_schedule import EvaluationSchedule
from server.federated_evaluation import FederatedEvaluation
from server.fleet import Fleet
from server.grid_fleet import register
from server.grid_parts import Parts, parts_of
from server.guard import Guard
from server.guards import GuardSettings
from server.history import AsyncHistory
from server.inference_graphs import InferenceGraphs
from server.legacy_dialect import LegacyDialect
from server.merge_loop import Limits, MergeLoop
from server.message_dialect import EvaluateFn, MessageDialect
from server.model import GlobalModel
from server.start import Start, start_of
from server.store import Retention, StateStore, Stored
from server.streaming import Stream, Streaming
from server.tuning import Tuning
from server.watch import ModelWatch

LOG = logging.getLogger("pollen.server")

FIRST_NODE_S: Final = 300.0
LOOK_S: Final = 0.5


class AsyncServer(Server):
    """Asynchronous federated learning on any Grid: `start_grid(grid=…, server=AsyncServer(…))`, or `run(grid)`.

    strategy: a Flower strategy. Of a legacy one, for `NumPyClient`s, `initialize_parameters`, `configure_fit` (for the
    config it sends) and `evaluate` (on the server's data, beside the merging) are used; of one for the message API its
    `configure_train` and `configure_evaluate`, with `train_config` and `evaluate_config`, beside `initial_arrays` and
    `evaluate_fn` as for its `start` (a metric whose name ends in "loss" is needed); ValueError for a config or an
    `evaluate_fn` beside a legacy strategy. async_strategy: how updates are merged.
    It stops after `total_train_time` seconds or `merges` merges or when `stop` is set; with none of the three after
    `num_rounds` updates a node that is there at the start, as many as a synchronous run of so many rounds would take;
    in any case when `early_stop` says so. waiting_interval: seconds between evaluations on the server's data.
    federated_interval: seconds between evaluations by the clients (0: none) that the strategy's `configure_evaluate`
    chooses, each closed after `federated_deadline` at the latest. streaming: clients may use a part of their data only.
    options: flower-async's other ones, see `flower_async.server_options`.
    publish_interval: seconds between snapshots for devices.
    state: the SQLite file to resume from; None keeps it in memory. On a Grid of ordinary nodes the shapes come from the
    initial arrays or parameters, or else a legacy client's, when it resumes as when it starts. task_ttl: seconds after
    which an ordinary node that has not answered is asked again. history: where to record
    (`AsyncHistory(path)` writes JSON lines). snapshots: how many published versions stay available as base models.
    retention: which others stay in the state file, to be exported or rolled back to.
    guard: which updates are refused or clipped. inference: what makes graphs that only predict of published versions.
    watch: is told how it goes.
    """

    def __init__(
        self,
        strategy: LegacyStrategy | MessageStrategy,
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
        retention: Retention | None = None,
        guard: GuardSettings | None = None,
        initial_arrays: ArrayRecord | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        task_ttl: float = 3600.0,
        early_stop: EarlyStop | None = None,
        federated_interval: float = 0.0,
        federated_deadline: float = 60.0,
        streaming: Streaming | None = None,
        inference: InferenceGraphs | None = None,
        stop: threading.Event | None = None,
        watch: ModelWatch | None = None,
        **options: Any,
    ) -> None:
        configs = (train_config, evaluate_config, evaluate_fn)
        if not isinstance(strategy, MessageStrategy) and any(given is not None for given in configs):
            raise ValueError("train_config, evaluate_config and evaluate_fn go with strategies of flwr.serverapp only")
        # Flower's own methods use the strategy for legacy clients' initial parameters only.
        super().__init__(client_manager=client_manager, strategy=cast("LegacyStrategy", strategy))
        self.async_strategy = async_strategy
        self.history = history or AsyncHistory()
        self.model: GlobalModel | None = None
        self._clients = client_manager
        theirs = flower_async.server_options(options)
        train_time_s = total_train_time if theirs.total_train_time is None else theirs.total_train_time
        self._limits = Limits(train_time_s, merges, publish_interval)
        self._streaming = streaming or theirs.streaming
        self._limits.check(streams=self._streaming is not None)
        self._waiting_interval = waiting_interval if theirs.waiting_interval is None else theirs.waiting_interval
        self._early_stop = early_stop
        self._federated_interval = federated_interval
        self._federated_deadline = federated_deadline
        self._state = state
        self._snapshots = snapshots
        self._retention = retention
        self._guard = guard
        self._inference = inference
        self._initial_arrays = initial_arrays
        self._train_config = train_config
        self._evaluate_config = evaluate_config
        self._evaluate_fn = evaluate_fn
        self._task_ttl_s = task_ttl
        self._watch = watch or ModelWatch()
        self._tunings: SimpleQueue[Tuning] = SimpleQueue()
        self._endless = stop is not None
        self._stop = stop or threading.Event()

    def run(self, grid: Grid, initial_arrays: ArrayRecord | None = None) -> AsyncHistory:
        """Train on `grid`, as one round, until a limit or `stop`; returns the history.

        `initial_arrays`: to start from, instead of those the server was made with. On a Grid of ordinary nodes only,
        and without any limit, it waits for the first node; PollenError when none comes.
        """
        flower_private.ensure_task_identity(grid.run.run_id)
        if initial_arrays is not None:
            self._initial_arrays = initial_arrays
        waits = parts_of(grid).gateways is None or self._unlimited
        if not waits or self._wait_for_node(lambda: any(True for _ in grid.get_node_ids())):
            self._train(grid, num_rounds=1, registers=True)
        return self.history

    def retune(self, tuning: Tuning) -> None:
        """Take over settings that have changed, at the merge loop's next turn. Any thread may call it."""
        self._tunings.put(tuning)

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:  # noqa: ARG002 - Flower's signature
        """Flower's entry point: train on the Grid of the registered clients; returns (history, seconds)."""
        started = time.monotonic()
        # `start_grid` asks the Grid for nodes whenever `num_available` is called, by itself only every 5 s.
        if self._wait_for_node(lambda: self._clients.num_available() > 0):
            self._train(self._grid_of_clients(), num_rounds, registers=False)
        return self.history, time.monotonic() - started

    def disconnect_all_clients(self, timeout: float | None) -> None:
        """Devices come and go by themselves: there is nobody to disconnect."""

    def _train(self, grid: Grid, num_rounds: int, *, registers: bool) -> None:
        try:
            self._train_watched(grid, num_rounds, registers=registers)
        except BaseException as error:
            self._watch.ended(f"{type(error).__name__}: {error}")
            raise
        self._watch.ended("")

    def _train_watched(self, grid: Grid, num_rounds: int, *, registers: bool) -> None:
        store = StateStore(self._state, self._retention)
        try:
            stored = store.load()
            parts = parts_of(grid)
            start = self._start_of(parts, registers=registers)
            if parts.bundle is not None:
                self.async_strategy.rule.start_from(parts.bundle.shared)
            self.model = self._model(store, stored, start)
            devices = Devices(stored.devices if stored else ())
            guard = Guard(self._guard)
            guard.restore(stored.kept if stored else {})
            dialect = self._dialect(grid, start.client_tensors)
            fleet = parts.fleet(
                self._clients, start.client_tensors, dialect, registers=registers, task_ttl_s=self._task_ttl_s
            )
            loop = MergeLoop(
                fleet=fleet,
                model=self.model,
                strategy=self.async_strategy,
                store=store,
                history=self.history,
                devices=devices,
                guard=guard,
                evaluations=self._evaluations(fleet, dialect, grid),
                limits=self._effective_limits(grid, num_rounds),
                stop=self._stop,
                stream=Stream(self._streaming) if self._streaming else None,
                inference=self._inference,
                watch=self._watch,
                tunings=self._tunings,
            )
            self._watch.begun(self.model, devices)
            try:
                loop.run(stored.open_tasks if stored else [])
            finally:
                fleet.finish()
            self.parameters = ndarrays_to_parameters(list(self.model.named_weights().values()))
        finally:
            if self._inference is not None:
                self._inference.close()
            store.close()
            self.history.close()

    def _dialect(self, grid: Grid, tensors: Sequence[Tensor]) -> Dialect:
        """How the clients that the strategy is written for are spoken to."""
        if isinstance(self.strategy, MessageStrategy):
            return MessageDialect(
                self.strategy,
                grid,
                tensors,
                train_config=self._train_config,
                evaluate_config=self._evaluate_config,
                evaluate_fn=self._evaluate_fn,
            )
        return LegacyDialect(self.strategy, grid, tensors)

    def _evaluations(self, fleet: Fleet, dialect: Dialect, grid: Grid) -> EvaluationSchedule:
        federated = None
        if self._federated_interval:
            federated = FederatedEvaluation(
                fleet,
                functools.partial(aggregate, self.strategy, grid),
                interval_s=self._federated_interval,
                deadline_s=self._federated_deadline,
            )
        return EvaluationSchedule(
            self.history,
            Evaluator(dialect.evaluate),
            interval_s=self._waiting_interval,
            federated=federated,
            early_stopping=EarlyStopping(self._early_stop) if self._early_stop else None,
        )

    @property
    def _unlimited(self) -> bool:
        return self._limits.train_time_s is None and self._limits.merges is None and not self._endless

    def _effective_limits(self, grid: Grid, num_rounds: int) -> Limits:
        if not self._unlimited:
            return self._limits
        return dataclasses.replace(self._limits, merges=num_rounds * max(1, len(set(grid.get_node_ids()))))

    def _wait_for_node(self, is_there: Callable[[], bool]) -> bool:
        """Wait until a node is there; False when `stop` was set before. PollenError when none comes in time."""
        deadline = time.monotonic() + FIRST_NODE_S
        while not is_there():
            if self._stop.is_set():
                return False
            if time.monotonic() >= deadline:
                raise PollenError(f"no node came within {FIRST_NODE_S:.0f} s; start devices or SuperNodes first")
            self._stop.wait(LOOK_S)
        return True

    def _grid_of_clients(self) -> Grid:
        """The Grid behind the registered clients; PollenError when there is none."""
        for client in self._clients.all().values():
            grid = flower_private.grid_of(client)
            if grid is not None:
                return grid
        raise PollenError("AsyncServer works on a Flower Grid: use start_grid(grid=…, server=…) or run(grid)")

    def _start_of(self, parts: Parts, *, registers: bool) -> Start:
        """What training starts from; PollenError when there is nothing, or nothing that fits the devices' model."""
        legacy = isinstance(self.strategy, LegacyStrategy)

        def initial_parameters() -> Parameters | None:
            return self.strategy.initialize_parameters(self._clients) if legacy else None

        def a_clients() -> Parameters:
            if registers and parts.ordinary is not None:
                register(parts.ordinary, frozenset(parts.ordinary.get_node_ids()), self._clients)
            return self._get_initial_parameters(server_round=0, timeout=None)

        return start_of(parts.bundle, self._initial_arrays, initial_parameters, a_clients if legacy else None)

    def _model(self, store: StateStore, stored: Stored | None, start: Start) -> GlobalModel:
        """The model where the store left it, or a new one that is written there."""
        if stored is None:
            model = GlobalModel(start.tensors, start.weights, keep=self._snapshots)
            store.begin(start.origin, 0, model.weights)
            self.async_strategy.restore({}, store.kept)
            return model
        if stored.bundle != start.origin:
            raise StoreError("the state store belongs to another model; give another state_dir or the old bundle")
        model = GlobalModel(start.tensors, stored.weights, stored.version, keep=self._snapshots)
        for issued in stored.issued:
            model.remember(issued)
        model.withdraw(stored.withdrawn)
        self.async_strategy.restore(stored.kept, store.kept)
        LOG.info("resumed at version %d with %d open tasks", stored.version, len(stored.open_tasks))
        return model
