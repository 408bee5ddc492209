"""Fixtures: programs of the machine, or a skip that names them; a fleet of services under their unit files."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.services import Fleet
from tests.system.conftest import bundle_file

__all__ = ["bundle_file", "fleet", "tool"]

Tool = Callable[[str, str], str]


@pytest.fixture(scope="session")
def tool() -> Tool:
    """`tool(name, package)`: where the program is."""

    def find(name: str, package: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not there; apt-get install {package}")
        return found

    return find


@pytest.fixture(scope="module")
def fleet(mosquitto_binary: Path, bundle_file: Path) -> Iterator[Fleet]:
    """A broker, and server, gateway and device that each runs as its unit file says."""
    with Fleet(mosquitto_binary, bundle_file) as running:
        yield running
