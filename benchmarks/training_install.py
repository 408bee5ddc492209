"""What the contenders of `benchmarks.training_step` need on disk, and an environment for PyTorch."""

import subprocess
import sys
from pathlib import Path
from typing import Final

TORCH: Final = "torch==2.13.0+cpu"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"

# Runs in the contender's own Python; prints the bytes of the named distributions and all they need.
SIZE: Final = """
import re, sys
from importlib import metadata
wanted, seen, size = sys.argv[1:], set(), 0
while wanted:
    name = re.match(r"[\\w.-]+", wanted.pop())[0].lower().replace("_", "-")
    if name in seen:
        continue
    seen.add(name)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # for another platform
        continue
    wanted += [line for line in found.requires or [] if "extra ==" not in line]
    paths = [path.locate() for path in found.files or []]
    size += sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())
print(size)
"""


def installed_mb(python: str, *names: str) -> float:
    """Megabytes of the distributions `names` and what they require, as installed for `python`, bytecode left out."""
    done = subprocess.run([python, "-c", SIZE, *names], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e6


def torch_python(folder: Path) -> str:
    """A Python with PyTorch for CPUs, in the environment `folder`, which is made when it isn't there: 1 GB.

    The wheel comes from where pip looks anyway, else from PyTorch's own index. Raises SystemExit when neither has it.
    """
    python, complete = str(folder / "bin" / "python"), folder / "complete"
    if not complete.exists():
        print(f"installing {TORCH} into {folder}, 1 GB, some minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", TORCH, "numpy"]
        if subprocess.run(pip, check=False, capture_output=True).returncode:
            done = subprocess.run([*pip, "--extra-index-url", TORCH_INDEX], check=False)
            if done.returncode:
                raise SystemExit(f"error: {TORCH} can't be installed; leave it out with --without torch")
        complete.touch()
    return python
