"""The whole device against a real broker: tasks, updates, receipts, sessions."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pollen import messages, topics
from pollen.bundle import Bundle
from pollen.messages import Birth
from tests.edge_client.fleet import FLEET, Device, Server, decoded, rows

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]
TASK = topics.device(FLEET, "pi-1", "task")
RECEIPT = topics.device(FLEET, "pi-1", "receipt")
WEIGHTS = topics.model(FLEET, "telemetry", "weights")
BUNDLE = topics.model(FLEET, "telemetry", "bundle")


def test_a_device_learns_from_its_sensor_and_sends_what_it_learned(
    server: Server, device: Devices, bundles: Bundles, device_python: str
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 7)
    one = device(python=device_python)
    update = server.update(server.task(bundle, version=7))
    assert (update.base, update.seq) == (7, 1)
    assert 32 <= update.samples <= 96  # the first 32, and what came while the snapshot was fetched
    assert update.steps == -(-update.samples // bundle.manifest.batch)  # one pass
    assert update.metrics["loss_after"] < update.metrics["loss_before"]
    assert {"prequential_error", "baseline_error", "train_seconds", "rss_bytes"} <= set(update.metrics)
    assert np.any(decoded(update, bundle))
    server.receipt(update)
    server.wait_for(lambda: not rows(one), 10, "the receipt to empty the outbox")
    second = server.update(server.task(bundle, version=7, config={"epochs": 2, "max_steps": 3, "min_samples": 1}))
    assert (second.seq, second.steps) == (2, 3)
    born = server.wait_for(
        lambda: [s for s in server.states() if isinstance(s, Birth) and s.interpreter], 5, "full birth"
    )
    assert born[-1].interpreter.split()[0] in ("ai-edge-litert", "tflite-runtime")


def test_the_error_falls_below_the_persistence_baseline(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    weights = bundle.weights.copy()
    server.publish_model(bundle, 0)
    device(sensor={"period_s": 0.002})

    def better() -> bool:
        nonlocal weights
        task = server.task(bundle, config={"epochs": 20, "max_steps": 200})
        update = server.update(task)
        weights = weights + decoded(update, bundle)
        server.publish_model(bundle, update.seq, weights)
        server.receipt(update)
        vitals = server.vitals()
        return vitals.get("scored", 0) > 300 and vitals["prequential_error"] < 0.7 * vitals["baseline_error"]

    server.wait_for(better, 40, "an error below the baseline's")


def test_evaluate_and_query_are_answered_once(
    server: Server, device: Devices, bundles: Bundles, device_python: str
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 3)
    one = device(python=device_python)
    server.wait_for(lambda: server.vitals().get("samples_seen", 0) > 50, 20, "samples")
    train = server.update(server.task(bundle))
    server.receipt(train)
    evaluated = server.result(server.task(bundle, kind="evaluate"))
    assert evaluated.samples >= 32
    assert set(evaluated.metrics) == {"loss", "error"}
    assert not evaluated.error
    task = server.task(bundle, kind="query")
    asked = server.result(task)
    assert asked.metrics["base_version"] == 3
    server.receipt(evaluated)
    server.receipt(asked)
    server.wait_for(lambda: not rows(one), 10, "an empty outbox")
    count = len(server.payloads("result"))
    server.task(bundle, kind="query", task=task)  # receipted: ignored
    server.result(server.task(bundle, kind="query"))
    assert len(server.payloads("result")) == count + 1


def test_a_task_that_cant_be_done_is_answered_with_the_reason(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    good, misfit = bundles("forecast"), bundles("mlp")  # the sensor gives 2 channels, mlp takes 8
    server.publish_model(good, 0)
    device()
    first = server.update(server.task(good))
    server.receipt(first)
    server.publish_model(misfit, 1)
    refused = server.result(server.task(misfit))
    assert "the sensor gives 2 channels" in refused.error
    server.receipt(refused)
    absurd = server.result(server.task(good, config={"epochs": -1}))
    assert "epochs" in absurd.error


def test_a_model_with_dropout_trains(server: Server, device: Devices, bundles: Bundles, device_python: str) -> None:
    bundle = bundles("dropout")  # takes flat [8]: four samples of two channels
    server.publish_model(bundle, 0)
    device(python=device_python)
    assert server.update(server.task(bundle)).steps > 0


def test_the_device_fetches_a_new_bundle_when_a_task_names_it(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    old, new = bundles("forecast"), bundles("wide")
    server.publish_model(old, 0)
    device()
    server.receipt(server.update(server.task(old)))
    server.publish_model(new, 5)
    update = server.update(server.task(new))
    assert update.base == 5
    assert decoded(update, new).size == new.manifest.shared_size


def test_labelled_bursts_are_classified(
    server: Server, device: Devices, bundles: Bundles, tmp_path: Path, device_python: str
) -> None:
    bundle = bundles("classes")
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 300)
    x = rng.normal(0, 0.3, (300, 6, 2)) + y[:, None, None]
    np.savez(tmp_path / "labelled.npz", X=x.astype(np.float32), y=y)
    server.publish_model(bundle, 0)
    device(
        python=device_python,
        model="motion",
        learner={"target": "label"},
        sensor={"kind": "replay", "period_s": 0.005, "options": {"file": str(tmp_path / "labelled.npz"), "loop": True}},
    )
    weights = bundle.weights.copy()
    for _ in range(3):
        update = server.update(server.task(bundle, config={"epochs": 10, "max_steps": 100}))
        weights = weights + decoded(update, bundle)
        server.publish_model(bundle, update.seq, weights)
        server.receipt(update)
    result = server.result(server.task(bundle, kind="evaluate"))
    assert result.metrics["error"] < 0.2


def test_garbled_messages_stop_nothing(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    one = device()
    rng = np.random.default_rng(0)
    good = messages.encode(messages.Task(os.urandom(16), "train", "telemetry", 0, bundle.digest, {"epochs": 3}))
    for topic in (TASK, RECEIPT, WEIGHTS, BUNDLE):
        for payload in (b"", b"\xff", b"\x00" * 100, good[:-3], b"\xa1" * 3000, b"x" * 200_000):
            server.publish_raw(topic, payload)
    for _ in range(50):
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] ^= 1 << rng.integers(8)
        server.publish_raw(TASK, bytes(damaged))
    server.publish_raw(TASK, messages.encode(messages.Task(b"t" * 16, "train", "telemetry", 0, b"d" * 32)))
    server.publish_raw(BUNDLE, b"no bundle", retain=True)
    assert "can't be used" not in one.log()
    server.result(server.task(bundle), 20)  # refused: the bundle is damaged
    server.publish_model(bundle, 0)
    assert server.update(server.task(bundle)).samples
    assert one.process.poll() is None


def test_a_snapshot_with_a_wrong_digest_is_refused(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 2)
    one = device(training={"fetch_s": 1.0})
    server.receipt(server.update(server.task(bundle)))
    snapshot = messages.Snapshot(
        "telemetry", 3, b"\0" * 32, {t.name: np.ones(t.shape, np.float32) for t in bundle.manifest.shared}
    )
    server.publish_raw(WEIGHTS, messages.encode(snapshot), retain=True)
    assert server.update(server.task(bundle)).base == 2
    assert "doesn't match its digest" in one.log()


def test_a_rejected_update_is_dropped_and_counted(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    server.receipt(server.update(server.task(bundle)), outcome="rejected", reason="norm beyond the bound")
    server.wait_for(lambda: server.vitals().get("receipts_rejected") == 1, 10, "the vitals to say so")
    assert "norm beyond the bound" in one.log()
    server.wait_for(lambda: not rows(one), 10, "an empty outbox")


def test_a_new_train_task_replaces_one_that_is_being_worked_on(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    server.receipt(server.update(server.task(bundle)))
    given_up = server.task(bundle, config={"epochs": 1000, "max_steps": 100_000, "min_samples": 64})
    server.wait_for(lambda: "train task " + given_up.hex()[:8] in one.log(), 10, "the first task")
    task = server.task(bundle, config={"max_steps": 2})
    update = server.update(task)
    assert update.steps == 2
    assert server.updates(given_up) == []


def test_the_import_closure_holds_no_server_and_no_tensorflow() -> None:
    code = (
        "import sys, edge_client.command, edge_client.agent, edge_client.sensors.host, edge_client.sensors.replay\n"
        "print([m for m in ('tensorflow', 'keras', 'flwr', 'grpc', 'matplotlib') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('device = "a/b"', "device"),
        ("[sensor]\nperiod_s = 0", "period_s"),
        ('[sensor]\nkind = "nothing"', "no sensor"),
        ("[sensor]\noptions = { core = 4096 }", "core"),
        ("[sensor]\noptions = { colour = 1 }", "colour"),
    ],
)
def test_settings_that_cant_be_used_exit_with_2_and_one_line(tmp_path: Path, line: str, error: str) -> None:
    path = tmp_path / "edge.toml"
    head = "" if line.startswith("device") else 'device = "pi-1"\n'
    path.write_text(f'{head}fleet = "test"\nmodel = "telemetry"\nstate_dir = "state"\n{line}\n')
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "edge_client.command", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 2
    lines = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert len(lines) == 1
    assert error in lines[0]
