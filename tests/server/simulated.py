"""AsyncServer on Flower's in-memory simulation, as a program of its own: prints its history as one JSON line.

Three clients fit y = X w by gradient descent in numpy, each on data of its own.
"""

import json
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import NDArrays, ndarrays_to_parameters
from flwr.server import ServerConfig
from flwr.server.compat import start_grid
from flwr.server.strategy import FedAvg
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from server import AsyncClientManager, AsynchronousStrategy, AsyncServer

TRUE = np.array([1.0, -2.0, 3.0], np.float32)
NODES = 3
MERGES = 20


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """X [100, 3] and y [100], nearly linear in X."""
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(100, 3)).astype(np.float32)
    return x, x @ TRUE + chance.normal(0, 0.01, 100).astype(np.float32)


class Regression(NumPyClient):
    def __init__(self, seed: int) -> None:
        self._x, self._y = data(seed)

    def fit(self, parameters: NDArrays, config: dict[str, Any]) -> tuple[NDArrays, int, dict[str, Any]]:
        weights = parameters[0].copy()
        for _ in range(int(config["steps"])):
            weights -= 0.1 * self._x.T @ (self._x @ weights - self._y) / len(self._y)
        return [weights.astype(np.float32)], len(self._y), {"steps": config["steps"]}


def client(context: Context) -> Client:
    return Regression(int(context.node_config["partition-id"])).to_client()


application = ServerApp()
server = AsyncServer(
    strategy=FedAvg(
        initial_parameters=ndarrays_to_parameters([np.zeros(3, np.float32)]),
        on_fit_config_fn=lambda _version: {"steps": 5},
        evaluate_fn=lambda _version, arrays, _config: (float(np.sum((arrays[0] - TRUE) ** 2)), {}),
    ),
    client_manager=AsyncClientManager(),
    async_strategy=AsynchronousStrategy(alpha=0.5),
    total_train_time=60,
    waiting_interval=0.2,
    merges=MERGES,
)


@application.main()
def main(grid: Grid, _context: Context) -> None:
    start_grid(grid=grid, server=server, config=ServerConfig(num_rounds=1))


if __name__ == "__main__":
    run_simulation(
        application,
        ClientApp(client_fn=client),
        num_supernodes=NODES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    history = server.history
    merges = [(merge.version, merge.device, merge.staleness, merge.samples) for merge in history.merges]
    print("HISTORY " + json.dumps({"merges": merges, "losses": history.losses_centralized}))
