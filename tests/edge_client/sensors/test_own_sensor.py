"""A sensor of one's own, as a user makes it: a package with an entry point, installed beside Pollen."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge_client.fleet import Device, Server, write_settings

PROJECT = Path(__file__).parents[3]
EXAMPLE = PROJECT / "examples" / "own_sensor.py"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder pip installed the example's package into, with the entry point that its docstring names."""
    package, target = tmp_path / "package", tmp_path / "installed"
    package.mkdir()
    (package / "own_sensor.py").write_text(EXAMPLE.read_text())
    entry = (ast.get_docstring(ast.parse(EXAMPLE.read_text())) or "").partition("[project.entry-points")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "own-sensor"\nversion = "1.0"\n[tool.setuptools]\npy-modules = ["own_sensor"]\n'
        f"[project.entry-points{entry[2]}\n"
    )
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--quiet", "--target", str(target), str(package)], capture_output=True, text=True, check=False
    )
    if any(word in done.stderr for word in ("BackendUnavailable", "No module named pip", "'bdist_wheel'")):
        pytest.skip("no pip here, or no setuptools that can build a wheel")
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def device(server: Server, installed: Path, tmp_path: Path) -> Iterator[tuple[Device, Path]]:
    """A real pollen-edge that measures with it, and the file it reads."""
    file = tmp_path / "temp"
    file.write_text("48312\n")
    sensor = {"kind": "soc", "period_s": 0.01, "options": {"file": str(file)}}
    settings = write_settings(tmp_path / "pi-1", "pi-1", server.port, {"sensor": sensor})
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{installed}"}
    one = Device(sys.executable, settings, environment)
    yield one, file
    one.kill()


def test_an_installed_sensor_is_found_by_name_and_read(
    server: Server, device: tuple[Device, Path], wait_until: Any
) -> None:
    process, file = device
    wait_until(lambda: server.states() or process.process.poll() is not None, 60, "the birth")
    assert process.process.poll() is None, process.log()
    assert server.states()[0].sensors == ("soc",)
    server.wait_for(lambda: server.vitals().get("sensor_failures") == 0.0, 20, "vitals without failures")
    file.unlink()
    wait_until(lambda: "can't be read" in process.log(), 20, "the failure in the log")
    file.write_text("50000\n")
    wait_until(lambda: "opened again" in process.log(), 20, "the sensor opened again")
    assert process.terminate() == 0


def test_it_is_twenty_lines() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    documented = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef))]
    silent: set[int] = set()
    for node in documented:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            silent |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(EXAMPLE.read_text().splitlines(), 1)
    code = [line for number, line in lines if line.strip() and number not in silent]
    assert len(code) <= 20
