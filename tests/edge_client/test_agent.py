"""The whole device against a real broker: tasks, updates, receipts, sessions."""

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pollen import messages, topics
from pollen.bundle import Bundle
from pollen.messages import Birth, Death
from tests.edge_client.fleet import FLEET, Device, Server, decoded

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]
TASK = topics.device(FLEET, "pi-1", "task")
RECEIPT = topics.device(FLEET, "pi-1", "receipt")
WEIGHTS = topics.model(FLEET, "telemetry", "weights")
BUNDLE = topics.model(FLEET, "telemetry", "bundle")


def rows(device: Device) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{device.state_dir / 'outbox.sqlite'}?mode=ro", uri=True) as database:
        return database.execute("SELECT task, handed, payload FROM reply").fetchall()


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


def test_an_update_is_published_again_until_its_receipt(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"retry_s": 0.3})
    task = server.task(bundle)
    server.wait_for(lambda: len(server.payloads("update")) >= 3, 20, "three deliveries")
    assert len(set(server.payloads("update"))) == 1, "a sent update must not change"
    server.receipt(server.update(task))
    server.wait_for(lambda: not rows(one), 10, "the receipt to empty the outbox")


def test_an_update_survives_a_broker_restart(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    task = server.task(bundle)
    server.update(task)
    server.broker.kill()
    server.broker.restart()
    server.wait_for(lambda: len(server.updates(task)) >= 2, 20, "the update again, after the reconnect")
    assert len(set(server.payloads("update"))) == 1
    server.receipt(server.update(task))
    server.wait_for(lambda: not rows(one), 10, "the receipt to empty the outbox")


def test_unsent_results_coalesce_into_one_update(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 4)
    one = device()
    server.receipt(server.update(server.task(bundle, version=4)))
    task = server.task(bundle, version=4, config={"min_samples": 150, "max_steps": 1000})
    server.wait_for(lambda: "train task " + task.hex()[:8] in one.log(), 10, "the task")
    server.broker.stop()
    made = one.log().count("edge_client.training.train_task: update")
    server.wait_for(
        lambda: one.log().count("edge_client.training.train_task: update") >= made + 3, 30, "three trainings offline"
    )
    found = rows(one)
    assert [(row[0], row[1]) for row in found] == [(task, 0)]
    server.broker.restart()
    update = server.update(task)
    assert update.base == 4
    assert update.samples >= 3 * 150
    assert update.seq >= 4


def test_a_death_speaks_of_the_same_session_as_the_birth(server: Server, device: Devices, bundles: Bundles) -> None:
    one = device()
    born = server.states()[-1]
    one.kill()
    lost = server.wait_for(lambda: [s for s in server.states() if isinstance(s, Death)], 15, "the last will")[-1]
    assert lost == Death(born.session, "lost")
    two = device()
    born_again = server.states()[-1]
    assert born_again.session.boot != born.session.boot
    assert two.terminate() == 0
    stopped = server.wait_for(lambda: not server.online() and server.states()[-1], 10, "the death")
    assert stopped == Death(born_again.session, "stopped")


def test_a_short_drop_is_no_death(server: Server, device: Devices, bundles: Bundles) -> None:
    device(session={"will_delay_s": 30})
    server.broker.kill()
    server.broker.restart()
    server.wait_for(
        lambda: len({s.session.connection for s in server.states()}) == 2, 15, "a second connection's birth"
    )
    assert not [s for s in server.states() if isinstance(s, Death)]


def test_sigterm_waits_for_receipts(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device()
    update = server.update(server.task(bundle))
    one.process.terminate()
    server.wait_for(lambda: len(rows(one)) == 1 and one.process.poll() is None, 5, "the device to wait")
    server.receipt(update)
    assert one.process.wait(10) == 0
    assert rows(one) == []
    assert isinstance(server.wait_for(lambda: server.states()[-1], 5, "a state"), Death)


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
    assert rows(one) == []


def test_an_update_larger_than_the_brokers_limit_is_kept_and_reported(
    mosquitto_binary: Path, device: Devices, bundles: Bundles, server: Server
) -> None:
    bundle = bundles("mlp")
    server.publish_model(bundle, 0)
    one = device(sensor={"kind": "host", "period_s": 0.01, "options": {}})
    server.receipt(server.update(server.task(bundle)))
    task = server.task(bundle, config={"min_samples": 100})
    server.wait_for(lambda: "train task " + task.hex()[:8] in one.log(), 10, "the task")
    configuration = server.broker.log.with_name("mosquitto.conf")
    text = configuration.read_text()
    server.broker.stop()
    server.wait_for(lambda: rows(one), 20, "an update made offline")
    limited = "\n".join("max_packet_size 20000" if "max_packet_size" in line else line for line in text.splitlines())
    process = subprocess.Popen([str(mosquitto_binary), "-c", str(_written(configuration, limited))])
    try:
        server.wait_for(lambda: "takes packets of at most 20000" in one.log(), 20, "the error")
        server.wait_for(lambda: server.vitals().get("outbox_oversize") == 1, 10, "the vitals to say so")
        assert [row[0] for row in rows(one)] == [task]
    finally:
        process.terminate()
        process.wait(10)


def _written(path: Path, text: str) -> Path:
    limited = path.with_name("limited.conf")
    limited.write_text(text + "\n")
    return limited


def test_a_kill_at_any_moment_loses_no_update(server: Server, device: Devices, bundles: Bundles) -> None:
    """SIGKILLed at random points: what was published without a receipt is kept, and published again byte for byte."""
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    rng = np.random.default_rng(5)
    receipted: set[bytes] = set()

    def answer() -> None:
        for update in server.updates():
            if update.task not in receipted:
                receipted.add(update.task)
                server.receipt(update)

    def unanswered() -> dict[bytes, bytes]:
        payloads = server.payloads("update")
        sent = {messages.decode_update(payload, 10**7).task: payload for payload in payloads}
        return {task: payload for task, payload in sent.items() if task not in receipted}

    for life in range(10):
        one = device(wait=False)
        server.wait_for(lambda log=one.log, life=life: log().count("connected to") > life, 15, "the connection")
        answer()
        server.task(bundle, config={"min_samples": 1})
        time.sleep(float(rng.uniform(0.0, 0.6)))  # a random point is what is tested
        sent = unanswered()
        one.kill()
        kept = {row[0]: row[2] for row in rows(one) if row[1]}
        assert sent.items() <= kept.items()
    final = device()

    def settled() -> bool:
        answer()
        return not rows(final)

    server.wait_for(settled, 20, "all receipts")
    versions: dict[bytes, set[bytes]] = {}
    for payload in server.payloads("update"):
        versions.setdefault(messages.decode_update(payload, 10**7).task, set()).add(payload)
    assert len(versions) >= 3, "too few updates for the test to mean anything"
    assert all(len(payloads) == 1 for payloads in versions.values()), "an update changed after it was sent"
    with sqlite3.connect(final.state_dir / "outbox.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_broker_without_mqtt_5_is_refused(server: Server, device: Devices) -> None:
    """No packaged broker is that old any more: a socket that answers as MQTT 3.1.1, section 3.2.2.3, says it must."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(15)
        one = device(wait=False, broker={"port": listener.getsockname()[1]})
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(bytes([0x20, 2, 0, 1]))  # CONNACK: unacceptable protocol version
            server.wait_for(lambda: "it speaks no MQTT 5" in one.log(), 15, "the error")
    assert one.process.poll() is None


def test_a_wrong_password_is_reported_and_tried_again(server: Server, device: Devices) -> None:
    one = device(wait=False, broker={"password": "wrong"})
    server.wait_for(lambda: one.log().count("it refused device 'pi-1'") >= 2, 15, "the error, twice")
    assert one.process.poll() is None


def test_a_topic_the_broker_denies_is_reported(server: Server, device: Devices) -> None:
    one = device(wait=False, fleet="elsewhere")
    server.wait_for(lambda: "refused our state message: Not authorized" in one.log(), 15, "the error")
    assert one.process.poll() is None


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


def test_an_unsent_update_grows_on_after_a_restart(server: Server, device: Devices, bundles: Bundles) -> None:
    """Offline, q8, killed, started again: one update, of both lives, from the same base."""
    bundle = bundles("forecast")
    server.publish_model(bundle, 4)
    one = device(upload={"encoding": "q8"})
    server.receipt(server.update(server.task(bundle, version=4)))
    task = server.task(bundle, version=4, config={"min_samples": 100})
    server.wait_for(lambda: "train task " + task.hex()[:8] in one.log(), 10, "the task")
    server.broker.stop()
    server.wait_for(lambda: rows(one), 20, "an update made offline")
    one.kill()
    two = device(wait=False, upload={"encoding": "q8"})
    lives = two.log().count("edge_client.training.train_task: update")
    server.wait_for(lambda: two.log().count("edge_client.training.train_task: update") > lives, 20, "another one")
    server.broker.restart()
    update = server.update(task)
    assert update.base == 4
    assert update.samples > 150
    assert update.metrics["loss_after"] < update.metrics["loss_before"]


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
