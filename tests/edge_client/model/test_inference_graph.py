"""A device predicts with the graph that the server publishes for that, while nothing it has is newer."""

import hashlib
import importlib.util
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edge_client.model.bundle_record import BundleRecord
from edge_client.model.published_graph import PublishedGraph
from edge_client.model.trust import ModelTrust
from edge_client.sensors.sampling import Sample
from edge_client.settings import Inference as InferenceSettings
from pollen import messages, topics
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.errors import InterpreterError, MessageError
from pollen.interpreter import load
from pollen.messages import Inference
from tests.edge_client.fleet import FLEET, Device, Server, loaded, write_settings
from tests.edge_client.model.test_shared_and_personal import bench

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="making an inference graph needs TensorFlow"
)

Start = Callable[..., Device]
PREDICTING = {"training": {"new_samples": 100_000}, "inference": {"graph": "always"}}


@pytest.fixture(scope="module")
def graph(bundles: Callable[[str], Bundle]) -> bytes:
    """A float32 graph of the bundle "forecast" whose weights are all 0.5."""
    from pollen.compiler import inference

    bundle = bundles("forecast")
    half = named(np.full(bundle.manifest.shared_size, 0.5, np.float32), bundle.manifest.shared)
    return inference.make(bundle, "float32", shared=half).graph


@pytest.fixture
def bundle(bundles: Callable[[str], Bundle]) -> Bundle:
    return bundles("forecast")


def message(of: Bundle, graph: bytes, version: int, **changes: Any) -> bytes:
    whole = Inference("telemetry", version, "float32", of.digest, hashlib.sha256(graph).digest(), graph)
    return messages.encode(replace(whole, **changes))


def publish(server: Server, payload: bytes) -> None:
    server.publish_raw(topics.model(FLEET, "telemetry", "infer"), payload, retain=True)


def predicts_with(server: Server, version: int) -> None:
    """Wait until new vitals say that the published graph of `version` predicts."""
    seen = server.vitals().get("inference_predictions", 0)
    server.wait_for(
        lambda: (
            server.vitals().get("inference_version") == version
            and server.vitals()["inference_predictions"] > max(seen, 0)
        ),
        30,
        f"predictions of version {version}; {server.vitals()}",
    )


def test_a_device_predicts_with_the_published_graph(
    server: Server, device: Start, bundle: Bundle, graph: bytes, device_python: str
) -> None:
    one = device(python=device_python, **PREDICTING)
    publish(server, message(bundle, graph, 5))  # before the device has the bundle that it belongs to
    server.publish_model(bundle, 5)
    server.task(bundle, version=5)
    predicts_with(server, 5)
    assert one.terminate() == 0
    # At the next start the broker has it no more.
    publish(server, b"")
    device(python=device_python, **PREDICTING)
    predicts_with(server, 5)


def test_what_the_device_has_learned_since_predicts_until_a_newer_graph_comes(
    server: Server, device: Start, bundle: Bundle, graph: bytes
) -> None:
    server.publish_model(bundle, 1)
    publish(server, message(bundle, graph, 1))
    device(inference={"graph": "always"}, training={"new_samples": 600})
    task = server.task(bundle, version=1)
    predicts_with(server, 1)
    server.receipt(server.update(task, 60))
    before = server.vitals()
    later = server.wait_for(lambda: grown(server.vitals(), before, "scored", 300), 30, "more examples")
    further = server.wait_for(lambda: grown(server.vitals(), later, "scored", 300), 30, "more examples")
    assert further["inference_predictions"] == later["inference_predictions"]
    publish(server, message(bundle, graph, 2))
    predicts_with(server, 2)


def grown(now: dict[str, float], before: dict[str, float], name: str, by: float) -> dict[str, float] | None:
    return now if now.get(name, 0) >= before.get(name, 0) + by else None


def test_a_device_that_does_not_want_it_never_fetches_it(
    server: Server, device: Start, bundle: Bundle, graph: bytes
) -> None:
    publish(server, message(bundle, graph + bytes(1_000_000), 1))
    server.publish_model(bundle, 1)
    device(training={"new_samples": 100_000})
    server.task(bundle, version=1)
    vitals = server.wait_for(lambda: grown(server.vitals(), {}, "scored", 100), 30, "predictions")
    assert vitals["received_bytes"] < 500_000
    assert "inference_version" not in vitals


