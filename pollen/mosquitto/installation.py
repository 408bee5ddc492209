"""Find Mosquitto 2, or bring it here: Debian's package installed as root, or unpacked into a folder."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pollen.errors import PollenError

Say = Callable[[str], None]

OLDEST: Final = (2, 0)
PACKAGE: Final = "mosquitto"
# Debian keeps daemons out of an ordinary user's PATH.
_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/local/opt/mosquitto/sbin")
_COMMANDS: Final = {
    "apt-get": "sudo apt-get install -y mosquitto",
    "dnf": "sudo dnf install -y mosquitto",
    "pacman": "sudo pacman -S --noconfirm mosquitto",
    "apk": "sudo apk add mosquitto",
    "zypper": "sudo zypper install -y mosquitto",
    "brew": "brew install mosquitto",
}
_TIMEOUT_S: Final = 600.0
# Finds its libraries beside itself, wherever the cache folder is moved to.
_LAUNCHER: Final = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=
for folder in "$here"/usr/lib/*-linux-gnu* "$here"/lib/*-linux-gnu*; do
    LD_LIBRARY_PATH="$LD_LIBRARY_PATH${LD_LIBRARY_PATH:+:}$folder"
done
export LD_LIBRARY_PATH
exec "$here/usr/sbin/mosquitto" "$@"
"""


def ensure(cache: Path, say: Say) -> Path:
    """The path of a Mosquitto of version 2 or newer, installed now where there is none.

    Tried in order: what is installed; what an earlier call unpacked into `cache`; Debian's package, installed
    as root or through a sudo that asks no password; Debian's package with the libraries it misses, unpacked
    into `cache`. `say` gets a line about each step that takes time. Raises PollenError naming the one command
    to run.
    """
    found = find(cache)
    if found is not None:
        return found
    say("Mosquitto 2, the MQTT broker, is not installed here.")
    if shutil.which("apt-get"):
        if (prefix := _as_root()) is not None:
            say("Installing Debian's package mosquitto …")
            if install(prefix, say) and (found := find(cache)) is not None:
                return found
        say(f"Unpacking Debian's package mosquitto into {cache} …")
        if (unpacked := unpack(cache, say)) is not None:
            return unpacked
    tool = next((name for name in _COMMANDS if shutil.which(name)), "apt-get")
    raise PollenError(f"Mosquitto 2 is missing and could not be installed from here; run: {_COMMANDS[tool]}")


def find(cache: Path | None = None) -> Path | None:
    """The path of an installed or, in `cache`, unpacked Mosquitto 2; None when there is none."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])
    candidates = [Path(installed)] if (installed := shutil.which(PACKAGE, path=search)) else []
    if cache is not None:
        candidates.append(_launcher(cache))
    return next((path for path in candidates if (version(path) or (0, 0)) >= OLDEST), None)


def version(binary: Path) -> tuple[int, int] | None:
    """(major, minor) as the program at `binary` tells it; None when it can't be run."""
    try:
        # -h is its only way to tell; the exit code of that is 1.
        told = subprocess.run([binary, "-h"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^mosquitto version (\d+)\.(\d+)", told.stdout, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def install(prefix: Sequence[str], say: Say) -> bool:
    """Install Debian's package, with `prefix` (sudo, or nothing) before the command; False when it fails."""
    command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    wanted = [*command, "install", "-y", "--no-install-recommends", PACKAGE]
    return _runs(wanted, say) or (_runs([*command, "update"], say) and _runs(wanted, say))


def unpack(cache: Path, say: Say) -> Path | None:
    """Unpack Debian's package and the libraries this machine lacks into `cache`, without root.

    Returns the launcher's path, which sets the library path; None when that can't be done.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".mosquitto-") as name:
        folder = Path(name)
        options: list[str] = []
        packages = _missing_packages(options)
        if packages is None:
            # This machine's package lists are empty, as in a container image: fetch some of our own.
            options = _own_lists(folder / "apt")
            say("Fetching Debian's package lists …")
            if not _runs(["apt-get", *options, "update"], say):
                return None
            packages = _missing_packages(options)
        debs = folder / "debs"
        debs.mkdir()
        if packages is None or not _runs(["apt-get", *options, "download", *packages], say, cwd=debs):
            return None
        tree = folder / "tree"
        if not all(_runs(["dpkg", "-x", str(deb), str(tree)], say) for deb in sorted(debs.glob("*.deb"))):
            return None
        launcher = tree / _launcher(cache).name
        launcher.write_text(_LAUNCHER, encoding="utf-8")
        launcher.chmod(0o755)
        if (version(launcher) or (0, 0)) < OLDEST:
            say("The unpacked Mosquitto does not run here.")
            return None
        target = _launcher(cache).parent
        shutil.rmtree(target, ignore_errors=True)
        tree.rename(target)
    return _launcher(cache)


def _launcher(cache: Path) -> Path:
    return cache.resolve() / "mosquitto" / "mosquitto"


def _as_root() -> list[str] | None:
    """What to put before a command so that root runs it; None when that isn't possible without a password."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    return sudo if shutil.which("sudo") and _succeeds([*sudo, "true"]) else None


def _own_lists(folder: Path) -> list[str]:
    """apt options that keep package lists in `folder`; the sources and keys stay the machine's."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def _missing_packages(options: Sequence[str]) -> list[str] | None:
    """mosquitto and those of its libraries, at any depth, that are not installed; None when apt knows none."""
    needs = _dependencies(options)
    if PACKAGE not in needs:
        return None
    installed = _installed_packages()
    missing = [PACKAGE]
    for package in missing:
        # What isn't a library (adduser, init scripts) serves the system service only.
        libraries = [name for name in needs.get(package, []) if name.startswith("lib")]
        missing += [name for name in libraries if name not in installed and name not in missing]
    return missing


def _dependencies(options: Sequence[str]) -> dict[str, list[str]]:
    """What each package below mosquitto depends on, as apt knows it."""
    told = _output(["apt-cache", *options, "depends", "--recurse", "--important", PACKAGE])
    needs: dict[str, list[str]] = {}
    package = ""
    for line in told.splitlines():
        if re.match(r"[a-z0-9]", line):
            package = line.strip()
            needs[package] = []
        elif package and (match := re.match(r"  (?:Pre)?Depends: ([a-z0-9][a-z0-9.+-]*)$", line)):
            needs[package].append(match[1])
    return needs


def _installed_packages() -> set[str]:
    listed = _output(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Package}\n"])
    return {line[3:].strip() for line in listed.splitlines() if line.startswith("ii")}


def _runs(command: Sequence[str], say: Say, cwd: Path | None = None) -> bool:
    """Run `command`; on failure say its last line and return False."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"{' '.join(command)}: {error}")
        return False
    if done.returncode:
        say(f"{' '.join(command)}: {(done.stdout.strip().splitlines() or ['failed'])[-1]}")
    return done.returncode == 0


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
