"""From a Keras model to a bundle that trains on a device, and back: the only place that imports TensorFlow.

TensorFlow takes seconds to import, so it is imported at the first use of `compile` or `export_keras`.
"""

import os
from typing import TYPE_CHECKING, Any

from pollen.compiler.quiet import native_stderr_to_log

if TYPE_CHECKING:
    from pollen.compiler.compilation import compile  # noqa: A004 - the name users know from Keras
    from pollen.compiler.export import export_keras

__all__ = ["compile", "export_keras"]

# Read once, when TensorFlow is imported: no notes about CPU instructions and absent GPUs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with native_stderr_to_log():
        from pollen.compiler import compilation, export  # noqa: PLC0415 - imports TensorFlow
    return compilation.compile if name == "compile" else export.export_keras