def test_a_device_that_wants_it_no_more_tells_the_broker(
    server: Server, device: Start, bundle: Bundle, graph: bytes
) -> None:
    server.publish_model(bundle, 1)
    publish(server, message(bundle, graph, 1))
    one = device(**PREDICTING)
    server.task(bundle, version=1)
    predicts_with(server, 1)
    one.kill()  # the broker keeps its session, and with it the subscription
    one = device(training={"new_samples": 100_000}, name="pi-1")
    for version in range(2, 5):
        publish(server, message(bundle, graph + bytes(1_000_000), version))
    server.wait_for(lambda: server.vitals().get("scored", 0) > 200, 30, "predictions")
    assert server.vitals()["received_bytes"] < 1_500_000  # the first, which it did not know of


def test_auto_takes_it_where_it_is_quicker_and_says_so(
    server: Server, device: Start, bundle: Bundle, graph: bytes
) -> None:
    server.publish_model(bundle, 1)
    publish(server, message(bundle, graph, 1))
    one = device(training={"new_samples": 100_000}, inference={"graph": "auto"})
    server.task(bundle, version=1)
    server.wait_for(lambda: "inference graph of version 1, float32: " in one.log(), 30, "a measurement")
    times = re.search(r"float32: (\d+) µs a window, the training graph takes (\d+)", one.log())
    assert times is not None
    if int(times[1]) < int(times[2]):
        predicts_with(server, 1)
    else:
        server.wait_for(lambda: server.vitals().get("inference_version") == -1, 30, "the training graph")


def test_a_graph_that_is_damaged_or_of_another_model_is_not_used(
    server: Server, device: Start, bundle: Bundle, graph: bytes
) -> None:
    server.publish_model(bundle, 1)
    one = device(**PREDICTING)
    server.task(bundle, version=1)
    server.wait_for(lambda: server.vitals().get("scored", 0) > 10, 30, "predictions")
    for payload, says in (
        (b"\xff" * 100, "payload is not valid CBOR"),
        (message(bundle, graph, 1, digest=bytes(32)), "infer: the graph of version 1 doesn't match its digest"),
        (message(bundle, graph, 1, model="another"), "infer: of model 'another', expected 'telemetry'"),
        (message(bundle, graph, 1, bundle=bytes(32)), "belongs to another bundle"),
        (message(bundle, b"no graph", 1), "can't load the graph"),
        (message(bundle, bundle.graph, 1), "inference graph of model telemetry: "),
    ):
        publish(server, payload)
        server.wait_for(lambda says=says: says in one.log(), 30, says)
    assert "inference_predictions" in server.vitals()
    assert server.vitals()["inference_predictions"] == 0
    publish(server, message(bundle, graph, 1))
    predicts_with(server, 1)
    publish(server, b"")
    server.wait_for(lambda: server.vitals()["inference_version"] == -1, 30, "the graph withdrawn")
    assert not (one.state_dir / "model" / "current.infer").exists()


# --- without a process around it


@pytest.fixture
def published(tmp_path: Path) -> PublishedGraph:
    settings = loaded(write_settings(tmp_path, "pi-1", 1, {"inference": {"graph": "always"}}))
    return PublishedGraph(
        settings, tmp_path / "current.infer", trust=ModelTrust(None), record=BundleRecord(tmp_path / "bundles.json")
    )


def test_it_predicts_as_long_as_nothing_newer_is_known(published: PublishedGraph, bundle: Bundle, graph: bytes) -> None:
    published.use(load(bundle), bundle.digest)
    assert published.newest(-1, trained_since=False) is None
    published.take(message(bundle, graph, 7))
    for snapshot, trained, expected in (
        (-1, False, 1),
        (6, False, 1),
        (7, False, 1),
        (8, False, 0),
        (7, True, 0),
        (6, True, 1),
    ):
        assert (published.newest(snapshot, trained_since=trained) is not None) == expected, (snapshot, trained)
    predicts = published.newest(7, trained_since=False)
    assert predicts is not None
    x = np.random.default_rng(0).standard_normal((5, 4, 2), np.float32)
    half = np.full(bundle.manifest.parameters, 0.5, np.float32)
    output = predicts(x)
    assert output is not None
    np.testing.assert_allclose(output, load(bundle).predict(half, x), atol=1e-5)
    assert published.predictions == 5


