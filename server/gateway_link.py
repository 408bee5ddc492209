"""GatewayLink: the fleet as seen through its gateways: who is online, what each device has to do, what came back.

It holds nothing that must survive: after a restart births, open tasks and unacknowledged updates come again. Whatever
goes to devices may be sent twice; a device that has already done a task answers it again from its outbox.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pollen import messages
from pollen.bridge import Accepted, DeviceState, DeviceVitals, Frame, ModelMessage, ToDevice, Upload
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.errors import MessageError
from pollen.identity import node_id
from pollen.messages import Birth, Head, Session, Snapshot, Task
from server.bridge_service import BridgeService, Listen, Stream, serve
from server.model import digest
from server.rules.rule import Vector
from server.tasks import OpenTask

LOG = logging.getLogger("pollen.server.link")

# Uploads that may wait for the merge loop; beyond either bound gRPC holds the gateways back.
INBOX_UPLOADS: Final = 1024
INBOX_BYTES: Final = 256 * 1024 * 1024
RESEND_CHECK_S: Final = 1.0
CLOSE_S: Final = 5.0  # how long a stop waits for gateways to take what is queued for them


@dataclass(frozen=True, slots=True)
class Delivery:
    """An upload as a gateway handed it over; `leaf` is update, result or oversize."""

    stream: Stream
    number: int
    device: str
    leaf: str
    payload: bytes


@dataclass(slots=True)
class _Device:
    session: Session
    online: bool
    stream: Stream  # that last brought something of it: what goes to the device stays in order on one gateway
    birth: Birth | None = None


class GatewayLink:
    """Listens for gateways of `fleet` and speaks through them to the devices. All methods may be called by any thread.

    task_ttl_s: an unanswered task is sent again after so many seconds. Raises PollenError when the port is taken.
    """

    def __init__(self, bundle: Bundle, fleet: str, listen: Listen, task_ttl_s: float) -> None:
        self.bundle = bundle
        self._task_ttl_s = task_ttl_s
        self._changed = threading.Condition()
        self._inbox: deque[Delivery] = deque()
        self._inbox_bytes = 0
        self._devices: dict[str, _Device] = {}
        self._names: dict[int, str] = {}
        self._open: dict[str, OpenTask] = {}
        self._sent_at: dict[str, float] = {}
        self._streams: list[Stream] = []
        model = bundle.manifest.model
        self._models: dict[str, ModelMessage] = {"bundle": ModelMessage(model, "bundle", bundle.to_bytes())}
        self._roster_version = 0
        self._closing = False
        self._resend_checked_at = 0.0
        service = BridgeService(fleet, opened=self._attach, received=self._receive, closed=self._detach)
        self._server, self.port = serve(service, listen)

    # --- what the owner of the model asks for

    @property
    def roster_version(self) -> int:
        """Grows whenever a device comes or goes."""
        return self._roster_version

    def online(self) -> list[str]:
        """Names of the devices that are online."""
        with self._changed:
            return [name for name, device in self._devices.items() if device.online]

    def device_of(self, node: int) -> str | None:
        """The device behind a Flower node id, None when it was never seen."""
        return self._names.get(node)

    def publish(self, version: int, weights: Vector) -> None:
        """Make `weights` [P] the retained snapshot that devices train from."""
        model = self.bundle.manifest.model
        fingerprint = digest(weights)
        snapshot = messages.encode(Snapshot(model, version, fingerprint, named(weights, self.bundle.manifest.weights)))
        head = messages.encode(Head(model, version, fingerprint, self.bundle.digest, len(snapshot), time.time()))
        with self._changed:
            self._models["weights"] = ModelMessage(model, "weights", snapshot)
            self._models["head"] = ModelMessage(model, "head", head)
            # Retained, so once is enough; but a gateway may have a stream here and no broker at the moment.
            for stream in self._streams:
                stream.put(self._models["weights"], self._models["head"])

    def assign(self, tasks: Iterable[OpenTask]) -> None:
        """Give tasks to devices, replacing the open one of each; they are sent again until `settle` closes them."""
        with self._changed:
            for task in tasks:
                self._open[task.device] = task
                self._names[task.node] = task.device
                if self._is_online(task.device):
                    self._send_task(task)

    def take(self, timeout_s: float, limit: int = 256) -> list[Delivery]:
        """Uploads that have come in, at most `limit`, waiting up to `timeout_s` seconds for one or for a change of the
        roster."""
        self._resend_overdue()
        with self._changed:
            if not self._inbox and timeout_s > 0:
                seen = self._roster_version
                self._changed.wait_for(lambda: self._inbox or self._closing or self._roster_version != seen, timeout_s)
            taken = [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]
            self._inbox_bytes -= sum(len(delivery.payload) for delivery in taken)
            self._changed.notify_all()
            return taken

    def settle(self, settled: Sequence[tuple[Delivery, bytes | None]]) -> None:
        """Let the gateways forget these deliveries, send the receipts, and close the tasks that they answered."""
        accepted: dict[int, list[int]] = {}
        streams: dict[int, Stream] = {}
        with self._changed:
            for delivery, _ in settled:
                streams[id(delivery.stream)] = delivery.stream
                accepted.setdefault(id(delivery.stream), []).append(delivery.number)
            for key, numbers in accepted.items():
                streams[key].put(Accepted(tuple(numbers)))
            for delivery, receipt in settled:
                if receipt is not None:
                    delivery.stream.put(ToDevice(delivery.device, "receipt", receipt))

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries that were taken and not settled back where they were."""
        with self._changed:
            here = [delivery for delivery in deliveries if delivery.stream in self._streams]
            self._inbox.extendleft(reversed(here))
            self._inbox_bytes += sum(len(delivery.payload) for delivery in here)

    def forget_tasks(self) -> None:
        """Stop sending any task."""
        with self._changed:
            self._open.clear()
            self._sent_at.clear()

    def close_tasks(self, tasks: Iterable[tuple[str, bytes]]) -> None:
        """Stop sending the (device, task id) pairs: they are answered or given up."""
        with self._changed:
            for device, task in tasks:
                if device in self._open and self._open[device].task == task:
                    del self._open[device]
                    self._sent_at.pop(device, None)

    def close(self) -> None:
        """Send what is queued, end all streams and stop listening."""
        with self._changed:
            self._closing = True
            for stream in self._streams:
                stream.finish()
            self._changed.notify_all()
        self._server.stop(grace=CLOSE_S).wait()

    # --- what gateways bring

    def _attach(self, stream: Stream) -> None:
        with self._changed:
            self._streams.append(stream)
            stream.put(*self._models.values())

    def _detach(self, stream: Stream) -> None:
        """A gateway left: what it may not have passed on goes out again through another."""
        with self._changed:
            self._streams.remove(stream)
            self._inbox = deque(delivery for delivery in self._inbox if delivery.stream is not stream)
            self._inbox_bytes = sum(len(delivery.payload) for delivery in self._inbox)
            self._changed.notify_all()
            if self._streams:
                for task in self._open.values():
                    if self._is_online(task.device):
                        self._send_task(task)

    def _receive(self, stream: Stream, frame: Frame) -> None:
        match frame:
            case Upload():
                with self._changed:
                    self._changed.wait_for(self._has_room)
                    self._inbox_bytes += len(frame.payload)
                    self._inbox.append(Delivery(stream, frame.delivery, frame.device, frame.leaf, frame.payload))
                    if frame.device in self._devices:
                        self._devices[frame.device].stream = stream
                    self._changed.notify_all()
            case DeviceState():
                self._note_state(stream, frame)
            case DeviceVitals():
                pass  # for whoever watches the fleet; merging needs none of it
            case _:
                raise MessageError(f"a gateway does not send {type(frame).__name__} frames here")

    def _has_room(self) -> bool:
        return (len(self._inbox) < INBOX_UPLOADS and self._inbox_bytes < INBOX_BYTES) or self._closing

    def _note_state(self, stream: Stream, frame: DeviceState) -> None:
        try:
            state = messages.decode_state(frame.payload) if frame.payload else None
        except MessageError as error:
            LOG.warning("%s: state ignored: %s", frame.device, error)
            return
        except Exception:  # a decoder must raise nothing else; if one does, the gateway's stream goes on
            LOG.exception("%s: state could not be decoded", frame.device)
            return
        with self._changed:
            known = self._devices.get(frame.device)
            if state is None:
                online = self._devices.pop(frame.device, None)
                changed = online is not None and online.online
            elif isinstance(state, Birth):
                changed = known is None or not known.online or known.session != state.session
                self._devices[frame.device] = _Device(state.session, True, stream, state)
                self._names[node_id(frame.device)] = frame.device
            else:
                # A late will of an earlier connection says nothing about the present one.
                changed = known is not None and known.online and known.session == state.session
                if known is None or known.session == state.session:
                    self._devices[frame.device] = _Device(state.session, False, stream, known.birth if known else None)
            if isinstance(state, Birth) and (changed or frame.device not in stream.greeted):
                stream.greeted.add(frame.device)
                if frame.device in self._open:
                    self._send_task(self._open[frame.device], stream)
            if changed:
                self._roster_version += 1
                self._changed.notify_all()

    # --- sending; the caller holds the lock

    def _is_online(self, device: str) -> bool:
        known = self._devices.get(device)
        return known is not None and known.online

    def _send_task(self, task: OpenTask, stream: Stream | None = None) -> None:
        if stream is None:
            if not self._streams:
                return  # a gateway that comes brings its roster, and each birth in it brings the task
            stream = self._devices[task.device].stream
            if stream not in self._streams:
                stream = self._streams[task.node % len(self._streams)]
        self._sent_at[task.device] = time.monotonic()
        payload = messages.encode(
            Task(
                task.task,
                task.kind,
                self.bundle.manifest.model,
                task.version,
                self.bundle.digest,
                task.config,
                self._task_ttl_s,
            )
        )
        stream.put(ToDevice(task.device, "task", payload, max(1, int(self._task_ttl_s))))

    def _resend_overdue(self) -> None:
        now = time.monotonic()
        if now - self._resend_checked_at < min(RESEND_CHECK_S, self._task_ttl_s / 2):
            return
        self._resend_checked_at = now
        with self._changed:
            for device, sent_at in list(self._sent_at.items()):
                if now - sent_at >= self._task_ttl_s and device in self._open and self._is_online(device):
                    # Through another gateway where there is one: the last may have lost its broker.
                    others = [stream for stream in self._streams if stream is not self._devices[device].stream]
                    self._send_task(self._open[device], others[0] if others else None)
