"""Wall clocks that jump, in real processes: see clock_jump.c."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


class Clocks:
    """A wall clock for each process, in `folder`; all are right at first. Skips the test where there is no compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler (cc), which wall clocks that jump need")
        folder.mkdir(parents=True)
        self._folder = folder
        self._library = folder / "clock_jump.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"], check=True)

    def before(self, name: str) -> list[str]:
        """What comes before the command line of the process `name`."""
        file = self._folder / name
        if not file.exists():
            self.jump(name, 0)
        return ["env", f"LD_PRELOAD={self._library}", f"POLLEN_CLOCK_OFFSET={file}"]

    def jump(self, name: str, seconds: int) -> None:
        """From now on the wall clock of `name` is `seconds` off, also when it is started again."""
        with (self._folder / name).open("r+b" if (self._folder / name).exists() else "xb") as file:
            file.write(struct.pack("<q", seconds))
