"""Reading a delivery: what a device's upload says, as far as that can be told without a model."""

import logging
from dataclasses import dataclass
from typing import Final

from pollen import messages
from pollen.errors import MessageError
from pollen.fields import MAX_TEXT
from pollen.messages import Result, Update
from server.gateway_link import Delivery

LOG: Final = logging.getLogger("pollen.server.delivery")


@dataclass(frozen=True, slots=True)
class Reply:
    """A device's reply to `task`, which is None when the payload can't be read; `error` is why there is no reply then,
    or the device's own. `seq` is 0 for a result."""

    task: bytes | None
    seq: int = 0
    update: Update | None = None
    result: Result | None = None
    error: str = ""


def read(delivery: Delivery, limit_bytes: int) -> Reply:
    """Decode `delivery`; an update larger than `limit_bytes` is refused unread. Raises nothing, whatever was sent."""
    try:
        if delivery.leaf == "result":
            result = messages.decode_result(delivery.payload)
            return Reply(result.task, result=result, error=result.error)
        if delivery.leaf == "update":
            update = messages.decode_update(delivery.payload, limit_bytes)
            return Reply(update.task, update.seq, update=update)
        raise MessageError(f"nothing is known of a {delivery.leaf} message")
    except Exception as error:
        if not isinstance(error, MessageError):
            # A decoder must raise nothing else; if one does, the sender is refused and the fleet goes on.
            LOG.exception("%s: a %s could not be decoded", delivery.device, delivery.leaf)
        return Reply(None, error=_unreadable(delivery, error)[:MAX_TEXT])


def _unreadable(delivery: Delivery, error: Exception) -> str:
    """The reason told to a device whose upload can't be read."""
    if delivery.leaf == "oversize":
        # The gateway sends its length and digest.
        return f"payload of {delivery.payload.decode(errors='replace').split()[0][:20]} bytes is over the limit"
    return str(error)
