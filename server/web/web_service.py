"""The server's web side put together: what is known for people, fed by hub and merge loops, and served over HTTP."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pollen.http_service import HttpService
from pollen.http_settings import Http
from server.blocked import BlockedDevices
from server.bridge_service import Listen
from server.certificate_ends import seconds_left
from server.gateway_hub import GatewayHub
from server.gateway_link import GatewayLink
from server.history import AsyncHistory
from server.web import past
from server.web.application import Application, Shown
from server.web.blocking import Blocking
from server.web.fleet_view import FleetView
from server.web.gauges import Gauges, Reading
from server.web.health import Health
from server.web.metrics import Metrics
from server.web.model_view import ModelView
from server.web.vitals_inbox import VitalsInbox
from server.web.watched_history import WatchedHistory


class WebService:
    """Make it first, `view` for the hub; `watch` each model; then `serving` for as long as models are trained."""

    def __init__(self, fleet: str, http: Http, state_dir: Path, listen: Listen) -> None:
        self.view = FleetView()
        self._fleet = fleet
        self._http = http
        self._state_dir = state_dir
        self._certificates = {
            "ca": listen.ca,
            "certificate": listen.certificate,
            "crl": listen.crl,
            "http": http.certificate,
        }
        self._metrics = Metrics()
        self._models: list[ModelView] = []
        self._histories: list[AsyncHistory] = []

    def watch(self, name: str, rule: str, parameters: int, history: Path, keep: int) -> tuple[ModelView, AsyncHistory]:
        """The view of a further model, and its history, which tells that view; what the file `history` says of
        earlier runs is in it already."""
        view = ModelView(name, rule, parameters, self.view, self._metrics.of(name))
        past.read(history, view)
        self._models.append(view)
        self._histories.append(WatchedHistory(history, keep, view))
        return view, self._histories[-1]

    @contextmanager
    def serving(
        self, hub: GatewayHub, links: Sequence[GatewayLink], blocked: BlockedDevices, stop: threading.Event
    ) -> Iterator[HttpService]:
        """Answer while this lasts; `links` in the models' order. Raises PollenError when the port can't be had."""
        models = list(zip(self._models, links, strict=True))
        self._metrics.registry.register(Gauges(self._readings(hub, models, blocked)))
        shown = Shown(
            fleet=self._fleet,
            view=self.view,
            models={model.name: model for model in self._models},
            metrics=self._metrics,
            health=Health(models, stop),
            blocking=Blocking(blocked, self._note),
            http=self._http,
        )
        with VitalsInbox(self.view.measured, self._metrics.vitals_refused.inc) as vitals:
            self.view.vitals_to = vitals.put
            with HttpService(Application(shown).asgi(), self._http) as service:
                yield service

    def _note(self, event: str, device: str, by: str) -> None:
        """Blocking concerns all models, so it is in the history of each."""
        for model, history in zip(self._models, self._histories, strict=True):
            history.add_event(event, model.version, device=device, by=by)

    def _readings(
        self, hub: GatewayHub, models: Sequence[tuple[ModelView, GatewayLink]], blocked: BlockedDevices
    ) -> list[Reading]:
        view, histories = self.view, list(zip(self._models, self._histories, strict=True))

        def free_bytes() -> float:
            disk = os.statvfs(self._state_dir)
            return float(disk.f_bavail * disk.f_frsize)

        model = ("model",)
        return [
            Reading("pollen_server_tasks_open", "Train tasks that wait for their answer.", model,
                    lambda: [((m.name,), m.open_tasks) for m, _ in models]),
            Reading("pollen_server_model_version", "The model's version: merges ever.", model,
                    lambda: [((m.name,), m.version) for m, _ in models]),
            Reading("pollen_server_model_published_version", "The newest version that devices can have.", model,
                    lambda: [((m.name,), m.published_version or 0) for m, _ in models]),
            Reading("pollen_server_loop_silent_seconds", "Seconds since the merge loop has turned.", model,
                    lambda: [((m.name,), m.silent_s()) for m, _ in models]),
            Reading("pollen_server_loop_running", "1 while the merge loop runs.", model,
                    lambda: [((m.name,), float(m.running)) for m, _ in models]),
            Reading("pollen_server_inbox_uploads", "Uploads that wait for the merge loop.", model,
                    lambda: [((m.name,), link.waiting()[0]) for m, link in models]),
            Reading("pollen_server_inbox_bytes", "Their size.", model,
                    lambda: [((m.name,), link.waiting()[1]) for m, link in models]),
            Reading("pollen_server_history_lines_lost", "Lines that history.jsonl lacks.", model,
                    lambda: [((m.name,), history.lines_lost) for m, history in histories], counts=True),
            Reading("pollen_server_devices_known", "Devices ever seen.", (), lambda: [((), view.counts()[0])]),
            Reading("pollen_server_devices_online", "Devices online.", (), lambda: [((), view.counts()[1])]),
            Reading("pollen_server_devices_blocked", "Devices blocked.", (), lambda: [((), len(blocked.names))]),
            Reading("pollen_server_gateways_connected", "Gateways' streams that are open.", (),
                    lambda: [((), len(view.streams()))]),
            Reading("pollen_server_gateway_queue_frames", "Frames that wait to be sent to gateways.", (),
                    lambda: [((), sum(stream.waiting for stream in view.streams()))]),
            Reading("pollen_server_streams_refused", "Gateways' streams refused.", ("reason",),
                    lambda: [((reason,), count) for reason, count in hub.refusals().items()], counts=True),
            Reading("pollen_server_unclaimed_uploads", "Uploads refused since no model here asked for them.", (),
                    lambda: [((), view.unclaimed_uploads)], counts=True),
            Reading("pollen_server_received_bytes", "Bytes that came from gateways.", (),
                    lambda: [((), view.totals()["bytes"]["received"])], counts=True),
            Reading("pollen_server_sent_bytes", "Bytes that went to gateways.", (),
                    lambda: [((), view.totals()["bytes"]["sent"])], counts=True),
            Reading("pollen_server_certificate_expiry_seconds", "Until the end of [listen]'s files and of [http]'s.",
                    ("file",), lambda: [((file,), left) for file, left in seconds_left(self._certificates).items()]),
            Reading("pollen_server_state_free_bytes", "Room on the disk of state_dir.", (),
                    lambda: [((), free_bytes())]),
        ]  # fmt: skip
