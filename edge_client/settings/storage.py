"""What is kept of the stream on disk."""

from dataclasses import dataclass

from edge_client.settings.limits import at_least


@dataclass(frozen=True, slots=True)
class Storage:
    """`[storage]`: the memory of the learner across restarts.

    `flush_s`: samples are written in batches this many seconds apart, so a power cut loses at most that much of them;
    `limit_bytes`: largest size of their database; `ballast_bytes`: a file of this size is freed when the disk is full,
    so that updates can still be deleted.
    """

    keep: bool = True
    flush_s: float = 300.0
    limit_bytes: int = 32 * 2**20
    ballast_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        at_least(0.1, flush_s=self.flush_s)
        at_least(2**18, limit_bytes=self.limit_bytes)
        at_least(0, ballast_bytes=self.ballast_bytes)
