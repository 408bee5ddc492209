"""The server's HTTP: health, metrics, the API and the pages, as one ASGI application."""

import functools
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pollen import __version__
from pollen.errors import PollenError
from pollen.fields import MAX_NAME
from pollen.http_settings import Http
from pollen.identity import is_name
from server.history_file import line
from server.web.answers import Kept, answer, error
from server.web.blocking import Blocking
from server.web.fleet_view import FleetView
from server.web.health import Health
from server.web.metrics import Metrics
from server.web.model_view import ModelView
from server.web.pace import Pace
from server.web.pages import routes as page_routes
from server.web.security import Security

LOG = logging.getLogger("pollen.server.web")

MOST_ROWS: Final = 1000
MOST_EVENTS: Final = 200

Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the application shows, and whom it asks to block a device."""

    fleet: str
    view: FleetView
    models: dict[str, ModelView]
    metrics: Metrics
    health: Health
    blocking: Blocking
    http: Http


class Application:
    """The answers. They are made in the event loop, from what is there: none of them waits or takes long."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._view = shown.view
        self._fleet = Kept(lambda: line(self._summary()).encode())
        self._map = Kept(lambda: line(self._cells()).encode())
        self._metrics = Kept(lambda: generate_latest(shown.metrics.registry))

    def asgi(self) -> Any:
        """The whole application."""
        routes = [
            ("/healthz", self.healthz),
            ("/readyz", self.readyz),
            ("/metrics", self.metrics),
            ("/api/fleet", self.fleet),
            ("/api/map", self.map),
            ("/api/devices", self.devices),
            ("/api/devices/{name}", self.device),
            ("/api/models/{name}/evaluations", self.evaluations),
            ("/api/events", self.events),
        ]
        posts = [("/api/devices/{name}/block", self.block), ("/api/devices/{name}/unblock", self.unblock)]
        starlette = Starlette(
            routes=page_routes()
            + [Route(path, _caught(made), methods=["GET"]) for path, made in routes]
            + [Route(path, _caught(made), methods=["POST"]) for path, made in posts],
            exception_handlers={404: _unknown, 405: _not_allowed},
        )
        starlette.router.redirect_slashes = False
        return Pace(Security(starlette, self._shown.http.hosts))

    # --- for machines

    async def healthz(self, _request: Request) -> Response:
        """Answer `/healthz`."""
        ailments = self._shown.health.ailments()
        return answer({"healthy": not ailments, "problems": ailments}, 503 if ailments else 200)

    async def readyz(self, _request: Request) -> Response:
        """Answer `/readyz`."""
        reasons = self._shown.health.unready()
        return answer({"ready": not reasons, "problems": reasons}, 503 if reasons else 200)

    async def metrics(self, _request: Request) -> Response:
        """Answer `/metrics`."""
        return Response(self._metrics.get(), headers={"content-type": CONTENT_TYPE_LATEST})

    # --- the API

    async def fleet(self, _request: Request) -> Response:
        """Answer `/api/fleet`."""
        return Response(self._fleet.get(), media_type="application/json")

    async def map(self, _request: Request) -> Response:
        """Answer `/api/map`."""
        return Response(self._map.get(), media_type="application/json")

    async def devices(self, request: Request) -> Response:
        """Answer `/api/devices`."""
        limit = _whole(request, "limit", 100, 1, MOST_ROWS)
        asked = request.query_params
        after, q = asked.get("after", "")[:MAX_NAME], asked.get("q", "")[:MAX_NAME]
        records, then = self._view.page(after, limit, q)
        versions, blocked = self._versions(), self._shown.blocking.names
        rows = [record.row(versions.get(record.model or ""), blocked=record.name in blocked) for record in records]
        return answer({"devices": rows, "next": then})

    async def device(self, request: Request) -> Response:
        """Answer `/api/devices/NAME`."""
        name = request.path_params["name"]
        found = self._view.device(name, self._versions(), blocked=name in self._shown.blocking.names)
        return error(404, f"no device {name!r} is known") if found is None else answer(found)

    async def evaluations(self, request: Request) -> Response:
        """Answer `/api/models/NAME/evaluations`."""
        model = self._shown.models.get(request.path_params["name"])
        if model is None:
            return error(404, f"no such model; served: {', '.join(self._shown.models)}")
        return answer(model.evaluations())

    async def events(self, request: Request) -> Response:
        """Answer `/api/events`."""
        after = _whole(request, "after", 0, 0, 2**53)
        newest, events = self._view.events(after, _whole(request, "limit", MOST_EVENTS, 1, MOST_EVENTS))
        return answer({"next": newest, "events": events})

    async def block(self, request: Request) -> Response:
        """Answer `/api/devices/NAME/block`."""
        return await self._change(request, self._shown.blocking.block)

    async def unblock(self, request: Request) -> Response:
        """Answer `/api/devices/NAME/unblock`."""
        return await self._change(request, self._shown.blocking.unblock)

    async def _change(self, request: Request, change: Callable[[str, str], bool]) -> Response:
        name, peer = request.path_params["name"], request.client.host if request.client else "?"
        token = self._shown.http.token
        if not token:
            return error(403, "this server is read-only: it has no http.token")
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(shown.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not right:
            LOG.warning("%s: %s refused: wrong token", peer, request.url.path[:200])
            return error(401, "wrong token", {"www-authenticate": "Bearer"})
        if not is_name(name):
            return error(404, "no device can have that name")
        try:
            changed = await run_in_threadpool(change, name, peer)
        except PollenError as refused:
            return error(503, str(refused))
        return answer({"name": name, "blocked": name in self._shown.blocking.names, "changed": changed})

    # --- what is kept for a second

    def _versions(self) -> dict[str, int]:
        return {name: model.version for name, model in self._shown.models.items()}

    def _summary(self) -> dict[str, Any]:
        known, online = self._view.counts()
        errors = _mean_errors(self._view, self._shown.models)
        return {
            "fleet": self._shown.fleet,
            "software": __version__,
            "now": time.time(),
            "started_at": self._view.started_at,
            "writable": bool(self._shown.http.token),
            "models": [model.summary(*errors[name]) for name, model in self._shown.models.items()],
            "gateways": [
                {"name": one.name, "since": one.since, "software": one.software, "peer": one.peer}
                for one in self._view.gateways()
            ],
            "devices": {"known": known, "online": online, "blocked": len(self._shown.blocking.names)},
            **self._view.totals(),
        }

    def _cells(self) -> dict[str, Any]:
        now, versions, blocked = time.time(), self._versions(), self._shown.blocking.names
        return {
            "devices": [
                [
                    record.name,
                    int(record.online),
                    record.behind(versions.get(record.model or "")),
                    int(record.name in blocked),
                    int(record.recently_rejected(now)),
                ]
                for record in self._view.records()
            ]
        }


def _mean_errors(view: FleetView, models: dict[str, ModelView]) -> dict[str, tuple[float | None, float | None]]:
    """By model, the mean error and baseline of the devices that are online, last contributed to it, and tell both."""
    sums = {name: [0.0, 0.0, 0.0] for name in models}
    for record in view.records():
        error_, baseline = record.vital("error"), record.vital("baseline")
        if record.online and record.model in sums and error_ is not None and baseline is not None:
            total = sums[record.model]
            total[0], total[1], total[2] = total[0] + error_, total[1] + baseline, total[2] + 1
    return {name: (a / n, b / n) if n else (None, None) for name, (a, b, n) in sums.items()}


def _caught(made: Answer) -> Answer:
    """A view that fails is a 500 and a line in the log."""

    @functools.wraps(made)
    async def caught(request: Request) -> Response:
        try:
            return await made(request)
        except _BadRequestError as refused:
            return error(400, str(refused))
        except Exception:
            LOG.exception("%s could not be answered", request.url.path[:200])
            return error(500, "this could not be answered; the server's log says why")

    return caught


class _BadRequestError(Exception):
    """A parameter can't be used."""


def _whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise _BadRequestError(f"{name} must be a whole number")
    return min(max(int(text), least), most)


async def _unknown(_request: Request, _error: Exception) -> Response:
    return error(404, "nothing is here")


async def _not_allowed(_request: Request, _error: Exception) -> Response:
    return error(405, "not that method")
