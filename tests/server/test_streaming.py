"""Streaming data: how much of its data a client is told to use, and that ordinary clients can follow it."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg

from edge_client.settings import Training
from edge_client.training import trainer
from server import AsyncClientManager, AsynchronousStrategy, AsyncServer, flower_private
from server.streaming import Stream, Streaming
from tests.server import streamed
from tests.server.grids import AnsweringGrid
from tests.server.simulation import histories, needs_ray


def test_the_share_of_the_data_grows_from_a_tenth_to_all_over_the_run() -> None:
    stream = Stream(Streaming())
    told = [stream.config("pi-1", progress) for progress in (0.0, 0.5, 1.0, 1.5)]
    assert [config["data_percentage"] for config in told] == pytest.approx([0.1, 0.55, 1.0, 1.0], abs=1e-12)
    assert [config["prev_data_percentage"] for config in told] == pytest.approx([0.0, 0.1, 0.55, 1.0], abs=1e-12)
    assert {config["data_loading_strategy"] for config in told} == {"data_percentage"}
    assert "n_last_samples_for_data_loading_fit" not in told[0]
    assert stream.config("pi-2", 0.5)["prev_data_percentage"] == 0.0


def test_the_last_samples_are_a_number_of_their_own() -> None:
    config = Stream(Streaming("fixed_nr", 100)).config("pi-1", 0.5)
    assert (config["data_loading_strategy"], config["n_last_samples_for_data_loading_fit"]) == ("fixed_nr", 100)
    assert config["data_percentage"] == pytest.approx(0.55, abs=1e-12)


def test_devices_of_pollen_have_streams_of_their_own_and_ignore_it() -> None:
    told = {"epochs": 2, **Stream(Streaming("fixed_nr", 100)).config("pi-1", 0.5)}
    assert trainer.plan(Training(), told) == trainer.plan(Training(), {"epochs": 2})


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(ValueError, match="data_loading_strategy"):
        Streaming("all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_last_samples"):
        Streaming("fixed_nr", 0)


def test_a_run_tells_each_client_its_share_in_the_fit_config_and_it_grows_with_the_merges() -> None:
    used: list[int] = []

    def answer(message: Message) -> RecordDict:
        config = message.content.config_records["fitins.config"]
        arrays, samples, metrics = client.fit([np.zeros(3, np.float32)], dict(config))
        used.append(samples)
        return flower_private.fit_answer(arrays, samples, metrics)

    client = streamed.Streamed(0)
    server = AsyncServer(
        FedAvg(
            min_fit_clients=1,
            min_available_clients=1,
            initial_parameters=ndarrays_to_parameters([np.zeros(3, np.float32)]),
        ),
        AsyncClientManager(),
        AsynchronousStrategy("fedasync"),
        merges=10,
        streaming=Streaming("fixed_nr", 30),
    )
    flower_private.ensure_task_identity(7)
    server.run(AnsweringGrid([11], answer))
    # A tenth is there at first; each merge is a tenth of the run, and no more than the last 30 are used.
    assert used[:10] == [10, 19, 28, 30, 30, 30, 30, 30, 30, 30]


@needs_ray
@pytest.mark.timeout(220)
def test_ordinary_clients_in_flowers_simulation_use_a_growing_share_and_evaluate_beside(tmp_path: Path) -> None:
    (history,) = histories("streamed", tmp_path)
    devices = {merge["device"] for merge in history["merges"]}
    assert len(devices) == streamed.NODES
    for device in devices:
        samples = [merge["samples"] for merge in history["merges"] if merge["device"] == device]
        assert samples == sorted(samples), "later fits are told a larger share"
        assert samples[0] <= 0.25 * streamed.EXAMPLES
    assert max(merge["samples"] for merge in history["merges"]) >= 0.8 * streamed.EXAMPLES
    # Evaluated by the clients themselves, weighted by their samples, while they trained.
    assert history["federated"]
    for evaluation in history["federated"]:
        assert 1 <= evaluation["devices"] <= streamed.NODES
        assert evaluation["samples"] == evaluation["devices"] * streamed.EXAMPLES
        assert evaluation["metrics"]["examples"] == evaluation["samples"], "the strategy's own aggregation was used"
    assert history["federated"][-1]["loss"] < 0.5 * float((streamed.TRUE**2).sum())
