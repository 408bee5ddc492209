"""AsyncServer on a GatewayGrid: what a device's update can meet, over a real gRPC stream."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.server.strategy import FedAvg

from pollen import messages
from pollen.bridge import DeviceState
from pollen.errors import StoreError
from pollen.messages import Birth, Death, Result, Session
from server import AsyncClientManager, AsynchronousStrategy, AsyncServer, GatewayGrid, Listen
from tests.server.gateway_client import GatewayClient, bundle, random_task_id, update
from tests.server.running import Running

MODEL = bundle()


class Merging(Running):
    """An AsyncServer at work on a GatewayGrid of its own, as pollen-server runs it."""

    def __init__(self, state: Path, **grid_options: float) -> None:
        stop = threading.Event()
        server = AsyncServer(
            FedAvg(on_fit_config_fn=lambda _: {"epochs": 2}, min_available_clients=1, min_fit_clients=1),
            AsyncClientManager(),
            AsynchronousStrategy("fedasync", alpha=0.5, staleness="constant", direction="delta"),
            publish_interval=0.0,
            state=state,
            stop=stop,
        )
        super().__init__(server, GatewayGrid(MODEL, listen=Listen(port=0), **grid_options), stop)  # type: ignore[arg-type]
        self.start()


Start = Callable[..., Merging]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers on the same state store, one after another."""
    running: list[Merging] = []

    def begin(**options: float) -> Merging:
        running.append(Merging(tmp_path / "state.sqlite", **options))
        return running[-1]

    yield begin
    for one in running:
        one.close()


