"""The models of one `pollen-server`: one merge loop and one thread each, behind the same gateways."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.common import Scalar
from flwr.server.strategy import FedAvg

from pollen.errors import PollenError, SettingsError
from server import lifecycle
from server.async_server import AsyncServer
from server.gateway_grid import GatewayGrid
from server.tuning import Tuning

LOG = logging.getLogger("pollen.server")

SIGNALS_S: Final = 0.5  # how late a SIGTERM may be noticed


@dataclass(frozen=True, slots=True)
class ModelService:
    """One model being served; `name` is "" for the only one, `folder` holds its state."""

    name: str
    folder: Path
    server: AsyncServer
    grid: GatewayGrid
    strategy: FedAvg

    def take_over(self, tuning: Tuning) -> None:
        """Go on by `tuning`, in the next tasks and turns."""
        config: dict[str, Scalar] = {**tuning.task_config}
        self.strategy.on_fit_config_fn = lambda _version: config
        self.strategy.fraction_evaluate = tuning.federated_fraction
        self.grid.link.take_over(tuning.task_ttl_s, tuning.update_bytes)
        self.server.retune(tuning)

    def run(self) -> None:
        """Merge until the server's own limits or its `stop`; then write final.npz. Raises PollenError."""
        try:
            lifecycle.keep_bundle(self.folder, self.grid.link.bundle)
            self.server.run(self.grid)
        finally:
            self.grid.close()
        if self.server.model is not None:
            lifecycle.write_npz(self.server.model.named_weights(), self.folder / "final.npz")
            label = f"{self.name}: " if self.name else ""
            merged = self.server.history.merged
            LOG.info("%sstopped at version %d after %d merges", label, self.server.model.version, merged)


def run_together(
    services: Sequence[ModelService], stop: threading.Event, turn: Callable[[], None] = lambda: None
) -> None:
    """Run them until the last has ended, calling `turn` twice a second; one that fails sets `stop`, and its error is
    raised when all have ended."""
    with ThreadPoolExecutor(len(services), thread_name_prefix="model") as pool:
        running = {pool.submit(service.run): service for service in services}
        failed = _first_failure(running, turn)
        if failed is not None:
            LOG.error("%s: %s; the other models are stopped", running[failed].name or "the model", failed.exception())
            stop.set()
    for future, service in running.items():
        _raise(future, service.name)


def _first_failure(running: dict[Future[None], ModelService], turn: Callable[[], None]) -> Future[None] | None:
    while True:
        turn()
        # With a timeout: a signal that the system gives to another thread is only seen when this one wakes.
        done, pending = wait(running, SIGNALS_S, FIRST_EXCEPTION)
        failed = next((future for future in done if future.exception() is not None), None)
        if failed is not None or not pending:
            return failed


def _raise(future: Future[None], name: str) -> None:
    try:
        future.result()
    except PollenError as error:
        raise type(error)(f"model {name}: {error}" if name else str(error)) from error


def make_folder(folder: Path) -> None:
    """Make the folder of a model's state. Raises SettingsError when it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"state_dir = {folder}: can't be made a folder ({error.strerror}); give another") from error
