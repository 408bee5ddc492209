"""The admission guard at the server's door: attackers among honest devices, over real gateway streams."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.server.strategy import FedAvg

from pollen import messages
from pollen.encoding import named
from pollen.messages import Receipt, Result, Update
from server import AsyncClientManager, AsynchronousStrategy, AsyncServer, GatewayGrid, Listen
from server.guards import GuardSettings
from server.history import AsyncHistory
from server.store import StateStore
from tests.server.gateway_client import GatewayClient, bundle, random_task_id, update

MODEL = bundle((40, 24))
SIZE = MODEL.manifest.shared_size
HONEST = ("honest-1", "honest-2", "honest-3", "honest-4")


class Guarded:
    """A server with guard settings on a grid of its own, and a gateway with devices that are mere numbers."""

    def __init__(self, folder: Path, settings: GuardSettings) -> None:
        self.stop = threading.Event()
        self.folder = folder
        self.server = AsyncServer(
            FedAvg(min_available_clients=1, min_fit_clients=1),
            AsyncClientManager(),
            AsynchronousStrategy("fedasync", alpha=1.0, staleness="constant", direction="delta"),
            publish_interval=0.0,
            state=folder / "state.sqlite",
            history=AsyncHistory(folder / "history.jsonl"),
            guard=settings,
            stop=self.stop,
        )
        self.grid = GatewayGrid(MODEL, listen=Listen(port=0))
        self._thread = threading.Thread(target=self.server.run, args=(self.grid,))
        self._thread.start()
        self.gateway = GatewayClient(self.grid.port)
        self._seq = 0

    def close(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.gateway.__exit__()
        self.grid.close()

    def birth(self, *devices: str) -> None:
        for device in devices:
            self.gateway.birth(device)

    def send(self, device: str, delta: np.ndarray) -> Receipt:
        """Answer the device's task with `delta` [P]; returns the receipt."""
        task = self.gateway.task(device)
        self._seq += 1
        wire = named(delta.astype(np.float32), MODEL.manifest.shared)
        self.gateway.upload(device, messages.encode(Update(task.task, self._seq, task.version, 10, 5, wire)))
        return self.gateway.receipt(device)

    @property
    def weights(self) -> np.ndarray:
        assert self.server.model is not None
        return self.server.model.weights

    def refused(self) -> dict[str, dict[str, int]]:
        """By device and kind, as the store has it: what survives the server."""
        store = StateStore(self.folder / "state.sqlite")
        stored = store.load()
        store.close()
        assert stored is not None
        return {counts.device: counts.refused for counts in stored.devices if counts.refused}


Guards = Callable[..., Guarded]


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """Starts one server; refused devices are asked again at once."""
    monkeypatch.setattr("server.merge_loop.BACK_OFF_S", 0.0)
    running: list[Guarded] = []

    def begin(**settings: Any) -> Guarded:
        running.append(Guarded(tmp_path, GuardSettings(**settings)))
        running[-1].birth(*HONEST, "attacker")
        return running[-1]

    yield begin
    for one in running:
        if not one.stop.is_set():
            one.close()


def honest(chance: np.random.Generator) -> np.ndarray:
    """What honest devices learn: the same direction, each with noise of its own."""
    return np.ones(SIZE) / np.sqrt(SIZE) + chance.normal(0, 0.5 / np.sqrt(SIZE), SIZE)


def test_a_boosted_attacker_moves_the_model_no_further_than_the_bound(guarded: Guards) -> None:
    server, chance = guarded(warm_up=8, norm_factor=3.0), np.random.default_rng(1)
    for _ in range(3):
        for device in HONEST:
            assert server.send(device, honest(chance)).reason == ""
    before = server.weights.copy()
    receipt = server.send("attacker", -1e6 * honest(chance))
    assert receipt.outcome == "merged"
    assert "clipped: norm of " in receipt.reason
    assert "(3 running medians)" in receipt.reason
    moved = float(np.linalg.norm(server.weights - before))
    assert moved == pytest.approx(3.0 * np.sqrt(1.25), rel=0.05)
    merge = server.server.history.merges[-1]
    assert merge.delta_norm > 1e6
    assert merge.metrics["clipped"] == pytest.approx(moved / merge.delta_norm, rel=1e-3)


def test_an_attacker_that_floods_first_can_not_shut_the_honest_out(guarded: Guards) -> None:
    server, chance = guarded(warm_up=8), np.random.default_rng(2)
    for _ in range(60):
        server.send("attacker", 1e-9 * honest(chance))
    receipts = [server.send(device, honest(chance)) for _ in range(3) for device in HONEST]
    assert [receipt.outcome for receipt in receipts] == ["merged"] * 12
    assert [receipt.reason for receipt in receipts[-8:]] == [""] * 8


