"""AsyncServer with strategies and clients of Flower's message API, on Grids of ordinary nodes."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedProx, Strategy

from pollen.errors import PollenError
from pollen.messages import Scalar
from server import AsyncClientManager, AsynchronousStrategy, AsyncServer, GatewayGrid, Listen, flower_private
from server.rules.fedasync import FedAsync
from tests.server.gateway_client import GatewayClient, bundle, update
from tests.server.grids import AnsweringGrid

ARRAYS = ArrayRecord(
    {"layer.weight": Array(np.zeros((2, 3), np.float32)), "layer.bias": Array(np.zeros(3, np.float32))}
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def identity() -> None:
    flower_private.ensure_task_identity(7)


def rule() -> AsynchronousStrategy:
    return AsynchronousStrategy("fedasync", alpha=0.5, staleness="constant", direction="delta")


def server(strategy: Strategy | None = None, **options: object) -> AsyncServer:
    chosen = {"initial_arrays": ARRAYS, "merges": 4, **options}
    return AsyncServer(strategy or FedAvg(), AsyncClientManager(), chosen.pop("rule", rule()), **chosen)  # type: ignore[arg-type]


def reply(arrays: object, /, **metrics: object) -> RecordDict:
    measured = {"num-examples": 10, "train_loss": 0.5, **metrics}
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(measured)})  # type: ignore[dict-item,arg-type]


def moved(message: Message, by: float = 2.0) -> ArrayRecord:
    (sent,) = message.content.array_records.values()
    return ArrayRecord({name: Array(array.numpy() + np.float32(by)) for name, array in sent.items()})


def adds_two(message: Message) -> RecordDict:
    return reply(moved(message))


def weights(ran: AsyncServer) -> np.ndarray:
    assert ran.model is not None
    return ran.model.weights


def test_their_answers_are_merged_each_for_itself() -> None:
    ran = server(merges=6)
    history = ran.run(AnsweringGrid([11, 12], adds_two))
    assert [merge.version for merge in history.merges] == [1, 2, 3, 4, 5, 6]
    assert {merge.device for merge in history.merges} == {"11", "12"}
    assert history.merges[0].metrics["train_loss"] == 0.5
    assert "num-examples" not in history.merges[0].metrics
    assert ran.model is not None
    assert list(ran.model.named_weights()) == ["layer.weight", "layer.bias"]
    np.testing.assert_array_equal(weights(ran), np.full(9, 6.0))


def test_run_may_bring_the_arrays_to_start_from() -> None:
    ran = server(initial_arrays=None, merges=1)
    ones = ArrayRecord({"w": Array(np.ones(4, np.float32))})
    ran.run(AnsweringGrid([11], adds_two), initial_arrays=ones)
    np.testing.assert_array_equal(weights(ran), np.full(4, 2.0))


def test_without_arrays_to_start_from_it_says_what_to_do() -> None:
    with pytest.raises(PollenError, match=r"give AsyncServer, or its run, initial_arrays"):
        server(initial_arrays=None).run(AnsweringGrid([11], adds_two))


def test_clients_get_what_the_strategy_says_in_the_records_it_uses() -> None:
    grid = AnsweringGrid([11], adds_two)
    strategy = FedProx(proximal_mu=0.25, arrayrecord_key="a", configrecord_key="c")
    server(strategy, train_config=ConfigRecord({"lr": 0.1, "sizes": [1, 2]}), merges=2).run(grid)
    first, second = grid.pushed[:2]
    assert list(first.content) == ["a", "c"]
    said = {"lr": 0.1, "sizes": [1, 2], "proximal-mu": 0.25, "server-round": 0}
    assert {name: first.content["c"][name] for name in said} == said  # type: ignore[index]
    assert second.content["c"]["server-round"] == 1  # type: ignore[index]
    np.testing.assert_array_equal(second.content["a"]["layer.bias"].numpy(), np.ones(3))  # type: ignore[index]


def test_a_client_that_tells_very_many_metrics_has_the_first_of_them_recorded() -> None:
    def answer(message: Message) -> RecordDict:
        return reply(moved(message), **{"n" * 10_000: 1.0}, **{f"metric-{number}": 1.0 for number in range(10_000)})

    history = server(merges=1).run(AnsweringGrid([11], answer))
    assert list(history.merges[0].metrics)[:2] == ["train_loss", "metric-0"]
    assert len(history.merges[0].metrics) == 64


def test_what_the_merge_rule_says_goes_into_the_config_of_the_client() -> None:
    class Stepping(FedAsync):
        def task_config(self, client: str, config: Mapping[str, Scalar]) -> Mapping[str, Scalar]:  # noqa: ARG002
            return {**config, "lr": 0.5, "steps": 7}

    grid = AnsweringGrid([11], adds_two)
    chosen = AsynchronousStrategy(Stepping(alpha=0.5))
    server(rule=chosen, train_config=ConfigRecord({"lr": 0.1}), merges=1).run(grid)
    assert dict(grid.pushed[0].content["config"]) == {"lr": 0.5, "steps": 7, "server-round": 0}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(fraction_train=0.1, min_train_nodes=5, min_available_nodes=7),
        DifferentialPrivacyServerSideFixedClipping(FedAvg(min_available_nodes=9), 0.0, 1.0, 2),
        FedAdam(),
    ],
    ids=["few", "wrapped", "adaptive"],
)
def test_a_strategy_takes_every_free_node_and_waits_for_none(strategy: Strategy) -> None:
    ran = server(strategy, merges=6)
    history = ran.run(AnsweringGrid([11, 12, 13], adds_two))
    assert {merge.device for merge in history.merges} == {"11", "12", "13"}
    inner = getattr(strategy, "strategy", strategy)
    assert inner.min_available_nodes != 3, "its own minima are left as they were"


def test_a_strategy_that_chooses_some_of_the_nodes_is_obeyed() -> None:
    class OnlyEleven(FedAvg):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            made = super().configure_train(server_round, arrays, config, grid)
            return [message for message in made if message.metadata.dst_node_id == 11]

    history = server(OnlyEleven(), merges=3).run(AnsweringGrid([11, 12], adds_two))
    assert {merge.device for merge in history.merges} == {"11"}


def test_a_strategy_that_waits_for_more_nodes_is_told_so() -> None:
    class Waiting(FedAvg):
        def configure_train(self, *arguments: object) -> Iterable[Message]:  # type: ignore[override]
            grid = cast("Grid", arguments[-1])
            while len(list(grid.get_node_ids())) < 100:
                pass
            return []

    with pytest.raises(PollenError, match="waits for more nodes than are free"):
        server(Waiting()).run(AnsweringGrid([11], adds_two))


def test_the_strategys_word_for_every_round_is_not_logged_for_every_task(caplog: pytest.LogCaptureFixture) -> None:
    server().run(AnsweringGrid([11], adds_two))
    assert [line.message for line in caplog.records if "configure_train" in line.message] == []


def test_the_model_is_evaluated_on_the_servers_data() -> None:
    def evaluate(version: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.5, "eval_loss": float(arrays["layer.bias"].numpy()[0]), "version": version})

    history = server(evaluate_fn=evaluate, merges=3).run(AnsweringGrid([11], adds_two))
    assert history.losses_centralized[-1] == (3, 3.0)


def test_a_legacy_strategy_has_its_own_config_and_evaluation() -> None:
    strategy = LegacyFedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(3, np.float32)]))
    with pytest.raises(ValueError, match=r"go with strategies of flwr\.serverapp only"):
        AsyncServer(strategy, AsyncClientManager(), rule(), merges=1, train_config=ConfigRecord({"lr": 1.0}))


def two_arrays(message: Message) -> RecordDict:
    content = adds_two(message)
    content["more"] = ArrayRecord([np.zeros(3, np.float32)])
    return content


def named_otherwise(message: Message) -> RecordDict:
    return reply(ArrayRecord(dict(zip(["layer.weight", "bias"], moved(message).values(), strict=True))))


def swapped(message: Message) -> RecordDict:
    first, second = moved(message).items()
    return reply(ArrayRecord(dict([second, first])))


def garbled(message: Message) -> RecordDict:
    arrays = moved(message)
    arrays["layer.bias"].data = b"PK\x03\x04 no array"
    return reply(arrays)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (two_arrays, "2 ArrayRecords; exactly one is needed"),
        (lambda _: RecordDict(), "0 ArrayRecords"),
        (lambda m: RecordDict({"arrays": moved(m)}), "0 MetricRecords; exactly one is needed"),
        (named_otherwise, "lacks 'layer.bias'"),
        (lambda _: reply(ArrayRecord([np.zeros(3, np.float32)])), "1 arrays, the model has 2 tensors"),
        (lambda m: reply(moved(m), **{"num-examples": 2.5}), "needs 'num-examples', a whole number"),
        (lambda m: reply(moved(m), **{"num-examples": [1]}), "needs 'num-examples', a whole number"),
        (lambda m: reply(moved(m), **{"num-examples": 0}), "needs 1 to"),
        (lambda m: reply(moved(m, float("nan"))), "'layer.weight' holds a number that is not finite"),
        (garbled, "no answer to a train message"),
    ],
)
def test_a_reply_that_is_no_update_is_refused_and_the_others_go_on(
    make: Callable[[Message], RecordDict], reason: str
) -> None:
    def answer(message: Message) -> RecordDict:
        return make(message) if message.metadata.dst_node_id == 66 else adds_two(message)

    ran = server()
    history = ran.run(AnsweringGrid([66, 11], answer))
    assert {merge.device for merge in history.merges} == {"11"}
    assert history.rejections[0][1] == "66"
    assert reason in history.rejections[0][2]
    np.testing.assert_array_equal(weights(ran), np.full(9, 4.0))


def test_arrays_are_taken_by_their_names() -> None:
    ran = server(merges=1)
    ran.run(AnsweringGrid([11], swapped))
    np.testing.assert_array_equal(weights(ran), np.ones(9))


def test_a_strategys_own_weight_key_is_used_and_whole_floats_count() -> None:
    def answer(message: Message) -> RecordDict:
        return reply(moved(message), batches=7.0)

    history = server(FedAvg(weighted_by_key="batches"), merges=1).run(AnsweringGrid([11], answer))
    assert history.merges[0].samples == 7


def test_a_node_that_stays_silent_is_given_up_and_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.merge_loop.BACK_OFF_S", 0.2)
    asked: list[int] = []
    lock = threading.Lock()

    class HalfSilent(AnsweringGrid):
        """Node 66 answers nothing before it is asked a third time."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            ids = list(super().push_messages(list(messages)))
            with lock:
                for message, message_id in zip(self.pushed[-len(ids) :], ids, strict=True):
                    if message.metadata.dst_node_id == 66:
                        asked.append(66)
                        if len(asked) < 3:
                            self._replies.pop(message_id)
            return ids

    history = server(task_ttl=0.5, merges=100_000, stop=(stop := threading.Event())).history
    ran = server(task_ttl=0.5, merges=None, stop=stop, history=history)
    running = threading.Thread(target=ran.run, args=(HalfSilent([66, 11], adds_two),))
    running.start()
    try:
        waited = threading.Event()
        for _ in range(600):
            if any(merge.device == "66" for merge in list(history.merges)):
                break
            waited.wait(0.05)
    finally:
        stop.set()
        running.join(20)
    assert any(merge.device == "66" for merge in history.merges)
    silent = [rejection for rejection in history.rejections if rejection[1] == "66"]
    assert [rejection[2] for rejection in silent] == ["no answer within 0.5 s"] * 2


def test_devices_behind_gateways_get_the_strategys_config_too() -> None:
    model, stop = bundle(), threading.Event()
    with GatewayGrid(model, listen=Listen(port=0)) as grid, GatewayClient(grid.port) as gateway:
        config = ConfigRecord({"learning_rate": 0.25, "epochs": 2})
        ran = server(initial_arrays=None, train_config=config, merges=1, stop=stop)
        running = threading.Thread(target=ran.run, args=(grid,))
        running.start()
        try:
            gateway.birth("pi-1")
            task = gateway.task("pi-1")
            gateway.upload("pi-1", update(task, model, 2.0))
            assert gateway.receipt("pi-1").outcome == "merged"
        finally:
            running.join(20)
    assert (task.config["learning_rate"], task.config["epochs"]) == (0.25, 2)
    np.testing.assert_array_equal(weights(ran), np.ones(5))
