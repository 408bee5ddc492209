"""Central evaluation beside the merge loop: a thread that scores snapshots, one at a time, newest first."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from pollen import examples, scoring
from pollen.bundle import Bundle, Loss
from pollen.errors import SettingsError
from pollen.interpreter import load
from pollen.sharing import Sharing
from server.class_scores import class_scores
from server.rules.rule import Vector

LOG = logging.getLogger("pollen.server.evaluation")

Score = tuple[float, dict[str, Any]]
Evaluate = Callable[[int, Vector], Score | None]


class Evaluator:
    """Runs `evaluate(version, weights [P])` in a thread of its own; results wait until they are taken."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._results: SimpleQueue[tuple[int, Score]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether an evaluation is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, version: int, weights: Vector) -> None:
        """Begin to evaluate `weights` [P], which must not change any more; nothing happens while one is running."""
        if not self.busy:
            self._thread = threading.Thread(target=self._run, args=(version, weights), daemon=True, name="evaluation")
            self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for a running evaluation."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def results(self) -> list[tuple[int, Score]]:
        """What has been finished since the last call: (version, (loss, metrics))."""
        taken = []
        while True:
            try:
                taken.append(self._results.get_nowait())
            except Empty:
                return taken

    def _run(self, version: int, weights: Vector) -> None:
        try:
            score = self._evaluate(version, weights)
        except Exception:  # a user's function may raise anything; merging must go on
            LOG.exception("evaluation of version %d failed", version)
            return
        if score is not None:
            self._results.put((version, score))


def from_file(bundle: Bundle, path: Path) -> Evaluate:
    """An evaluation on held-out examples: `path` is an .npz with x or X [n, …] and y [n, …], as the bundle takes them.

    Runs the bundle's inference graph in the interpreter, with personal layers as they are in the bundle. Raises
    SettingsError when the file doesn't fit.
    """
    found = examples.read(path, bundle.manifest)
    x, y = found.x, found.y
    if y is None:
        raise SettingsError(f"evaluation.data = {path}: holds no array y; give the labels too")
    graph, sharing = load(bundle), Sharing(bundle.manifest)
    _, personal = sharing.split(bundle.weights, bundle.state)

    def evaluate(_version: int, weights: Vector) -> Score:
        w, state = sharing.join(weights, personal)
        return score(bundle.manifest.loss, graph.predict(w, x, state), y)

    return evaluate


def score(loss: Loss, predicted: npt.NDArray[np.float32], y: npt.NDArray[Any]) -> Score:
    """Mean loss of `predicted` [n, …] against labels `y` [n, …], and the mean absolute error or `class_scores`.

    Outputs that are several classes an example are each an example of theirs.
    """
    mean = scoring.mean_loss(loss, predicted, y)
    if not scoring.is_classification(loss):
        return mean, {"mae": float(scoring.errors(loss, predicted, y).mean())}
    classes = 2 if loss.name == "binary_crossentropy" else predicted.shape[-1]
    return mean, class_scores(scoring.classes_of(loss, y), scoring.predicted_classes(loss, predicted), classes)
