"""Random small architectures of the layers that can be compiled train on the device as in Keras.

Always the same ones, so that a test run repeats; POLLEN_RANDOM_MODELS=100 draws as many new ones instead.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.training.case import Case

EXAMPLES: Final = int(os.environ.get("POLLEN_RANDOM_MODELS", "0"))
ACTIVATIONS: Final = ("linear", "relu", "tanh", "sigmoid", "elu", "silu", "gelu", "softplus", "leaky_relu")
LOSSES: Final = ("mse", "mae", "huber", "sparse_categorical_crossentropy", "categorical_crossentropy")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """One layer by name with its arguments; `residual`: its input is added to its output."""

    kind: str
    arguments: tuple[tuple[str, Any], ...] = ()
    inner: "Block | None" = None
    residual: bool = False

    def make(self, layers: Any) -> Any:
        arguments = dict(self.arguments)
        wrapped = [] if self.inner is None else [self.inner.make(layers)]
        return getattr(layers, self.kind)(*wrapped, **arguments)

    def apply(self, layers: Any, x: Any) -> Any:
        y = self.make(layers)(x, x) if self.kind == "MultiHeadAttention" else self.make(layers)(x)
        return layers.Add()([x, y]) if self.residual and tuple(x.shape) == tuple(y.shape) else y

    def __str__(self) -> str:
        return self.kind if self.inner is None else f"{self.kind}({self.inner})"


@dataclass(frozen=True)
class Architecture:
    """An input's shape, and the blocks behind it."""

    shape: Shape
    dtype: str
    blocks: tuple[Block, ...]

    def build(self, layers: Any) -> Any:
        import keras

        start = layers.Input(self.shape, dtype=self.dtype)
        x = start
        for block in self.blocks:
            x = block.apply(layers, x)
        return keras.Model(start, x)

    def __str__(self) -> str:
        return " ".join(map(str, self.blocks))


def _block(kind: str, **arguments: Any) -> Block:
    residual = arguments.pop("residual", False)
    inner = arguments.pop("inner", None)
    return Block(kind, tuple(sorted(arguments.items())), inner, residual)


def _anywhere(draw: Any) -> Block:
    kind = draw(st.sampled_from(["BatchNormalization", "LayerNormalization", "Dropout", "Activation", "Dense"]))
    if kind == "Dropout":
        return _block(kind, rate=draw(st.sampled_from([0.1, 0.5])))
    if kind == "Activation":
        return _block(kind, activation=draw(st.sampled_from(ACTIVATIONS)))
    if kind == "Dense":
        units, activation = draw(st.integers(2, 12)), draw(st.sampled_from(ACTIVATIONS))
        return _block(kind, units=units, activation=activation, residual=draw(st.booleans()))
    return _block(kind)


def _convolution(draw: Any, dimensions: int, size: int) -> Block:
    kind = draw(st.sampled_from(["Conv", "DepthwiseConv", "SeparableConv"])) + f"{dimensions}D"
    padding = draw(st.sampled_from(["same", "valid", "causal"] if kind == "Conv1D" else ["same", "valid"]))
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)]))
    kernel = draw(st.integers(1, 3 if (size - 1) // dilation >= 2 else 1))
    rest = {"filters": draw(st.integers(2, 8))} if not kind.startswith("Depthwise") else {"depth_multiplier": 1}
    return _block(
        kind,
        kernel_size=kernel,
        padding=padding,
        strides=stride,
        dilation_rate=dilation,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        use_bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        **rest,
    )


def _pooling(draw: Any, dimensions: int) -> Block:
    kind = draw(st.sampled_from(["MaxPooling", "AveragePooling"])) + f"{dimensions}D"
    return _block(kind, pool_size=draw(st.integers(2, 3)), strides=2, padding="same")


def _recurrent(draw: Any, sequences: bool) -> Block:
    cell = draw(st.sampled_from(["SimpleRNN", "GRU", "LSTM"]))
    block = _block(cell, units=draw(st.integers(2, 8)), return_sequences=sequences)
    return _block("Bidirectional", inner=block) if draw(st.booleans()) else block


def _next(draw: Any, shape: Shape) -> Block:
    """A layer that takes single examples of this shape."""
    if len(shape) == 1:
        return _anywhere(draw)
    if len(shape) == 3:
        choice = draw(st.integers(0, 3))
        return (
            _anywhere(draw)
            if choice == 0
            else _pooling(draw, 2)
            if choice == 1
            else _convolution(draw, 2, min(shape[:2]))
        )
    choice = draw(st.integers(0, 5))
    if choice == 0:
        return _pooling(draw, 1)
    if choice == 1:
        return _recurrent(draw, sequences=True)
    if choice == 2:
        return _block("MultiHeadAttention", num_heads=2, key_dim=draw(st.integers(2, 4)), residual=True)
    return _anywhere(draw) if choice == 3 else _convolution(draw, 1, shape[0])


def _end(draw: Any, shape: Shape) -> list[Block]:
    """Layers that bring single examples of this shape to one axis."""
    if len(shape) == 1:
        return []
    dimensions = len(shape) - 1
    kinds = ["Flatten", f"GlobalAveragePooling{dimensions}D", f"GlobalMaxPooling{dimensions}D"]
    kind = draw(st.sampled_from([*kinds, "recurrent"] if dimensions == 1 else kinds))
    return [_recurrent(draw, sequences=False) if kind == "recurrent" else _block(kind)]


@st.composite
def architectures(draw: Any) -> Architecture:
    """Two to five layers, then what brings them to one axis and a Dense of four."""
    start: Shape = draw(st.sampled_from([(6,), (9, 3), (8, 4), (7, 6, 2), (8, 8, 1)]))
    blocks: list[Block] = []
    shape, dtype, whole = start, "float32", start
    if len(start) == 2 and draw(st.booleans()):
        blocks.append(_block("Embedding", input_dim=11, output_dim=4))
        dtype, whole, shape = "int32", (start[0],), (start[0], 4)
    for _ in range(draw(st.integers(2, 5))):
        blocks.append(_next(draw, shape))
        shape = _shape_after(whole, dtype, blocks)
    blocks += [*_end(draw, shape), _block("Dense", units=4)]
    return Architecture(whole, dtype, tuple(blocks))


def _shape_after(start: Shape, dtype: str, blocks: Sequence[Block]) -> Shape:
    import keras

    before = random.getstate()  # Keras's layers take their seeds from there, Hypothesis wants it left alone
    built = Architecture(start, dtype, tuple(blocks)).build(keras.layers)
    random.setstate(before)
    return tuple(built.output_shape[1:])


@pytest.mark.timeout(1800)
@hypothesis.settings(
    max_examples=EXAMPLES or 12,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(hypothesis.Phase.generate,),
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(architecture=architectures(), loss=st.sampled_from(LOSSES))
def test_random_architectures_train_as_in_keras(agrees: Any, architecture: Architecture, loss: str) -> None:
    agrees(str(architecture), Case(architecture.build, loss, lambda optimizers: optimizers.SGD(0.01)))
