import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pollen
from pollen.bundle import Bundle, Loss, Optimizer, Tensor
from pollen.errors import CompileError


def _dense_model(activation: str | None = None) -> Any:
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=activation, name="out")])


def _compile(model: Any, **settings: Any) -> Bundle:
    from pollen.compiler import compile  # noqa: A004

    return compile(model, **({"loss": "mse"} | settings))


def test_the_manifest_says_what_was_compiled(dropout_model: Any, dropout_bundle: Bundle) -> None:
    manifest = dropout_bundle.manifest
    assert manifest.model == "gestures-1"
    assert manifest.weights == (
        Tensor("hidden/kernel", (6, 12)),
        Tensor("hidden/bias", (12,)),
        Tensor("classes/kernel", (12, 3)),
        Tensor("classes/bias", (3,)),
    )
    assert (manifest.input_shape, manifest.output_shape) == ((6,), (3,))
    assert (manifest.label_shape, manifest.label_dtype) == ((), "int32")
    assert (manifest.batch, manifest.noise) == (8, ((8, 12),))
    assert manifest.loss == Loss("sparse_categorical_crossentropy", from_logits=True)
    assert manifest.optimizer == Optimizer("adam", 0.001, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7})
    expected = np.concatenate([np.asarray(variable).ravel() for variable in dropout_model.trainable_variables])
    np.testing.assert_array_equal(dropout_bundle.weights, expected)


def test_compiling_leaves_the_model_as_it_was(dropout_model: Any, dropout_bundle: Bundle) -> None:
    import keras

    assert type(dropout_model.layers[1]) is keras.layers.Dropout
    assert dropout_model.layers[0].output.shape == (None, 12)
    dropout_model(np.zeros((2, 6), np.float32), training=True)


def test_every_activation_compiles_and_agrees_with_keras(every_activation_model: Any) -> None:
    bundle = _compile(every_activation_model, batch=4, name="everything")
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(bundle.graph, 0)
    codes = [root.OperatorCodes(index) for index in range(root.OperatorCodesLength())]
    assert len(codes) > 10
    assert all(code.CustomCode() is None for code in codes)


def test_averages_of_many_values_are_exact() -> None:
    import keras

    from pollen import interpreter

    layers = keras.layers
    stack = [keras.Input((14, 14, 8)), layers.BatchNormalization(momentum=0.0), layers.Flatten(), layers.Dense(1)]
    bundle = _compile(keras.Sequential(stack), batch=256)
    x = np.maximum(np.random.default_rng(0).standard_normal((256, 14, 14, 8), np.float32), 0)
    step = interpreter.load(bundle, "litert").gradient(bundle.weights, x, np.zeros((256, 1), np.float32), bundle.state)
    exact = np.concatenate([moment(x.astype(np.float64), (0, 1, 2)) for moment in (np.mean, np.var)])
    # Added up in one float32 they are off by 2e-6.
    np.testing.assert_allclose(step.state, exact, rtol=0, atol=5e-7)


def test_a_product_that_ends_tflite_runtime_is_refused() -> None:
    import keras

    def model(shape: tuple[int, ...]) -> Any:
        start = keras.Input((2, 3, 4, 2))
        scale = keras.layers.Reshape(shape)(keras.layers.Dense(8)(keras.layers.Flatten()(start)))
        product = keras.layers.Multiply()([start, scale])
        return keras.Model(start, keras.layers.Dense(1)(keras.layers.Flatten()(product)))

    with pytest.raises(CompileError, match="which tflite-runtime can't compute; put a Reshape"):
        _compile(model((2, 1, 4, 1)), batch=2)
    _compile(model((1, 1, 4, 2)), batch=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda keras, x: keras.Sequential([keras.layers.Dense(2)])(x), "its layers themselves"),
        (lambda keras, x: keras.ops.sin(x), "an operation outside a layer; use a layer"),
        (lambda keras, x: keras.layers.Multiply()([x, x]) * 2, "an operation outside a layer"),
    ],
    ids=["nested", "operation", "operator"],
)
def test_what_is_no_layer_is_named_with_what_to_use(make: Any, message: str) -> None:
    import keras

    start = keras.Input((4,))
    with pytest.raises(CompileError, match=message):
        _compile(keras.Model(start, keras.layers.Dense(1)(make(keras, start))))


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"])
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "probabilities"])
def test_a_cross_entropy_takes_what_the_last_activation_gives(loss: str, logits: bool) -> None:
    probabilities = "sigmoid" if loss.startswith("binary") else "softmax"
    bundle = _compile(_dense_model(None if logits else probabilities), loss=loss, batch=4)
    assert bundle.manifest.loss == Loss(loss, from_logits=logits)
    sparse = loss.startswith("sparse")
    assert bundle.manifest.label_shape == (() if sparse else (3,))


