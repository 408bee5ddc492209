"""AsyncServer on Grids of ordinary nodes: who takes part, what a reply may hold, and where it resumes."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import NDArrays, ndarrays_to_parameters
from flwr.common.typing import Parameters
from flwr.server import ServerConfig
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat import start_grid
from flwr.server.strategy import FedAvg

from pollen.errors import PollenError, StoreError
from server import AsyncClientManager, AsynchronousStrategy, AsyncServer, GatewayGrid, Listen, flower_private
from tests.server.gateway_client import GatewayClient, bundle, update
from tests.server.grids import AnsweringGrid, SilentGrid

SHAPES = [(2, 3), (3,)]
ZEROS = [np.zeros(shape, np.float32) for shape in SHAPES]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def identity() -> None:
    flower_private.ensure_task_identity(7)


def server(initial: NDArrays | None = ZEROS, **options: object) -> AsyncServer:
    strategy = FedAvg(
        min_fit_clients=1,
        min_available_clients=1,
        initial_parameters=None if initial is None else ndarrays_to_parameters(initial),
    )
    rule = AsynchronousStrategy("fedasync", alpha=0.5, staleness="constant", direction="delta")
    return AsyncServer(strategy, AsyncClientManager(), rule, publish_interval=0.0, **options)  # type: ignore[arg-type]


def sent(message: Message) -> NDArrays:
    return [array.numpy() for array in message.content.array_records["fitins.parameters"].values()]


def adds_two(message: Message) -> RecordDict:
    return flower_private.fit_answer([array + 2 for array in sent(message)], 10, {"loss": 0.5})


def weights(ran: AsyncServer) -> np.ndarray:
    assert ran.model is not None
    return ran.model.weights


def test_run_asks_the_nodes_of_an_ordinary_grid_and_merges_their_answers() -> None:
    ran = server(merges=6)
    history = ran.run(AnsweringGrid([11, 12], adds_two))
    assert [merge.version for merge in history.merges] == [1, 2, 3, 4, 5, 6]
    assert {merge.device for merge in history.merges} == {"11", "12"}
    assert history.merges[0].metrics == {"loss": 0.5}
    np.testing.assert_array_equal(weights(ran), np.full(9, 6.0))


def test_without_any_limit_run_takes_one_update_a_node() -> None:
    assert server().run(AnsweringGrid([11, 12, 13], adds_two)).merged == 3


def test_without_any_limit_start_grid_takes_an_update_a_node_and_round() -> None:
    ran = server()
    start_grid(grid=AnsweringGrid([11, 12], adds_two), server=ran, config=ServerConfig(num_rounds=3))
    assert ran.history.merged == 6


def test_without_any_limit_run_takes_one_update_a_device_behind_gateways() -> None:
    model = bundle()
    ran = server(initial=None)
    with GatewayGrid(model, listen=Listen(port=0)) as grid, GatewayClient(grid.port) as gateway:
        names = ["pi-1", "pi-2", "pi-3"]
        running = threading.Thread(target=ran.run, args=(grid,))
        for name in names:
            gateway.birth(name)
        wait_for(lambda: len(list(grid.get_node_ids())) == len(names))
        running.start()
        for name in names:
            gateway.upload(name, update(gateway.task(name), model, 1.0))
        running.join(10)
        assert not running.is_alive()
    assert ran.history.merged == len(names)


def test_a_node_that_joins_later_takes_part_and_one_that_left_is_gone() -> None:
    grid = AnsweringGrid([11], adds_two)
    stop = threading.Event()
    ran = server(stop=stop)
    running = threading.Thread(target=ran.run, args=(grid,))
    running.start()
    try:
        wait_for(lambda: any(merge.device == "11" for merge in list(ran.history.merges)))
        grid.nodes[:] = [12]
        wait_for(lambda: any(merge.device == "12" for merge in list(ran.history.merges)))
        wait_for(lambda: set(ran.client_manager().all()) == {"12"})
    finally:
        stop.set()
        running.join(10)
    assert not running.is_alive()


def test_stop_ends_the_wait_for_the_first_node() -> None:
    stop = threading.Event()
    ran = server(stop=stop)
    running = threading.Thread(target=ran.run, args=(SilentGrid(),))
    running.start()
    stop.set()
    running.join(5)
    assert not running.is_alive()


def test_it_resumes_with_the_shapes_of_the_strategys_initial_parameters(tmp_path: Path) -> None:
    state = tmp_path / "state.sqlite"
    server(merges=4, state=state).run(AnsweringGrid([11], adds_two))
    shapes: list[list[tuple[int, ...]]] = []

    def answer(message: Message) -> RecordDict:
        shapes.append([array.shape for array in sent(message)])
        return adds_two(message)

    resumed = server(merges=4, state=state)
    resumed.run(AnsweringGrid([11], answer))
    assert shapes[0] == SHAPES
    assert resumed.model is not None
    assert {name: array.shape for name, array in resumed.model.named_weights().items()} == dict(
        zip("01", SHAPES, strict=True)
    )
    assert resumed.model.version == 8
    np.testing.assert_array_equal(weights(resumed), np.full(9, 8.0))


def test_it_resumes_with_the_shapes_of_a_clients_parameters(tmp_path: Path) -> None:
    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type != "train":
            arrays = ArrayRecord([np.ones(shape, np.float32) for shape in SHAPES])
            status = ConfigRecord({"code": 0, "message": ""})
            return RecordDict({"getparametersres.parameters": arrays, "getparametersres.status": status})
        return adds_two(message)

    for version in (2, 4):
        ran = server(initial=None, merges=2, state=tmp_path / "state.sqlite")
        ran.run(AnsweringGrid([11], answer))
        assert ran.model is not None
        assert ran.model.version == version
        assert [array.shape for array in ran.model.named_weights().values()] == SHAPES
    np.testing.assert_array_equal(weights(ran), np.full(9, 5.0))


@pytest.mark.parametrize("others", [[(9,)], [(3, 2), (3,)], [(2, 3), (4,)]])
def test_a_store_of_other_shapes_is_refused(tmp_path: Path, others: list[tuple[int, ...]]) -> None:
    state = tmp_path / "state.sqlite"
    server(merges=1, state=state).run(AnsweringGrid([11], adds_two))
    initial = [np.zeros(shape, np.float32) for shape in others]
    with pytest.raises(StoreError, match="another model"):
        server(initial, merges=1, state=state).run(AnsweringGrid([11], adds_two))


def answered(arrays: NDArrays, samples: object = 10, code: int = 0, **metrics: object) -> RecordDict:
    content = flower_private.fit_answer(arrays, 10, {})
    content["fitres.num_examples"] = MetricRecord({"num_examples": samples})  # type: ignore[dict-item]
    content["fitres.status"] = ConfigRecord({"code": code, "message": "no data"})
    content["fitres.metrics"] = ConfigRecord(metrics)  # type: ignore[arg-type]
    return content


def garbled() -> RecordDict:
    content = answered(ZEROS)
    next(iter(content.array_records["fitres.parameters"].values())).data = b"PK\x03\x04 no array"
    return content


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: answered(ZEROS, code=3), "FIT_NOT_IMPLEMENTED: no data"),
        (lambda: answered(ZEROS, code=77), "no answer to a train message"),
        (lambda: answered(ZEROS[:1]), "1 arrays, the model has 2 tensors"),
        (lambda: answered([ZEROS[0].T, ZEROS[1]]), r"'0' has shape (3, 2), the model has (2, 3)"),
        (lambda: answered([np.zeros(9, np.float32)]), "1 arrays"),
        (lambda: answered([ZEROS[0], np.array(["a", "b", "c"])]), "'1' is of dtype <U1"),
        (lambda: answered([ZEROS[0], np.zeros(3, np.complex64)]), "'1' is of dtype complex64"),
        (lambda: answered([ZEROS[0], np.zeros(3, bool)]), "'1' is of dtype bool"),
        (lambda: answered([ZEROS[0], np.array([0, np.nan, 0])]), "'1' holds a number that is not finite"),
        (lambda: answered([ZEROS[0], np.full(3, 1e300)]), "'1' holds a number that is not finite"),
        (lambda: answered(ZEROS, samples=2.5), "num_examples is of type float"),
        (lambda: answered(ZEROS, samples=[1, 2]), "num_examples is of type list"),
        (lambda: answered(ZEROS, samples=0), "needs 1 to"),
        (garbled, "no answer to a train message"),
        (RecordDict, "no answer to a train message"),
    ],
)
def test_a_reply_that_is_no_update_is_refused_and_the_others_go_on(make: Callable[[], RecordDict], reason: str) -> None:
    def answer(message: Message) -> RecordDict:
        return make() if message.metadata.dst_node_id == 66 else adds_two(message)

    ran = server(merges=4)
    history = ran.run(AnsweringGrid([66, 11], answer))
    assert {merge.device for merge in history.merges} == {"11"}
    assert history.rejections[0][1] == "66"
    assert reason in history.rejections[0][2]
    np.testing.assert_array_equal(weights(ran), np.full(9, 4.0))


def test_whole_numbers_are_weights_too_and_metrics_that_are_no_finite_numbers_are_left_out() -> None:
    def answer(_: Message) -> RecordDict:
        arrays = [np.full(shape, 2, np.int64) for shape in SHAPES]
        return answered(arrays, loss=0.5, worst=float("nan"), most=float("inf"), name="x", blob=b"x")

    ran = server(merges=1)
    history = ran.run(AnsweringGrid([11], answer))
    assert history.merges[0].metrics == {"loss": 0.5}
    np.testing.assert_array_equal(weights(ran), np.ones(9))


@pytest.mark.parametrize(
    ("initial", "reason"),
    [
        ([np.zeros(5, np.float32)], "1 arrays, the model has 2 tensors"),
        ([np.zeros(2, np.float32), np.zeros(3, np.float32)], r"tensor 't0' has shape \(2,\), the model has \(3,\)"),
        ([np.zeros(3, np.float32), np.array([0.0, np.inf])], "tensor 't1' holds a number that is not finite"),
        ([np.zeros(3, np.float32), np.array(["a", "b"])], "tensor 't1' is of dtype"),
    ],
)
def test_initial_parameters_must_fit_the_devices_model(initial: NDArrays, reason: str) -> None:
    with (
        GatewayGrid(bundle(), listen=Listen(port=0)) as grid,
        pytest.raises(PollenError, match=f"initial parameters: {reason}"),
    ):
        server(initial, merges=1).run(grid)


@pytest.mark.parametrize(
    ("initial", "reason"),
    [
        ([np.array([0.0, np.nan])], "tensor '0' holds a number that is not finite"),
        ([], "there are none"),
    ],
)
def test_initial_parameters_for_ordinary_nodes_must_be_there_and_finite(initial: NDArrays, reason: str) -> None:
    with pytest.raises(PollenError, match=f"initial parameters: {reason}"):
        server(initial, merges=1).run(AnsweringGrid([11], adds_two))


def test_a_strategy_that_chooses_some_of_the_nodes_is_obeyed() -> None:
    class OnlyEleven(FedAvg):
        def configure_fit(self, server_round: int, parameters: Parameters, client_manager: object) -> list:  # type: ignore[type-arg]
            chosen: list[tuple[ClientProxy, object]] = super().configure_fit(server_round, parameters, client_manager)  # type: ignore[arg-type,assignment]
            return [pair for pair in chosen if pair[0].cid == "11"]

    ran = server(merges=3)
    ran.strategy = OnlyEleven(
        min_fit_clients=1, min_available_clients=1, initial_parameters=ndarrays_to_parameters(ZEROS)
    )
    history = ran.run(AnsweringGrid([11, 12], adds_two))
    assert {merge.device for merge in history.merges} == {"11"}


def wait_for(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(400):
        if condition():
            return
        waited.wait(0.025)
    raise AssertionError("not within 10 s")


def test_a_rule_that_holds_nodes_back_waits_for_its_version_and_for_no_publication() -> None:
    """Each message carries the newest model here; what is published every `publish_interval` is for devices."""
    ran = AsyncServer(
        server().strategy,
        AsyncClientManager(),
        AsynchronousStrategy("adaptive"),
        total_train_time=30,
        merges=12,
        publish_interval=3600.0,
    )
    assert ran.run(AnsweringGrid([11, 12, 13], adds_two)).merged == 12
