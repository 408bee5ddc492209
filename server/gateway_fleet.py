"""The merge loop's view of a GatewayGrid: raw updates in, receipts and tasks out, no Flower message in between."""

import functools
from collections.abc import Callable, Iterable, Sequence

from pollen import messages
from pollen.encoding import decode_into
from pollen.errors import MessageError
from pollen.identity import is_name, node_id
from pollen.messages import Scalar, TaskKind, Update
from server import flower_replies
from server.delivery import Reply, read
from server.fleet import Node, Settled
from server.gateway_link import Delivery, GatewayLink
from server.guard import Arrival
from server.model import GlobalModel, Issued
from server.rules.rule import Vector
from server.tasks import Evaluated, OpenTask

TaskConfig = Callable[[int, Sequence[int], TaskKind], dict[int, dict[str, Scalar]]]


class GatewayFleet:
    """Devices behind gateways. `task_config(version, node ids, kind)`: hyperparameters of a task by node id."""

    def __init__(self, link: GatewayLink, task_config: TaskConfig) -> None:
        self._link = link
        self._task_config = task_config
        self._tensors = link.bundle.manifest.shared
        self._seen_roster = -1
        self._published = 0

    def resume(self, tasks: Iterable[OpenTask]) -> list[OpenTask]:
        """Open tasks outlive the server: devices keep their answers until they get a receipt. Those of ordinary nodes,
        whose names no device may have, are left."""
        tasks = list(tasks)
        self._link.assign(task for task in tasks if is_name(task.device))
        return [task for task in tasks if not is_name(task.device)]

    def reachable(self) -> Sequence[Node]:
        """The devices whose newest state is a birth."""
        return [Node(node_id(device), device) for device in self._link.online()]

    def roster_changed(self) -> bool:
        """Whether births or deaths came since the last call."""
        seen, self._seen_roster = self._seen_roster, self._link.roster_version
        return seen != self._seen_roster

    def publish(self, issued: Issued) -> None:
        """Publish the snapshot, retained."""
        if issued.weights is not None:
            self._published = issued.version
            self._link.publish(issued.version, issued.weights)

    def task_version(self, model: GlobalModel) -> int:  # noqa: ARG002 - other fleets need the model
        """Devices train from the newest published snapshot."""
        return self._published

    def task_config(
        self, version: int, nodes: Sequence[Node], kind: TaskKind = "train"
    ) -> dict[int, dict[str, Scalar]]:
        """Hyperparameters as the strategy gives them; blocked devices are left out."""
        admitted = [node.id for node in nodes if not self._link.is_blocked(node.device)]
        return self._task_config(version, admitted, kind) if admitted else {}

    def one_at_a_time(self, node: Node) -> bool:  # noqa: ARG002 - all are alike
        """A device has an evaluate task beside its train task, which may wait for new samples for hours."""
        return False

    def assign(self, tasks: Sequence[OpenTask], model: GlobalModel) -> None:  # noqa: ARG002
        """Send tasks through the gateways."""
        self._link.assign(tasks)

    def withdraw(self, tasks: Sequence[OpenTask]) -> None:
        """Stop sending the tasks; a device that has one of them already will still answer it."""
        self._link.close_tasks((task.device, task.task) for task in tasks)

    def collect(self, timeout_s: float) -> list[Arrival]:
        """What the gateways brought, decoded as far as can be done without the model."""
        return [self._read(delivery) for delivery in self._link.take(timeout_s)]

    def give_back(self, arrivals: Sequence[Arrival]) -> None:
        """Put the deliveries back into the link's inbox."""
        self._link.give_back([a.handle for a in arrivals if isinstance(a.handle, Delivery)])

    def finish(self) -> None:
        """Nobody answers for the tasks any more; a resumed loop sends them again."""
        self._link.forget_tasks()

    def settle(self, settled: Sequence[Settled]) -> None:
        """Acknowledge the deliveries and send the receipts."""
        deliveries = [(s.arrival.handle, s.receipt) for s in settled]
        self._link.close_tasks(
            (s.arrival.device, messages.decode_receipt(s.receipt).task) for s in settled if s.receipt is not None
        )
        self._link.settle([(handle, receipt) for handle, receipt in deliveries if isinstance(handle, Delivery)])

    def _read(self, delivery: Delivery) -> Arrival:
        node, size = node_id(delivery.device), len(delivery.payload)
        if self._link.is_blocked(delivery.device):
            return Arrival(
                device=delivery.device,
                node=node,
                task=None,
                error="an operator has blocked this device",
                kind="blocked",
                size_bytes=size,
                payload=delivery.payload,
                handle=delivery,
            )
        reply = read(delivery, self._link.update_limit_bytes)
        update = reply.update
        if update is None:
            evaluated, error = _evaluated(reply)
            return Arrival(
                device=delivery.device,
                node=node,
                task=reply.task,
                error=error,
                evaluated=evaluated,
                kind=reply.kind,
                size_bytes=size,
                payload=delivery.payload if reply.task is None else b"",
                handle=delivery,
            )
        return Arrival(
            device=delivery.device,
            node=node,
            task=update.task,
            seq=update.seq,
            base=update.base,
            samples=update.samples,
            steps=update.steps,
            write_delta=functools.partial(self._write_delta, update),
            against=update.against,
            metrics=dict(update.metrics),
            size_bytes=size,
            handle=delivery,
        )

    def _write_delta(self, update: Update, out: Vector) -> None:
        decode_into(out, update.delta, self._tensors)


def _evaluated(reply: Reply) -> tuple[Evaluated | None, str]:
    """How the model did on the device's data, and the reason why `reply`, which holds no update, is none."""
    if reply.error or reply.result is None:
        return None, reply.error
    try:
        return flower_replies.evaluated(reply.result), "a result answers no train task"
    except MessageError as error:
        return None, str(error)
