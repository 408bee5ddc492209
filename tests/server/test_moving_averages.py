"""BatchNormalization's moving averages are merged with the weights, and a variance stays one."""

import numpy as np

from pollen.bundle import Tensor
from server.async_strategy import AsynchronousStrategy
from server.model import GlobalModel

TENSORS = (
    Tensor("dense/kernel", (2,)),
    Tensor("norm/moving_mean", (2,)),
    Tensor("norm/moving_variance", (2,)),
)


def test_fedavgs_mixture_is_also_that_of_the_moving_averages() -> None:
    start = np.array([1, 1, 0, 0, 4, 4], np.float32)
    model = GlobalModel(TENSORS, start)
    delta = np.array([1, -1, 2, 2, -2, 4], np.float32)
    AsynchronousStrategy("delta", eta=0.5).merge(model.weights, delta, start, 0, 10)
    model.advance()
    np.testing.assert_allclose(model.weights, [1.5, 0.5, 1, 1, 3, 6])
    assert model.version == 1


def test_two_devices_whose_variance_fell_by_more_than_there_is_leave_it_at_zero() -> None:
    start = np.array([1, 1, 0, 0, 4, 4], np.float32)
    model = GlobalModel(TENSORS, start)
    for _ in range(2):
        fell = np.array([-3, 0, -3, 0, -3, 0], np.float32)
        AsynchronousStrategy("delta").merge(model.weights, fell, start, 0, 10)
        model.advance()
    # Weights and means may be negative.
    np.testing.assert_array_equal(model.weights, [-5, 1, -6, 0, 0, 4])