def test_the_same_file_gives_the_same_bytes_in_two_processes(dropout_model: Any, tmp_path: Path) -> None:
    dropout_model.save(tmp_path / "model.keras")
    outputs = [tmp_path / "a.bundle", tmp_path / "b.bundle"]
    program = "import sys; from pollen.compiler.command import main; sys.exit(main(sys.argv[1:]))"
    settings = [
        "--loss",
        "sparse_categorical_crossentropy",
        "--optimizer",
        "nesterov",
        "--learning-rate",
        "0.05",
        "--batch",
        "4",
    ]
    for output in outputs:
        run = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "model.keras", *settings, "-o", output],
            env={"PYTHONPATH": str(Path(pollen.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        assert run.stdout.startswith(f"{output}: model model, 123 parameters, 3 layers, ")
    first, second = (output.read_bytes() for output in outputs)
    assert first == second
    manifest = Bundle.read(outputs[0]).manifest
    assert manifest.optimizer == Optimizer("momentum", 0.05, {"momentum": 0.9, "nesterov": 1.0})


def test_importing_pollen_and_the_commands_does_not_import_tensorflow() -> None:
    code = (
        "import sys, pollen, pollen.bundle, pollen.interpreter, pollen.compiler, pollen.compiler.command, "
        "pollen.compiler.export, edge_client.training.optimizers; "
        "sys.exit(bool({'tensorflow', 'keras', 'flwr', 'grpc', 'importlib.metadata'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(Path(pollen.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def _refusals() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """What to build, given keras, and what the error must say."""

    def sequential(*layers: Callable[[Any], Any], shape: tuple[int | None, ...] = (8, 4)) -> Callable[[Any], Any]:
        return lambda keras: keras.Sequential([keras.Input(shape), *(make(keras.layers) for make in layers)])

    def dense(layers: Any) -> Any:
        return layers.Dense(3)

    def words(*layers: Callable[[Any], Any], dtype: str = "int32") -> Callable[[Any], Any]:
        return lambda keras: keras.Sequential(
            [keras.Input((4,), dtype=dtype), *(make(keras.layers) for make in layers)]
        )

    def two_inputs(keras: Any) -> Any:
        a, b = keras.Input((3,)), keras.Input((3,))
        return keras.Model([a, b], keras.layers.Dense(2)(keras.layers.Add()([a, b])))

    def two_outputs(keras: Any) -> Any:
        a = keras.Input((3,))
        return keras.Model(a, [keras.layers.Dense(2)(a), keras.layers.Dense(2)(a)])

    def shared_dropout(keras: Any) -> Any:
        a, drop = keras.Input((3,)), keras.layers.Dropout(0.5, name="twice")
        return keras.Model(a, keras.layers.Dense(2)(drop(keras.layers.Dense(3)(drop(a)))))

    def alone_and_wrapped(keras: Any) -> Any:
        a, twice = keras.Input((5, 3)), keras.layers.Dense(3, name="twice")
        return keras.Model(a, keras.layers.TimeDistributed(twice, name="steps")(twice(a)))

    def wrapped_twice(keras: Any) -> Any:
        a, twice = keras.Input((5, 3)), keras.layers.Dense(3, name="twice")
        first, second = (keras.layers.TimeDistributed(twice, name=name) for name in ("first", "second"))
        return keras.Model(a, second(first(a)))

    def operation(keras: Any) -> Any:
        a = keras.Input((3,))
        return keras.Model(a, keras.layers.Dense(2)(keras.ops.sin(a)))

    def subclassed(keras: Any) -> Any:
        class Mine(keras.Model):  # type: ignore[misc, name-defined]
            def call(self, x: Any) -> Any:
                return x

        return Mine(name="mine")

    def own_layer(keras: Any) -> Any:
        class Scaled(keras.layers.Dense):  # type: ignore[misc, name-defined]
            pass

        return keras.Sequential([keras.Input((3,)), Scaled(2, name="scaled_1")])

    return {
        "recurrent": (
            sequential(lambda layers: layers.RNN(layers.GRUCell(3), name="rnn_1"), dense),
            r"layer 'rnn_1' \(RNN\) can't be compiled: .*; nearest that can: GRU",
        ),
        "normalisation": (
            sequential(lambda layers: layers.BatchNormalization(renorm=True, name="norm_1"), dense),
            r"layer 'norm_1' \(BatchNormalization\) can't be compiled: renorm",
        ),
        "synchronized": (
            sequential(lambda layers: layers.BatchNormalization(synchronized=True, name="norm_1"), dense),
            "norm_1.*synchronized=True is for several replicas",
        ),
        "normalisation-constraint": (
            sequential(lambda layers: layers.LayerNormalization(gamma_constraint="non_neg", name="norm_1"), dense),
            "norm_1.*its gamma has a constraint",
        ),
        "group-axis": (
            sequential(lambda layers: layers.GroupNormalization(2, axis=1, name="norm_1"), dense, shape=(4, 4, 4)),
            "norm_1.*axis=1 isn't supported for 4 dimensions; use axis=-1",
        ),
        "mask": (
            words(lambda layers: layers.Embedding(9, 2, mask_zero=True, name="words_1")),
            r"layer 'words_1' \(Embedding\) can't be compiled: masks.*mask_zero=False",
        ),
        "embedding-constraint": (
            words(lambda layers: layers.Embedding(9, 2, embeddings_constraint="non_neg", name="words_1")),
            "words_1.*its embeddings has a constraint",
        ),
        "float-indices": (
            words(lambda layers: layers.Embedding(9, 2, name="words_1"), dtype="float32"),
            "words_1.*indices are float32; use keras.Input",
        ),
        "wide-indices": (
            words(lambda layers: layers.Embedding(9, 2, name="words_1"), dtype="int64"),
            "words_1.*indices are int64; use keras.Input",
        ),
        "computed-indices": (
            words(lambda layers: layers.ReLU(name="relu_1"), lambda layers: layers.Embedding(9, 2, name="words_1")),
            "words_1.*its indices come from 'relu_1'; connect it to the model's input",
        ),
        "own-layer": (own_layer, r"layer 'scaled_1' \(Scaled\) can't be compiled"),
        "operation": (operation, r"layer 'sin.*' \(Sin\) can't be compiled"),
        "nested": (
            lambda keras: keras.Sequential(
                [keras.Input((3,)), keras.Sequential([keras.layers.Dense(3)], name="inner")]
            ),
            r"layer 'inner' \(Sequential\) can't be compiled",
        ),
        "regulariser": (
            sequential(lambda layers: layers.Dense(3, kernel_regularizer="orthogonal_regularizer", name="dense_1")),
            r"layer 'dense_1' \(Dense\) can't be compiled: its kernel has a OrthogonalRegularizer; use L1, L2 or L1L2",
        ),
        "activity": (
            sequential(lambda layers: layers.Dense(3, activity_regularizer="l2", name="dense_1")),
            "dense_1.*activity_regularizer isn't part of the device's loss",
        ),
        "constraint": (
            sequential(lambda layers: layers.Conv1D(3, 2, bias_constraint="non_neg", name="conv_1")),
            r"layer 'conv_1' \(Conv1D\) can't be compiled: its bias has a constraint",
        ),
        "convolution": (
            sequential(lambda layers: layers.Conv3D(2, 2, name="conv_1"), dense, shape=(4, 4, 4, 2)),
            r"layer 'conv_1' \(Conv3D\) can't be compiled: .*; nearest that can: Conv2D in TimeDistributed",
        ),
        "unequal-strides": (
            sequential(lambda layers: layers.DepthwiseConv2D(2, strides=(1, 2), name="conv_1"), dense, shape=(4, 4, 2)),
            r"conv_1.*strides=\(1, 2\) can't be computed by Keras either; use the same for rows and columns",
        ),
        "too-many-channels": (
            sequential(lambda layers: layers.SeparableConv1D(3, 2, depth_multiplier=1300, name="conv_1")),
            "conv_1.*5200 channels are more than .*; use at most 4832",
        ),
        "dilated-transposed": (
            sequential(lambda layers: layers.Conv1DTranspose(3, 2, dilation_rate=2, name="conv_1")),
            r"conv_1.*dilation_rate=\(2,\) has no kernel on the device; use dilation_rate=1",
        ),
        "interpolation": (
            sequential(
                lambda layers: layers.UpSampling2D(interpolation="bilinear", name="up_1"), dense, shape=(4, 4, 2)
            ),
            r"layer 'up_1' \(UpSampling2D\) can't be compiled: interpolation=bilinear .*; use nearest",
        ),
        "spatial-dropout": (
            sequential(lambda layers: layers.SpatialDropout1D(0.2, name="drop_1"), dense),
            r"drop_1.*nearest that can: Dropout",
        ),
        "channels-first": (
            sequential(lambda layers: layers.MaxPooling1D(2, data_format="channels_first", name="pool_1"), dense),
            "pool_1.*channels_first",
        ),
        "activation": (
            sequential(lambda layers: layers.Dense(3, activation="sparsemax", name="dense_1")),
            "dense_1.*activation sparsemax has no gradient on the device; use softmax",
        ),
        "lambda-activation": (
            sequential(lambda layers: layers.Activation(lambda x: x * 2, name="act_1"), dense),
            "act_1.*<lambda>.*use one of linear, relu",
        ),
        "softmax-axis": (sequential(lambda layers: layers.Softmax(axis=1, name="soft_1"), dense), "soft_1.*axis=1"),
        "noise-shape": (
            sequential(lambda layers: layers.Dropout(0.2, noise_shape=(None, 1, 4), name="drop_1"), dense),
            "drop_1.*noise_shape",
        ),
        "shared-dropout": (shared_dropout, r"layer 'twice' \(Dropout\) can't be compiled: it is used more than once"),
        "alone-and-wrapped": (
            alone_and_wrapped,
            r"layer 'steps' \(TimeDistributed\) .*: it shares its kernel with layer 'twice' \(Dense\); give it a layer",
        ),
        "wrapped-twice": (wrapped_twice, r"layer 'second' .*shares its kernel with layer 'first' \(TimeDistributed\)"),
        "half-precision": (
            sequential(lambda layers: layers.Dense(3, dtype="mixed_float16", name="dense_1")),
            "dense_1.*dtype policy is mixed_float16; use float32",
        ),
        "two-inputs": (two_inputs, "has 2 inputs; one is supported"),
        "two-outputs": (two_outputs, "has 2 outputs; one is supported"),
        "open-length": (
            sequential(lambda layers: layers.Conv1D(3, 2), lambda layers: layers.GlobalMaxPooling1D(), shape=(None, 4)),
            "all lengths but the batch must be fixed",
        ),
        "integers": (
            lambda keras: keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Dense(2)]),
            "input is int32; use float32",
        ),
        "unbuilt": (lambda keras: keras.Sequential([keras.layers.Dense(3)]), r"starts with keras\.Input\(shape\)"),
        "subclassed": (subclassed, "'mine' isn't built or is subclassed"),
        "nothing-to-train": (sequential(lambda layers: layers.Flatten()), "no trainable weights"),
        "no-model": (lambda keras: keras.layers.Dense(3), r"a keras\.Model is needed, not Dense"),
    }


@pytest.mark.parametrize("case", _refusals())
def test_what_can_not_be_compiled_is_refused_by_name(case: str) -> None:
    import keras

    build, message = _refusals()[case]
    with pytest.raises(CompileError, match=message) as caught:
        _compile(build(keras))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch must be 1"),
        ({"name": "No Name"}, "model name"),
        ({"learning_rate": -1.0}, "learning rate"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        _compile(_dense_model(), **settings)
