"""Who looks on while models are trained: what the merge loops and the hub tell, and the ones that nobody listens to."""

from collections.abc import Iterable, Sequence

from pollen.messages import Birth
from server.bridge_service import Stream
from server.devices import DeviceCounts
from server.guard import Kind
from server.history import Evaluation, Event, Merge
from server.model import GlobalModel


class ModelWatch:
    """Told by one model's merge loop, in its thread: each method returns at once, never waits, and raises nothing."""

    def begun(self, model: GlobalModel, known: Iterable[DeviceCounts]) -> None:
        """The loop is about to begin; `known`: what earlier processes have counted."""

    def turned(self, open_tasks: int) -> None:
        """The loop has turned once more."""

    def decided(self, seconds: float) -> None:
        """An arrival has been decided, in so many seconds."""

    def committed(self, seconds: float) -> None:
        """A transaction is on the disk, after so many seconds."""

    def receipted(self, receipts: int) -> None:
        """So many receipts have been sent."""

    def merged(self, merges: Sequence[Merge]) -> None:
        """Updates have been merged and committed."""

    def rejected(self, device: str, reason: str, kind: str, *, told: bool) -> None:
        """An update was refused; `told`: whether the history has a line of it, which floods have not."""

    def published(self, version: int) -> None:
        """Devices can have `version` now."""

    def evaluated(self, evaluation: Evaluation, *, federated: bool) -> None:
        """The model has been scored."""

    def happened(self, event: Event) -> None:
        """A start, a publication, or what else the history has."""

    def ended(self, failure: str) -> None:
        """The loop has ended; `failure`: why, "" when it was asked to or has reached a limit."""


class FleetWatch:
    """Told by the hub, in the streams' threads, of what concerns all models: as ModelWatch, it only listens."""

    def connected(self, stream: Stream) -> None:
        """A gateway's stream is open."""

    def disconnected(self, stream: Stream) -> None:
        """It has ended."""

    def noted(self, device: str, birth: Birth | None, *, online: bool, why: str = "") -> None:
        """A device's newest state; `why`: the reason of its death. `birth` None: nothing is known of it any more."""

    def vitals(self, device: str, payload: bytes) -> None:
        """A device's vitals, as published: nothing is known of them."""

    def unclaimed(self, device: str, reason: str, kind: Kind) -> None:
        """An upload was refused because it is for no model here."""
