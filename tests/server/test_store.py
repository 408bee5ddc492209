"""The state store against kill -9, damaged and foreign files, and a full disk."""

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pollen.errors import StoreError
from server import store_file
from server.devices import DeviceCounts
from server.store import Answer, Commit, StateStore
from tests.server import store_writer

ROOT = Path(__file__).parents[2]
KILLS = 50


def test_after_each_kill_the_store_equals_an_uninterrupted_runs_prefix(tmp_path: Path) -> None:
    """A writer is killed at random moments and goes on; each wreck is compared row by row, bit by bit."""
    seed = random.randrange(2**32)
    print("seed", seed)
    command = [sys.executable, "-m", "tests.server.store_writer", str(tmp_path), str(KILLS), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    replay = StateStore(tmp_path / "replay.sqlite")
    store_writer.begin(replay)
    reached = 0
    prefixes = [store_writer.content(tmp_path / "replay.sqlite")]  # what the version `reached` may look like
    compared, hot = set(), 0
    for crashed in sorted(tmp_path.glob("crashed-*")):
        path = crashed / "state.sqlite"
        hot += (crashed / "state.sqlite-wal").exists()
        store = StateStore(path)
        stored = store.load()
        store.close()
        if stored is None:  # killed before the first commit
            assert reached == 0
            continue
        found = store_writer.content(path)
        while reached < stored.version:
            reached += 1
            issued = store_writer.content(tmp_path / "replay.sqlite")["issued"] if reached == stored.version else []
            store_writer.step(replay, reached)
            if reached == stored.version:
                after = store_writer.content(tmp_path / "replay.sqlite")
                # A kill may fall between the commit and the publication that follows it.
                prefixes = [after, after | {"issued": issued}]
        assert found in prefixes, f"version {stored.version} differs from the replay"
        compared.add(stored.version)
    replay.close()
    print(f"{len(compared)} versions compared up to {reached}, {hot} wrecks with a write-ahead log")
    assert len(compared) >= KILLS // 2
    assert reached >= KILLS // 2


def test_a_reopened_store_gives_back_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "state.sqlite"
    store = StateStore(path)
    assert store.load() is None
    store_writer.begin(store)
    for number in range(1, 8):
        store_writer.step(store, number)
    store.close()
    store = StateStore(path)
    stored = store.load()
    assert stored is not None
    assert (stored.version, stored.bundle, stored.kept["rule/count"]) == (7, b"bundle".ljust(32), 7)
    np.testing.assert_array_equal(stored.kept["rule/buffer"], store_writer.weights(8))
    assert stored.devices[0] == DeviceCounts("pi-0", 6, 60, 600, {"norm": 6})
    np.testing.assert_array_equal(stored.weights, store_writer.weights(7))
    assert sorted(stored.open_tasks, key=lambda task: task.version) == [store_writer.task(n) for n in range(7, 12)]
    assert [(i.version, i.at, i.weights is not None) for i in stored.issued] == [(3, 1e9 + 3, True), (6, 1e9 + 6, True)]
    assert store.answer(b"%016d" % 4) == Answer(b"%016d" % 4, "pi-4", 5, b"receipt 5")
    assert store.answer(b"never seen".ljust(16)) is None
    store.close()


@pytest.mark.parametrize("node", [0, 2, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_node_id_that_flower_may_draw_is_kept(tmp_path: Path, node: int) -> None:
    task = replace(store_writer.task(1), node=node)
    store = StateStore(tmp_path / "state.sqlite")
    store_writer.begin(store)
    store.commit(Commit(0, opened=[task]))
    stored = store.load()
    assert stored is not None
    assert task in stored.open_tasks
    store.close()


def test_only_the_newest_answers_of_a_device_are_kept_and_others_stay(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "state.sqlite")
    store_writer.begin(store)
    store.commit(Commit(0, answers=[Answer(b"quiet".ljust(16), "quiet", 1, b"r")]))
    tasks = [b"%016d" % number for number in range(20)]
    for number, task in enumerate(tasks):
        store.commit(Commit(0, answers=[Answer(task, "busy", number, b"r")]))
    known = [task for task in tasks if store.answer(task)]
    assert known == tasks[-8:]
    assert store.answer(b"quiet".ljust(16)) is not None
    store.close()


def test_a_group_that_answers_a_task_twice_changes_nothing_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    store = StateStore(path)
    store_writer.begin(store)
    before = store_writer.content(path)
    twice = [Answer(b"same".ljust(16), "pi-1", 1, b"r")] * 2
    with pytest.raises(StoreError, match="UNIQUE"):
        store.commit(Commit(1, store_writer.weights(1), {}, [], twice, [store_writer.task(9)]))
    assert store_writer.content(path) == before
    store_writer.step(store, 1)
    store.close()


# --- files that are no usable store


def _store(path: Path) -> None:
    store = StateStore(path)
    store_writer.begin(store)
    for number in range(1, 30):
        store_writer.step(store, number)
    store.close()


def _execute(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def _truncated(path: Path) -> None:
    _store(path)
    path.write_bytes(path.read_bytes()[:-5000])


def _broken_page(path: Path) -> None:
    _store(path)
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 100] = bytes(100)
    path.write_bytes(data)


def _broken_header(path: Path) -> None:
    _store(path)
    path.write_bytes(b"SQLitX" + path.read_bytes()[6:])


def _newer(path: Path) -> None:
    _store(path)
    _execute(path, f"PRAGMA user_version = {store_file.FORMAT + 1}")


def _older(path: Path) -> None:
    _store(path)
    _execute(path, "PRAGMA user_version = 1")


def _text(path: Path) -> None:
    path.write_text("dear diary, " * 1000)


def _random(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


def _foreign(path: Path) -> None:
    _execute(path, "CREATE TABLE diary (entry TEXT)", "PRAGMA user_version = 1")


def _foreign_in_wal_mode(path: Path) -> None:
    _execute(path, "PRAGMA journal_mode = WAL", "CREATE TABLE diary (entry TEXT)", "PRAGMA user_version = 1")


def _outbox(path: Path) -> None:
    from edge_client.network.outbox import Outbox

    Outbox(path, 10**6).close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_truncated, "damaged"),
        (_broken_page, "damaged"),
        (_broken_header, "damaged"),
        (_random, "damaged"),
        (_text, "damaged"),
        (_newer, f"format {store_file.FORMAT + 1}, this software knows {store_file.FORMAT}; upgrade"),
        (_older, f"older format 1, this software writes {store_file.FORMAT}; give a new state_dir"),
        (_foreign, "not a Pollen state store"),
        (_foreign_in_wal_mode, "not a Pollen state store"),
        (_outbox, "not a Pollen state store"),
    ],
)
def test_an_unusable_file_is_refused_by_name_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "state.sqlite"
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreError) as refusal:
        StateStore(path)
    assert str(path) in str(refusal.value)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(("-shm", "-wal", ".lock"))] == [
        "state.sqlite"
    ]


