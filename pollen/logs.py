"""Logging of a service: to stderr, for a person or as JSON lines."""

import json
import logging
import sys
import textwrap
import time
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

# C0, DEL and C1, which move a terminal's cursor, and what some readers take for the end of a line.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_CONTROLS_BUT_LINES: Final = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\n\t"}


def one_line(text: str) -> str:
    """`text` with its control characters escaped, so that what a device sent can't look like another line."""
    return text.translate(_CONTROLS)


class TextLines(logging.Formatter):
    """One line a record for a person; an exception follows on lines of its own, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line for `record`, without its exception."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """The traceback. Indented, because the exception's text may hold lines that a device wrote."""
        return textwrap.indent(super().formatException(ei).translate(_CONTROLS_BUT_LINES), "  ")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for `record`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def setup(level: str, style: LogFormat) -> None:
    """Send all logging of this process from `level` up to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
