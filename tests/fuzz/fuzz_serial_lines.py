"""Bytes from a serial device that may say anything: `python tests/fuzz/fuzz_serial_lines.py -atheris_runs=100000`.

One reader a format lives through all runs, as on a line that never pauses.
"""

import math
import sys

import atheris

with atheris.instrument_imports(include=["edge_client.sensors"]):
    from edge_client.sensors.lines import LINE_BYTES, LineReader
    from edge_client.sensors.skipped import Skipped

NAMES = ("t", "h.0")
READERS = [LineReader(form, NAMES, Skipped("the fuzzer")) for form in ("csv", "pairs", "json")]  # type: ignore[arg-type]


def one_input(data: bytes) -> None:
    reader = READERS[data[0] % len(READERS) if data else 0]
    middle = len(data) // 2
    for part in (data[1:middle], data[middle:], b"\n"):
        values = reader.feed(part)
        if values is not None:
            assert len(values) == len(NAMES)
            assert any(map(math.isfinite, values))
            assert not any(map(math.isinf, values))
        assert len(reader._waiting) <= LINE_BYTES


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
