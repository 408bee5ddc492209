"""Lines of text from a serial device: from bytes as they come to one row of values."""

import math
import re
from typing import Final, Literal

from edge_client.sensors.json_path import document, value_at
from edge_client.sensors.number import number
from edge_client.sensors.skipped import Skipped

Format = Literal["csv", "pairs", "json"]

LINE_BYTES: Final = 1024
_SEPARATOR: Final = re.compile(r"[,;\t]")
_PAIR: Final = re.compile(r"(?:^|[\s,;])([^\s,;=:]++)\s*+[=:]\s*+([^\s,;=:]*+)")


class LineReader:
    """Finds whole lines in what comes, and in them the values of the channels `names`.

    What comes before the first line end is dropped: its beginning may have been before we listened. At most LINE_BYTES
    wait for a line end. Lines that are longer, or hold no value of any channel, are counted in `skipped`.
    """

    def __init__(self, form: Format, names: tuple[str, ...], skipped: Skipped) -> None:
        self._form = form
        self._names = names
        self._skipped = skipped
        self._waiting = b""
        self._beginning_unknown = True

    def feed(self, data: bytes) -> list[float] | None:
        """Take bytes; the values of the newest usable line, NaN for a channel it says nothing of; None without one."""
        *whole, rest = (self._waiting + data).replace(b"\r", b"\n").split(b"\n")
        if self._beginning_unknown:
            if not whole:
                return None
            whole = whole[1:]
        self._beginning_unknown = len(rest) > LINE_BYTES
        self._waiting = b"" if self._beginning_unknown else rest
        self._skipped.add(int(self._beginning_unknown), f"longer than {LINE_BYTES} bytes")
        for line in reversed(whole):
            if not line.strip():
                continue
            values, refusal = self._values(line)
            if values is not None:
                return values
            self._skipped.add(1, refusal)
        return None

    def _values(self, line: bytes) -> tuple[list[float] | None, str]:
        """The line's values, or None and why there are none."""
        if len(line) > LINE_BYTES:
            return None, f"longer than {LINE_BYTES} bytes"
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            return None, "not text; is sensor.options.baud right?"
        if self._form == "csv":
            fields = _SEPARATOR.split(text)
            if len(fields) != len(self._names):
                return None, f"with {len(fields)} values for {len(self._names)} channels"
            values = [number(field) for field in fields]
        elif self._form == "pairs":
            pairs = dict(_PAIR.findall(text))
            values = [number(pairs.get(name, "")) for name in self._names]
        else:
            found = document(text)
            values = [math.nan if (value := value_at(found, name)) is None else value for name in self._names]
        if all(map(math.isnan, values)):
            return None, "without a number for any channel"
        return values, ""
