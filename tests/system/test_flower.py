"""Flower's own ways to use a Grid, unmodified, on real devices behind a real broker and gateway."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import NDArrays, Scalar
from flwr.server import ServerConfig
from flwr.server.compat import start_grid
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg

from pollen.bundle import Bundle
from server import AsyncClientManager, AsynchronousStrategy, AsyncServer, GatewayGrid, Listen
from server.evaluation import Evaluate, from_file
from tests.system import recording
from tests.system.whole import FLEET, Whole

DEVICES = ("pi-1", "pi-2", "pi-3")
CONFIG: dict[str, Scalar] = {"learning_rate": 0.05, "epochs": 1, "max_steps": 25, "min_samples": 30}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def grid(bundle_file: Path) -> Iterator[GatewayGrid]:
    opened = GatewayGrid(Bundle.read(bundle_file), fleet=FLEET, listen=Listen(port=0), task_ttl_s=20)
    yield opened
    opened.close()


@pytest.fixture
def loss(bundle_file: Path, tmp_path: Path) -> Evaluate:
    """The loss on held-out examples of a signal like the devices'."""
    return from_file(Bundle.read(bundle_file), recording.examples(tmp_path / "held-out.npz", seed=9))


def flat(arrays: NDArrays) -> np.ndarray:
    return np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])


def test_an_unmodified_strategy_trains_and_evaluates_the_devices_synchronously(
    whole: Callable[..., Whole], grid: GatewayGrid, loss: Evaluate
) -> None:
    running = whole(devices=DEVICES, server=False, server_port=grid.port)
    running.wait_for(lambda: len(grid.link.online()) == len(DEVICES), 30, "all devices are online")

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        score = loss(server_round, flat(arrays.to_numpy_ndarrays()))
        assert score is not None
        return MetricRecord({"loss": score[0]})

    everyone = len(DEVICES)
    strategy = FedAvg(min_train_nodes=everyone, min_evaluate_nodes=everyone, min_available_nodes=everyone)
    result = strategy.start(
        grid=grid,
        initial_arrays=grid.initial_arrays(),
        num_rounds=2,
        timeout=40,
        train_config=ConfigRecord(dict(CONFIG)),
        evaluate_fn=evaluate,
    )
    running.check_alive()
    central = [float(result.evaluate_metrics_serverapp[number]["loss"]) for number in range(3)]  # type: ignore[arg-type]
    print("central loss", central, "devices", result.evaluate_metrics_clientapp)
    assert central[2] < central[1] < central[0]
    assert set(result.train_metrics_clientapp) == {1, 2}
    for number in (1, 2):
        trained = result.train_metrics_clientapp[number]
        assert float(trained["train_loss"]) > 0  # type: ignore[arg-type]
    # The round's model as the devices judge it, on what they measured themselves.
    assert set(result.evaluate_metrics_clientapp) == {1, 2}
    on_devices = [float(result.evaluate_metrics_clientapp[number]["eval_loss"]) for number in (1, 2)]  # type: ignore[arg-type]
    assert 0 < on_devices[1] < on_devices[0]
    assert list(result.arrays) == [tensor.name for tensor in grid.link.bundle.manifest.shared]
    running.stop(*DEVICES)


def test_async_server_trains_the_devices_through_flowers_start_grid(
    whole: Callable[..., Whole], grid: GatewayGrid, loss: Evaluate
) -> None:
    running = whole(devices=DEVICES, server=False, server_port=grid.port)
    running.wait_for(lambda: len(grid.link.online()) == len(DEVICES), 30, "all devices are online")
    server = AsyncServer(
        strategy=LegacyFedAvg(
            on_fit_config_fn=lambda _version: dict(CONFIG),
            evaluate_fn=lambda version, arrays, _config: loss(version, flat(arrays)),
        ),
        client_manager=AsyncClientManager(),
        async_strategy=AsynchronousStrategy("fedasync", alpha=0.6),
        total_train_time=60,
        waiting_interval=0.5,
        merges=30,
    )
    history = start_grid(grid=grid, server=server, config=ServerConfig(num_rounds=1))
    assert history is server.history
    losses = [value for _, value in history.losses_centralized]
    merges = list(server.history.merges)
    untrained = loss(0, grid.link.bundle.weights)
    assert untrained is not None
    print(f"{len(merges)} merges, loss {untrained[0]:.3f} to {losses[-1]:.3f}")
    assert len(merges) == 30
    assert [merge.version for merge in merges] == list(range(1, 31))
    assert {merge.device for merge in merges} == set(DEVICES)
    assert any(merge.staleness > 0 for merge in merges), "asynchronous: some update was stale"
    assert losses[-1] < 0.2 * untrained[0]
    running.stop(*DEVICES)
