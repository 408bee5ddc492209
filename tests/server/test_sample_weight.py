"""Sample weights relative to the running mean."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sample_weight import RunningMean, sample_weight


def test_the_running_mean_counts_every_update_once() -> None:
    mean = RunningMean()
    assert [mean.add(n) for n in (10, 20, 60)] == [10, 15, 30]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("equal", 1.0), ("linear", 2.5), ("sqrt", math.sqrt(2.5)), ("log", math.log(101) / math.log(41))],
)
def test_each_weighting_equals_its_formula(weighting: str, expected: float) -> None:
    assert sample_weight(100, 40.0, weighting, cap=10) == pytest.approx(expected)  # type: ignore[arg-type]


@given(st.integers(1, 2**40), st.sampled_from(["equal", "linear", "sqrt", "log"]))
def test_an_average_update_weighs_one(samples: int, weighting: str) -> None:
    assert sample_weight(samples, float(samples), weighting, cap=4) == pytest.approx(1.0)  # type: ignore[arg-type]


def test_an_absurd_claim_is_capped() -> None:
    assert sample_weight(10**9, 50.0, "linear", cap=4) == 4
