"""The server's history, read while it is written: JSON lines, one event each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class History:
    """All events of `history.jsonl` so far. `elapsed_s` in them counts from the server's start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        """The events written since the last call; a line that is still being written waits for the next one."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        new = [json.loads(line) for line in whole.splitlines()]
        self.events += new
        return new

    def of(self, kind: str) -> Iterator[Event]:
        """The events of one kind, oldest first."""
        return (event for event in self.events if event["event"] == kind)