def sample(value: float, number: int) -> Sample:
    return Sample(number, 0.0, 0.0, np.full((1, 2), value, np.float32), None)


def rows_of_a_table(kind: str) -> bytes:
    """A graph of the right shapes that looks up the rows named by the first value of the window, from 1 to 3, or as
    many rows as there are values above 0: none is no output."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 2), tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def infer(x: Any) -> dict[str, Any]:
        rows = tf.cast(x[:, 0, 0], tf.int32) - 1 if kind == "no such row" else tf.where(x[0, :, 0] > 0)[:, 0]
        y = tf.gather(tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]), rows)
        y.set_shape((1, 2))
        return {"y": y}

    module = tf.Module()
    module.infer = infer
    saved = {"infer": infer.get_concrete_function()}
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=saved)
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["infer"]).convert())


@pytest.mark.parametrize("setting", ["always", "auto"])
@pytest.mark.parametrize(("kind", "bad"), [("no such row", 7.0), ("no output", -1.0)])
def test_a_graph_that_fails_when_it_runs_is_used_no_more(
    bundle: Bundle, tmp_path: Path, kind: str, bad: float, setting: Literal["always", "auto"]
) -> None:
    graph = rows_of_a_table(kind)
    with bench(tmp_path / "device") as device:
        settings = replace(device.settings, inference=InferenceSettings(setting))
        published = device.model.published = PublishedGraph(
            settings, tmp_path / "current.infer", trust=ModelTrust(None), record=BundleRecord(tmp_path / "bundles.json")
        )
        device.use(bundle, version=1)
        learner = device.model.learner
        assert learner is not None
        if setting == "auto":  # measured with zeros
            with pytest.raises(
                InterpreterError, match=r"inference graph of model telemetry: it failed: .*out of bounds"
            ):
                published.take(message(bundle, graph, 1))
        else:
            published.take(message(bundle, graph, 1))
            for value, version, predictions in ((2.0, 1, 2), (bad, -1, 2)):
                scored = learner.prequential.count
                device.model.observe([sample(value, number) for number in range(100, 105)])
                assert learner.prequential.count == scored + 1
                assert (published.version, published.predictions) == (version, predictions)
        published.take(message(bundle, graph, 1))  # it comes again with every connection
        assert published.version == -1


def test_the_same_graph_again_is_measured_once(
    published: PublishedGraph, bundle: Bundle, graph: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    published.use(load(bundle), bundle.digest)
    for version in (7, 7, 8, 8):
        published.take(message(bundle, graph, version))
        assert published.version == version
    assert caplog.text.count("is ready to predict") == 2
    published.take(b"")
    published.take(message(bundle, graph, 8))
    assert published.version == 8, "what was withdrawn may come again"


def test_a_server_that_begins_anew_takes_only_its_former_graphs_along(
    published: PublishedGraph, bundle: Bundle, graph: bytes, tmp_path: Path
) -> None:
    published.use(load(bundle), bundle.digest)
    published.take(message(bundle, graph, 2))
    published.begun_anew(3)
    assert published.version == 2
    published.take(message(bundle, graph, 70))
    published.begun_anew(3)
    assert published.version == -1
    assert not (tmp_path / "current.infer").exists()


def test_a_full_disk_costs_the_copy_and_not_the_graph(
    published: PublishedGraph, bundle: Bundle, graph: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "current.infer" / "in the way").mkdir(parents=True)
    published.use(load(bundle), bundle.digest)
    published.take(message(bundle, graph, 7))
    assert published.version == 7
    assert "it is lost at a restart" in caplog.text


def test_a_message_that_cannot_be_used_leaves_the_last_file(
    published: PublishedGraph, bundle: Bundle, graph: bytes
) -> None:
    published.use(load(bundle), bundle.digest)
    published.take(message(bundle, graph, 7))
    with pytest.raises(MessageError):
        published.take(message(bundle, graph, 8, digest=bytes(32)))
    assert published.version == 7
    with pytest.raises(InterpreterError):
        published.take(message(bundle, b"no graph", 9))
    assert published.version == -1
    published.use(load(bundle), bytes(32))
    assert published.version == -1
    published.use(load(bundle), bundle.digest)
    assert published.version == 7