def test_a_folder_in_the_stores_place_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.mkdir()
    with pytest.raises(StoreError, match=r"state\.sqlite"):
        StateStore(path)


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.touch()
    store = StateStore(path)
    assert store.load() is None
    store_writer.begin(store)
    store.close()


# --- a full disk

BIG = 100_000  # parameters: the write-ahead log takes 400 kB a commit


def _commit_until_refused(store: StateStore) -> tuple[int, str]:
    """Commit until the disk refuses; returns (the last version committed, the error)."""
    store.begin(b"bundle".ljust(32), 0, store_writer.weights(0, BIG))
    for number in range(1, 200):
        answer = Answer(b"%016d" % number, "pi-1", number, b"r")
        try:
            store.commit(Commit(number, store_writer.weights(number, BIG), {"rule/n": number}, [], [answer]))
        except StoreError as error:
            return number - 1, str(error)
    raise AssertionError("the disk took everything")


def _assert_stands_at(path: Path, version: int) -> None:
    store = StateStore(path)
    stored = store.load()
    assert stored is not None
    assert (stored.version, stored.kept) == (version, {"rule/n": version})
    np.testing.assert_array_equal(stored.weights, store_writer.weights(version, BIG))
    assert store.answer(b"%016d" % version) is not None
    assert store.answer(b"%016d" % (version + 1)) is None
    store.commit(Commit(version + 1, store_writer.weights(version + 1, BIG), {"rule/n": version + 1}))
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_the_last_commit_stands(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    path = small_disk / "state.sqlite"
    store = StateStore(path)
    version, error = _commit_until_refused(store)
    assert version >= 1
    assert str(path) in error
    assert "full" in error
    assert "check the disk's space" in error
    assert store.load().version == version  # type: ignore[union-attr]
    store.close()
    ballast.unlink()
    _assert_stands_at(path, version)


def test_a_store_on_a_full_disk_is_not_called_damaged(small_disk: Path) -> None:
    path, ballast = small_disk / "state.sqlite", small_disk / "ballast"
    store = StateStore(path)
    store_writer.begin(store)
    store.close()
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    with pytest.raises(StoreError, match=r"state\.sqlite: can't be read .* is the disk full"):
        StateStore(path)
    ballast.unlink()
    again = StateStore(path)
    assert again.load() is not None
    again.close()


def test_a_file_that_may_not_grow_is_an_error_and_the_last_commit_stands(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    script = """
import resource, signal, sys
from pathlib import Path
from server.store import StateStore
from tests.server.test_store import _commit_until_refused
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
print(*_commit_until_refused(StateStore(Path(sys.argv[1]))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    version, error = done.stdout.split(" ", 1)
    assert int(version) >= 1
    assert str(path) in error
    _assert_stands_at(path, int(version))
