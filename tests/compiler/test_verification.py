"""The comparison of a converted graph with Keras."""

from typing import Any

import numpy as np
import pytest

from pollen.errors import CompileError


def _dense_model() -> Any:
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="out")])


def test_a_graph_that_differs_from_keras_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from pollen.compiler import compile, graph  # noqa: A004

    convert = graph.convert
    wrong = _dense_model()

    def convert_another(_model: Any, noisy: Any, manifest: Any) -> bytes:
        import keras

        doubled = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh")])
        return convert(doubled, noisy, manifest)

    monkeypatch.setattr(graph, "convert", convert_another)
    with pytest.raises(CompileError, match=r"differs from Keras \(loss by .*gradient by .*prediction by"):
        compile(wrong, loss="mse", batch=4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_result_that_is_not_finite_is_no_agreement(wrong: float) -> None:
    from pollen.compiler.verification import relative_difference

    expected = np.array([1.0, 4.0], np.float32)
    assert relative_difference(expected + np.float32(1), expected) == 0.25
    assert relative_difference(np.array([1.0, wrong], np.float32), expected) == np.inf
    assert relative_difference(expected, np.array([1.0, wrong], np.float32)) == np.inf


@pytest.mark.parametrize("disagreeing", [0, 1, 2])
def test_comparing_stops_at_the_first_batch_that_agrees(monkeypatch: pytest.MonkeyPatch, disagreeing: int) -> None:
    from pollen.compiler import compile  # noqa: A004
    from pollen.interpreter import TrainingGraph

    gradient, compared = TrainingGraph.gradient, 0

    def counted(*values: Any, **more: Any) -> Any:
        nonlocal compared
        compared += 1
        step = gradient(*values, **more)
        step.gradient[0] += compared <= disagreeing
        return step

    monkeypatch.setattr(TrainingGraph, "gradient", counted)
    compile(_dense_model(), loss="mse", batch=4)
    assert compared == disagreeing + 1
