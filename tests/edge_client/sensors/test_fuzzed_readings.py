"""Whatever a sensor gives, the thread goes on, what comes out is clean, and memory stays as it is."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_client.sensors import EndOfStreamError, Reading
from edge_client.sensors.sampling import Sampler
from tests.edge_client.sensors.scripted import AB, Script, played, sampler

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

WaitUntil = Callable[..., Any]

dtypes = st.sampled_from(["f2", "f4", "f8", ">f8", "i1", "i8", "u8", "?", "c8", "U3", "S2", "O", "M8[s]"])
shapes = st.one_of(st.tuples(st.integers(0, 5), st.just(2)), arrays.array_shapes(min_dims=0, max_dims=4, max_side=4))
numbers = st.one_of(st.floats(), st.integers(-(10**400), 10**400), st.none(), st.booleans())
odd = st.one_of(
    numbers, st.text(max_size=3), st.binary(max_size=3), st.lists(numbers, max_size=2), st.complex_numbers()
)
numpy_numbers = st.builds(np.float32, st.floats(width=32)) | st.builds(np.int64, st.integers(-(2**63), 2**63 - 1))
plausible = st.builds(
    lambda rows, label, time: Reading(np.array(rows, np.float32), label, time),
    st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 3)),
    st.one_of(st.none(), st.floats(), st.integers(0, 50)),
)
wild = st.builds(
    Reading,
    st.one_of(
        dtypes.flatmap(lambda dtype: arrays.arrays(dtype, shapes)), st.lists(st.lists(odd, max_size=3), max_size=3)
    ),
    st.one_of(odd, numpy_numbers),
    st.one_of(odd, numpy_numbers),
)
errors = st.sampled_from(
    [OSError, ValueError, SystemExit, KeyboardInterrupt, MemoryError, RecursionError, UnicodeError]
)
steps = st.one_of(
    plausible, plausible, wild, odd, st.builds(lambda kind: kind("x"), errors.filter(lambda e: e is not UnicodeError))
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(steps, max_size=30), hold=st.integers(0, 3), stuck=st.sampled_from([0.0, 1.0]))
def test_nothing_a_sensor_gives_ends_the_thread_or_comes_through_spoiled(
    wait_until: WaitUntil, caplog: pytest.LogCaptureFixture, script: list[Any], hold: int, stuck: float
) -> None:
    caplog.set_level("CRITICAL")
    # A list would be taken for the values of a good reading.
    one = sampler(
        Script([tuple(step) if isinstance(step, list) else step for step in script]), hold_readings=hold, stuck_s=stuck
    )
    samples = played(one, wait_until)
    for sample in samples:
        assert sample.values.dtype == np.float32
        assert sample.values.shape[1] == len(AB)
        assert np.isfinite(sample.values).all()
        assert type(sample.label) in (type(None), int, float, bool)
        assert sample.label is None or abs(sample.label) <= np.finfo(np.float32).max
        assert sample.time is None or math.isfinite(sample.time)
    assert (np.diff([sample.number for sample in samples]) >= 1).all()
    assert len(samples) <= len(script)
    assert all(math.isfinite(value) for value in one.vitals().values())


class Endless:
    """Random readings, good and bad, of any size up to the largest."""

    channels = AB

    def __init__(self, readings: int) -> None:
        self._left = readings
        self._chance = np.random.default_rng(2)

    def __call__(self, _options: Any) -> "Endless":
        return self

    def read(self) -> Reading | None:
        self._left -= 1
        if self._left < 0:
            raise EndOfStreamError
        kind = self._chance.integers(10)
        if kind == 0:
            raise OSError(5, "Input/output error")
        if kind == 1:
            return Reading(np.zeros((1, 3), np.float32))
        if kind == 2:
            return None
        rows = int(self._chance.choice([1, 1, 1, 5, 100, 20_000]))
        found = self._chance.normal(size=(rows, 2)).astype(np.float32)
        found[self._chance.random((rows, 2)) < 0.01] = np.nan
        return Reading(found, time=float(self._chance.integers(1000)))

    def close(self) -> None: ...


def test_memory_stays_as_it_is_while_nobody_takes_the_samples(
    wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    one: Sampler = sampler(Endless(4000), queue=200)
    tracemalloc.start()
    one.start()
    wait_until(lambda: one.ended, 120, "the stream's end")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one.stop()
    assert peak < 12 * 2**20, "4 MiB of samples, and some while they are looked at"
    assert one.counters.dropped > 100
    assert one.counters.failures > 100
