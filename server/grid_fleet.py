"""The merge loop's view of any Flower Grid: simulation, a SuperLink with ordinary SuperNodes.

Ordinary nodes answer with whole arrays; the delta is taken against the weights that were dispatched, which are kept
here for every open message, so staleness needs no help from the client.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from flwr.app import Message, MessageType
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.typing import NDArrays
from flwr.server.client_proxy import ClientProxy
from flwr.serverapp import Grid

from pollen.encoding import named
from pollen.errors import MessageError
from pollen.messages import Scalar
from server import flower_private
from server.client_manager import AsyncClientManager
from server.fleet import Node, Settled
from server.guard import Arrival
from server.model import GlobalModel
from server.rules.rule import Vector
from server.tasks import OpenTask

LOG = logging.getLogger("pollen.server.grid")

POLL_S: Final = 0.05
ROSTER_S: Final = 1.0  # a SuperLink pays for every question who is there
TaskConfig = Callable[[int, Sequence[Node]], dict[int, dict[str, Scalar]]]


@dataclass(frozen=True, slots=True)
class _Sent:
    task: OpenTask
    base: Vector


class GridFleet:
    """The nodes of a Flower Grid, free or busy as its AsyncClientManager says.

    `task_config(version, nodes)`: the fit config by node id, as the Flower strategy gives it.
    """

    def __init__(self, grid: Grid, clients: AsyncClientManager, task_config: TaskConfig) -> None:
        self._grid = grid
        self._clients = clients
        self._task_config = task_config
        self._sent: dict[str, _Sent] = {}
        self._nodes: dict[int, ClientProxy] = {}
        self._looked_at = -float("inf")
        self._changed = True
        self._bases: dict[int, Vector] = {}

    def resume(self, tasks: Iterable[OpenTask]) -> list[OpenTask]:
        """Flower's messages die with the process that sent them: none can be taken up."""
        return list(tasks)

    def reachable(self) -> Sequence[Node]:
        """The registered nodes."""
        self._look()
        return [Node(node, str(node)) for node in self._nodes]

    def roster_changed(self) -> bool:
        """Whether nodes came or went since the last call."""
        self._look()
        changed, self._changed = self._changed, False
        return changed

    def publish(self, version: int, weights: Vector) -> None:
        """Ordinary nodes get the weights with each message; there is nothing to publish."""

    def task_version(self, model: GlobalModel) -> int:
        """A message carries the model as it is now; noted as issued, since its reply will name it."""
        if model.version not in self._bases:
            self._bases = {sent.task.version: sent.base for sent in self._sent.values()}
            self._bases[model.version] = model.weights.copy()
            model.remember(model.version, None)
        return model.version

    def task_config(self, version: int, nodes: Sequence[Node]) -> dict[int, dict[str, Scalar]]:
        """Fit configurations as the strategy gives them."""
        return self._task_config(version, nodes)

    def assign(self, tasks: Sequence[OpenTask], model: GlobalModel) -> None:
        """Push one train message a task."""
        if not tasks:
            return
        outgoing = []
        for task in tasks:
            base = self._bases[task.version]
            parameters = ndarrays_to_parameters(list(named(base, model.tensors).values()))
            content = flower_private.fit_instructions(FitIns(parameters, dict(task.config)))
            outgoing.append(Message(content, task.node, MessageType.TRAIN, group_id=str(task.version)))
            self._clients.set_client_to_busy(str(task.node))
        # A failed push comes back as an empty id and its task as a failure, below.
        for task, message_id in zip(tasks, list(self._grid.push_messages(outgoing)), strict=True):
            self._sent[message_id or f"failed-{task.task.hex()}"] = _Sent(task, self._bases[task.version])

    def collect(self, timeout_s: float) -> list[Arrival]:
        """Replies that have come in; polls, since a Grid has no way to wait."""
        deadline = time.monotonic() + timeout_s
        while True:
            arrivals = self._failed_pushes() + self._pull()
            if arrivals or time.monotonic() >= deadline:
                return arrivals
            time.sleep(POLL_S)

    def settle(self, settled: Sequence[Settled]) -> None:
        """The node is free again; ordinary nodes wait for no receipt."""
        for item in settled:
            self._clients.set_client_to_free(str(item.arrival.node))

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < ROSTER_S:
            return
        self._looked_at = now
        nodes = {}
        for client in self._clients.all().values():
            node = flower_private.node_id_of(client)
            if node is not None:
                nodes[node] = client
        self._changed = self._changed or nodes.keys() != self._nodes.keys()
        self._nodes = nodes

    def _pull(self) -> list[Arrival]:
        # A SuperLink answers for a node that is offline with an error and drops the reply that may still come.
        waiting = [message_id for message_id, sent in self._sent.items() if sent.task.node in self._nodes]
        if not waiting:
            return []
        return [
            self._read(reply, self._sent.pop(reply.metadata.reply_to_message_id))
            for reply in self._grid.pull_messages(waiting)
            if reply.metadata.reply_to_message_id in self._sent
        ]

    def _failed_pushes(self) -> list[Arrival]:
        failed = [message_id for message_id in self._sent if message_id.startswith("failed-")]
        return [_failure(self._sent.pop(message_id).task, "the Grid did not take the message") for message_id in failed]

    def _read(self, reply: Message, sent: _Sent) -> Arrival:
        if reply.has_error():
            return _failure(sent.task, reply.error.reason or f"error {reply.error.code}")
        try:
            result = flower_private.fit_result(reply.content)
            trained = parameters_to_ndarrays(result.parameters)
        except (KeyError, ValueError) as error:
            return _failure(sent.task, f"the reply is no answer to a fit instruction: {error!r}")

        def write_delta(out: Vector) -> None:
            _subtract(trained, sent.base, out)

        return Arrival(
            device=sent.task.device,
            node=sent.task.node,
            task=sent.task.task,
            base=sent.task.version,
            samples=result.num_examples,
            write_delta=write_delta,
            base_weights=sent.base,
            metrics={k: float(v) for k, v in result.metrics.items() if isinstance(v, int | float)},
            size_bytes=sum(array.nbytes for array in trained),
        )


def _failure(task: OpenTask, reason: str) -> Arrival:
    return Arrival(task.device, task.node, task.task, error=reason)


def _subtract(trained: NDArrays, base: Vector, out: Vector) -> None:
    """Write trained - base into `out` [P]; MessageError when sizes differ or a number is not finite."""
    if sum(array.size for array in trained) != base.size:
        raise MessageError(f"the reply holds {sum(array.size for array in trained)} numbers, the model {base.size}")
    start = 0
    for array in trained:
        out[start : start + array.size] = np.asarray(array, np.float32).ravel()
        start += array.size
    out -= base
    if not np.isfinite(out).all():
        raise MessageError("the reply holds a number that is not finite")
