"""Reading .keras files."""

from pathlib import Path
from typing import Any

import keras

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
