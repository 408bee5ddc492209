"""`pollen-edge`: the device agent."""

import os
import sys

# Before numpy is loaded: each BLAS thread would cost memory, and two threads make small models slower.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

EXAMPLES = """examples:
  pollen-edge --config /etc/pollen/edge.toml            # the agent itself
  pollen-edge status --config /etc/pollen/edge.toml     # what it learns, how well, what it waits for
  pollen-edge predict --config /etc/pollen/edge.toml    # its predictions, one line of JSON a window
  pollen-edge doctor --config /etc/pollen/edge.toml     # what is missing, and how to mend it

a minimal edge.toml:
  device = "pi-1"                  # the name the broker knows the device by
  fleet = "garden"
  model = "telemetry"
  state_dir = "/var/lib/pollen-edge"

  [broker]
  host = "broker.example.org"
  port = 8883
  ca = "ca.pem"
  certificate = "pi-1.pem"
  key = "pi-1.key"

  [sensor]
  kind = "host"                    # or bme280, iio, hwmon, serial, mqtt, replay, one of your own
  period_s = 1.0
"""


def main(argv: list[str] | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT, or one of its sub-commands; returns the exit code."""
    import threading

    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in ("status", "predict", "doctor"):
        from edge_client.local import command

        return command.main(words)

    from edge_client.settings import EdgeSettings
    from pollen import service

    def serve(settings: EdgeSettings, stop: threading.Event, reloads: service.Reloads[EdgeSettings]) -> None:
        from edge_client.agent import Agent

        Agent(settings).run(stop, reloads)

    return service.run(
        words,
        name="pollen-edge",
        description="Learn online from a sensor, and share what was learned with the fleet.",
        examples=EXAMPLES,
        cls=EdgeSettings,
        serve=serve,
    )


if __name__ == "__main__":
    sys.exit(main())
