"""The gateway's HTTP: /healthz, /readyz and /metrics."""

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.counts import Counts, Gauges

# The loop comes round twice a second; dialling a broker that doesn't answer takes it up to ten seconds.
BEAT_S: Final = 30.0


def application(
    counts: Counts, gauges: Callable[[], Gauges], metrics: CollectorRegistry, hosts: list[str]
) -> Starlette:
    """Answers requests whose Host header is one of `hosts`.

    /healthz is 503 when the loop hangs, so that a supervisor restarts the gateway; /readyz is 503, with the reasons,
    while broker or server is away, which a restart doesn't cure.
    """

    def healthz(_request: Request) -> JSONResponse:
        silent_s = time.monotonic() - counts.beat_at
        return _answer([f"the loop has not come round for {silent_s:.0f} s"] if silent_s > BEAT_S else [])

    def readyz(_request: Request) -> JSONResponse:
        now = gauges()
        reasons = [] if now.broker_connected else ["not subscribed at the broker"]
        return _answer(reasons if now.server_connected else [*reasons, "no stream to the server"])

    def scrape(_request: Request) -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST, headers=_HEADERS)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
    )


def _answer(reasons: list[str]) -> JSONResponse:
    return JSONResponse(
        {"status": "unavailable" if reasons else "ok", "reasons": reasons}, 503 if reasons else 200, _HEADERS
    )


_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
