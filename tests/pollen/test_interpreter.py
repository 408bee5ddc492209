import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pollen import interpreter
from pollen.bundle import Bundle, Tensor
from pollen.errors import InterpreterError
from pollen.interpreter import TrainingGraph
from tests.pollen.manifests import manifest

BATCH = 8


@pytest.fixture(scope="module")
def dropout_bundle() -> Bundle:
    import keras

    from pollen.compiler import compile  # noqa: A004

    keras.utils.set_random_seed(4)
    layers = keras.layers
    model = keras.Sequential([keras.Input((6,)), layers.Dense(12, "relu"), layers.Dropout(0.5), layers.Dense(3)])
    return compile(model, loss="sparse_categorical_crossentropy", batch=BATCH, name="drop")


@pytest.fixture(scope="module")
def graph(dropout_bundle: Bundle) -> TrainingGraph:
    return interpreter.load(dropout_bundle)


@pytest.fixture(scope="module")
def stateful() -> TrainingGraph:
    """y = w x + s with the state s_new = s + mean(x), made by hand."""
    import tensorflow as tf

    def grad(w: Any, x: Any, y: Any, sample_weight: Any, s: Any) -> dict[str, Any]:
        error = w * x + s - y
        share = sample_weight / tf.reduce_sum(sample_weight)
        loss = tf.reshape(tf.reduce_sum(error[:, 0] ** 2 * share), [1])
        g = tf.reshape(tf.reduce_sum(2.0 * error[:, 0] * x[:, 0] * share), [1])
        return {"loss": loss, "g": g, "s_new": s + tf.reduce_mean(x, axis=0)}

    return interpreter.load(_by_hand(1, grad, lambda w, x, s: {"y": w * x + s}))


def _by_hand(size: int, grad: Callable[..., Any], infer: Callable[..., Any]) -> Bundle:
    """A bundle of w [size], s [size], x [4, size] and y [4, 1] with these two functions."""
    import tensorflow as tf

    w, x, y, weight = (tf.TensorSpec(shape) for shape in ([size], [4, size], [4, 1], [4]))
    module = tf.Module()
    module.grad = tf.function(grad, autograph=False)
    module.infer = tf.function(infer, autograph=False)
    signatures = {
        "grad": module.grad.get_concrete_function(w, x, y, weight, w),
        "infer": module.infer.get_concrete_function(w, x, w),
    }
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    description = manifest(Tensor("w", (size,)), state=(Tensor("s", (size,)),), input_shape=(size,))
    first = np.ones(size, np.float32)
    return Bundle(description, content, first, first, np.zeros(0, np.float32))


def _examples(count: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 6), np.float32), rng.integers(0, 3, count, np.int32)


def _noise(seed: int = 0) -> list[Any]:
    return [np.random.default_rng(seed).random((BATCH, 12), np.float32)]


def test_the_runtime_is_named_with_its_version(graph: TrainingGraph) -> None:
    assert graph.runtime.startswith("ai-edge-litert 2.")


@pytest.mark.parametrize("count", [1, 3, BATCH - 1])
def test_a_short_batch_weighs_only_its_own_examples(graph: TrainingGraph, dropout_bundle: Bundle, count: int) -> None:
    x, y = _examples(BATCH)
    short = graph.gradient(dropout_bundle.weights, x[:count], y[:count], None, _noise())
    masked = np.zeros(BATCH, np.float32)
    masked[:count] = BATCH / count  # the mean is over the whole batch
    full = graph.gradient(dropout_bundle.weights, x, y, None, _noise(), sample_weight=masked)
    assert np.abs(short.gradient).max() > 0.01
    np.testing.assert_allclose(short.gradient, full.gradient, rtol=0, atol=1e-6)
    assert short.loss == pytest.approx(full.loss, abs=1e-6)


