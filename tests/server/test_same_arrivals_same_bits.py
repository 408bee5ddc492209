"""Determinism: the same arrivals at the same times give the same model, memory and receipts, whatever the rule."""

import functools
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from pollen import cbor, messages
from pollen.bundle import Tensor
from pollen.encoding import ENCODINGS, decode_into, encode, parameters
from server.async_strategy import AsynchronousStrategy
from server.decisions import Decisions, Group, Timing
from server.devices import Devices
from server.guard import Arrival, Guard
from server.guards import GuardSettings
from server.history import AsyncHistory
from server.model import GlobalModel
from server.rules import rules
from server.store import Commit, StateStore
from server.tasks import OpenTask

TENSORS = (Tensor("w", (30, 11)), Tensor("b", (11,)))
DEVICES = [f"pi-{number}" for number in range(7)]
ROUNDS = 40
GUARD = GuardSettings(updates_per_minute=40.0, burst=20, warm_up=10, norm_factor=2.0, cosine_least=-0.3)


@dataclass(frozen=True)
class Outcome:
    """What a sequence of arrivals led to, as bytes."""

    model: bytes
    version: int
    kept: dict[str, bytes]
    receipts: list[bytes]


def sequence(seed: int) -> list[tuple[OpenTask, Arrival, float]]:
    """Arrivals of all devices in a random order, with the tasks they answer, and when they come in seconds."""
    chance = np.random.default_rng(seed)
    found: list[tuple[OpenTask, Arrival, float]] = []
    now = 0.0
    for _ in range(ROUNDS):
        for device in chance.permutation(DEVICES)[: chance.integers(1, len(DEVICES))]:
            now += float(chance.exponential(0.5))
            delta = chance.normal(0.2, 1.0, parameters(TENSORS)).astype(np.float32)
            delta *= np.float32(chance.choice([1.0, 1.0, 1.0, 50.0, -1.0]))
            drawn = random.Random(chance.bytes(8))
            wire = encode(delta, TENSORS, drawn.choice(ENCODINGS), drawn)
            task = OpenTask(chance.bytes(16), 5, str(device), "train", 0, 0.0)
            arrival = Arrival(
                device=str(device),
                node=5,
                task=task.task,
                seq=len(found),
                base=int(chance.integers(8)),
                samples=int(chance.integers(1, 500)),
                write_delta=functools.partial(decode_into, wire=wire, tensors=TENSORS),
            )
            found.append((task, arrival, now))
    return found


def outcome(rule: str, arrivals: list[tuple[OpenTask, Arrival, float]], group_size: int) -> Outcome:
    """Decide `arrivals` in groups of so many."""
    generator = np.random.default_rng(0)
    model = GlobalModel(TENSORS, generator.normal(size=parameters(TENSORS)).astype(np.float32), version=7, keep=8)
    for model.version in range(8):
        model.publish()
        model.weights += np.float32(0.01)
    strategy, guard, store = AsynchronousStrategy(rule), Guard(GUARD), StateStore(None)
    strategy.restore({}, store.kept)
    decisions = Decisions(model, strategy, store, AsyncHistory(), Devices(), guard=guard)
    kept: dict[str, Any] = {}
    receipts = []
    for start in range(0, len(arrivals), group_size):
        group = Group()
        for task, arrival, now in arrivals[start : start + group_size]:
            asked = replace(task, config=strategy.task_config(task.device, {}))
            residual = asked.config.get("upload") == "residual"
            sent = replace(arrival, against=bytes.fromhex(str(asked.config["against"])) if residual else None)
            decisions.decide(sent, {task.device: asked}, group, Timing(now, 1.0, {task.device: now - 1.0}))
        receipts += [settled.receipt for settled in group.settled if settled.receipt is not None]
        changed = decisions.drain()
        store.commit(Commit(model.version, kept=changed))
        kept |= {name: cbor.encode(value) for name, value in changed.items()}
    store.close()
    return Outcome(model.weights.tobytes(), model.version, kept, receipts)


@pytest.mark.parametrize("rule", sorted(rules))
def test_the_same_arrivals_give_the_same_bits_however_they_are_grouped(rule: str) -> None:
    arrivals = sequence(1)
    first = outcome(rule, arrivals, group_size=1)
    assert outcome(rule, sequence(1), group_size=1) == first
    # A group is what happened to come in together: deciding it must not depend on that.
    for size in (3, 64):
        grouped = outcome(rule, arrivals, group_size=size)
        assert (grouped.model, grouped.version, grouped.receipts) == (first.model, first.version, first.receipts)
    outcomes = [messages.decode_receipt(receipt).outcome for receipt in first.receipts]
    assert len(outcomes) == len(arrivals)
    assert outcomes.count("merged") > len(arrivals) / 2
    assert outcome(rule, sequence(2), group_size=1) != first
