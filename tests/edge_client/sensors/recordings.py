"""A recording read to its end."""

from edge_client.sensors import EndOfStreamError, Reading
from edge_client.sensors.replay import ReplaySensor


def all_readings(one: ReplaySensor, most: int = 10_000) -> list[Reading]:
    found = []
    for _ in range(most):
        try:
            reading = one.read()
        except EndOfStreamError:
            break
        assert reading is not None
        found.append(reading)
    one.close()
    return found