def test_nan_in_one_batch_does_not_reach_the_next(graph: TrainingGraph, dropout_bundle: Bundle) -> None:
    x, y = _examples(5)
    clean = graph.gradient(dropout_bundle.weights, x[:2], y[:2], None, _noise())
    poisoned = graph.gradient(dropout_bundle.weights, np.full_like(x, np.nan), y, None, _noise())
    assert np.isnan(poisoned.loss)
    again = graph.gradient(dropout_bundle.weights, x[:2], y[:2], None, _noise())
    np.testing.assert_array_equal(again.gradient, clean.gradient)


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_a_label_that_is_no_class_gives_nan(graph: TrainingGraph, dropout_bundle: Bundle, label: int) -> None:
    x, y = _examples(4)
    y[2] = label
    step = graph.gradient(dropout_bundle.weights, x, y, None, _noise())
    assert np.isnan(step.loss)
    assert np.isnan(step.gradient).any()


def test_a_weight_of_two_counts_an_example_twice(graph: TrainingGraph, dropout_bundle: Bundle) -> None:
    x, y = _examples(3)
    twice = [np.concatenate([u[:1], u[:1], u[1:-1]]) for u in _noise()]
    repeated = graph.gradient(dropout_bundle.weights, x[[0, 0, 1, 2]], y[[0, 0, 1, 2]], None, twice)
    weights = np.array([2, 1, 1], np.float32)
    weighted = graph.gradient(dropout_bundle.weights, x, y, None, _noise(), sample_weight=weights)
    np.testing.assert_allclose(weighted.gradient * 3, repeated.gradient * 4, rtol=0, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_loss(graph: TrainingGraph, dropout_bundle: Bundle) -> None:
    x, y = _examples(BATCH)
    w = dropout_bundle.weights
    step = graph.gradient(w, x, y, None, _noise())
    along = (step.gradient * (1e-2 / np.linalg.norm(step.gradient))).astype(np.float32)
    ahead, behind = (graph.gradient(w + s, x, y, None, _noise()).loss for s in (along, -along))
    assert (ahead - behind) / 2e-2 == pytest.approx(float(np.linalg.norm(step.gradient)), rel=0.02)


def test_the_same_seed_drops_the_same_elements(graph: TrainingGraph, dropout_bundle: Bundle) -> None:
    x, y = _examples(BATCH)
    one, same, other = (
        graph.gradient(dropout_bundle.weights, x, y, None, np.random.default_rng(seed)).gradient for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 3 * BATCH + 2])
def test_any_number_of_examples_is_predicted_in_order(graph: TrainingGraph, dropout_bundle: Bundle, count: int) -> None:
    x, _ = _examples(count)
    together = graph.predict(dropout_bundle.weights, x)
    assert together.shape == (count, 3)
    single = [graph.predict(dropout_bundle.weights, x[index : index + 1])[0] for index in range(count)]
    np.testing.assert_allclose(together, np.array(single, np.float32).reshape(-1, 3), rtol=0, atol=1e-6)


