"""BatchNormalization's moving averages are merged with the weights, and a variance stays one."""

from dataclasses import replace

import numpy as np
from flwr.app import Message, MessageType, RecordDict

from pollen import messages
from pollen.bundle import Bundle, Tensor
from pollen.encoding import decode_into
from server import GatewayGrid, Listen, flower_replies
from server.async_strategy import AsynchronousStrategy
from server.model import GlobalModel
from tests.conftest import WaitUntil
from tests.server import gateway_client
from tests.server.gateway_client import GatewayClient

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


def test_a_flower_strategy_whose_step_takes_a_variance_below_zero_sends_devices_none_such(
    wait_until: WaitUntil,
) -> None:
    small = gateway_client.bundle((2, 2, 2))
    manifest = replace(small.manifest, weights=TENSORS[:1], state=TENSORS[1:])
    first = np.ones(4, np.float32)
    model = Bundle(manifest, small.graph, np.ones(2, np.float32), first, np.zeros(0, np.float32))
    with GatewayGrid(model, listen=Listen(port=0)) as grid, GatewayClient(grid.port) as gateway:
        gateway.birth("pi-1")
        (node,) = wait_until(lambda: list(grid.get_node_ids()), 10.0, "the device is online")
        for version, values in enumerate(([1, 1, 1, 1, 1, 1], [1, -2, 1, -3, 4, -5])):  # as FedAdam may make them
            arrays = flower_replies.record(np.array(values, np.float32), TENSORS)
            grid.push_messages([Message(RecordDict({"arrays": arrays}), node, MessageType.TRAIN, ttl=60.0)])
            snapshot = messages.decode_snapshot(gateway.model("weights"), 10**6)
            assert snapshot.version == version
    sent = np.empty(6, np.float32)
    decode_into(sent, snapshot.weights, TENSORS)
    assert sent.tolist() == [1, -2, 1, -3, 4, 0]
