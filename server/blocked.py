"""Devices that an operator has locked out of training: they get no task, and what they send is refused unread."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pollen import atomic
from pollen.errors import SettingsError, StoreError
from pollen.identity import check_name, is_name

LOG = logging.getLogger("pollen.server.blocked")

FILE: Final = "blocked.json"
MOST: Final = 100_000


class BlockedDevices:
    """The names in the file at `path`, which need not exist; a restart reads them again.

    `changed(names)` is called, by whoever blocks, after the file is on the disk. All methods may be called by any
    thread. Raises SettingsError for a file that is damaged: nobody who was blocked may come back by that.
    """

    def __init__(self, path: Path, changed: Callable[[frozenset[str]], None] = lambda _names: None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._since = _read(path)
        self._names = frozenset(self._since)
        self.changed = changed

    @property
    def names(self) -> frozenset[str]:
        """Who is blocked now."""
        return self._names

    def block(self, device: str) -> bool:
        """Block `device`, which need not have been seen yet; whether it was not before. Raises SettingsError for what
        is no device's name, StoreError when the file can't be written: then nothing has changed."""
        check_name(device, "device")
        with self._lock:
            if device in self._since:
                return False
            if len(self._since) >= MOST:
                raise StoreError(f"{self._path}: {MOST} devices are blocked; revoke the certificates of some instead")
            self._write({**self._since, device: time.time()})
        return True

    def unblock(self, device: str) -> bool:
        """Let `device` in again; whether it was blocked. Raises StoreError."""
        with self._lock:
            if device not in self._since:
                return False
            self._write({name: at for name, at in self._since.items() if name != device})
        return True

    def _write(self, since: dict[str, float]) -> None:
        try:
            atomic.write(self._path, (json.dumps({"blocked": since}, indent=1) + "\n").encode())
        except OSError as error:
            raise StoreError(f"{self._path}: can't be written ({error.strerror}); nothing has changed") from error
        self._since, self._names = since, frozenset(since)
        self.changed(self._names)


def _read(path: Path) -> dict[str, float]:
    try:
        since = json.loads(path.read_bytes())["blocked"]
        if not all(is_name(name) and isinstance(at, int | float) for name, at in since.items()):
            raise ValueError("a name or a time is none")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{path}: is damaged ({error}); put it right, or remove it to let every device in again"
        ) from error
    return dict(since)