def test_results_stay_as_they_are_after_the_next_step(graph: TrainingGraph, dropout_bundle: Bundle) -> None:
    x, y = _examples(BATCH)
    step, output = (
        graph.gradient(dropout_bundle.weights, x, y, None, _noise()),
        graph.predict(dropout_bundle.weights, x),
    )
    kept = step.gradient.copy(), output.copy()
    graph.gradient(dropout_bundle.weights * 2, x, y, None, _noise(1))
    graph.predict(dropout_bundle.weights * 2, x)
    np.testing.assert_array_equal(step.gradient, kept[0])
    np.testing.assert_array_equal(output, kept[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((0, 6)), "y": np.zeros(0, np.int32)}, "1 to 8 examples"),
        ({"x": np.zeros((9, 6)), "y": np.zeros(9, np.int32)}, "1 to 8 examples"),
        ({"y": np.zeros(3, np.int32)}, "not 4 with 3 labels"),
        ({"x": np.zeros((4, 7))}, r"one example of x must be \[6\], not \[7\]"),
        ({"w": np.zeros(5, np.float32)}, r"w must be \[123\], not \[5\]"),
        ({"noise": None}, "give noise"),
        ({"noise": [np.zeros((4, 12), np.float32)]}, "noise must have the shapes"),
        ({"sample_weight": np.full(4, np.nan, np.float32)}, "4 finite numbers"),
        ({"sample_weight": np.array([1, 1, 1, -1], np.float32)}, ">= 0"),
        ({"state": np.zeros(1, np.float32)}, r"state must be \[0\]"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(
    graph: TrainingGraph, dropout_bundle: Bundle, change: dict[str, Any], message: str
) -> None:
    x, y = _examples(4)
    arguments: dict[str, Any] = {"w": dropout_bundle.weights, "x": x, "y": y, "noise": _noise()} | change
    with pytest.raises(ValueError, match=message):
        graph.gradient(**arguments)


@pytest.fixture(scope="module")
def of_words() -> Bundle:
    import keras

    from pollen.compiler import compile  # noqa: A004

    keras.utils.set_random_seed(6)
    layers = keras.layers
    words = [keras.Input((3,), dtype="int32"), layers.Embedding(9, 4), layers.Flatten(), layers.Dense(2)]
    return compile(keras.Sequential(words), loss="mse", batch=BATCH, name="words")


def test_a_short_batch_of_integers_moves_only_the_rows_of_its_own(of_words: Bundle) -> None:
    x, y = np.array([[8, 2, 2], [8, 5, 2]]), np.ones((2, 2), np.float32)
    gradient = interpreter.load(of_words).gradient(of_words.weights, x, y).gradient
    rows = gradient[: 9 * 4].reshape(9, 4)
    assert np.flatnonzero(np.abs(rows).max(axis=1)).tolist() == [2, 5, 8]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_integers_of_any_size_are_taken(of_words: Bundle, dtype: Any) -> None:
    graph, x = interpreter.load(of_words), np.array([[0, 8, 1]])
    np.testing.assert_array_equal(graph.predict(of_words.weights, x.astype(dtype)), graph.predict(of_words.weights, x))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0, 1, 9]], "x must lie between 0 and 8, not 0 and 9"),
        ([[0, -1, 8]], "not -1 and 8"),
        ([[0, 1, 2**32]], f"not 0 and {2**32}"),
        ([[0.0, 1.0, 2.0]], "x must be integers, not float64"),
        ([[0, 1]], r"one example of x must be \[3\], not \[2\]"),
    ],
)
def test_what_is_no_integer_of_the_model_is_refused(of_words: Bundle, x: Any, message: str) -> None:
    graph = interpreter.load(of_words)
    for call in (lambda: graph.predict(of_words.weights, np.array(x)),
                 lambda: graph.gradient(of_words.weights, np.array(x), np.ones((1, 2), np.float32))):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_state_goes_in_and_comes_out(stateful: TrainingGraph) -> None:
    x = np.array([[1], [2], [3], [6]], np.float32)
    step = stateful.gradient(np.ones(1, np.float32), x, x, np.array([0.5], np.float32))
    assert step.loss == pytest.approx(0.25)
    np.testing.assert_allclose(step.gradient, [3.0])
    np.testing.assert_allclose(step.state, [3.5])
    np.testing.assert_allclose(stateful.predict(np.ones(1, np.float32), x[:2], step.state), [[4.5], [5.5]])


def test_a_short_batch_of_a_model_with_state_is_to_be_dropped(stateful: TrainingGraph) -> None:
    x = np.ones((3, 1), np.float32)
    with pytest.raises(ValueError, match="drop the short batch"):
        stateful.gradient(np.ones(1, np.float32), x, x, np.zeros(1, np.float32))


def test_a_graph_that_does_not_fit_its_manifest_is_refused(dropout_bundle: Bundle) -> None:
    manifest = replace(dropout_bundle.manifest, batch=4, noise=((4, 12),))
    wrong = replace(dropout_bundle, manifest=manifest)
    with pytest.raises(InterpreterError, match=r"model drop: the graph's grad takes .*; compile it again"):
        interpreter.load(wrong)


