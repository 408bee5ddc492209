"""docs/protocol.md with a stock client: its shell commands run as they stand there, on a fleet with certificates."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pollen import messages
from tests.hostile.secured_fleet import FLEET, HOST, SecuredFleet
from tests.system.whole import MODEL

PROJECT = Path(__file__).parents[2]
PROTOCOL = (PROJECT / "docs" / "protocol.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path, bundle_file: Path
) -> Iterator[SecuredFleet]:
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not here: apt-get install mosquitto-clients")
    with SecuredFleet(tmp_path_factory.mktemp("fleet"), mosquitto_binary, bundle_file, honest=("pi-1",)) as running:
        running.wait_for_honest_merges(1, 60.0)
        yield running


def run(fleet: SecuredFleet, folder: Path, name: str, device: str = "ops") -> str:
    """Run the block of docs/protocol.md marked `name` in `folder`; returns what it printed."""
    found = re.search(rf"<!-- test: {name} -->\n```sh\n(.*?)```", PROTOCOL, re.DOTALL)
    assert found is not None
    shutil.copy(fleet.authority.ca, folder / "ca.pem")
    for file in fleet.pair(device):
        shutil.copy(file, folder)
    (folder / "examples").symlink_to(PROJECT / "examples")
    environment = {
        **os.environ,
        "BROKER": HOST,
        "PORT": str(fleet.broker.port),
        "FLEET": FLEET,
        "MODEL": MODEL,
        "DEVICE": device,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["sh", "-e", "-c", found[1]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_fleet_can_be_watched(fleet: SecuredFleet, tmp_path: Path) -> None:
    lines = run(fleet, tmp_path, "watch").splitlines()
    assert len(lines) == 8
    assert any(f"pollen/1/{FLEET}/d/pi-1/" in line for line in lines)


def test_a_retained_message_can_be_read(fleet: SecuredFleet, tmp_path: Path) -> None:
    head = ast.literal_eval(run(fleet, tmp_path, "head"))
    assert (head["v"], head["model"]) == (1, MODEL)


def test_one_task_can_be_done_by_hand(fleet: SecuredFleet, tmp_path: Path) -> None:
    fleet.authority.issue("by-hand", "device")
    receipt = ast.literal_eval(run(fleet, tmp_path, "by-hand", "by-hand"))
    assert (receipt["outcome"], receipt["seq"]) == ("merged", 1)
    assert fleet.merges()["by-hand"] == 1


@pytest.mark.parametrize(
    "message",
    [
        *(messages.Task, messages.Update, messages.Result, messages.Receipt, messages.Vitals, messages.Head),
        *(messages.Snapshot, messages.Birth, messages.Death),
    ],
)
def test_every_field_is_documented(message: type) -> None:
    table = PROTOCOL.partition("## Messages")[2].partition("## Watch")[0]
    shorter = {"samples": "n", "signature": "sig", "session": "boot"}
    missing = [item.name for item in fields(message) if f"`{shorter.get(item.name, item.name)}`" not in table]
    assert missing == []
