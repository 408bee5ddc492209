"""The operator's guide, docs/operations.md: its shell blocks are run, all of them, in their order."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import Tool
from tests.deploy.services import need_namespaces
from tests.deploy.unit_files import PROJECT
from tests.system import recording

GUIDE = PROJECT / "docs" / "operations.md"
TOOLS = {
    "curl": "curl", "ip": "iproute2", "promtool": "prometheus", "setpriv": "util-linux", "systemd-sysusers": "systemd",
    "unshare": "util-linux",
}  # fmt: skip
# What the guide leaves to the operator: their model, their sensor.
EDITS = """
sed -i 's/^model = .*/model = "telemetry"/; s/^kind = .*/kind = "replay"/; s/^period_s = .*/period_s = 0.02/' \\
    /etc/pollen/edge.toml
cat >>/etc/pollen/edge.toml <<'END'
[sensor.options]
file = "/etc/pollen/readings.npz"
loop = true
[training]
new_samples = 6
max_steps = 4
[learner]
replay_samples = 200
END
install -m 644 readings.npz /etc/pollen/
"""
MERGED = """
until pollen devices pi-01 --json | tee devices.json | grep -Eq '"updates": *[1-9]'; do sleep 0.2; done
"""
LOCKED_OUT = """
pollen ca list --dir ca | grep -E '^pi-01 .*revoked'
pollen devices pi-01 --json | grep -E '"blocked": *true'
"""


def blocks() -> list[tuple[str, str]]:
    """The guide's `sh` blocks in order, each with the heading it stands under."""
    found = []
    heading = ""
    for match in re.finditer(
        r"^## ([^\n]*)$|^```sh\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if match[1]:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


def script() -> str:
    """The guide as one script, with what an operator does and looks at in between."""
    parts = []
    done = []
    for heading, block in blocks():
        parts.append(f"echo '=== {heading}' >&2\n{block}")
        done.append(heading)
        parts += [EDITS] if heading == "Install" else []
        parts += [MERGED] if "pollen-edge" in block and heading == "Server, gateway, device" else []
        parts += [LOCKED_OUT] if heading == "Lock a device out" else []
    assert {"Install", "Lock a device out", "Server, gateway, device", "Backup"} <= set(done)
    return "\n".join(parts)


@pytest.fixture
def machine(tool: Tool, bundle_file: Path) -> Iterator[Path]:
    for name, package in TOOLS.items():
        tool(name, package)
    need_namespaces()
    if "\toverlay\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        pytest.skip("this kernel has no overlays; modprobe overlay")
    if not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("/usr/sbin/mosquitto is not there; apt-get install mosquitto")
    folder = Path(tempfile.mkdtemp(prefix="pollen-guide-"))
    folder.chmod(0o755)
    (folder / "overlays").mkdir()
    work = folder / "work"
    work.mkdir()
    (work / "deploy").symlink_to(PROJECT / "deploy")
    shutil.copy(bundle_file, work / "model.bundle")
    recording.write(work / "readings.npz", seed=1)
    yield folder
    shutil.rmtree(folder)


def test_the_guide_leads_to_a_fleet_that_runs(machine: Path) -> None:
    path = machine / "guide.sh"
    path.write_text(script(), encoding="utf-8")
    done = subprocess.run(
        ["unshare", "--mount", "--net", sys.executable, "-m", "tests.deploy.guide_machine", machine, path],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        timeout=110,
    )
    logs = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in sorted(machine.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{logs}"
    assert "settings reloaded: logging.format" in logs
    assert "pollen-gateway@gateway-2.log" in logs
    backup = machine / "work" / "backup" / "state.sqlite"
    assert backup.stat().st_size > 0
