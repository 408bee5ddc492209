"""The unit files: what systemd-analyze says of them, and that they agree with settings and console scripts."""

import importlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edge_client.settings import EdgeSettings
from gateway.settings import Gateway
from pollen import settings
from server.settings import Settings as ServerSettings
from tests.deploy.conftest import Tool
from tests.deploy.unit_files import MOSQUITTO_UNITS, PROJECT, SYSTEMD, UNITS, one, read

MOST_EXPOSED = 25  # tenths, as --threshold counts
MODULES = {"pollen-server": "server", "pollen-gateway": "gateway", "pollen-edge": "edge_client"}
SETTINGS: dict[str, Any] = {"server": ServerSettings, "gateway-1": Gateway, "edge": EdgeSettings}
EXAMPLES = tuple(sorted((SYSTEMD / "settings").glob("*.toml")))


def command(unit: Path) -> list[str]:
    return one(unit, "ExecStart").split()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as an operator installs them, their programs where this Python is."""
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/pollen/bin", str(tmp_path / "bin"))
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
        program = tmp_path / "bin" / Path(command(unit)[0]).name
        program.parent.mkdir(exist_ok=True)
        program.symlink_to(sys.executable)
    drop_ins = tmp_path / "mosquitto.service.d"
    shutil.copytree(SYSTEMD / drop_ins.name, drop_ins)
    for folder in MOSQUITTO_UNITS:
        if (folder / "mosquitto.service").exists():
            shutil.copy(folder / "mosquitto.service", tmp_path)
            break
    return tmp_path


@pytest.mark.parametrize("unit", [*(path.name for path in UNITS), "mosquitto.service"])
def test_a_unit_is_hardly_exposed(installed: Path, unit: str, tool: Tool) -> None:
    analyze = tool("systemd-analyze", "systemd")
    path = installed / unit
    if not path.exists():
        pytest.skip("mosquitto.service is not there; apt-get install mosquitto")
    checked = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED}", path],
        capture_output=True,
        text=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{installed}:", "PATH": "/usr/bin"},
    )
    assert "Overall exposure level" in checked.stdout, checked.stderr
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("unit", [*(path.name for path in UNITS), "mosquitto.service"])
def test_systemd_has_nothing_to_say_against_a_unit(installed: Path, unit: str, tool: Tool) -> None:
    analyze = tool("systemd-analyze", "systemd")
    path = installed / unit.replace("@.", "@gateway-1.")
    if unit != path.name:
        path.symlink_to(unit)
    if not path.exists():
        pytest.skip("mosquitto.service is not there; apt-get install mosquitto")
    checked = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", path],
        capture_output=True,
        text=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{installed}:", "PATH": "/usr/bin"},
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_an_installed_program_with_a_settings_file_that_has_an_example(unit: Path) -> None:
    program, option, file = command(unit)
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert Path(program).parent == Path("/opt/pollen/bin")
    module, _, function = scripts[Path(program).name].partition(":")
    assert module.startswith(f"{MODULES[Path(program).name]}.")
    assert callable(getattr(importlib.import_module(module), function))
    assert option == "--config"
    assert (SYSTEMD / "settings" / Path(file.replace("%i", "gateway-1")).name).exists()
    assert Path(file).parent == Path("/etc/pollen")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_what_the_program_takes(example: Path) -> None:
    module = {"server": "server", "gateway-1": "gateway", "edge": "edge_client"}[example.stem]
    shown = subprocess.run(
        [sys.executable, "-m", f"{module}.command", "--config", example, "--show-config"],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    table = tomllib.loads(shown.stdout)
    secured = table["listen" if module == "server" else "broker"]
    assert {secured["ca"], secured["certificate"], secured["key"]} == {
        "/etc/pollen/tls/ca.pem",
        f"/etc/pollen/tls/{table.get('name') or table.get('device') or 'server'}.pem",
        f"/etc/pollen/tls/{table.get('name') or table.get('device') or 'server'}.key",
    }


def test_the_units_times_and_folders_agree_with_the_settings() -> None:
    loaded = {name: settings.load(cls, SYSTEMD / "settings" / f"{name}.toml", {}) for name, cls in SETTINGS.items()}
    gateway, edge, server = (
        SYSTEMD / name for name in ("pollen-gateway@.service", "pollen-edge.service", "pollen-server.service")
    )
    assert float(one(gateway, "TimeoutStopSec")) > loaded["gateway-1"].drain_s + 10  # and its HTTP's end
    assert float(one(edge, "TimeoutStopSec")) > loaded["edge"].upload.drain_s + 10
    assert Path("/var/lib", one(server, "StateDirectory")) == loaded["server"].state_dir
    assert Path("/var/lib", one(edge, "StateDirectory")) == loaded["edge"].state_dir
    assert loaded["gateway-1"].server.port == loaded["server"].listen.port
    assert loaded["gateway-1"].broker.port == loaded["edge"].broker.port
    assert {loaded[name].fleet for name in SETTINGS} == {"garden"}


def test_a_device_is_started_again_for_ever_within_128_megabytes() -> None:
    edge = SYSTEMD / "pollen-edge.service"
    assert one(edge, "Restart") == "always"
    assert one(edge, "StartLimitIntervalSec", "Unit") == "0"
    assert "RestartPreventExitStatus" not in read(edge)["Service"]
    assert one(edge, "MemoryMax") == "128M"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_users_and_groups_of_a_unit_are_made_by_sysusers(unit: Path, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        [tool("systemd-sysusers", "systemd"), f"--root={tmp_path}", SYSTEMD / "pollen.sysusers.conf"],
        check=True,
        capture_output=True,
    )
    users, groups = (
        {line.split(":")[0] for line in (tmp_path / "etc" / name).read_text(encoding="utf-8").splitlines()}
        for name in ("passwd", "group")
    )
    service = read(unit)["Service"]
    assert one(unit, "User") in users
    assert {one(unit, "Group"), *" ".join(service.get("SupplementaryGroups", [])).split()} <= groups
