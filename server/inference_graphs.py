"""Inference graphs beside the merge loop: made of published versions, one at a time, by a process of their own.

TensorFlow would cost the server half a gigabyte; `pollen inference` runs it at the lowest priority, and ends.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pollen import examples, messages
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.errors import PollenError, SettingsError
from pollen.messages import GraphKind, Inference
from server import lifecycle
from server.history import AsyncHistory
from server.rules.rule import Vector

LOG = logging.getLogger("pollen.server.inference")

MAKING_S: Final = 1800.0  # then it is given up
GRAPH_LIMIT_BYTES: Final = 64 * 2**20  # as devices' default for a snapshot
ENDING_S: Final = 5.0
_LOWEST_PRIORITY: Final = 19
_MAKING: Final = threading.Lock()  # held while a process runs: models of one server take turns


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """`[inference]`: of the newest version, at most every `every_s` s, make a graph that only predicts, and publish it.
    `kinds`: "float32", "dynamic" (int8 weights), "int8" (integers throughout); the first that will do is taken, and
    without any there is no graph. `calibration`: .npz with x, inputs that int8's ranges are taken from; `holdout`: .npz
    with x and y to measure loss and error on (default: the evaluation's data). A kind whose error there is more than
    `max_added_error` above the model's won't do."""

    kinds: tuple[GraphKind, ...] = ()
    calibration: Path | None = None
    holdout: Path | None = None
    every_s: float = 600.0
    max_added_error: float | None = None

    def __post_init__(self) -> None:
        if "int8" in self.kinds and self.calibration is None:
            raise ValueError("calibration is missing: kind int8 needs an .npz file with inputs x")
        if not 0 < self.every_s < math.inf:
            raise ValueError(f"every_s = {self.every_s} must be above 0 and finite")
        if self.max_added_error is not None and not self.max_added_error >= 0:
            raise ValueError(f"max_added_error = {self.max_added_error} must not be negative")

    def holdout_for(self, bundle: Bundle, default: Path | None) -> Path | None:
        """The .npz to measure on, None for none. Raises SettingsError where no graph could be made of `bundle`."""
        if bundle.manifest.personal:
            name, layers = bundle.manifest.model, ", ".join(bundle.manifest.personal)
            raise SettingsError(
                f"inference.kinds: model {name} has personal layers, {layers}, that only its devices know; leave it out"
            )
        if importlib.util.find_spec("tensorflow") is None:
            raise SettingsError("inference.kinds needs TensorFlow: pip install 'pollen-fl[server,compiler]'")
        if self.calibration is not None:
            examples.read(self.calibration, bundle.manifest)
        holdout = self.holdout or default
        labelled = holdout is not None and examples.read(holdout, bundle.manifest).y is not None
        if self.max_added_error is not None and not labelled:
            raise SettingsError("inference.max_added_error needs holdout, an .npz file with x and y")
        return holdout


class InferenceGraphs:
    """Makes and publishes graphs of `bundle`; called by the merge loop's thread only, and never waits.

    `folder`: of the model's state, where `lifecycle.keep_bundle` has put the bundle. `holdout`: an .npz to measure on.
    A failure is logged as one line; the next version is tried again.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        bundle: Bundle,
        folder: Path,
        *,
        holdout: Path | None,
        publish: Callable[[Inference], None],
        history: AsyncHistory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._bundle_path = lifecycle.bundle_path(folder, bundle.digest)
        self._folder = folder / "inference"
        self._holdout = holdout
        self._publish = publish
        self._history = history
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._version = -1  # the last that was begun
        self._begun_at = -math.inf

    def advance(self, version: int, weights: Vector) -> None:
        """Publish what is finished; begin with the published `version`, `weights` [F], when it is time for it."""
        try:
            if self._process is None:
                due = version != self._version and self._clock() - self._begun_at >= self._settings.every_s
                if due and _MAKING.acquire(blocking=False):
                    self._version, self._begun_at = version, self._clock()
                    self._start(weights)
            elif (code := self._process.poll()) is not None:
                self.close()
                self._finish(code)
            elif self._clock() - self._begun_at > MAKING_S:
                self.close()
                raise PollenError(f"not made within {MAKING_S:.0f} s")
        except (PollenError, OSError, ValueError) as error:
            LOG.warning("no inference graph of version %d: %s", self._version, error)

    def close(self) -> None:
        """End what is being made."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.communicate(timeout=ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        _MAKING.release()

    def _start(self, weights: Vector) -> None:
        try:
            self._process = self._begin(weights)
        finally:
            if self._process is None:
                _MAKING.release()

    def _begin(self, weights: Vector) -> subprocess.Popen[bytes]:
        self._folder.mkdir(exist_ok=True)
        values = self._folder / "weights.npz"
        lifecycle.write_npz(named(weights, self._bundle.manifest.shared), values)
        options: list[tuple[str, object]] = [("--weights", values), ("-o", self._folder / "model.tflite")]
        options += [("--kind", kind) for kind in self._settings.kinds]
        options += [("--calibration", self._settings.calibration), ("--holdout", self._holdout)]
        options += [("--max-added-error", self._settings.max_added_error)]
        command = [sys.executable, "-m", "pollen.compiler.inference_command", str(self._bundle_path), "--json"]
        command += ["--until-stdin-ends"]  # a server that is killed must not leave it behind to write for nobody
        command += [word for name, value in options if value is not None for word in (name, str(value))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
        with (self._folder / "report.json").open("wb") as report, (self._folder / "errors.txt").open("wb") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=report, stderr=errors, env=environment)
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _LOWEST_PRIORITY)
        LOG.debug("making an inference graph of version %d", self._version)
        return process

    def _finish(self, code: int) -> None:
        if code < 0:  # what it wrote before tells nothing of it
            raise PollenError(f"its process was ended by signal {-code}; after 9, look whether memory ran out")
        if code != 0:
            lines = (self._folder / "errors.txt").read_text(errors="replace").strip().splitlines()
            raise PollenError(lines[-1].removeprefix("error: ") if lines else f"its process ended with {code}")
        path = self._folder / "model.tflite"
        if path.stat().st_size > GRAPH_LIMIT_BYTES:
            raise PollenError(f"{path.stat().st_size} bytes, devices take at most {GRAPH_LIMIT_BYTES}")
        graph = path.read_bytes()
        report: dict[str, Any] = json.loads((self._folder / "report.json").read_text())
        for refusal in report["refusals"]:
            LOG.warning("version %d: %s", self._version, refusal)
        self._announce(report["kind"], graph, report["float_bytes"], messages.finite_metrics(report["metrics"]))

    def _announce(self, kind: GraphKind, graph: bytes, float_bytes: int, metrics: dict[str, float]) -> None:
        name = self._bundle.manifest.model
        digest = hashlib.sha256(graph).digest()
        self._publish(Inference(name, self._version, kind, self._bundle.digest, digest, graph, metrics))
        self._history.add_event(
            "inference", self._version, kind=kind, size_bytes=len(graph), float_bytes=float_bytes, **metrics
        )
        told = ", ".join(f"{name} {metrics[name]:.4g}" for name in sorted(metrics))
        LOG.info("version %d: inference graph, %s, %d bytes, %s", self._version, kind, len(graph), told)
