"""The newest birth or death of every device, and which of them the server has yet to hear."""

from collections.abc import Iterator

from pollen import messages
from pollen.errors import MessageError
from pollen.messages import Birth


class Roster:
    """Every gateway keeps the whole roster, since each may be the only one that reaches the server.

    Changes wait here and not in a queue: a device that flaps while the server is away costs one entry.
    """

    def __init__(self) -> None:
        self._states: dict[str, bytes] = {}
        self._unsent: dict[str, None] = {}  # a set that keeps the order
        self._online: set[str] = set()

    def __len__(self) -> int:
        return len(self._states)

    def put(self, device: str, payload: bytes) -> None:
        """Take what a device published on its state topic; empty when its retained state was removed."""
        if self._states.get(device) != payload:
            self._states[device] = payload
            self._unsent[device] = None
            (self._online.add if _is_birth(payload) else self._online.discard)(device)

    @property
    def online(self) -> int:
        """Devices whose newest state is a birth."""
        return len(self._online)

    def repeat(self) -> None:
        """Everything is to be sent again: the server at the other end knows nothing of it."""
        self._unsent = dict.fromkeys(self._states)

    @property
    def unsent(self) -> int:
        """How many devices have a change that was not taken yet."""
        return len(self._unsent)

    def take_unsent(self, most: int) -> Iterator[tuple[str, bytes]]:
        """Up to `most` changes, oldest first; each counts as sent once it is taken."""
        for _ in range(min(most, len(self._unsent))):
            device = next(iter(self._unsent))
            del self._unsent[device]
            payload = self._states[device]
            if not payload:
                del self._states[device]
            yield device, payload


def _is_birth(payload: bytes) -> bool:
    try:
        return bool(payload) and isinstance(messages.decode_state(payload), Birth)
    except MessageError:
        return False  # the server says what is wrong with it
