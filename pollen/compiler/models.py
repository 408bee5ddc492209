"""Keras models from .keras files, and without their weights as JSON."""

import json
from pathlib import Path
from typing import Any

import keras

from pollen.compiler import layers
from pollen.errors import CompileError


def load(path: Path | str) -> Any:
    """The model in a .keras file, without its optimizer; CompileError when it can't be read.

    In Keras's safe mode: a Lambda layer, which holds code, is refused.
    """
    if not Path(path).is_file():
        raise CompileError(f"{path}: no such file; save the model with model.save('{Path(path).stem}.keras')")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(f"{path}: Keras can't load it: {lines[0]}") from error


def architecture(model: Any) -> str:
    """`model` without its weights, loss and optimizer, as canonical JSON."""
    config = json.loads(model.to_json())
    config.pop("compile_config", None)
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def from_architecture(text: str, source: Path | str) -> Any:
    """The model that `architecture` wrote, its weights not yet set; CompileError naming `source` when Keras can't.

    Only layers that can be compiled are made: nothing in `text` is executed.
    """
    if not text:
        raise CompileError(f"{source}: it holds no Keras architecture; compile it again, or give the .keras file")
    try:
        model = keras.models.model_from_json(text)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(f"{source}: Keras can't make its model: {lines[0]}; give the .keras file") from error
    layers.check(model)
    return model
