"""What is known of the fleet for people to see: the one owner of that state, fed by the hub and the merge loops."""

import functools
import itertools
import logging
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec

from pollen.messages import Birth
from server.bridge_service import Stream
from server.devices import DeviceCounts
from server.guard import Kind
from server.history import Merge
from server.watch import FleetWatch
from server.web.device_record import DeviceRecord

LOG = logging.getLogger("pollen.server.web")

MOST_DEVICES: Final = 50_000
EVENTS_KEPT: Final = 2000
FORGET_AMONG: Final = 1000
REASON_SHOWN: Final = 300  # characters

P = ParamSpec("P")


def never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """What looks on must not end what it looks at: an error is a line in the log."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            LOG.exception("the view of the fleet missed something")

    return guarded


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway whose stream is open since `since` (Unix seconds); `peer` is its address."""

    name: str
    since: float
    software: str
    peer: str


class FleetView(FleetWatch):
    """Devices, gateways and what happened last. All methods may be called by any thread.

    One lock guards everything; it is held for one device's change, or to copy a list of references, never while
    anything is written or encoded. Whole rows of a snapshot are each of one moment, two rows need not be. Beyond
    `most` devices those not heard of for longest are forgotten, offline ones first.
    """

    def __init__(self, *, most: int = MOST_DEVICES, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._devices: OrderedDict[str, DeviceRecord] = OrderedDict()  # the longest silent first
        self._names: list[str] = []  # sorted
        self._online = 0
        self._gateways: dict[Stream, Gateway] = {}
        self._gone = Counter[str]()  # bytes of streams that have ended
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._event = 0
        self._rejections = Counter[str]()
        self._merged = 0
        self.unclaimed_uploads = 0
        self.vitals_to: Callable[[str, bytes], None] = lambda _device, _payload: None
        self.started_at = clock()

    # --- what the hub tells

    @never_raises
    def connected(self, stream: Stream) -> None:
        """See FleetWatch."""
        with self._lock:
            self._gateways[stream] = Gateway(stream.gateway, self._clock(), stream.software, stream.peer)
            self._happened("gateway", gateway=stream.gateway, online=True)

    @never_raises
    def disconnected(self, stream: Stream) -> None:
        """See FleetWatch."""
        with self._lock:
            if self._gateways.pop(stream, None) is not None:
                self._gone.update(received=stream.received_bytes, sent=stream.sent_bytes)
                self._happened("gateway", gateway=stream.gateway, online=False)

    @never_raises
    def noted(self, device: str, birth: Birth | None, *, online: bool, why: str = "") -> None:
        """See FleetWatch."""
        with self._lock:
            record = self._record(device)
            record.last_seen = self._clock()
            record.birth = birth or record.birth
            if record.online == online:
                return
            record.online = online
            self._online += 1 if online else -1
            told = {"software": birth.software} if online and birth is not None else {"reason": why[:REASON_SHOWN]}
            self._happened("birth" if online else "death", device=device, **told)

    @never_raises
    def vitals(self, device: str, payload: bytes) -> None:
        """See FleetWatch."""
        self.vitals_to(device, payload)

    @never_raises
    def unclaimed(self, device: str, reason: str, kind: Kind) -> None:
        """See FleetWatch."""
        with self._lock:
            self.unclaimed_uploads += 1
            self._rejections[kind] += 1
            self._record(device).refused(self._clock(), kind, reason)

    # --- what the models' views tell

    def restored(self, known: Iterable[DeviceCounts]) -> None:
        """Counters of an earlier process."""
        for counts in known:
            with self._lock:  # not over all of them: others wait for it
                record = self._record(counts.device)
                record.updates += counts.merged
                record.bytes += counts.bytes
                record.rejected += sum(counts.refused.values())
                self._merged += counts.merged
                self._rejections.update(counts.refused)

    def measured(self, device: str, values: Mapping[str, float]) -> None:
        """A device's vitals, which have been read."""
        with self._lock:
            self._record(device).measured(self._clock(), values)

    def merged(self, model: str, merges: Sequence[Merge]) -> None:
        """Updates merged into `model`."""
        with self._lock:
            now = self._clock()
            for merge in merges:
                self._record(merge.device).merged(now, model, merge)
                self._happened(
                    "merge",
                    device=merge.device,
                    model=model,
                    version=merge.version,
                    staleness=merge.staleness,
                    weight=merge.weight,
                    samples=merge.samples,
                    size_bytes=merge.size_bytes,
                    loss_before=merge.loss_before,
                    loss_after=merge.loss_after,
                )
            self._merged += len(merges)

    def rejected(self, model: str, device: str, reason: str, kind: str, *, told: bool) -> None:
        """An update for `model` was refused; floods are counted and not `told`."""
        with self._lock:
            self._rejections[kind] += 1
            self._record(device).refused(self._clock(), kind, reason)
            if told:
                self._happened("rejection", device=device, model=model, kind=kind, reason=reason[:REASON_SHOWN])

    def happened(self, event: str, **details: Any) -> None:
        """Anything else that belongs into the stream of events."""
        with self._lock:
            self._happened(event, **details)

    # --- what is shown

    def device(self, name: str, versions: Mapping[str, int], *, blocked: bool) -> dict[str, Any] | None:
        """All that is known of a device, None when it is none; `versions`: of the models by name."""
        with self._lock:
            record = self._devices.get(name)
            if record is None:
                return None
            row = record.row(versions.get(record.model or ""), blocked=blocked)
            return {**row, **record.page()}

    def records(self) -> list[DeviceRecord]:
        """All devices in name order. They go on changing: read fields that are one value each, and no more."""
        with self._lock:
            return [self._devices[name] for name in self._names]

    def page(self, after: str, limit: int, q: str) -> tuple[list[DeviceRecord], str | None]:
        """At most `limit` devices named after `after` whose names contain `q`; and where to go on, None at the end."""
        with self._lock:
            names = self._names[bisect_right(self._names, after) :]
        found = [name for name in names if q in name] if q else names
        with self._lock:
            shown = [self._devices[name] for name in found[:limit] if name in self._devices]
        return shown, found[limit - 1] if len(found) > limit else None

    def counts(self) -> tuple[int, int]:
        """How many devices are known, and online."""
        with self._lock:
            return len(self._devices), self._online

    def gateways(self) -> list[Gateway]:
        """The gateways whose streams are open, by name and time."""
        with self._lock:
            return sorted(self._gateways.values(), key=lambda gateway: (gateway.name, gateway.since))

    def streams(self) -> list[Stream]:
        """The open streams."""
        with self._lock:
            return list(self._gateways)

    def totals(self) -> dict[str, Any]:
        """Counts over all devices and models, those of earlier processes among them; bytes since the start."""
        with self._lock:
            rejections, merged, gone = dict(self._rejections), self._merged, dict(self._gone)
            streams = list(self._gateways)
        return {
            "rejections": dict(sorted(rejections.items())),
            "bytes": {
                "received": gone.get("received", 0) + sum(stream.received_bytes for stream in streams),
                "sent": gone.get("sent", 0) + sum(stream.sent_bytes for stream in streams),
            },
            "updates": {"merged": merged, "rejected": sum(rejections.values())},
        }

    def events(self, after: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """The newest event's number, and the newest `limit` events after number `after`, oldest first."""
        with self._lock:
            new = min(limit, self._event - after, len(self._events))
            return self._event, [self._events[number] for number in range(-new, 0)] if new > 0 else []

    # --- the caller holds the lock

    def _happened(self, event: str, **details: Any) -> None:
        self._event += 1
        self._events.append({"number": self._event, "time": self._clock(), "event": event, **details})

    def _record(self, device: str) -> DeviceRecord:
        """The device's record, which counts as heard of now."""
        record = self._devices.get(device)
        if record is None:
            if len(self._devices) >= self._most:
                self._forget()
            record = self._devices[device] = DeviceRecord(device)
            insort(self._names, device)
        else:
            self._devices.move_to_end(device)
        return record

    def _forget(self) -> None:
        silent = itertools.islice(self._devices.items(), FORGET_AMONG)
        oldest = next((name for name, known in silent if not known.online), next(iter(self._devices)))
        self._online -= self._devices.pop(oldest).online
        del self._names[bisect_left(self._names, oldest)]
