"""A machine for the operator's guide: root's view of the file system with /etc, /opt and /var/lib of its own.

`unshare --mount --net python -m tests.deploy.guide_machine FOLDER SCRIPT` lays overlays over those folders, starts a
stand-in for systemd, which is not process 1 here, and runs SCRIPT by bash. `systemctl` on the script's PATH talks to
the stand-in: it starts units as their installed files say, in tests.deploy.sandbox, waits for READY=1, and reloads and
stops as they say.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from tests.deploy.unit_files import MOSQUITTO_UNITS, PROJECT, read

READY_S: Final = 90.0
UNITS: Final = Path("/etc/systemd/system")
SYSTEMCTL: Final = """\
#!/bin/bash
exec {python} -c '
import socket, sys
asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
asked.connect("{address}")
asked.sendall("\\0".join(sys.argv[1:]).encode())
asked.shutdown(socket.SHUT_WR)
answer = asked.makefile().read()
sys.exit(answer or None)' "$@"
"""


class Unit:
    """One started unit; its log is `folder`/NAME.log."""

    def __init__(self, name: str, folder: Path) -> None:
        base, _, instance = name.partition("@")
        file = f"{base}@.service" if instance else f"{name}.service"
        found = next(place / file for place in (UNITS, *MOSQUITTO_UNITS) if (place / file).exists())
        drop_ins = sorted((UNITS / f"{file}.d").glob("*.conf"))
        merged = folder / f"{name}.service"
        text = "\n".join(path.read_text(encoding="utf-8") for path in (found, *drop_ins))
        merged.write_text(text.replace("%i", instance), encoding="utf-8")
        self._service = read(merged)["Service"]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / f"{name}.notify"
        address.unlink(missing_ok=True)
        self._listener.bind(str(address))
        address.chmod(0o777)
        user = self._service["User"][-1]
        states = []
        for kind, root in (("State", "/var/lib"), ("Logs", "/var/log"), ("Runtime", "/run")):
            for one in self._service.get(f"{kind}Directory", []):
                states.append(str(Path(root, one)))
                Path(states[-1]).mkdir(
                    mode=int(self._service.get(f"{kind}DirectoryMode", ["755"])[-1], 8), exist_ok=True
                )
                shutil.chown(states[-1], user, self._service["Group"][-1])
        sandbox = [sys.executable, "-m", "tests.deploy.sandbox", str(merged), user, *states, "--"]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "NOTIFY_SOCKET": str(address)}
        with (folder / f"{name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", *sandbox, *self._service["ExecStart"][-1].split()],
                cwd=PROJECT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self) -> str:
        """Wait for READY=1; "" or what went wrong."""
        self._listener.settimeout(0.2)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return f"ended with {self.process.returncode}"
            try:
                if "READY=1" in self._listener.recv(4096).decode():
                    self._listener.settimeout(None)
                    threading.Thread(target=self._drain, daemon=True).start()
                    return ""
            except TimeoutError:
                pass
        return "is not ready"

    def reload(self) -> str:
        done = subprocess.run(
            self._service["ExecReload"][-1].replace("$MAINPID", str(self.process.pid)).split(), check=False
        )
        return "" if done.returncode == 0 else "reload failed"

    def stop(self) -> str:
        self.process.terminate()
        try:
            code = self.process.wait(float(self._service["TimeoutStopSec"][-1]))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "did not stop in time"
        return "" if code == 0 else f"ended with {code}"

    def _drain(self) -> None:
        while True:
            self._listener.recv(4096)


class Systemd:
    """Answers `systemctl`, one question after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._units: dict[str, Unit] = {}
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(folder / "systemd"))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        for unit in self._units.values():
            if unit.process.poll() is None:
                unit.process.kill()
            unit.process.wait()

    def _serve(self) -> None:
        while True:
            asked, _ = self._server.accept()
            with asked:
                words = asked.makefile().read().split("\0")
                try:
                    answer = self._answer(*words)
                except Exception as error:  # noqa: BLE001  # whatever it is, the guide's command has failed
                    answer = f"{type(error).__name__}: {error}"
                asked.sendall(answer.encode())

    def _answer(self, verb: str, *words: str) -> str:
        names = [word.removesuffix(".service") for word in words if not word.startswith("-")]
        if verb == "enable":
            verb = "start" if "--now" in words else ""
        if verb == "disable":
            verb = "stop" if "--now" in words else ""
        answers = []
        for name in names:
            unit = self._units.get(name)
            if verb in ("stop", "restart") and unit is not None and unit.process.poll() is None:
                answers.append(unit.stop())
            if verb == "reload":
                answers.append(unit.reload() if unit is not None else "is not running")
            if verb in ("start", "restart"):
                self._units[name] = Unit(name, self._folder)
                answers.append(self._units[name].wait())
        failed = [f"{name} {answer}" for name, answer in zip(names, answers, strict=False) if answer]
        return "; ".join(failed)


def overlay(folder: Path, over: str) -> None:
    """Let changes below `over` go to `folder`."""
    for part in ("upper", "work"):
        (folder / over.strip("/") / part).mkdir(parents=True)
    place = folder / over.strip("/")
    Path(over).mkdir(exist_ok=True)
    options = f"lowerdir={over},upperdir={place / 'upper'},workdir={place / 'work'}"
    subprocess.run(["mount", "-n", "-t", "overlay", "overlay", "-o", options, over], check=True)


def main() -> int:
    """Runs as root in namespaces of its own; the script's exit code."""
    folder, script = Path(sys.argv[1]), Path(sys.argv[2])
    subprocess.run(["mount", "-n", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-n", "-t", "tmpfs", "overlays", str(folder / "overlays")], check=True)
    for over in ("/etc", "/opt", "/var/lib"):
        overlay(folder / "overlays", over)
    with Path("/etc/hosts").open("a", encoding="utf-8") as hosts:
        hosts.write("\n127.0.0.1 localhost broker.example server.example\n")
    programs = Path("/opt/pollen/bin")
    programs.mkdir(parents=True)
    for program in Path(sys.prefix, "bin").iterdir():
        (programs / program.name).symlink_to(program)
    tools = folder / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL.format(python=sys.executable, address=folder / "systemd"))
    (tools / "systemctl").chmod(0o755)
    systemd = Systemd(folder)
    try:
        path = f"{tools}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euxo", "pipefail", script],
            check=False, cwd=folder / "work", env={**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT)},
        ).returncode  # fmt: skip
    finally:
        systemd.stop()


if __name__ == "__main__":
    sys.exit(main())
