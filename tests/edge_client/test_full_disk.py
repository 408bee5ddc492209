"""A device on a disk that fills up, for real: a small tmpfs. The sensor goes on, and so do the updates."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_client.ballast import Ballast, free_bytes
from edge_client.network.outbox import Outbox, Reply
from pollen.bundle import Bundle
from pollen.errors import StoreError
from tests.edge_client.fleet import Device, Server

Devices = Callable[..., Device]
Bundles = Callable[[str], Bundle]
SIZE_MB = 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Where the device pi-1 keeps its state: 4 MB."""
    folder = tmp_path / "pi-1" / "state"
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small tmpfs here")
    yield folder
    # The device fixture ends its processes only after this.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    assert free_bytes(disk) == 0
    return filler


def reply(task: bytes, size: int) -> Reply:
    return Reply(task, "update", lambda _seq: b"x" * size)


def put_many(outbox: Outbox) -> None:
    for number in range(100):
        outbox.put(reply(b"%d" % number, 100_000))


def answered(server: Server, bundle: Bundle, count: int) -> None:
    """`count` tasks, each with its update and its receipt."""
    for _ in range(count):
        server.receipt(server.update(server.task(bundle, version=1, config={"max_steps": 5, "min_samples": 8}), 40))


def test_a_full_disk_stops_neither_sensor_nor_updates(
    server: Server, device: Devices, bundles: Bundles, small_disk: Path
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 1)
    storage = {"flush_s": 0.2, "ballast_bytes": 2**18}
    one = device(storage=storage)
    answered(server, bundle, 3)
    server.wait_for(lambda: server.vitals().get("stored_samples", 0) > 0, 20, "samples on disk")
    assert (small_disk / "ballast").stat().st_blocks * 512 == 2**18

    fill(small_disk)
    server.wait_for(lambda: server.vitals().get("store_dropped", 0) > 0, 30, "the store to notice")
    fill(small_disk)
    seen = server.vitals()["samples_seen"]
    # More than fits into what the files had left.
    for _ in range(4):
        answered(server, bundle, 10)
    server.wait_for(lambda: server.vitals().get("outbox_rows") == 0, 20, "an empty outbox")
    assert server.vitals()["samples_seen"] > seen
    assert "can't be kept" not in one.log()
    assert one.log().count("samples since then are lost at a restart") == 1, "said once"

    assert one.terminate() == 0
    two = device(storage=storage, wait=False)
    server.wait_for(lambda: "connected to" in two.log().rpartition("stopped")[2], 20, "a start on a full disk")
    answered(server, bundle, 3)

    (small_disk / "filler").unlink()
    server.wait_for((small_disk / "ballast").exists, 20, "a new ballast")
    before = server.vitals()["stored_samples"]
    server.wait_for(lambda: server.vitals().get("stored_samples", 0) > before + 100, 20, "samples on disk again")
    answered(server, bundle, 3)
    assert two.terminate() == 0


def test_the_ballast_lets_a_full_outbox_be_emptied(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast", 2**18)
    assert ballast.make()
    tasks = [bytes([number]) * 16 for number in range(20)]
    with Outbox(small_disk / "outbox.sqlite", 2**26, ballast) as outbox:
        for task in tasks:
            outbox.put(reply(task, 50_000))
        # A log as long as it may become, and then no room at all.
        fill(small_disk)
        for task in tasks:
            outbox.freeze(task)
            outbox.receipted(task)
        assert outbox.rows == ()
        for task in tasks:
            outbox.put(reply(task + b"2", 20_000))
            outbox.freeze(task + b"2")
            outbox.receipted(task + b"2")
        with pytest.raises(StoreError, match="free some disk space"):
            outbox.put(reply(b"large", 2 * 10**6))
        outbox.put(reply(b"small", 1000))
    (small_disk / "filler").unlink()
    assert ballast.make()


def test_without_a_ballast_a_full_disk_refuses_updates_and_recovers(small_disk: Path) -> None:
    with Outbox(small_disk / "outbox.sqlite", 2**26) as outbox:
        outbox.put(reply(b"kept", 1000))
        filler = fill(small_disk)
        with pytest.raises(StoreError, match="free some disk space"):
            put_many(outbox)
        filler.unlink()
        outbox.put(reply(b"new", 100_000))
        assert outbox.payload(b"kept") == b"x" * 1000


def test_the_ballast_is_not_freed_while_there_is_room(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", 2**16)
    assert ballast.make()
    assert not ballast.free()
    with Outbox(tmp_path / "outbox.sqlite", 2**18, ballast) as outbox:
        with pytest.raises(StoreError, match="full"):
            outbox.put(reply(b"larger than the outbox", 2**19))
        assert not ballast.missing
    none = Ballast(tmp_path / "none", 0)
    assert not none.make()
    assert not none.missing
    assert not none.free()
