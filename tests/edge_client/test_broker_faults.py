"""The whole device while the broker, the network or the device itself fails: nothing is lost, nothing doubled."""

import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pollen import messages
from pollen.bundle import Bundle
from pollen.messages import Death
from tests.edge_client.fleet import Device, Server, rows

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]


def test_an_update_is_published_again_until_its_receipt(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"retry_s": 0.3})
    task = server.task(bundle)
    server.wait_for(lambda: len(server.payloads("update")) >= 3, 20, "three deliveries")
    assert len(set(server.payloads("update"))) == 1, "a sent update must not change"
    server.receipt(server.update(task))
    server.wait_for(lambda: not rows(one), 10, "the receipt to empty the outbox")


def test_an_update_that_only_others_heard_is_published_again_when_the_server_asks(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    """As after a broker's crash, when somebody watches the topics and the gateway is not back yet."""
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    device()  # retry_s is a minute
    task = server.task(bundle)
    server.update(task)
    server.task(bundle, task=task)
    server.wait_for(lambda: len(server.updates(task)) == 2, 20, "the update again")


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
    answered = 0

    def answer() -> None:
        nonlocal answered
        for update in server.updates()[answered:]:  # every delivery, as the server does
            answered += 1
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


def test_an_unsent_update_grows_on_after_a_restart(server: Server, device: Devices, bundles: Bundles) -> None:
    """Offline, q8, killed, started again: one update, of both lives, from the same base."""
    bundle = bundles("forecast")
    server.publish_model(bundle, 4)
    one = device(upload={"encoding": "q8"})
    server.receipt(server.update(server.task(bundle, version=4)))
    task = server.task(bundle, version=4, config={"min_samples": 100})
    server.wait_for(lambda: "train task " + task.hex()[:8] in one.log(), 10, "the task")
    server.broker.stop()
    server.wait_for(lambda: task in [row[0] for row in rows(one)], 20, "an update made offline")
    one.kill()
    two = device(wait=False, upload={"encoding": "q8"})
    lives = two.log().count("edge_client.training.train_task: update")
    server.wait_for(lambda: two.log().count("edge_client.training.train_task: update") > lives, 20, "another one")
    server.broker.restart()
    update = server.update(task)
    assert update.base == 4
    assert update.samples > 150
    assert update.metrics["loss_after"] < update.metrics["loss_before"]
