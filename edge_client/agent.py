"""The device agent: puts the parts together and turns their crank in one loop.

The sensor's thread and the network's thread only ever put things into bounded queues; everything else, from windows
to the outbox, happens in this loop, training in slices. So nothing waits for training, and no state needs a lock.
"""

import importlib
import logging
import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from edge_client import sensors, state_lock, vitals
from edge_client.ballast import Ballast
from edge_client.clock import Clock, SystemClock
from edge_client.learning.stream_store import StreamStore
from edge_client.local.local_socket import LocalSocket
from edge_client.model.device_model import DeviceModel
from edge_client.model.store import ModelStore
from edge_client.network.budget import Budget
from edge_client.network.delivery import Delivery
from edge_client.network.events import Acknowledged, Connected, Event, Lost, ModelReceived, Received
from edge_client.network.outbox import Outbox
from edge_client.network.session import MqttSession
from edge_client.report import Parts, Report
from edge_client.sensors.sampling import Sampler
from edge_client.settings import EdgeSettings
from edge_client.training.worker import Worker
from pollen import __version__, messages, systemd
from pollen.errors import PollenError, StoreError
from pollen.service import Reloads

if TYPE_CHECKING:
    from edge_client.learning.label_topic import LabelTopic
    from edge_client.local.publisher import PredictionPublisher

LOG = logging.getLogger(__name__)

SAMPLES_A_TURN: Final = 64
LAST_WORDS_S: Final = 3.0
OUTBOX_FLUSHES: Final = 3  # flushes of the samples to one of the outbox


