"""Reading devices' vitals: in a thread of its own, and each device's newest only, so that a flood costs little."""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Final, Self

from pollen import messages
from pollen.errors import MessageError

LOG = logging.getLogger("pollen.server.web")

TURN_S: Final = 1.0
LIMIT_BYTES: Final = 8 * 1024  # a device of this release sends 1 kB
WAITING: Final = 20_000  # devices; those beyond lose these vitals, and the next may be taken
AT_ONCE: Final = 100  # decoded before other threads are let in
_BREATH_S: Final = 0.002


class VitalsInbox:
    """Takes vitals from the streams' threads in constant time and tells `take(device, values)` of those that can be
    read; a context manager that runs the thread. `refused()` is called for each that can't be, or is too large."""

    def __init__(self, take: Callable[[str, Mapping[str, float]], None], refused: Callable[[], None]) -> None:
        self._take = take
        self._refused = refused
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def put(self, device: str, payload: bytes) -> None:
        """Take a device's vitals, in place of earlier ones that wait."""
        if len(payload) > LIMIT_BYTES:
            self._refused()
            return
        with self._lock:
            if device in self._waiting or len(self._waiting) < WAITING:
                self._waiting[device] = payload

    def _run(self) -> None:
        while not self._stop.wait(TURN_S):
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            for number, (device, payload) in enumerate(waiting.items(), 1):
                self._read(device, payload)
                if number % AT_ONCE == 0 and self._stop.wait(_BREATH_S):
                    return

    def _read(self, device: str, payload: bytes) -> None:
        try:
            values = messages.decode_vitals(payload).values
            self._take(device, {name: float(value) for name, value in values.items() if math.isfinite(value)})
        except MessageError:
            self._refused()
        except Exception:  # a decoder must raise nothing else; if one does, the others' vitals go on
            LOG.exception("%s: vitals could not be read", device)
            self._refused()
