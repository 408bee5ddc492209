"""Who a device is: its name on the broker, and the Flower node id derived from it."""

import functools
import hashlib
import re

from pollen.errors import SettingsError

# One MQTT topic level, one certificate CN, one file name: none of + # / $ or space.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether `text` may name a device, a fleet or a model: 1 to 64 of A-Z a-z 0-9 . _ -, not starting with . _ -."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, field: str) -> str:
    """Return `text` when it is a legal name, else raise SettingsError naming `field`."""
    if not is_name(text):
        raise SettingsError(
            f"{field}: {text!r} is not a legal name; use 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit"
        )
    return text


@functools.lru_cache(maxsize=65_536)
def node_id(device: str) -> int:
    """The device's Flower node id: the first 63 bits of SHA-256 of its name, never 0 or 1.

    Flower keeps 1 for its SuperLink; SQLite and protobuf keep 63 bits without a sign.
    """
    return max(2, int.from_bytes(hashlib.sha256(device.encode()).digest()[:8], "big") >> 1)
