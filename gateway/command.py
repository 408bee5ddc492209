"""`pollen-gateway`: bridge the MQTT broker and the server."""

import sys
import threading

from gateway.settings import Gateway
from pollen import service

_EXAMPLES = """\
examples:
  pollen-gateway --config gateway.toml
  POLLEN_BROKER_PASSWORD=… pollen-gateway --config gateway.toml --show-config

It may be killed at any moment and started several times, each with its own name. SIGTERM: take nothing new, wait
until the server has accepted what it was given, end with 0.
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
    )


def _serve(settings: Gateway, stop: threading.Event, _reloads: service.Reloads[Gateway]) -> None:
    # grpc and paho cost half a second to import; --help and --show-config need neither.
    from gateway.bridge_loop import BridgeLoop

    BridgeLoop(settings).run(stop)


if __name__ == "__main__":
    sys.exit(main())
