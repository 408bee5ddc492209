"""The gateway's loop: one thread that owns everything between the broker's socket and the server's stream."""

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Final

from gateway.counts import Counts, Gauges
from gateway.intake import Intake
from gateway.outgoing import Outgoing
from gateway.roster import Roster
from gateway.settings import Gateway
from gateway.uplink import StreamDown, StreamUp, Uplink
from pollen import __version__, topics
from pollen.bridge import Accepted, DeviceState, DeviceVitals, Frame, Hello, ModelMessage, ToDevice, Upload
from pollen.identity import is_name
from pollen.service import Reloads
from pollen.systemd import Watchdog, notify

LOG = logging.getLogger("pollen.gateway")

_TURN_S: Final = 0.5  # longest sleep, so that a stop is seen
_TURN_FRAMES: Final = 256  # frames from the server before the broker gets its turn again
# States and vitals that may wait in the stream's queue. Uploads are bounded by Receive Maximum instead.
_WAITING_FRAMES: Final = 1000
_ROOM_S: Final = 0.02  # how soon to look again whether the stream's queue has room for the rest of the roster
_QUIET_S: Final = 0.3  # a drained gateway waits this long for what the broker had under way
_REPORT_S: Final = 60.0


class BridgeLoop:
    """Carries frames both ways until it is told to stop.

    Nothing is kept that can't come again: updates and results stay with the broker until the server has accepted
    them, states are retained there. While the stream is down nothing is acknowledged and Receive Maximum stops the
    broker, or before it `limits.inflight_bytes`; while the broker is down, or slow to take publishes, nothing is read
    from the stream, and gRPC's flow control stops the server.
    """

    def __init__(self, settings: Gateway) -> None:
        self.settings = settings
        self.counts = Counts()
        self._roster = Roster()
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._uplink = Uplink(settings.server, Hello(settings.name, settings.fleet, __version__), self._wake)
        self._intake = Intake(
            settings,
            self.counts,
            on_upload=self._send,
            on_state=self._roster.put,
            on_vitals=self._on_vitals,
            on_lost=self._forget_uploads,
            on_forgotten=self._uplink.redial,
        )
        self._stream: Outgoing | None = None
        self._frames: deque[Frame] = deque()  # taken from the stream, not yet handled
        self._ready = False
        self._reported = (0, 0, 0)

    def run(self, stop: threading.Event, reloads: Reloads[Gateway]) -> None:
        """Serve until `stop` is set, then drain. Raises PollenError when the broker refuses us at the start."""
        watchdog = Watchdog()
        report_at = time.monotonic() + _REPORT_S
        self._uplink.start()
        try:
            while not stop.is_set():
                self._turn()
                self._tell_ready()
                if (loaded := reloads.take()) is not None:
                    self._change(loaded)
                watchdog.beat()
                if time.monotonic() >= report_at:
                    self._report()
                    report_at += _REPORT_S
            self._drain(watchdog)
        finally:
            self._intake.disconnect()
            self._uplink.stop()
            self._report()
            os.close(self._woken)
            os.close(self._waker)

    def gauges(self) -> Gauges:
        """How things stand; may be called by any thread."""
        stream, intake = self._stream, self._intake
        return Gauges(
            broker_connected=intake.subscribed,
            server_connected=stream is not None,
            in_flight=len(intake.deliveries),
            in_flight_bytes=intake.deliveries.bytes,
            left_uploads=intake.deliveries.left,
            devices_known=len(self._roster),
            devices_online=self._roster.online,
            devices_limited=intake.admission.rate.limited(),
            waiting={
                "to_server": 0 if stream is None else len(stream),
                "from_server": len(self._frames) + self._uplink.waiting,
                "states": self._roster.unsent,
                "publishes": len(intake.publishing),
            },
        )

    def _turn(self) -> None:
        """Wait for something to happen, and handle it."""
        self.counts.beat_at = time.monotonic()
        wait_s = min(_TURN_S, self._intake.attend())
        paused = self._intake.paused
        if (self._frames and self._intake.can_publish()) or (self._intake.buffered and not paused):
            wait_s = 0.0
        elif self._stream is not None and self._roster.unsent:
            wait_s = min(wait_s, _ROOM_S)
        descriptor = self._intake.fileno()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        interest = (0 if paused else select.POLLIN) | (select.POLLOUT if self._intake.wants_write else 0)
        if descriptor is not None and interest:  # or a connection that was reset in a pause would end every wait
            poll.register(descriptor, interest)
        for ready, events in poll.poll(wait_s * 1000.0):
            if ready == self._woken:
                os.read(self._woken, 65536)
            else:
                if events & select.POLLOUT:
                    self._intake.write()
                if events & ~select.POLLOUT:
                    self._intake.read()
        if self._intake.buffered:
            self._intake.read()
        self._take_frames()
        self._send_roster()

    def _take_frames(self) -> None:
        """Handle what the server has sent, as long as it can be passed on."""
        for _ in range(_TURN_FRAMES):
            if not self._intake.can_publish():
                return
            if self._frames:
                self._handle(self._frames.popleft())
                continue
            event = self._uplink.take()
            if event is None:
                return
            match event:
                case StreamUp(queue=queue):
                    self._stream = queue
                    self.counts.server_connections += 1
                    self._roster.repeat()
                    self._send_roster()
                    for upload in self._intake.deliveries.renumber():
                        self._send(upload)
                case StreamDown():
                    self._stream = None
                case list():
                    self._frames.extend(event)

    def _handle(self, frame: Frame) -> None:
        fleet = self.settings.fleet
        match frame:
            case Accepted(deliveries=numbers):
                self._intake.accept(numbers)
            case ToDevice(device=device, leaf=("task" | "receipt") as leaf, payload=payload, expiry_s=expiry_s) if (
                is_name(device)
            ):
                self._intake.publishing.publish(topics.device(fleet, device, leaf), payload, expiry_s=expiry_s)
            case ModelMessage(model=model, leaf=("head" | "weights" | "bundle" | "infer") as leaf, payload=payload) if (
                is_name(model)
            ):
                self._intake.publishing.publish(topics.model(fleet, model, leaf), payload, retain=True)
            case _:
                LOG.error("from the server: a %s frame that a gateway can't use", type(frame).__name__)

    def _send(self, upload: Upload) -> None:
        # Without a stream it stays among the deliveries and goes up when the next one opens.
        if self._stream is not None:
            self.counts.uploads += 1
            self._stream.put(upload)

    def _forget_uploads(self) -> None:
        if self._stream is not None:
            self._stream.forget_uploads()

    def _change(self, loaded: Gateway) -> None:
        """Take over what `LIVE` names; the CA files are kept as they were, since a running TLS context only adds."""
        self.settings = replace(
            self.settings,
            drain_s=loaded.drain_s,
            broker=replace(loaded.broker, ca=self.settings.broker.ca),
            server=loaded.server,
            limits=loaded.limits,
        )
        self._intake.change(self.settings)
        self._uplink.change(self.settings.server)

    def _on_vitals(self, device: str, payload: bytes) -> None:
        # Vitals are worth nothing late: what can't go at once is dropped.
        if self._stream is not None and len(self._stream) < _WAITING_FRAMES:
            self._stream.put(DeviceVitals(device, payload))

    def _send_roster(self) -> None:
        if self._stream is None:
            return
        room = _WAITING_FRAMES - len(self._stream)
        for device, payload in self._roster.take_unsent(max(0, room)):
            self._stream.put(DeviceState(device, payload))

    def _tell_ready(self) -> None:
        if not self._ready and self._stream is not None and self._intake.subscribed:
            self._ready = True
            LOG.info("gateway %s is ready", self.settings.name)
            notify("READY=1")

    def _drain(self, watchdog: Watchdog) -> None:
        """Take nothing new, and wait until the server has accepted what it was given."""
        notify("STOPPING=1")
        LOG.info("stopping; %d deliveries are not yet accepted", len(self._intake.deliveries))
        self._intake.drain()
        deadline = time.monotonic() + self.settings.drain_s
        quiet_since = time.monotonic()
        while (now := time.monotonic()) < deadline:
            if not self._intake.drained or (self._frames and self._intake.can_publish()):
                quiet_since = now
            elif now - quiet_since >= _QUIET_S:
                return
            self._turn()
            watchdog.beat()
        LOG.warning(
            "stopping after %g s with %d deliveries not accepted; the broker keeps them for %d s",
            self.settings.drain_s,
            len(self._intake.deliveries),
            self.settings.session_expiry_s,
        )

    def _report(self) -> None:
        """One line on what was carried since the last one; none when there was nothing."""
        now = (self.counts.uploads, self.counts.accepted, self.counts.all_refused)
        if now != self._reported:
            sent, accepted, refused = (new - old for new, old in zip(now, self._reported, strict=True))
            LOG.info(
                "%d updates and results sent up, %d accepted, %d messages refused; %d devices known",
                sent,
                accepted,
                refused,
                len(self._roster),
            )
            self._reported = now

    def _wake(self) -> None:
        # A full pipe is a pending wake-up already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")
