"""Losses and errors of predictions, in numpy: what the device reports, on its own data."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pollen.bundle import Loss

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_EPSILON: Final = 1e-7  # Keras clips probabilities by this


def is_classification(loss: Loss) -> bool:
    """Whether `loss` is one over classes; else errors are absolute differences."""
    return loss.name != "mse"


def classes_of(loss: Loss, y: Array) -> npt.NDArray[np.int64]:
    """The true classes of labels `y` [n, …], as [n]."""
    if loss.name == "categorical_crossentropy":
        return np.asarray(y.argmax(axis=-1), np.int64)
    return y.reshape(len(y)).astype(np.int64)


def predicted_classes(loss: Loss, output: Floats) -> npt.NDArray[np.int64]:
    """The classes that the model's output [n, …] says, as [n]."""
    if loss.name == "binary_crossentropy":
        return (output.reshape(len(output)) > (0.0 if loss.from_logits else 0.5)).astype(np.int64)
    return np.asarray(output.argmax(axis=-1), np.int64)


def errors(loss: Loss, output: Floats, y: Array) -> npt.NDArray[np.float64]:
    """The error of each example, [n]: 0 or 1 for classes, else the mean absolute difference."""
    if is_classification(loss):
        return np.not_equal(predicted_classes(loss, output), classes_of(loss, y)).astype(np.float64)
    distances = np.abs(output.astype(np.float64) - y.reshape(output.shape)).reshape(len(y), -1)
    return np.asarray(distances.mean(axis=1))


def mean_loss(loss: Loss, output: Floats, y: Array) -> float:
    """The mean of `loss` over the examples, as Keras computes it."""
    scores = output.astype(np.float64).reshape(len(y), -1)
    if loss.name == "mse":
        return float(np.square(scores - y.reshape(scores.shape)).mean())
    if loss.name == "binary_crossentropy":
        logits = scores[:, 0] if loss.from_logits else _logit(scores[:, 0])
        truth = y.reshape(len(y)).astype(np.float64)
        return float((np.logaddexp(0.0, logits) - truth * logits).mean())
    if loss.from_logits:
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    else:
        logs = np.log(np.clip(scores, _EPSILON, 1 - _EPSILON))
    return float(-logs[np.arange(len(y)), classes_of(loss, y)].mean())


def _logit(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    clipped = np.clip(probability, _EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(clipped / (1 - clipped)))
