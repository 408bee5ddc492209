"""Fixtures of the system tests: the model, compiled once, and the whole."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pollen.bundle import Bundle
from tests.system.whole import MODEL, Whole

PROJECT = Path(__file__).parents[2]
KERAS = Path(__file__).with_name("models.py")


@pytest.fixture(scope="session")
def bundle_file() -> Path:
    """The bundle of models.py's model, from the cache when nothing it depends on has changed."""
    sources = [KERAS, *sorted((PROJECT / "pollen" / "compiler").rglob("*.py"))]
    sources += [PROJECT / "pollen" / name for name in ("bundle.py", "manifest.py")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = Path(os.environ.get("POLLEN_TEST_BUNDLES", PROJECT / ".cache" / "test-bundles")) / f"system-{key}"
    path = folder / "model.bundle"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        compiler = "import sys; from pollen.compiler.command import main; sys.exit(main(sys.argv[1:]))"
        options = ["--loss=mse", "--optimizer=sgd", "--learning-rate=0.05", "--batch=8", f"--name={MODEL}"]
        keras = folder / "model.keras"
        for command in (
            [sys.executable, str(KERAS), str(keras)],
            [sys.executable, "-c", compiler, str(keras), *options, "-o", str(path)],
        ):
            subprocess.run(command, check=True, timeout=150, cwd=PROJECT, env=environment)
    Bundle.read(path)
    return path


@pytest.fixture
def whole(tmp_path: Path, mosquitto_binary: Path, bundle_file: Path) -> Iterator[Callable[..., Whole]]:
    """`whole(devices=(…), …)` starts everything; it is stopped after the test, whatever happens."""
    with ExitStack() as stack:

        def start(**options: object) -> Whole:
            return stack.enter_context(Whole(tmp_path / "whole", mosquitto_binary, bundle_file, **options))  # type: ignore[arg-type]

        yield start
