"""Debian packages of another architecture, unpacked without being installed: nothing of them is configured or run.

apt resolves, fetches and verifies in a folder of its own, so neither root nor a change to this machine is needed.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm main\n"
TIMEOUT_S = 900


class UnavailableError(Exception):
    """What emulated ARM needs can't be had on this machine; the message says what and what to do."""


def unpack(names: Sequence[str], architecture: str, root: Path, scratch: Path) -> None:
    """Unpack Debian 12's packages `names`, and all they depend on, into the folder `root`; `scratch` is used up."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"{tool} isn't here: emulated ARM is made from Debian's packages")
    if not KEYRING.exists():
        raise UnavailableError(f"{KEYRING} is missing; run: sudo apt-get install debian-archive-keyring")
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "sources.list").write_text(SOURCE)
    (scratch / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": scratch,
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Acquire::Languages": "none",
        # Root's apt downloads as a user who can't write here.
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    run([*apt, "-oAPT::Update::Error-Mode=any", "update"], "Debian's package lists can't be fetched")
    fetch = ["--no-install-recommends", "--download-only", "install", *names]
    run([*apt, *fetch], f"Debian's {architecture} packages can't be fetched")
    root.mkdir(parents=True, exist_ok=True)
    for package in sorted((scratch / "cache" / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(package), str(root)], f"{package.name} can't be unpacked")
    shutil.rmtree(scratch)


def run(command: Sequence[str], problem: str) -> str:
    """What `command` prints. Raises UnavailableError, `problem` and the command's own reason, when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{problem}: {error}") from error
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith(("E:", "ERROR", "dpkg"))]
        raise UnavailableError(f"{problem}: {(reasons or [done.stderr.strip()])[0]}")
    return done.stdout
