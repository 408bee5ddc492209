"""The hostile suite's fleet: one for a module, since each start costs seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.secured_fleet import SecuredFleet
from tests.system.conftest import bundle_file

__all__ = ["bundle_file", "fleet"]


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    mosquitto_binary: Path,
    bundle_file: Path,
) -> Iterator[SecuredFleet]:
    with SecuredFleet(tmp_path_factory.mktemp("fleet"), mosquitto_binary, bundle_file) as running:
        running.wait_for_honest_merges(2, 60.0)
        yield running
