"""Several models behind one port: every upload reaches the model it was made for, over real gRPC streams."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pollen.errors import SettingsError
from server import GatewayGrid, GatewayHub, Listen
from tests.conftest import WaitUntil
from tests.server.gateway_client import GatewayClient, bundle, random_task_id, update
from tests.server.running_models import RunningModel, birth

WEATHER = bundle((3, 2), model="weather")
GESTURES = bundle((4,), value=10.0, model="gestures")
Pair = tuple[GatewayHub, RunningModel, RunningModel]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[[], Pair]]:
    """Makes a hub with both models, not yet started, on the same state each time."""
    made: list[Pair] = []

    def make() -> Pair:
        hub = GatewayHub(listen=Listen(port=0))
        weather = RunningModel(WEATHER, tmp_path / "weather", hub)
        made.append((hub, weather, RunningModel(GESTURES, tmp_path / "gestures", hub)))
        return made[-1]

    yield make
    for hub, *models in made:
        for model in models:
            model.close()
        hub.close()


@pytest.fixture
def running(pair: Callable[[], Pair]) -> Pair:
    hub, weather, gestures = pair()
    hub.start()
    return hub, weather.start(), gestures.start()


def test_each_device_trains_its_own_model(running: Pair) -> None:
    hub, weather, gestures = running
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather")
        birth(gateway, "pi-2", "gestures")
        for value in (2.0, 4.0):
            for device, model in (("pi-1", WEATHER), ("pi-2", GESTURES)):
                task = gateway.task(device)
                assert (task.model, task.bundle) == (model.manifest.model, model.digest)
                gateway.upload(device, update(task, model, value))
                assert gateway.receipt(device).outcome == "merged"
    assert (weather.version, gestures.version) == (2, 2)
    np.testing.assert_array_equal(weather.weights, np.full(5, 3.0))
    np.testing.assert_array_equal(gestures.weights, np.full(4, 13.0))


def test_a_new_gateway_gets_every_model(running: Pair) -> None:
    hub, *_ = running
    with GatewayClient(hub.port) as gateway:
        got = {
            (frame.model, frame.leaf)
            for frame in (gateway.next(lambda frame: hasattr(frame, "model")) for _ in range(8))
        }
    assert got == {
        (model, leaf) for model in ("weather", "gestures") for leaf in ("bundle", "infer", "weights", "head")
    }


def test_a_device_that_trains_two_models_has_a_task_of_each(running: Pair) -> None:
    hub, weather, gestures = running
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather", "gestures")
        tasks = {task.model: task for task in (gateway.task("pi-1"), gateway.task("pi-1"))}
        gateway.upload("pi-1", update(tasks["gestures"], GESTURES, 2.0))
        assert gateway.receipt("pi-1").outcome == "merged"
        gateway.upload("pi-1", update(tasks["weather"], WEATHER, 2.0))
        assert gateway.receipt("pi-1").outcome == "merged"
    assert (weather.version, gestures.version) == (1, 1)


def test_a_device_that_switches_models_loses_no_update_and_goes_on(running: Pair) -> None:
    hub, weather, gestures = running
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather")
        old = gateway.task("pi-1")
        birth(gateway, "pi-1", "gestures", connection=2)
        new = gateway.task("pi-1")
        assert (old.model, new.model) == ("weather", "gestures")
        made_before = update(old, WEATHER, 2.0)
        gateway.upload("pi-1", made_before)
        first = gateway.receipt_payload("pi-1")
        gateway.upload("pi-1", made_before)
        assert gateway.receipt_payload("pi-1") == first  # answered already, and still weather's
        gateway.upload("pi-1", update(new, GESTURES, 2.0))
        assert gateway.receipt("pi-1").outcome == "merged"
        assert gateway.task("pi-1").model == "gestures"
    assert (weather.version, gestures.version) == (1, 1)
    assert weather.grid.link.online() == []


def test_an_unreadable_upload_answers_the_task_of_the_model_that_its_device_trains(running: Pair) -> None:
    hub, weather, gestures = running
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather")
        gateway.task("pi-1")
        birth(gateway, "pi-1", "gestures", connection=2)
        task = gateway.task("pi-1")
        gateway.upload("pi-1", b"\xff\xfe")
        receipt = gateway.receipt("pi-1")
    assert (receipt.outcome, receipt.task) == ("rejected", task.task)
    assert (weather.version, gestures.version) == (0, 0)


def test_an_upload_for_no_model_is_refused_with_its_reason(running: Pair, caplog: pytest.LogCaptureFixture) -> None:
    hub, *_ = running
    with caplog.at_level(logging.WARNING), GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather")
        task = gateway.task("pi-1")
        delivery = gateway.upload("stranger", update(task, WEATHER, 2.0, task=random_task_id()))
        assert gateway.accepted() == (delivery,)
        receipt = gateway.receipt("stranger")
        assert receipt.outcome == "rejected"
        assert receipt.reason == "no model served here (gestures, weather) gave this device a task"
        garbage = gateway.upload("stranger", b"\xff")
        assert gateway.accepted() == (garbage,)
    assert caplog.text.count("stranger: refused") == 1, "one line for whoever floods"


def test_a_device_of_a_model_that_is_not_served_gets_no_task(
    running: Pair, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    hub, weather, gestures = running
    with caplog.at_level(logging.WARNING), GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "wether")
        birth(gateway, "pi-2", "weather")
        gateway.task("pi-2")
        wait_until(
            lambda: "pi-1 gets no task: it trains wether, served: gestures, weather" in caplog.text, 10, "it is said"
        )
    assert (weather.grid.link.online(), gestures.grid.link.online()) == (["pi-2"], [])


def test_an_update_that_comes_before_its_model_has_resumed_is_merged(pair: Callable[[], Pair]) -> None:
    hub, *first = pair()
    hub.start()
    for model in first:
        model.start()
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "gestures")
        task = gateway.task("pi-1")
    for model in first:
        model.close()
    hub.close()
    hub, weather, gestures = pair()
    hub.start()
    with GatewayClient(hub.port) as gateway:
        gateway.upload("pi-1", update(task, GESTURES, 2.0))  # no birth tells whose it is
        gateway.model("bundle")  # the stream is up
        weather.start()
        gestures.start()
        assert gateway.receipt("pi-1").outcome == "merged"
    assert (weather.version, gestures.version) == (0, 1)


def test_an_update_waits_for_its_model_also_when_another_one_has_a_task_for_the_device(
    pair: Callable[[], Pair],
) -> None:
    hub, *first = pair()
    hub.start()
    weather, gestures = (model.start() for model in first)
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather", "gestures")
        tasks = {task.model: task for task in (gateway.task("pi-1"), gateway.task("pi-1"))}
    weather.close()
    gestures.close()
    hub.close()
    hub, weather, gestures = pair()
    hub.start()
    gestures.start()
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather", "gestures")
        gateway.task("pi-1")  # gestures asks again
        gateway.upload("pi-1", update(tasks["weather"], WEATHER, 2.0))
        time.sleep(0.5)  # long enough to be given to gestures, if it were
        weather.start()
        assert gateway.receipt("pi-1").outcome == "merged"
    assert (weather.version, gestures.version) == (1, 0)


def test_a_model_that_ends_leaves_the_others_at_work(running: Pair) -> None:
    hub, weather, gestures = running
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather")
        birth(gateway, "pi-2", "gestures")
        late = update(gateway.task("pi-1"), WEATHER, 2.0)
        task = gateway.task("pi-2")
        weather.close()
        gateway.upload("pi-1", late)
        gateway.upload("pi-2", update(task, GESTURES, 2.0))
        assert gateway.receipt("pi-2").outcome == "merged"
    assert (weather.version, gestures.version) == (0, 1)


def test_an_update_for_a_model_that_has_ended_holds_nothing_up_and_is_merged_by_the_next_server(
    pair: Callable[[], Pair],
) -> None:
    """A gateway acknowledges in order: what no server accepts would hold up the updates of the other models."""
    hub, *first = pair()
    hub.start()
    weather, gestures = (model.start() for model in first)
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather", "gestures")
        tasks = {task.model: task for task in (gateway.task("pi-1"), gateway.task("pi-1"))}
        late = update(tasks["weather"], WEATHER, 2.0)
        weather.close()
        waiting = gateway.upload("pi-1", late)
        assert gateway.accepted() == (waiting,)
        gateway.upload("pi-1", update(tasks["gestures"], GESTURES, 2.0))
        assert gateway.receipt("pi-1").outcome == "merged"  # the first receipt: late got none
    gestures.close()
    hub.close()
    hub, *second = pair()
    hub.start()
    weather, gestures = (model.start() for model in second)
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather", "gestures")
        gateway.upload("pi-1", late)  # as devices do until there is a receipt
        assert gateway.receipt("pi-1").outcome == "merged"
    assert (weather.version, gestures.version) == (1, 1)


def test_what_an_ended_model_had_not_decided_is_accepted_for_its_devices_to_send_again(
    pair: Callable[[], Pair],
) -> None:
    hub, weather, gestures = pair()  # neither has begun to decide
    hub.start()
    with GatewayClient(hub.port) as gateway:
        birth(gateway, "pi-1", "weather")
        waiting = gateway.upload("pi-1", b"anything")
        birth(gateway, "pi-2", "gestures")
        gestures.start()
        gateway.task("pi-2")  # so the upload before it has come in
        weather.close()
        assert gateway.accepted() == (waiting,)


def test_two_models_of_one_name_and_a_model_after_the_start_are_refused() -> None:
    with GatewayHub(listen=Listen(port=0)) as hub:
        GatewayGrid(WEATHER, hub=hub)
        with pytest.raises(SettingsError, match=r"model 'weather' is there twice; compile one of them with another"):
            GatewayGrid(WEATHER, hub=hub)
        hub.start()
        with pytest.raises(SettingsError, match=r"model 'gestures': the hub has started"):
            GatewayGrid(GESTURES, hub=hub)
