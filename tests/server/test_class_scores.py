"""Scores by class against values worked out by hand."""

import numpy as np
import pytest

from pollen.bundle import Loss
from server.class_scores import MOST_CLASSES, class_scores
from server.evaluation import score


def test_scores_by_class_are_those_worked_out_by_hand() -> None:
    # Labels 0 0 1 1 2, predictions 0 1 1 1 0: class 0 has 1 hit of 2 guesses and 2 labels, class 1 has 2 of 3 and 2,
    # class 2 was never predicted, class 3 never occurs.
    scores = class_scores(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0]), 4)
    assert scores["accuracy"] == 3 / 5
    assert scores["precision_perclass"] == [1 / 2, 2 / 3, 0, 0]
    assert scores["recall_perclass"] == [1 / 2, 1, 0, 0]
    assert scores["f1_perclass"] == [2 / 4, 4 / 5, 0, 0]
    assert scores["precision"] == pytest.approx((1 / 2 + 2 / 3) / 3, abs=1e-12)
    assert scores["f1"] == pytest.approx((2 / 4 + 4 / 5) / 3, abs=1e-12)
    assert scores["confusion_matrix"] == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_very_many_classes_are_only_averaged() -> None:
    labels = np.arange(MOST_CLASSES + 1)
    scores = class_scores(labels, labels, MOST_CLASSES + 1)
    assert scores == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("loss", "predicted", "y"),
    [
        ("sparse_categorical_crossentropy", [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]),
        ("categorical_crossentropy", [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [[1, 0], [0, 1], [0, 1]]),
        ("binary_crossentropy", [[0.1], [0.8], [0.4]], [[0], [1], [1]]),
    ],
)
def test_every_classifiers_evaluation_has_them(loss: str, predicted: list[list[float]], y: list[object]) -> None:
    _, metrics = score(Loss(loss, from_logits=False), np.array(predicted, np.float32), np.array(y))
    assert metrics["accuracy"] == 2 / 3
    assert metrics["confusion_matrix"] == [[1, 0], [1, 1]]
    assert metrics["recall_perclass"] == [1.0, 0.5]
