"""Whether the process works, and whether it is ready for a fleet."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server.gateway_link import GatewayLink
from server.web.model_view import ModelView

SILENT_S: Final = 30.0  # a loop that has not turned for so long hangs: a group of updates takes a second or two


@dataclass(frozen=True, slots=True)
class Health:
    """`models`: each with its link to the devices; `stop`: set when the service was asked to end."""

    models: Sequence[tuple[ModelView, GatewayLink]]
    stop: threading.Event
    silent_s: float = SILENT_S

    def ailments(self) -> list[str]:
        """What does not work: a merge loop that has failed, or has not turned for `silent_s`."""
        found = [f"{model.name}: {model.failure}" for model, _ in self.models if model.failure]
        return found + [
            f"{model.name}: the merge loop has not turned for {model.silent_s():.0f} s"
            for model, _ in self.models
            if model.silent_s() > self.silent_s
        ]

    def unready(self) -> list[str]:
        """Why devices can't train yet, or any more."""
        found = ["stopping"] if self.stop.is_set() else []
        found += [
            f"{model.name}: not yet published" for model, link in self.models if not (link.started or link.closed)
        ]
        found += [f"{model.name}: has ended" for model, link in self.models if link.closed]
        return found + self.ailments()
