"""The device agent: puts the parts together and turns their crank in one loop.

The sensor's thread and the network's thread only ever put things into bounded queues; everything else, from windows
to the outbox, happens in this loop, training in slices. So nothing waits for training, and no state needs a lock.
"""

import logging
import os
import sys
import threading
from typing import Final

from edge_client import sensors, vitals
from edge_client.clock import Clock, SystemClock
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.delivery import Delivery
from edge_client.network.events import Acknowledged, Connected, Event, Lost, ModelReceived, Received
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.sensors.sampling import Sampler
from edge_client.settings import EdgeSettings
from edge_client.training.worker import Worker
from pollen import __version__, messages, systemd
from pollen.errors import PollenError

LOG = logging.getLogger(__name__)

SAMPLES_A_TURN: Final = 64
LAST_WORDS_S: Final = 3.0


class Agent:
    """One device. `run` returns when asked to stop. Raises SettingsError and StoreError at construction."""

    def __init__(self, settings: EdgeSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._wake = threading.Event()
        self._birth_session: messages.Session | None = None
        self._birth_model = b""
        self._vitals_due = 0.0
        self._store = ModelStore(settings.state_dir / "model", settings.upload.snapshot_limit_bytes)
        self._outbox = Outbox(settings.state_dir / "outbox.sqlite", settings.upload.outbox_limit_bytes)
        self._model = DeviceModel(settings, self._store, self._outbox)
        self._session = MqttSession(settings, os.urandom(8), self._clock, self._wake)
        self._delivery = Delivery(self._outbox, self._session, settings.upload, self._clock)
        self._worker = Worker(
            settings, self._model, self._outbox, self._session, clock=self._clock, metrics=self._measurements
        )
        self._sampler = Sampler(
            sensors.find(settings.sensor.kind),
            settings.sensor.options,
            period_s=settings.sensor.period_s,
            phase_s=settings.sensor.phase_s,
            queue=settings.sensor.queue,
            clock=self._clock,
            wake=self._wake,
        )

    def run(self, stop: threading.Event) -> None:
        """Learn until `stop` is set; then publish what waits, and say goodbye."""
        watchdog = systemd.Watchdog()
        self._sampler.start()
        # On Linux niceness is a thread's own: sampling and network keep theirs. Only root may lower it.
        thread = threading.get_native_id()
        nice = max(self._settings.training.nice, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, nice)
        self._model.restore()
        self._worker.restore()
        self._session.start()
        systemd.notify("READY=1")
        while not stop.is_set():
            self._wake.clear()
            wait = self._turn()
            watchdog.beat()
            if wait:
                self._clock.wait(self._wake, wait)
        systemd.notify("STOPPING=1")
        self._shut_down()

    def _turn(self) -> float:
        """One round of everything; the seconds until the next is due if nothing happens."""
        self._handle_events()
        if self._sampler.channels:
            self._model.set_channels(len(self._sampler.channels))
        samples = self._sampler.take(SAMPLES_A_TURN)
        self._model.observe(samples)
        wait = self._worker.advance()
        self._delivery.advance()
        self._announce()
        self._publish_vitals()
        return 0.0 if len(samples) == SAMPLES_A_TURN else wait

    def _handle_events(self) -> None:
        for event in self._session.events():
            try:
                self._handle(event)
            except PollenError as error:  # a bad message, or a disk that is full: neither ends the agent
                LOG.warning("%s", error)

    def _handle(self, event: Event) -> None:
        match event:
            case Connected(session, largest_packet):
                self._birth_session = session
                self._birth_model = b"none yet"
                self._delivery.connected(largest_packet)
            case Lost():
                self._birth_session = None
                self._delivery.lost()
            case Received("task", payload):
                task = messages.decode_task(payload)
                if self._worker.accept(payload):
                    self._delivery.repeat(task.task)
            case Received("receipt", payload):
                receipt = messages.decode_receipt(payload)
                self._delivery.receipted(receipt)
                self._worker.closed(receipt)
            case ModelReceived("infer", payload):
                self._model.published.take(payload)
            case ModelReceived(leaf, payload):
                self._worker.fetched(leaf, payload)
            case Acknowledged(ticket, error, heard):
                if not self._delivery.acknowledged(ticket, error, heard=heard) and error:
                    LOG.error("the broker refused our state message: %s; check its access rules", error)

    def _announce(self) -> None:
        """Publish the birth once a connection, and again when the model has changed."""
        session = self._birth_session
        if session is None or self._birth_model == self._model.digest:
            return
        graph = self._model.graph
        birth = messages.Birth(
            session,
            software=f"pollen-fl {__version__}",
            python=sys.version.split(maxsplit=1)[0],
            interpreter=graph.runtime if graph else "",
            machine=os.uname().machine,
            cores=os.cpu_count() or 0,
            ram_bytes=vitals.ram_bytes(),
            sensors=(self._settings.sensor.kind,),
            models=(self._settings.model,),
        )
        if self._session.publish("state", messages.encode(birth), qos=1, retain=True) is not None:
            self._birth_model = self._model.digest

    def _publish_vitals(self) -> None:
        now = self._clock.monotonic()
        if now < self._vitals_due or not self._session.connected:
            return
        self._vitals_due = now + self._settings.upload.vitals_s
        values = messages.finite_metrics(self._measurements())
        self._session.publish("vitals", messages.encode(messages.Vitals(values)), qos=0)

    def _measurements(self) -> dict[str, float]:
        """All vitals of this device by name."""
        model, session = self._model, self._session
        values = vitals.machine(self._settings.state_dir) | {
            "samples_seen": model.samples_seen,
            "samples_skipped": self._sampler.skipped,
            "samples_dropped": self._sampler.dropped,
            "sensor_failures": self._sampler.failures,
            "updates_made": self._worker.updates_made,
            "receipts_merged": self._delivery.merged,
            "receipts_rejected": self._delivery.rejected,
            "outbox_rows": len(self._outbox.rows),
            "outbox_oversize": self._delivery.oversize,
            "sent_bytes": session.sent_bytes,
            "received_bytes": session.received_bytes,
            "train_seconds_total": self._worker.train_seconds,
            "reconnects": session.reconnects,
        }
        if model.snapshot is not None:
            values["base_version"] = model.snapshot.number
        if self._settings.inference.graph != "off":
            values |= {
                "inference_version": model.published.version,
                "inference_predictions": model.published.predictions,
            }
        if model.learner is not None:
            prequential = model.learner.prequential
            values |= {
                "buffer_samples": len(model.learner.buffer),
                "scored": prequential.count,
                "prequential_error": prequential.error,
                "baseline_error": prequential.baseline,
                "error_first": prequential.error_first,
                "baseline_first": prequential.baseline_first,
                "unknown_labels": model.learner.unknown_labels,
                "unknown_inputs": model.learner.unknown_inputs,
            }
        return values

    def _shut_down(self) -> None:
        """Stop sampling, publish what waits and wait for its receipts, then leave."""
        self._sampler.stop()
        deadline = self._clock.monotonic() + self._settings.upload.drain_s
        while self._outbox.rows and self._session.connected and self._clock.monotonic() < deadline:
            self._wake.clear()
            self._handle_events()
            self._delivery.advance()
            self._clock.wait(self._wake, 0.05)
        self._handle_events()
        if self._outbox.rows:
            LOG.info("%d replies stay in the outbox for the next start", len(self._outbox.rows))
        session = self._birth_session or messages.Session(b"\0" * 8, 0)
        self._session.stop(messages.encode(messages.Death(session, "stopped")), LAST_WORDS_S)
        self._outbox.close()
        LOG.info("stopped")
