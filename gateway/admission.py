"""What becomes of a message from the broker: by its topic, its size, and how much its device has sent lately."""

import logging
from collections.abc import Iterator
from hashlib import sha256
from typing import Final, NamedTuple

from gateway.counts import Counts, Refusal
from gateway.rate_limit import RateLimit
from gateway.settings import Limits
from pollen import topics

LOG = logging.getLogger("pollen.gateway.admission")

UPLOADS: Final = ("update", "result")


class Admitted(NamedTuple):
    """A message that is passed on; `leaf` is update, result, oversize, state or vitals."""

    device: str
    leaf: str
    payload: bytes


class Admission:
    """Counts every message, and refuses some: an honest device sends what matters again from its outbox.

    A state over the rate is not lost but waits for its turn, the newest only: the server must not take a dead device
    for a living one.
    """

    def __init__(self, limits: Limits, counts: Counts) -> None:
        self._limits = limits
        self._counts = counts
        self.rate = RateLimit(limits)
        self._late_states: dict[str, bytes] = {}

    def change(self, limits: Limits) -> None:
        """Other limits from now on."""
        self._limits = limits
        self.rate.change(limits)

    def admit(self, topic_name: str, payload: bytes, *, qos: int, again: bool) -> Admitted | None:
        """What to pass on, None when nothing. `again`: the broker delivers it a second time."""
        topic = topics.parse_device(topic_name)
        leaf: str = topic.leaf if topic is not None and topic.leaf in topics.FROM_DEVICE else "other"
        self._counts.receive(leaf, len(payload))
        upload = leaf in UPLOADS
        if topic is None or leaf == "other" or (upload and not qos):
            self._refuse("topic", topic_name, len(payload))
            return None
        if not upload and len(payload) > self._limits.message_bytes:
            self._refuse("oversize", topic_name, len(payload))
            return None
        # A redelivery was counted when it came first, and Receive Maximum bounds how many there are.
        refusal = None if again else self.rate.refuses(topic.device, upload=upload, size=len(payload))
        if refusal is not None:
            self._counts.refused[refusal] += 1
            if self.rate.may_tell(topic.device):
                LOG.warning("%s sends more than limits allow (%s); what is over is dropped", topic.device, refusal)
            if leaf == "state":
                self._late_states[topic.device] = payload
            return None
        if leaf == "state":
            self._late_states.pop(topic.device, None)
        if upload and len(payload) > self._limits.update_bytes:
            # The server answers the device's open task in its place, or it would send this for ever.
            self._counts.refused["oversize"] += 1
            leaf, payload = "oversize", b"%d %s" % (len(payload), sha256(payload).hexdigest().encode())
        return Admitted(topic.device, leaf, payload)

    def late_states(self) -> Iterator[Admitted]:
        """States that were over the rate and may pass now."""
        for device, payload in list(self._late_states.items()):
            if self.rate.refuses(device, upload=False, size=len(payload)) is None:
                del self._late_states[device]
                yield Admitted(device, "state", payload)

    def _refuse(self, reason: Refusal, topic: str, size: int) -> None:
        self._counts.refused[reason] += 1
        LOG.debug("ignored %d bytes on %s: %s", size, topic, reason)
