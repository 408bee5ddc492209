"""The second Python of the tests: the one with tflite-runtime and numpy 1, which `make test` makes."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def python() -> str:
    """Its path. Fails the test when it is missing, or skips it where `make test` found no Python it could use."""
    # Not resolved: the link to the interpreter is what makes it that environment's.
    path = Path(os.environ.get("POLLEN_TFLITE_PYTHON", PROJECT / ".venv-tflite" / "bin" / "python"))
    if not path.exists():
        if os.environ.get("POLLEN_NO_TFLITE"):
            pytest.skip("tflite-runtime has no wheel for this Python, and there is no Python 3.11 here")
        pytest.fail(f"{path} is missing: `make test` makes it, or set POLLEN_TFLITE_PYTHON")
    return str(path)
