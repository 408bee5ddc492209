"""The form of a model that is traced: which ops convolutions become."""

from collections import Counter
from typing import Any

import pytest

PLAIN = {
    "alone": lambda layers: layers.Conv2D(4, 3, padding="same"),
    "in groups": lambda layers: layers.Conv2D(4, 3, groups=2, padding="same"),
}


def _ops(graph: bytes) -> Counter[str]:
    """How many ops of each kind all functions of a .tflite file hold."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(graph, 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return Counter(names[codes[op.opcodeIndex]] for subgraph in model.subgraphs for op in subgraph.operators)


def _model(layer: Any, shape: tuple[int, ...]) -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential([keras.Input(shape), layers.Dense(4), layer, layers.Flatten(), layers.Dense(2)])


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "time-distributed"])
def test_a_convolution_trains_as_matrix_products_and_predicts_as_itself(kind: str, wrapped: bool) -> None:
    import keras

    from pollen.compiler import compile, inference  # noqa: A004

    layer = PLAIN[kind](keras.layers)
    model = _model(keras.layers.TimeDistributed(layer), (3, 6, 5, 4)) if wrapped else _model(layer, (6, 5, 4))
    bundle = compile(model, loss="mse", batch=4)
    training = _ops(bundle.graph)
    assert training["CONV_2D"] == 0
    assert training["BATCH_MATMUL"] >= 2
    groups = 2 if kind == "in groups" else 1
    assert _ops(inference.make(bundle, "float32").graph)["CONV_2D"] == groups