def test_a_device_that_comes_online_gets_a_task_with_the_strategys_config(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        task = gateway.task("pi-1")
    assert task.kind == "train"
    assert task.model == "small"
    assert task.bundle == MODEL.digest
    assert task.config == {"epochs": 2, "proximal_mu": 0.005}  # FedAsync's own, since the strategy says nothing


def test_an_update_is_merged_acknowledged_and_answered_with_the_next_task(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        task = gateway.task("pi-1")
        delivery = gateway.upload("pi-1", update(task, MODEL, 2.0))
        assert gateway.accepted() == (delivery,)
        receipt = gateway.receipt("pi-1")
        assert (receipt.outcome, receipt.version, receipt.weight, receipt.staleness) == ("merged", 1, 0.5, 0)
        assert gateway.task("pi-1").task != task.task
    np.testing.assert_array_equal(server.weights, np.full(5, 1.0))


def test_a_redelivered_update_is_merged_once_and_gets_the_same_receipt(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        payload = update(gateway.task("pi-1"), MODEL, 2.0)
        gateway.upload("pi-1", payload)
        first = gateway.receipt_payload("pi-1")
        gateway.upload("pi-1", payload)
        assert gateway.receipt_payload("pi-1") == first
    assert server.version == 1


def test_two_deliveries_in_one_group_are_merged_once(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        payload = update(gateway.task("pi-1"), MODEL, 2.0)
        for _ in range(20):
            gateway.upload("pi-1", payload)
        receipts = {gateway.receipt_payload("pi-1") for _ in range(20)}
    assert len(receipts) == 1
    assert server.version == 1


def test_a_second_update_for_an_answered_task_is_a_duplicate_of_the_first(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        task = gateway.task("pi-1")
        gateway.upload("pi-1", update(task, MODEL, 2.0, seq=1))
        gateway.receipt("pi-1")
        gateway.upload("pi-1", update(task, MODEL, 4.0, seq=2))
        receipt = gateway.receipt("pi-1")
    assert (receipt.outcome, receipt.seq, receipt.version) == ("duplicate", 2, 1)
    assert "update 1" in receipt.reason
    assert server.version == 1


def test_an_update_trained_from_an_old_version_is_merged_with_its_true_staleness(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("slow")
        old = gateway.task("slow")
        gateway.birth("quick")
        for version in range(1, 8):
            gateway.upload("quick", update(gateway.task("quick"), MODEL, 1.0))
            assert gateway.receipt("quick").version == version
        gateway.upload("slow", update(old, MODEL, 1.0))
        receipt = gateway.receipt("slow")
    assert (receipt.outcome, receipt.staleness, receipt.version) == ("merged", 7, 8)
    assert server.server.history.merges[-1].staleness == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"delta": {"t0": np.zeros(3, np.float32)}}, "1 tensors, the model has 2"),
        ({"delta": {"t0": np.zeros(4, np.float32), "t1": np.zeros(2, np.float32)}}, "'t0' has shape (4,)"),
        ({"delta": {"t0": np.zeros(3, np.float32), "other": np.zeros(2, np.float32)}}, "lacks tensor 't1'"),
        ({"delta": {"t0": np.zeros(3, np.int8), "t1": np.zeros(2, np.float32)}}, "'t0': expected"),
        ({"delta": {"t0": np.array([0, np.nan, 0], np.float32), "t1": np.zeros(2, np.float32)}}, "not finite"),
        ({"delta": {"t0": np.array([0, np.inf, 0], np.float16), "t1": np.zeros(2, np.float32)}}, "not finite"),
        ({"delta": {"t0": {"scale": 1e308, "q": np.full(3, 9, np.int8)}, "t1": np.zeros(2, np.float32)}}, "not finite"),
        ({"delta": "weights"}, "must be a map"),
        ({"base": 17}, "base version 17 was never issued"),
        ({"samples": 0}, "n = 0"),
        ({"samples": 2**50}, "needs 1 to 100000000"),
    ],
)
def test_an_unusable_update_is_rejected_with_its_reason_and_nothing_stops(
    start: Start, changes: dict[str, object], reason: str
) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("bad")
        gateway.birth("good")
        gateway.upload("bad", update(gateway.task("bad"), MODEL, 2.0, **changes))
        receipt = gateway.receipt("bad")
        assert receipt.outcome == "rejected"
        assert reason in receipt.reason
        gateway.upload("good", update(gateway.task("good"), MODEL, 2.0))
        assert gateway.receipt("good").outcome == "merged"
    assert server.version == 1
    np.testing.assert_array_equal(server.weights, np.full(5, 1.0))


@pytest.mark.parametrize(
    ("payload", "leaf", "reason"),
    [
        (b"\xff\xfe", "update", "not valid CBOR"),
        (b"\x81" * 5000, "update", "nested deeper"),
        (b"\xd8\x23\x61\x28", "update", "CBOR tag 35"),
        (b"\x9b" + b"\xff" * 8, "update", "ends early"),
        (b"", "update", "ends early"),
        (b"99000000 abcdef", "oversize", "99000000 bytes is over the limit"),
        (b"\xa1\x61v\x02", "update", "message version 2"),
    ],
)
def test_an_unreadable_payload_answers_the_devices_open_task(
    start: Start, payload: bytes, leaf: str, reason: str
) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("bad")
        task = gateway.task("bad")
        delivery = gateway.upload("bad", payload, leaf)
        assert gateway.accepted() == (delivery,)
        receipt = gateway.receipt("bad")
    assert (receipt.outcome, receipt.task) == ("rejected", task.task)
    assert reason in receipt.reason
    assert server.version == 0


def test_an_update_larger_than_the_limit_is_refused_before_it_is_decoded(start: Start) -> None:
    server = start(update_limit_bytes=100)
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("bad")
        gateway.upload("bad", update(gateway.task("bad"), MODEL, 2.0))
        assert "over the limit of 100 bytes" in gateway.receipt("bad").reason
    assert server.version == 0


def test_another_devices_task_cannot_be_answered(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("victim")
        gateway.birth("thief")
        task = gateway.task("victim")
        gateway.upload("thief", update(task, MODEL, 100.0))
        assert "unknown task" in gateway.receipt("thief").reason
        gateway.upload("victim", update(task, MODEL, 2.0))
        assert gateway.receipt("victim").outcome == "merged"
    np.testing.assert_array_equal(server.weights, np.full(5, 1.0))


def test_a_task_nobody_gave_is_rejected(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        task = gateway.task("pi-1")
        gateway.upload("pi-1", update(task, MODEL, 1.0, task=random_task_id()))
        assert "unknown task" in gateway.receipt("pi-1").reason
        gateway.upload("pi-1", update(task, MODEL, 1.0))
        assert gateway.receipt("pi-1").outcome == "merged"
    assert server.version == 1


def test_a_device_that_failed_is_left_alone_for_a_while_and_the_rest_goes_on(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("broken")
        gateway.birth("sound")
        task = gateway.task("broken")
        gateway.upload("broken", messages.encode(Result(task.task, 0, error="model does not load")), "result")
        assert gateway.receipt("broken").reason == "model does not load"
        gateway.upload("sound", update(gateway.task("sound"), MODEL, 1.0))
        assert gateway.receipt("sound").outcome == "merged"
    assert server.server.history.rejections[0][1:3] == ("broken", "model does not load")


def test_an_open_task_is_sent_again_to_a_device_that_was_born_again(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1", connection=1)
        first = gateway.task("pi-1")
        gateway.birth("pi-1", connection=2)
        assert gateway.task("pi-1").task == first.task


def test_an_unanswered_task_is_sent_again_after_its_time(start: Start) -> None:
    server = start(task_ttl_s=0.5)
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1")
        assert gateway.task("pi-1").task == gateway.task("pi-1").task
    assert server.version == 0


def test_a_late_will_of_an_earlier_connection_does_not_mark_a_device_dead(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        gateway.birth("pi-1", connection=2)
        gateway.task("pi-1")
        old, present = (Session(b"pi-1".ljust(8), number) for number in (1, 2))
        gateway.send(DeviceState("pi-1", messages.encode(Death(old, "lost"))))
        gateway.birth("other")
        gateway.task("other")
        assert server.grid.link.online() == ["pi-1", "other"]
        gateway.send(DeviceState("pi-1", messages.encode(Death(present, "lost"))))
        gateway.send(DeviceState("other", messages.encode(Birth(Session(b"other".ljust(8), 9)))))
        gateway.task("other")
        assert server.grid.link.online() == ["other"]


def test_a_new_gateway_gets_the_models_and_the_open_tasks_of_its_devices(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as first:
        first.birth("pi-1")
        task = first.task("pi-1")
        with GatewayClient(server.grid.port, name="gateway-2") as second:
            assert messages.decode_head(second.model("head")).version == 0
            second.birth("pi-1")
            assert second.task("pi-1").task == task.task


def test_a_restarted_server_goes_on_where_it_committed(start: Start) -> None:
    first = start()
    with GatewayClient(first.grid.port) as gateway:
        gateway.birth("pi-1")
        merged = update(gateway.task("pi-1"), MODEL, 2.0)
        gateway.upload("pi-1", merged)
        receipt = gateway.receipt_payload("pi-1")
        waiting = gateway.task("pi-1")
    first.close()
    second = start()
    with GatewayClient(second.grid.port) as gateway:
        gateway.upload("pi-1", merged)
        assert gateway.receipt_payload("pi-1") == receipt
        gateway.birth("pi-1")
        assert gateway.task("pi-1").task == waiting.task
        gateway.upload("pi-1", update(waiting, MODEL, 2.0, base=0))
        after = gateway.receipt("pi-1")
    assert (after.outcome, after.version, after.staleness) == ("merged", 2, 1)


def test_published_snapshots_hold_the_weights_of_their_version(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port) as gateway:
        assert messages.decode_snapshot(gateway.model("weights"), 10**6).version == 0
        gateway.birth("pi-1")
        gateway.upload("pi-1", update(gateway.task("pi-1"), MODEL, 2.0))
        snapshot = messages.decode_snapshot(gateway.model("weights"), 10**6)
    assert snapshot.version == 1
    np.testing.assert_array_equal(snapshot.weights["t0"], np.ones(3))
    assert server.version == 1


def test_a_gateway_of_another_fleet_is_refused_by_name(start: Start) -> None:
    server = start()
    with GatewayClient(server.grid.port, fleet="other") as gateway, pytest.raises(AssertionError):
        gateway.model("head")
    assert gateway.error is not None
    assert "serves fleet 'default'" in str(gateway.error)
    assert server.failure is None


def test_a_store_of_another_model_is_refused(start: Start, tmp_path: Path) -> None:
    start().close()
    grid = GatewayGrid(bundle(model="another"), listen=Listen(port=0))
    server = AsyncServer(FedAvg(), AsyncClientManager(), AsynchronousStrategy(), 1, state=tmp_path / "state.sqlite")
    try:
        with pytest.raises(StoreError, match="another model"):
            server.run(grid)
    finally:
        grid.close()


def test_concurrent_unit_deltas_are_all_merged_exactly_once(start: Start) -> None:
    """8 gateways at once, 60 updates each of weight one half: the sum is exact, none lost, none doubled."""
    server = start()
    failures: list[AssertionError] = []

    def work(device: str) -> None:
        try:
            with GatewayClient(server.grid.port, name=f"gateway-{device}") as gateway:
                gateway.birth(device)
                done: set[bytes] = set()
                while len(done) < 60:
                    task = gateway.task(device)
                    if task.task in done:
                        continue  # sent again because another gateway left
                    done.add(task.task)
                    gateway.upload(device, update(task, MODEL, 2.0))
                    assert gateway.receipt(device).outcome == "merged"
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"pi-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert server.version == 480
    np.testing.assert_array_equal(server.weights, np.full(5, 480.0))