class Agent:
    """One device. `run` returns when asked to stop. Raises SettingsError and StoreError at construction."""

    def __init__(self, settings: EdgeSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._lock = state_lock.lock(settings.state_dir)
        self._wake = threading.Event()
        self._birth_session: messages.Session | None = None
        self._birth_model = b""
        self._vitals_due = 0.0
        self._store = ModelStore(settings.state_dir / "model", settings.upload.snapshot_limit_bytes)
        self._ballast = Ballast(settings.state_dir / "ballast", settings.storage.ballast_bytes)
        self._outbox = Outbox(settings.state_dir / "outbox.sqlite", settings.upload.outbox_limit_bytes, self._ballast)
        self._ballast.make()
        self._stream = StreamStore(
            settings.state_dir / "stream.sqlite", settings.storage, settings.learner, self._ballast, self._clock
        )
        self._write_due = self._settle_due = 0.0
        self._model = DeviceModel(settings, self._store, self._outbox)
        self._session = MqttSession(settings, os.urandom(8), self._clock, self._wake)
        self._budget = Budget(settings.upload.bytes_per_day, settings.state_dir / "sent_today", self._clock)
        self._delivery = Delivery(self._outbox, self._session, settings.upload, self._budget, self._clock)
        self._worker = Worker(
            settings, self._model, self._outbox, self._session, clock=self._clock,
            metrics=lambda: self._report.vitals(),  # noqa: PLW0108 - the report comes after what it reports on
        )  # fmt: skip
        self._labels = _label_topic(settings, self._clock, self._wake)
        self._sampler = Sampler(sensors.find(settings.sensor.kind), settings.sensor, clock=self._clock, wake=self._wake)
        parts = Parts(
            self._model, self._stream, self._outbox, self._session, self._budget, self._delivery, self._worker,
            self._sampler,
        )  # fmt: skip
        self._report = Report(settings, parts, self._clock)
        socket = settings.local.path_in(settings.state_dir)
        self._local = None if socket is None else LocalSocket(socket)
        self._publisher = _publisher(settings)
        self._model.listeners.extend(part.publish for part in (self._local, self._publisher) if part is not None)

    def run(self, stop: threading.Event, reloads: Reloads[EdgeSettings] | None = None) -> None:
        """Learn until `stop` is set; then publish what waits, and say goodbye."""
        watchdog = systemd.Watchdog()
        self._sampler.start()
        if self._labels is not None:
            self._labels.start()
        if self._local is not None:
            self._local.open()
        if self._publisher is not None:
            self._publisher.start()
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
            if reloads is not None:
                reloads.take()
            if wait:
                self._clock.wait(self._wake, wait)
        systemd.notify("STOPPING=1")
        self._shut_down()

    def _turn(self) -> float:
        """One round of everything; the seconds until the next is due if nothing happens."""
        self._handle_events()
        samples = self._sampler.take(SAMPLES_A_TURN)
        if self._sampler.channels:
            channels = self._sampler.channels
            if self._publisher is not None:
                self._publisher.describe(channels, self._settings.sensor.period_s)
            self._model.set_channels(len(channels), [channel.name for channel in channels])
            self._stream.use_channels(channels)
            if self._model.learner is not None and self._model.graph is not None:
                self._stream.attach(self._model.learner, self._model.graph.manifest)
        self._model.observe(samples)
        self._stream.add(samples)
        for event in () if self._labels is None else self._labels.take():
            placed = self._model.label(event)
            if placed is not None:
                self._stream.label(placed.label, placed.first, placed.last)
        wait = self._worker.advance()
        self._delivery.advance()
        self._announce()
        self._publish_vitals()
        self._write()
        if self._local is not None:
            self._local.poll(self._report.status)
        return 0.0 if len(samples) == SAMPLES_A_TURN else wait

    def _write(self) -> None:
        """Write to the card what is written in batches; what can't be fetched again at once while offline."""
        now = self._clock.monotonic()
        calm = self._session.connected and not self._worker.grows
        self._store.flush(now if calm else math.inf)
        if now < self._write_due:
            return
        self._write_due = now + self._settings.storage.flush_s
        self._ballast.make()
        self._stream.flush()
        if now < self._settle_due:
            return
        # Mostly the next reply has taken open task and receipts along by then.
        self._settle_due = now + OUTBOX_FLUSHES * self._settings.storage.flush_s
        try:
            self._outbox.flush()
        except StoreError as error:
            LOG.error("%s", error)

    def _handle_events(self) -> None:
        for event in self._session.events():
            try:
                self._handle(event)
            except PollenError as error:  # a bad message, or a disk that is full: neither ends the agent
                LOG.warning("%s", error)

    def _handle(self, event: Event) -> None:
        match event:
            case Connected(session, largest_packet, address):
                self._birth_session = session
                self._birth_model = b"none yet"
                self._delivery.connected(largest_packet, address)
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
                self._report.receipted(receipt)
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
            clock={True: "synchronised", False: "unsynchronised", None: ""}[self._clock.synchronised()],
        )
        payload = messages.encode(birth)  # sent whatever was spent: without it the device counts as gone
        if self._session.publish("state", payload, qos=1, retain=True) is not None:
            self._birth_model = self._model.digest
            self._budget.spend(len(payload))

    def _publish_vitals(self) -> None:
        now = self._clock.monotonic()
        if now < self._vitals_due or self._birth_session is None:
            return
        payload = messages.encode(messages.Vitals(messages.finite_metrics(self._report.vitals())))
        self._vitals_due = now + max(self._delivery.vitals_s, self._budget.vitals_s(len(payload)))
        if not self._budget.allows(len(payload)):
            return
        if self._session.publish("vitals", payload, qos=0) is not None:
            self._budget.spend(len(payload))
        self._sampler.counters.largest_jitter_s = 0.0

    def _shut_down(self) -> None:
        """Stop sampling, publish what waits and wait for its receipts, then leave."""
        self._sampler.stop()
        self._stream.close()
        self._store.flush()
        if self._labels is not None:
            self._labels.stop()
        if self._publisher is not None:
            self._publisher.stop()
        if self._local is not None:
            self._local.close()
        deadline = self._clock.monotonic() + self._settings.upload.drain_s
        while self._outbox.rows and not self._delivery.held and self._session.connected:
            if self._clock.monotonic() >= deadline:
                break
            self._wake.clear()
            self._handle_events()
            self._delivery.advance()
            self._clock.wait(self._wake, 0.05)
        self._handle_events()
        if self._outbox.rows:
            LOG.info("%d replies stay in the outbox for the next start", len(self._outbox.rows))
        session = self._birth_session or messages.Session(b"\0" * 8, 0)
        self._session.stop(messages.encode(messages.Death(session, "stopped")), LAST_WORDS_S)
        self._model.record.rest()
        self._budget.save()
        self._outbox.close()
        self._lock.close()
        LOG.info("stopped")


def _label_topic(settings: EdgeSettings, clock: Clock, wake: threading.Event) -> "LabelTopic | None":
    """Costs memory, so only where it is used."""
    if settings.learner.target != "label" or settings.labels.source != "topic":
        return None
    module = importlib.import_module("edge_client.learning.label_topic")
    topic: LabelTopic = module.LabelTopic(settings, clock, wake)
    return topic


def _publisher(settings: EdgeSettings) -> "PredictionPublisher | None":
    """See `_label_topic`."""
    if settings.predictions.publish == "off":
        return None
    module = importlib.import_module("edge_client.local.publisher")
    publisher: PredictionPublisher = module.PredictionPublisher(settings)
    return publisher
