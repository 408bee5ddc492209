"""Losses and errors of predictions, in numpy: devices report those of their own data, the server of held-out data."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pollen.bundle import Loss
from pollen.objective import CLASSIFICATION_LOSSES

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_EPSILON: Final = 1e-7  # Keras clips probabilities by this


def is_classification(loss: Loss) -> bool:
    """Whether `loss` is one over classes; else errors are absolute differences."""
    return loss.name in CLASSIFICATION_LOSSES


def classes_of(loss: Loss, y: Array) -> npt.NDArray[np.int64]:
    """The true classes of labels `y` [n, …], as [m]: m is n times the labels an example has."""
    if loss.name == "categorical_crossentropy":
        return np.asarray(y.argmax(axis=-1), np.int64).ravel()
    # A probability as a binary label counts as the likelier class.
    return (y > 0.5).ravel().astype(np.int64) if loss.name == "binary_crossentropy" else y.ravel().astype(np.int64)


def predicted_classes(loss: Loss, output: Floats) -> npt.NDArray[np.int64]:
    """The classes that the model's output [n, …] says, as [m]."""
    if loss.name == "binary_crossentropy":
        return (output > (0.0 if loss.from_logits else 0.5)).ravel().astype(np.int64)
    return np.asarray(output.argmax(axis=-1), np.int64).ravel()


def errors(loss: Loss, output: Floats, y: Array) -> Doubles:
    """The error of each example, [n]: the share of its classes that is wrong, else the mean absolute difference."""
    if is_classification(loss):
        wrong = np.not_equal(predicted_classes(loss, output), classes_of(loss, y))
        return np.asarray(wrong.reshape(len(y), -1).mean(axis=1, dtype=np.float64))
    distances = np.abs(output.astype(np.float64) - y.reshape(output.shape)).reshape(len(y), -1)
    return np.asarray(distances.mean(axis=1))


def mean_loss(loss: Loss, output: Floats, y: Array) -> float:
    """The mean of `loss` over the examples, as Keras computes it, without regularisers' penalties.

    Probabilities are clipped at 1e-7; Keras takes those of a softmax or sigmoid at a model's end from their logits.
    """
    scores = output.astype(np.float64).reshape(-1, output.shape[-1])
    if not is_classification(loss):
        return float(_of_distances(loss, np.abs(scores - y.reshape(scores.shape))).mean())
    smoothing = loss.label_smoothing
    if loss.name == "binary_crossentropy":
        logits = scores if loss.from_logits else _logit(scores)
        truth = y.reshape(scores.shape) * (1 - smoothing) + smoothing / 2
        return float((np.logaddexp(0.0, logits) - truth * logits).mean())
    if loss.from_logits:
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    else:
        logs = np.log(np.clip(scores, _EPSILON, 1 - _EPSILON))
    if loss.name == "sparse_categorical_crossentropy":
        return float(-logs[np.arange(len(logs)), classes_of(loss, y)].mean())
    truth = y.reshape(scores.shape) * (1 - smoothing) + smoothing / scores.shape[1]
    return float(-(truth * logs).sum(axis=1).mean())


def _of_distances(loss: Loss, distances: Doubles) -> Doubles:
    if loss.name == "mse":
        return np.square(distances)
    if loss.name == "mae":
        return distances
    linear = loss.delta * distances - loss.delta**2 / 2
    return np.where(distances <= loss.delta, np.square(distances) / 2, linear)


def _logit(probability: Doubles) -> Doubles:
    clipped = np.clip(probability, _EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(clipped / (1 - clipped)))
