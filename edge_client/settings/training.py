"""When and how to train."""

from dataclasses import dataclass
from typing import Literal

from edge_client.settings.limits import at_least

Runtime = Literal["auto", "litert", "tflite"]


@dataclass(frozen=True, slots=True)
class Training:
    """`[training]`: when and how to train; a task's config overrides the first four.

    Train once `new_samples` examples have come since the last time, `epochs` passes over the replay buffer but at
    most `max_steps` optimizer steps, with FedProx's `proximal_mu` (0: off). The work is cut into slices of `slice_ms`
    milliseconds; `nice` is the training thread's niceness; `runtime` picks the interpreter, `threads` how many it has
    (more than 1 pays for large models only). `fetch_s`: seconds to wait for the newest snapshot before training from
    the last one known. After `offline_s` seconds without a connection the device also trains for itself alone where no
    task lets it: that improves its own predictions and sends nothing.
    """

    new_samples: int = 64
    epochs: int = 1
    max_steps: int = 200
    proximal_mu: float = 0.0
    slice_ms: float = 20.0
    nice: int = 5
    runtime: Runtime = "auto"
    threads: int = 1
    fetch_s: float = 5.0
    offline_s: float = 60.0

    def __post_init__(self) -> None:
        at_least(1, new_samples=self.new_samples, epochs=self.epochs, max_steps=self.max_steps)
        at_least(0.0, proximal_mu=self.proximal_mu)
        at_least(0.1, slice_ms=self.slice_ms, fetch_s=self.fetch_s)
        at_least(0.0, offline_s=self.offline_s)
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads = {self.threads} must be from 1 to 64")
        if not 0 <= self.nice <= 19:
            raise ValueError(f"nice = {self.nice} must be from 0 to 19")


@dataclass(frozen=True, slots=True)
class Inference:
    """`[inference]`: whether to predict with the small graphs that the server may publish: "off", "always", or "auto":
    where they are quicker on this device. While the device knows newer weights of its own, those predict."""

    graph: Literal["off", "auto", "always"] = "off"
