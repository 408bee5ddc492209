"""`pollen-gateway`: bridge the MQTT broker and the server."""

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING

from gateway import memory
from gateway.settings import LIVE, OPEN_GROUP, Gateway
from pollen import service
from pollen.broker import LOOPBACK
from pollen.http_settings import Http

if TYPE_CHECKING:
    from gateway.bridge_loop import BridgeLoop
    from pollen.http_service import HttpService

LOG = logging.getLogger("pollen.gateway")

_EXAMPLES = """\
examples:
  pollen-gateway --config gateway.toml
  POLLEN_BROKER_PASSWORD=… pollen-gateway --config gateway.toml --show-config

It may be killed at any moment and started several times, each with its own name. SIGTERM: take nothing new, wait
until the server has accepted what it was given, end with 0. SIGHUP: read the settings file again. With [http] port:
/healthz, /readyz and /metrics.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code."""
    return service.run(
        argv,
        name="pollen-gateway",
        description="Carry messages between the devices' MQTT broker and the Pollen server.",
        examples=_EXAMPLES,
        cls=Gateway,
        serve=_serve,
        live=LIVE,
    )


def _serve(settings: Gateway, stop: threading.Event, reloads: service.Reloads[Gateway]) -> None:
    # grpc and paho cost half a second to import; --help and --show-config need neither.
    from gateway.bridge_loop import BridgeLoop

    if settings.group == OPEN_GROUP and settings.broker.host not in LOOPBACK:
        LOG.warning(
            "group has its default, which every device can guess, and one that joins it makes updates late;"
            " give all gateways of the fleet one that nobody guesses: openssl rand -hex 16"
        )
    memory.bound()
    loop = BridgeLoop(settings)
    with _http(loop, settings.http) if settings.http.port else contextlib.nullcontext():
        loop.run(stop, reloads)


def _http(loop: "BridgeLoop", settings: Http) -> "HttpService":
    # 15 MB that a gateway without [http] does without.
    from gateway.health import application
    from gateway.metrics import GatewayMetrics, registry
    from pollen.http_service import HttpService

    metrics = registry(GatewayMetrics(loop.counts, loop.gauges, lambda: loop.settings))
    return HttpService(application(loop.counts, loop.gauges, metrics, settings.hosts), settings)


if __name__ == "__main__":
    sys.exit(main())
