"""Fuzzed messages from the server: readers give a value or a PollenError, and nothing grows."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import readers

FOLDER = Path(__file__).parent
RUNS = 20_000
SECONDS = 20
MEMORY_MB = 768  # libFuzzer's bound on the process, Python and numpy included
SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**80])
)
scalars = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=20), st.binary(max_size=80))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | numbers, inner, max_size=4),
)


@pytest.mark.parametrize("reader", readers.READERS)
@SETTINGS
@given(data=st.data())
def test_a_message_with_any_values_in_its_fields_is_read_or_refused(reader: str, data: st.DataObject) -> None:
    """Each field, also inner ones, may be left out, of any type, huge, NaN."""
    import cbor2

    content = cbor2.loads(readers.READERS[reader][1]())
    readers.holds(reader, cbor2.dumps(changed(content, data)))


def changed(content: Any, data: st.DataObject) -> Any:
    if not isinstance(content, dict) or not content:
        return data.draw(values)
    key = data.draw(st.sampled_from(sorted(content, key=str)))
    if data.draw(st.booleans()):
        return {**content, key: changed(content[key], data)}
    if data.draw(st.booleans()):
        return {**content, data.draw(st.text(max_size=8) | numbers): data.draw(values)}
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize("reader", readers.READERS)
@SETTINGS
@given(data=st.data())
def test_a_message_with_damaged_bytes_is_read_or_refused(reader: str, data: st.DataObject) -> None:
    payload = bytearray(readers.READERS[reader][1]())
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    readers.holds(reader, bytes(payload[: data.draw(st.integers(0, len(payload)))]))


@pytest.mark.parametrize("reader", readers.READERS)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x81" * 100_000,
        b"\xa1\x61v" * 100_000,
        b"\x9f" * 100,
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\xd8\x28\x82\x84" + b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff" * 4 + b"\xd8\x55\x40",
        b"\xc2\x49" + b"\xff" * 9,
        b"\xf9\x7e\x00",
        bytes(10**6),
    ],
    ids=[
        "nothing",
        "deep lists",
        "deep maps",
        "indefinite",
        "huge map",
        "huge text",
        "huge array",
        "big",
        "nan",
        "long",
    ],
)
def test_what_is_hostile_in_form_is_refused(reader: str, payload: bytes) -> None:
    readers.holds(reader, payload)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra dev)")
@pytest.mark.parametrize("reader", readers.READERS)
def test_atheris_finds_nothing(reader: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    limits = [
        f"-runs={RUNS}",
        f"-max_total_time={SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        "-timeout=10",
        "-max_len=8192",
    ]
    # By way of a shell: the largest RSS, which libFuzzer looks at, counts what the parent had when it started us.
    done = subprocess.run(
        [
            *("/bin/sh", "-c", '"$@"; exit $?', "sh"),
            sys.executable,
            str(FOLDER / "fuzz_server_messages.py"),
            reader,
            str(corpus),
            f"-artifact_prefix={tmp_path}/",
            *limits,
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done" in done.stderr, done.stderr[-2000:]
