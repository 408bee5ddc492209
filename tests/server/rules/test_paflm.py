"""PAFLM against values worked out by hand from Lu et al., IEEE Access 8, 2020."""

import numpy as np
import pytest

from edge_client.settings import Training
from edge_client.training import trainer
from server.rules.arithmetic import BLOCK
from server.rules.paflm import PAFLM
from tests.server.rules.vectors import PRECISIONS, Dtype, incoming, vector


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_the_step_is_beta_to_the_staleness_over_the_devices(dtype: Dtype, tolerance: float) -> None:
    # s / N - 1 = 30 / 10 - 1 = 2: 0.3^2 * c 1.5 * alpha 0.8 = 0.108; (10, 20) + 0.108 (1, -2) = (10.108, 19.784)
    model = vector(dtype, 10, 20)
    merged = PAFLM(alpha=0.8, beta=0.3, devices=10).merge(
        model, incoming(vector(dtype, 1, -2), staleness=30, sample_weight=1.5)
    )
    assert merged.weight == pytest.approx(0.108, rel=1e-12)
    np.testing.assert_allclose(model, [10.108, 19.784], rtol=tolerance)


@pytest.mark.parametrize(("devices", "clients", "expected"), [(0, 4, 0.5**0.5), (2, 4, 0.5), (0, 1, 0.25)])
def test_devices_are_those_merged_so_far_unless_they_are_given(devices: int, clients: int, expected: float) -> None:
    # alpha beta^(s / N - 1) = 0.5^(s / N), here s = 2
    merged = PAFLM(devices=devices).merge(
        vector(np.float32, 0), incoming(vector(np.float32, 1), staleness=2, clients=clients)
    )
    assert merged.weight == pytest.approx(expected, rel=1e-12)


def test_a_fresh_update_weighs_one_and_never_more() -> None:
    def fresh(rule: PAFLM, samples: float) -> float:
        update = incoming(vector(np.float32, 1), sample_weight=samples, clients=5)
        return rule.merge(vector(np.float32, 0), update).weight

    assert fresh(PAFLM(), 1.0) == 1.0
    assert fresh(PAFLM(), 4.0) == 1.0
    assert fresh(PAFLM(alpha=1.0, beta=1e-6), 4.0) == 1.0
    assert fresh(PAFLM(cap=1.5), 4.0) == 1.5
    assert fresh(PAFLM(alpha=0.1), 1.0) == pytest.approx(0.2)


def test_devices_are_asked_to_keep_what_is_small_beside_the_models_last_movements() -> None:
    rule = PAFLM(lazy=0.5, moves=2)
    assert rule.task_config("a", {}) == {}
    model = vector(np.float32, 0, 0)
    norms = []
    for length, samples in ((5.0, 1.0), (10.0, 0.5), (20.0, 1.0)):  # steps of 5, 5 and 20
        rule.merge(model, incoming(vector(np.float32, 0.6 * length, 0.8 * length), sample_weight=samples))
        norms.append(rule.task_config("a", {"epochs": 2})["skip_below_norm"])
    # 0.5 times the mean of the last two: 5; (5 + 5) / 2; (5 + 20) / 2
    assert norms == pytest.approx([2.5, 2.5, 6.25], rel=1e-6)


def test_no_device_is_asked_for_a_norm_that_it_would_refuse() -> None:
    rule = PAFLM(lazy=1e25)
    rule.merge(vector(np.float32, 0), incoming(vector(np.float32, 1e15)))
    asked = rule.task_config("a", {})
    assert asked == {"skip_below_norm": 1e30}
    assert trainer.plan(Training(), asked).skip_below_norm == 1e30


def test_a_threshold_in_the_tasks_settings_goes_before_the_rules() -> None:
    rule = PAFLM()
    rule.merge(vector(np.float32, 0), incoming(vector(np.float32, 1)))
    assert rule.task_config("a", {"skip_below_norm": 3.0}) == {"skip_below_norm": 3.0}


def test_without_lazy_upload_nothing_is_remembered_nor_asked_for() -> None:
    rule = PAFLM(lazy=0)
    rule.merge(vector(np.float32, 0), incoming(vector(np.float32, 1)))
    assert rule.task_config("a", {}) == {}
    assert not rule.kept.drain()


def test_movements_of_models_of_several_blocks_are_measured_whole() -> None:
    delta = np.random.default_rng(5).normal(size=2 * BLOCK + 7)
    rule, model = PAFLM(lazy=1.0), np.zeros_like(delta)
    rule.merge(model, incoming(delta, clients=1, sample_weight=0.5))
    np.testing.assert_allclose(model, 0.5 * delta, rtol=1e-12)
    assert rule.task_config("a", {})["skip_below_norm"] == pytest.approx(0.5 * np.linalg.norm(delta), rel=1e-12)
