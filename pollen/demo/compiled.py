"""The demo's model: the default one or the user's, compiled, from a cache when that was done here before."""

import hashlib
import importlib.metadata
import math
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from pollen.bundle import Bundle
from pollen.demo import models, tools
from pollen.demo.console import Screen
from pollen.demo.models import Design
from pollen.demo.processes import Processes
from pollen.errors import BundleError, PollenError

BATCH = 16


@dataclass(frozen=True, slots=True)
class Compiled:
    """The Keras file and the bundle made of it, both in the run's folder."""

    keras: Path
    path: Path
    bundle: Bundle


def prepare(
    design: Design,
    own: Path | None,
    *,
    folder: Path,
    cache: Path,
    processes: Processes,
    screen: Screen,
    stop: threading.Event,
) -> Compiled:
    """Put model.keras and model.bundle into `folder`: of the file `own`, or of the default `design`.

    Raises PollenError with the compiler's own message when the model can't be compiled.
    """
    if own is not None and not own.is_file():
        raise PollenError(f"{own}: no such file; give a Keras model saved as .keras with --model")
    entry = cache / _key(design, own)
    keras, bundle = entry / "model.keras", entry / "model.bundle"
    if not _is_usable(bundle):
        entry.mkdir(parents=True, exist_ok=True)
        log = folder / "logs" / "compile.log"
        if own is not None:
            shutil.copyfile(own, keras)
        else:
            tools.run(
                processes,
                "pollen.demo.models",
                [*design.arguments(), str(keras)],
                log=log,
                what="Building the Keras model",
                screen=screen,
                stop=stop,
            )
        source = keras if own is None else own  # what the compiler's messages name
        tools.run(
            processes,
            "pollen.compiler.command",
            [
                str(source),
                f"--loss={design.loss}",
                f"--optimizer={design.optimizer}",
                f"--learning-rate={design.learning_rate}",
                f"--batch={BATCH}",
                "--name=demo",
                f"--output={bundle}",
            ],
            log=log,
            what="Compiling it to a training graph for the devices",
            screen=screen,
            stop=stop,
        )
    copies = Compiled(folder / keras.name, folder / bundle.name, Bundle.read(bundle))
    shutil.copyfile(keras, copies.keras)
    shutil.copyfile(bundle, copies.path)
    check_fits(copies.bundle, design, own or keras)
    return copies


def check_fits(bundle: Bundle, design: Design, path: Path) -> None:
    """Raise PollenError when the model doesn't take this data or doesn't give what is to be learned."""
    takes, gives = bundle.manifest.input_shape, bundle.manifest.output_shape
    if design.kind == "forecast":
        channels = design.outputs
        fits = takes[-1] == channels if len(takes) == 2 else len(takes) == 1 and takes[0] % channels == 0
        expected = f"[T, {channels}] or [T * {channels}]"
    else:
        fits = takes in (design.shape, (math.prod(design.shape),))
        expected = str(list(design.shape))
    if not fits:
        raise PollenError(f"{path}: takes {list(takes)}, the data needs a model that takes {expected}")
    if math.prod(gives) != design.outputs:
        raise PollenError(f"{path}: gives {list(gives)}, the data needs a model that gives [{design.outputs}]")


def _is_usable(path: Path) -> bool:
    """Whether a bundle is in the cache, and whole."""
    try:
        Bundle.read(path)
    except BundleError:
        return False
    return True


def window_of(bundle: Bundle, channels: int) -> int:
    """T: how many readings of `channels` channels the model looks at."""
    return math.prod(bundle.manifest.input_shape) // channels


def _key(design: Design, own: Path | None) -> str:
    """Of everything the bundle depends on: the model, how it is trained, the compiler's code, TensorFlow."""
    digest = hashlib.sha256(repr((design, BATCH)).encode())
    digest.update(own.read_bytes() if own is not None else Path(models.__file__).read_bytes())
    package = Path(__file__).parent.parent
    for source in sorted([*package.glob("compiler/**/*.py"), package / "bundle.py", package / "manifest.py"]):
        digest.update(source.read_bytes())
    for library in ("tensorflow", "keras"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()[:24]
