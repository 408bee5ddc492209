"""Recordings in .npz: every row as NumPy loads it, and nothing from a file made to do harm."""

import contextlib
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.sensors.replay import ReplaySensor
from pollen.errors import SensorError, SettingsError
from tests.edge_client.sensors.recordings import all_readings


def test_npz_gives_rows_windows_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=np.arange(12, dtype=np.int8).reshape(2, 3, 2), y=np.array([1, 0]), channels=np.array(["a", "b"]))
    one = ReplaySensor({"file": str(path)})
    assert [channel.name for channel in one.channels] == ["a", "b"]
    first, second = all_readings(one)
    assert first.values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (first.label, second.label, type(first.label)) == (1, 0, int)
    np.savez(path, X=np.ones((1, 2), np.float32), y=np.array([0.5]))
    looped = all_readings(ReplaySensor({"file": str(path), "loop": True}), 3)
    assert [reading.values.tolist() for reading in looped] == [[[1, 1]]] * 3
    assert looped[0].label == 0.5
    assert [reading.time for reading in looped] == [0, 1, 2]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|b1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_rows_are_what_numpy_loads(tmp_path: Path, save: Any, dtype: str, order: Any) -> None:
    path = tmp_path / "data.npz"
    x = np.asarray(np.random.default_rng(1).normal(0, 50, (40, 5, 3)).astype(dtype), order=order)
    save(path, X=x, scale=np.array([1.0, 0.5, 2.0]), time=np.arange(40) * 0.5)
    found = all_readings(ReplaySensor({"file": str(path)}))
    expected = x.astype(np.float32) * np.array([1.0, 0.5, 2.0], np.float32)
    assert np.array_equal(np.stack([reading.values for reading in found]), expected)
    assert [reading.time for reading in found] == [0.5 * index for index in range(40)]


def test_a_large_npz_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=np.zeros((1_000_000, 8), np.float32), y=np.zeros(1_000_000))
    tracemalloc.start()
    one = ReplaySensor({"file": str(path)})
    for _ in range(2000):
        one.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one.close()
    assert peak < 2**20, "of 40 MB"


def test_a_columnwise_npz_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    monkeypatch.setattr("edge_client.sensors.npz_recording.LARGEST_COLUMNWISE_BYTES", 1000)
    np.savez(path, X=np.asfortranarray(np.zeros((1000, 2))))
    with pytest.raises(SettingsError, match=r"data\.npz.*ascontiguousarray"):
        ReplaySensor({"file": str(path)})


@pytest.mark.parametrize("content", ["missing", "text", "no X", "pickle", "rank", "labels", "names", "scale", "cut"])
def test_npz_names_the_file_it_cant_use(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.npz"
    arrays = {
        "no X": {"Z": np.ones(3)},
        "pickle": {"X": np.array([{"a": 1}], dtype=object)},
        "rank": {"X": np.ones(3)},
        "labels": {"X": np.ones((3, 2)), "y": np.ones(4)},
        "names": {"X": np.ones((3, 2)), "channels": np.array(["a", "a"])},
        "scale": {"X": np.ones((3, 2)), "scale": np.ones(3)},
        "cut": {"X": np.ones((3, 2))},
    }
    if content == "text":
        path.write_text("a,b\n1,2\n")
    elif content != "missing":
        np.savez(path, **arrays[content])  # type: ignore[arg-type]
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SettingsError, match=r"data\.npz"):
        ReplaySensor({"file": str(path)})


def header(dtype: str, shape: object, *, columnwise: bool = False) -> bytes:
    """An .npy file without its data."""
    return npy(repr({"descr": dtype, "fortran_order": columnwise, "shape": shape}).encode())


def npy(text: bytes) -> bytes:
    text += b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


NUMBERS = header("<f4", (3, 2)) + bytes(24)
LARGE = 64 * 2**20
HOSTILE: dict[str, dict[str, bytes]] = {
    "no suffix": {"X": NUMBERS},
    "negative columns": {"X.npy": header("<f4", (5, -1)) + bytes(LARGE)},
    "negative rows": {"X.npy": header("<f4", (-5, 2)) + bytes(LARGE)},
    "two negatives": {"X.npy": header("<f4", (5, -2, -3)) + bytes(LARGE)},
    "a header that unpacks to much": {"X.npy": npy(b" " * LARGE)},
    "a header cut short": {"X.npy": npy(b"{'descr': '<f4', 'shape': (3, 2), ")},
    "a header of brackets": {"X.npy": npy(b"(" * 9000)},
    "a header of signs": {"X.npy": npy(b"-" * 9000)},
    "a header of other lines": {"X.npy": npy(b"  x\n y")},
    "names that unpack to much": {"X.npy": NUMBERS, "channels.npy": header("<U8000000", (2,)) + bytes(LARGE)},
    "many names": {"X.npy": header("<f4", (1, LARGE)), "channels.npy": header("|u1", (LARGE,)) + bytes(LARGE)},
    "names that are no text": {"X.npy": NUMBERS, "channels.npy": header("<M8[s]", (2,)) + bytes(16)},
    "names that are empty": {"X.npy": NUMBERS, "channels.npy": header("<U1", (2,)) + b"a" + bytes(7)},
    "factors that are text": {"X.npy": NUMBERS, "scale.npy": header("<U3", (2,)) + bytes(24)},
    "pickled names": {"X.npy": NUMBERS, "channels.npy": header("|O", (2,)) + b"cos\nsystem\n"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_npz_made_to_do_harm_is_refused_in_little_memory(tmp_path: Path, what: str) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in HOSTILE[what].items():
            archive.writestr(name, content)
    tracemalloc.start()
    with pytest.raises(SettingsError, match=r"data\.npz"):
        ReplaySensor({"file": str(path)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_npz_that_unpacks_all_at_once_is_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("X.npy", NUMBERS)
    with pytest.raises(SettingsError, match="packed in another way"):
        ReplaySensor({"file": str(path)})


def test_a_damaged_npz_is_refused_or_ends(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, X=np.ones((3, 2), np.float32), y=np.arange(3))
    whole, chance = path.read_bytes(), random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(SettingsError, SensorError):
            all_readings(ReplaySensor({"file": str(path)}), 10)


def test_a_file_that_is_gone_is_a_sensor_error(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=np.zeros((100_000, 8), np.float32))
    one = ReplaySensor({"file": str(path)})
    with path.open("r+b") as file:
        file.truncate(4000)
    with pytest.raises(SensorError, match=r"data\.npz"):
        all_readings(one, 100_000)