def _hostile(change: Callable[[dict[str, Any]], Any]) -> Bundle:
    """A model of three weights and three state values, after `change` of what its two functions give."""
    import tensorflow as tf

    def grad(w: Any, x: Any, y: Any, sample_weight: Any, s: Any) -> dict[str, Any]:
        loss = tf.reduce_sum(x) + tf.reduce_sum(y) + tf.reduce_sum(sample_weight)
        given = {"g": w * 2.0, "loss": tf.reshape(loss, [1]), "s_new": s + 1.0}
        change(given)
        return given

    def infer(w: Any, x: Any, s: Any) -> dict[str, Any]:
        given = {"y": tf.reduce_sum(x * w + s, 1, keepdims=True)}
        change(given)
        return given

    return _by_hand(3, grad, infer)


def _one_value_of(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given.update({name: given[name][:1]} if name in given else {})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "gradient": (_one_value_of("g"), r"grad gives .*'g': \(1,\).* its manifest says .*'g': \(3,\)"),
    "state": (_one_value_of("s_new"), r"grad gives .*'s_new': \(1,\)"),
    "prediction": (_one_value_of("y"), r"infer gives {'y': \(1, 1\)}, its manifest says {'y': \(4, 1\)}"),
    "loss": (lambda given: "g" in given and given.update(loss=given["g"]), r"grad gives .*'loss': \(3,\)"),
    "one more": (lambda given: given.update(more=next(iter(given.values())) + 1.0), "grad gives .*'more'"),
    "one less": (lambda given: given.pop("s_new", None), "grad gives .*its manifest says .*'s_new'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_graph_that_gives_what_its_manifest_does_not_say_is_refused(case: str) -> None:
    change, message = HOSTILE[case]
    with pytest.raises(InterpreterError, match=f"model m: the graph's {message}.*; compile it again"):
        interpreter.load(_hostile(change))


def _declared(graph: bytes, given: list[int], declared: list[int]) -> bytes:
    """`graph` with another declared shape of its outputs of the shape `given`."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(graph, 0))
    tensors = [subgraph.tensors[index] for subgraph in model.subgraphs for index in subgraph.outputs]
    changed = [tensor for tensor in tensors if list(tensor.shape) == given]
    assert len(changed) == 1
    changed[0].shape = declared
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_graph_that_lies_about_its_gradient_does_not_train() -> None:
    honest = _hostile(lambda given: "g" in given and given.update(g=given["g"][:2]))
    lying = interpreter.load(replace(honest, graph=_declared(honest.graph, [2], [3])))
    x, y, three = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32), np.ones(3, np.float32)
    with pytest.raises(InterpreterError, match=r"the graph's grad gives .*'g': 'float32 \[2\]'.*; compile it again"):
        lying.gradient(three, x, y, three)
    assert lying.predict(three, x, three).tolist() == [[6.0]] * 4


def test_a_gradient_of_integers_is_refused() -> None:
    import tensorflow as tf

    bundle = _hostile(lambda given: "g" in given and given.update(g=tf.cast(given["g"], tf.int32)))
    x, y, three = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32), np.ones(3, np.float32)
    with pytest.raises(InterpreterError, match=r"the graph's grad gives .*'g': 'int32 \[3\]'"):
        interpreter.load(bundle).gradient(three, x, y, three)


def test_a_graph_that_fails_is_named() -> None:
    import tensorflow as tf

    beyond = _hostile(lambda given: "y" in given and given.update(y=tf.gather(given["y"], [0, 1, 2, 9])))
    three = np.ones(3, np.float32)
    with pytest.raises(InterpreterError, match=r"model m: the graph's infer failed: .*; compile it again"):
        interpreter.load(beyond).predict(three, np.ones((4, 3), np.float32), three)


def test_a_graph_that_is_no_graph_is_refused(dropout_bundle: Bundle) -> None:
    wrong = replace(dropout_bundle, graph=b"not a graph" * 10)
    with pytest.raises(InterpreterError, match="can't load the graph") as caught:
        interpreter.load(wrong, "litert")
    assert "\n" not in str(caught.value)


def test_without_an_interpreter_the_error_says_what_to_install(
    dropout_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InterpreterError, match=r"pollen-fl\[edge\].*pollen-fl\[edge-tflite\]"):
        interpreter.load(dropout_bundle)
    with pytest.raises(InterpreterError, match="use auto, litert or tflite"):
        interpreter.load(dropout_bundle, "onnx")  # type: ignore[arg-type]
