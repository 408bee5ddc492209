"""A Debian 12 userland of another architecture with the device's Python in it, for QEMU's user-mode emulation.

Debian's Python is unpacked beside PyPI's wheels for that architecture, which pip fetches here. QEMU looks for files
in that folder first (its option -L), so nothing needs root, a chroot or binfmt_misc.
"""

import hashlib
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.arm.boards import PI_2, PI_4, Board
from tests.arm.packages import SOURCE, run, unpack

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".cache" / "arm"
EMULATOR = "qemu-user-static"


@dataclass(frozen=True)
class Architecture:
    """How Debian, the wheels and QEMU call one architecture, and what of the device comes from where.

    `packages` are Debian's; `without`: the device's requirements that have no wheel for it; `libraries`: folders that
    Debian's alternatives would link to if packages were configured; `runtimes`: the interpreters there are for it.
    """

    board: Board
    debian: str
    platforms: tuple[str, ...]
    qemu: str
    runtimes: tuple[str, ...]
    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


ARCHITECTURES = {
    "aarch64": Architecture(
        board=PI_4,
        debian="arm64",
        platforms=tuple(f"manylinux{tag}_aarch64" for tag in ("_2_34", "_2_28", "_2_27", "2014")),
        qemu="qemu-aarch64-static",
        runtimes=("litert", "tflite"),
        packages=("python3.11", "libstdc++6"),
    ),
    # PyPI has no numpy 1, psutil or ai-edge-litert for it, Debian has the first two.
    "armv7l": Architecture(
        board=PI_2,
        debian="armhf",
        platforms=("manylinux_2_34_armv7l", "manylinux2014_armv7l"),
        qemu="qemu-arm-static",
        runtimes=("tflite",),
        packages=("python3.11", "libstdc++6", "libatomic1", "python3-numpy", "python3-psutil"),
        without=("ai-edge-litert", "numpy", "psutil"),
        libraries=("usr/lib/arm-linux-gnueabihf/blas", "usr/lib/arm-linux-gnueabihf/lapack"),
    ),
}


@dataclass(frozen=True)
class Userland:
    """A finished userland: `folder` has root/ (Debian) and site/ (the wheels); `qemu` is the emulator's program."""

    architecture: Architecture
    folder: Path
    qemu: Path

    def python(self, *arguments: str | Path) -> list[str]:
        """The command that runs its Python, which finds the device's packages and this checkout."""
        root = self.folder / "root"
        environment = {
            "PYTHONPATH": [PROJECT, self.folder / "site", root / "usr/lib/python3/dist-packages"],
            # Packages that weren't configured have no bytecode, and an emulated processor takes seconds to make it.
            "PYTHONPYCACHEPREFIX": [self.folder / "bytecode"],
            "LD_LIBRARY_PATH": [root / path for path in self.architecture.libraries],
        }
        given = [word for name, paths in environment.items() for word in ("-E", f"{name}={':'.join(map(str, paths))}")]
        # Without -S it would look into this machine's /usr/local too, where packages of another architecture are.
        program = [root / "usr/bin/python3.11", "-S", *arguments]
        return [str(self.qemu), "-cpu", self.architecture.board.cpu, *given, "-L", str(root), *map(str, program)]


def make(name: str, report: Callable[[str], None]) -> Userland:
    """The userland of ARCHITECTURES[name], from the cache when it is there.

    Raises UnavailableError where Debian's packages or the wheels can't be had.
    """
    architecture = ARCHITECTURES[name]
    requirements = _requirements(architecture)

    def emulator(folder: Path) -> None:
        here = run(["dpkg", "--print-architecture"], "this machine's architecture isn't known").strip()
        unpack([EMULATOR], here, folder, folder / "apt")
        for program in (folder / "usr/bin").iterdir():  # of 45 processors, 370 MB
            if program.name not in {one.qemu for one in ARCHITECTURES.values()}:
                program.unlink()

    def userland(folder: Path) -> None:
        report(f"making an emulated {name} in {CACHE}: Debian's Python and the device's wheels, half a minute")
        unpack(architecture.packages, architecture.debian, folder / "root", folder / "apt")
        architecture.board.write(folder / "root")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        pip += ["--python-version", "3.11", "--target", str(folder / "site")]
        pip += [word for platform in architecture.platforms for word in ("--platform", platform)]
        if architecture.without:
            pip.append("--no-deps")
        run([*pip, *requirements], f"the wheels for {name} can't be had")

    qemu = _made("qemu", f"{SOURCE}{EMULATOR}", emulator) / "usr/bin" / architecture.qemu
    return Userland(architecture, _made(name, f"{SOURCE}{architecture}{requirements}", userland), qemu)


def _requirements(architecture: Architecture) -> list[str]:
    """What the device needs, as pyproject.toml says it, both interpreters together."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # pip would compare a marker with the Python it runs on.
    wanted = {line.partition(";")[0] for line in [*project["dependencies"], *extras["edge"], *extras["edge-tflite"]]}
    return sorted(line for line in wanted if not line.startswith(architecture.without))


def _made(name: str, content: str, fill: Callable[[Path], None]) -> Path:
    """The folder of the cache that `fill` filled for `content`; one made for something else is removed."""
    folder = CACHE / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if not folder.exists():
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        unfinished = CACHE / f"{name}-unfinished"
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(folder)
    return folder