def test_a_sign_flipping_attacker_is_refused_and_the_model_goes_the_honest_way(guarded: Guards) -> None:
    server, chance = guarded(warm_up=8, cosine_least=0.0), np.random.default_rng(3)
    for _ in range(2):
        for device in HONEST:
            server.send(device, honest(chance))
    for _ in range(10):
        receipt = server.send("attacker", -honest(chance))
        assert receipt.outcome == "rejected"
        assert "cosine of -0." in receipt.reason
        assert server.send("honest-1", honest(chance)).outcome == "merged"
    assert float(np.mean(server.weights)) * np.sqrt(SIZE) == pytest.approx(18.0, abs=1.5)
    assert server.server.history.merges[-1].metrics["cosine"] > 0.5
    server.close()
    assert server.refused() == {"attacker": {"cosine": 10}}


def test_a_flooding_device_is_refused_and_others_are_served(guarded: Guards) -> None:
    server, chance = guarded(updates_per_minute=0.001, burst=5), np.random.default_rng(4)
    receipts = [server.send("attacker", honest(chance)) for _ in range(8)]
    assert [receipt.outcome for receipt in receipts] == ["merged"] * 5 + ["rejected"] * 3
    assert receipts[-1].reason == "more than 0.001 updates a minute"
    assert server.send("honest-1", honest(chance)).outcome == "merged"
    server.close()
    assert server.refused() == {"attacker": {"rate": 3}}


def test_each_refusal_is_counted_by_kind_and_device_told_and_recorded(guarded: Guards) -> None:
    server = guarded(norm="refuse", warm_up=1)
    ones = np.ones(SIZE)
    for device in (*HONEST, "attacker"):
        server.send(device, ones)
    sound = named(np.ones(SIZE, np.float32), MODEL.manifest.shared)
    forged: list[tuple[str, Callable[[messages.Task], bytes], str, str]] = [
        ("names", lambda t: update(t, MODEL, 1.0, delta={"x": np.ones(3, np.float32)}), "update", "1 tensors"),
        (
            "shapes",
            lambda t: update(t, MODEL, 1.0, delta=sound | {"t0": np.ones((2, 20), np.float32)}),
            "update",
            "(2,",
        ),
        ("dtype", lambda t: update(t, MODEL, 1.0, delta=sound | {"t0": np.ones(40)}), "update", "expected a float32"),
        ("not-finite", lambda t: update(t, MODEL, np.inf), "update", "not finite"),
        ("not-finite", lambda t: update(t, MODEL, np.nan), "update", "not finite"),
        ("magnitude", lambda t: update(t, MODEL, 1e30), "update", "largest number is 1e+30"),
        ("norm", lambda t: update(t, MODEL, 11.0), "update", "the bound is 80"),
        ("samples", lambda t: update(t, MODEL, 1.0, samples=0), "update", "n = 0"),
        ("base", lambda t: update(t, MODEL, 1.0, base=10**6), "update", "never issued"),
        ("failed", lambda t: messages.encode(Result(t.task, 0, error="no data")), "result", "no data"),
        ("unreadable", lambda _: b"\xff", "update", "not valid CBOR"),
        ("size", lambda _: b"99999999 digest", "oversize", "99999999 bytes is over the limit"),
    ]
    reasons = []
    for kind, make, leaf, says in forged:
        server.gateway.upload("attacker", make(server.gateway.task("attacker")), leaf)
        receipt = server.gateway.receipt("attacker")
        assert receipt.outcome == "rejected"
        assert says in receipt.reason
        reasons.append(("attacker", receipt.reason, kind))
    task = server.gateway.task("attacker")
    server.gateway.upload("attacker", update(task, MODEL, 1.0, task=random_task_id()))
    assert "unknown task" in server.gateway.receipt("attacker").reason
    np.testing.assert_array_equal(server.weights, np.full(SIZE, 5.0))
    server.close()
    assert [rejection[1:] for rejection in server.server.history.rejections][:-1] == reasons
    kinds = [kind for kind, *_ in forged] + ["unknown-task"]
    assert server.refused() == {"attacker": {kind: kinds.count(kind) for kind in kinds}}


def test_what_the_guard_knows_survives_the_server(guarded: Guards, tmp_path: Path) -> None:
    first = guarded(warm_up=8, norm="refuse")
    for _ in range(2):
        for device in HONEST:
            first.send(device, np.ones(SIZE))
    first.close()
    second = Guarded(tmp_path, GuardSettings(warm_up=8, norm="refuse"))
    try:
        second.birth("attacker")
        assert "the bound is 80" in second.send("attacker", 100.0 * np.ones(SIZE)).reason
    finally:
        second.close()
