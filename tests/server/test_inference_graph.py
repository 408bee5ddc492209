"""The server makes graphs that only predict of its newest version, beside the merging, in a process of its own."""

import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pollen import interpreter, messages
from pollen.bundle import Bundle
from pollen.errors import SettingsError
from pollen.inference_graph import InferenceGraph
from pollen.messages import Inference
from server.history import AsyncHistory
from server.inference_graphs import InferenceGraphs, InferenceSettings
from server.lifecycle import keep_bundle
from tests.server import gateway_client
from tests.server.gateway_client import GatewayClient, update
from tests.server.test_command import refusal, start

MAKING_S = 150.0  # TensorFlow starts slowly on a busy machine


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    import keras

    from pollen.compiler import compile as compile_model

    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(8, activation="softmax", name="head"),
        ]
    )
    return compile_model(model, loss="sparse_categorical_crossentropy", batch=8, name="gestures")


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """A folder with the bundle, and data whose labels are the first model's own answers."""
    bundle.write(tmp_path / "m.bundle")
    x = np.random.default_rng(0).standard_normal((200, 32), np.float32)
    y = predict(bundle, bundle.shared, x).argmax(-1).astype(np.int32)
    np.savez(tmp_path / "recent.npz", x=x)
    np.savez(tmp_path / "heldout.npz", X=x, y=y)
    return tmp_path


def predict(bundle: Bundle, shared: np.ndarray, x: np.ndarray) -> np.ndarray:
    weights, state = np.split(shared, [bundle.manifest.parameters])
    return interpreter.load(bundle).predict(weights, x, state)


def server_toml(folder: Path, inference: str) -> Path:
    path = folder / "server.toml"
    path.write_text(
        f'bundle = "m.bundle"\nstate_dir = "state"\n[listen]\nport = 0\n[publish]\nmin_interval_s = 0.0\n'
        f'[merge]\nrule = "fedasync"\n[evaluation]\ndata = "heldout.npz"\n[inference]\n{inference}\n'
    )
    return path


def history(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "state" / "history.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_each_version_goes_out_as_a_graph_while_merging_goes_on(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "DEADLINE_S", MAKING_S)
    toml = server_toml(folder, 'kinds = ["int8"]\ncalibration = "recent.npz"\nevery_s = 0.1')
    process, lines = start(folder, toml)
    port = int(lines[-1].rsplit(":", 1)[1])
    try:
        with GatewayClient(port) as gateway:
            gateway.birth("pi-1")
            merged = [merge(gateway, bundle) for _ in range(3)]
            assert history(folder, "inference") == []  # TensorFlow is still starting, and nobody waited for it
            assert gateway.model("infer") == b""  # takes back what an earlier run may have left with the broker
            graphs = [messages.decode_inference(gateway.model("infer"), 10**7) for _ in "12"]
            weights = {0: bundle.shared} | dict(merged)
            for graph in graphs:
                check(graph, bundle, weights[graph.version], folder)
            assert graphs[1].version > graphs[0].version
        with GatewayClient(port, name="gateway-2") as other:
            newest = messages.decode_inference(other.model("infer"), 10**7)
            assert newest.version >= graphs[1].version
    finally:
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
    assert process.returncode == 0, log
    told = history(folder, "inference")
    assert [line["version"] for line in told][:2] == [graph.version for graph in graphs]
    assert told[0]["kind"] == "int8"
    assert told[0]["size_bytes"] == len(graphs[0].graph) < told[0]["float_bytes"]
    assert told[0]["float_error"] == graphs[0].metrics["float_error"] < 0.2
    assert told[0]["float_loss"] == graphs[0].metrics["float_loss"]
    assert "Traceback" not in log
    assert f"version {graphs[0].version}: inference graph, int8, {len(graphs[0].graph)} bytes, error " in log


def merge(gateway: GatewayClient, bundle: Bundle) -> tuple[int, np.ndarray]:
    """Have the next task of pi-1 merged; the version that it made, with its weights."""
    from pollen.encoding import decode_into

    gateway.upload("pi-1", update(gateway.task("pi-1"), bundle, 0.01))
    version = gateway.receipt("pi-1").version
    while (snapshot := messages.decode_snapshot(gateway.model("weights"), 10**7)).version != version:
        pass
    weights = np.empty(bundle.manifest.shared_size, np.float32)
    decode_into(weights, snapshot.weights, bundle.manifest.shared)
    return version, weights


def check(graph: Inference, bundle: Bundle, weights: np.ndarray, folder: Path) -> None:
    assert (graph.model, graph.kind, graph.bundle) == ("gestures", "int8", bundle.digest)
    with np.load(folder / "recent.npz") as data:
        x = data["x"]
    found = InferenceGraph(graph.graph, bundle.manifest).predict(x)
    farthest = np.abs(found - predict(bundle, weights, x)).max()
    assert farthest == pytest.approx(graph.metrics["max_difference"], rel=1e-3)
    assert farthest < 0.1


def test_a_server_that_stops_ends_what_it_is_making(folder: Path) -> None:
    process, _ = start(folder, server_toml(folder, 'kinds = ["float32"]'))
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline, "nothing was begun"
        time.sleep(0.01)
    while children[0].nice() != 19:  # it sets that itself
        assert time.monotonic() < deadline, "its priority is not the lowest"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert not children[0].is_running()
    assert "Traceback" not in log


def test_a_server_that_is_killed_leaves_nobody_making_a_graph(folder: Path) -> None:
    process, _ = start(folder, server_toml(folder, 'kinds = ["float32"]'))
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline, "nothing was begun"
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    psutil.wait_procs(children, timeout=MAKING_S)
    assert not children[0].is_running()
    # It would overwrite what the next server's process makes.
    assert not (folder / "state" / "inference" / "model.tflite").exists()


# --- one model's graphs, without a server around them


class Maker:
    """InferenceGraphs of a bundle in `folder`, and what they published."""

    def __init__(self, settings: InferenceSettings, bundle: Bundle, folder: Path) -> None:
        keep_bundle(folder, bundle)
        self.published: list[Inference] = []
        self.graphs = InferenceGraphs(
            settings,
            bundle,
            folder,
            holdout=settings.holdout_for(bundle, None),
            publish=self.published.append,
            history=AsyncHistory(),
        )

    def make(self, version: int, weights: np.ndarray, done: Callable[[], Any]) -> None:
        """Offer `version` as the merge loop does, until it is `done`."""
        deadline = time.monotonic() + MAKING_S
        while not done():
            assert time.monotonic() < deadline
            self.graphs.advance(version, weights)
            time.sleep(0.02)


def test_a_failure_is_one_line_and_the_next_version_is_tried_again(
    folder: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    settings = InferenceSettings(("float32",), holdout=folder / "heldout.npz", every_s=0.01)
    maker = Maker(settings, bundle, folder)
    (folder / "heldout.npz").rename(folder / "away.npz")
    with caplog.at_level(logging.WARNING):
        maker.make(3, bundle.shared, lambda: caplog.records)
        time.sleep(0.05)
        maker.graphs.advance(3, bundle.shared)  # not again of the same version
        assert maker.graphs._process is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"no inference graph of version 3: {folder}/heldout.npz: needs plain arrays x and y")
    (folder / "away.npz").rename(folder / "heldout.npz")
    maker.make(4, bundle.shared, lambda: maker.published)
    assert [(message.version, message.kind) for message in maker.published] == [(4, "float32")]


def test_a_process_that_is_killed_is_told_by_its_signal(
    folder: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker(InferenceSettings(("float32",)), bundle, folder)
    maker.graphs.advance(7, bundle.shared)
    assert maker.graphs._process is not None
    (folder / "inference" / "errors.txt").write_text("a warning of TensorFlow's\n")
    maker.graphs._process.kill()
    maker.make(7, bundle.shared, lambda: caplog.records)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("no inference graph of version 7: its process was ended by signal 9")


def test_models_of_one_server_take_turns(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    makers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        makers.append(Maker(InferenceSettings(("float32",)), bundle, tmp_path / name))
    one, two = (maker.graphs for maker in makers)
    try:
        one.advance(1, bundle.shared)
        two.advance(1, bundle.shared)
        assert (one._process is None, two._process is None) == (False, True)
        one.close()
        two.advance(1, bundle.shared)
        assert two._process is not None
    finally:
        one.close()
        two.close()


def test_a_graph_that_can_not_be_begun_keeps_no_other_model_waiting(
    folder: Path, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "inference").write_text("in the way")
    blocked = Maker(InferenceSettings(("float32",)), bundle, folder)
    (tmp_path / "two").mkdir()
    other = Maker(InferenceSettings(("float32",)), bundle, tmp_path / "two")
    blocked.graphs.advance(1, bundle.shared)
    assert "no inference graph of version 1" in caplog.text
    other.graphs.advance(1, bundle.shared)
    assert other.graphs._process is not None
    other.graphs.close()


def test_a_kind_that_loses_too_much_gives_way_to_the_next(
    folder: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with np.load(folder / "recent.npz") as data:
        np.savez(folder / "narrow.npz", x=data["x"] * np.float32(0.01))
    settings = InferenceSettings(
        ("int8", "dynamic"), folder / "narrow.npz", folder / "heldout.npz", every_s=0.01, max_added_error=0.05
    )
    maker = Maker(settings, bundle, folder)
    maker.make(1, bundle.shared, lambda: maker.published)
    assert [message.kind for message in maker.published] == ["dynamic"]
    assert any("version 1: model gestures: as int8 its error is " in record.getMessage() for record in caplog.records)


# --- settings


def test_a_bundle_with_personal_layers_is_refused_at_the_start(folder: Path, bundle: Bundle) -> None:
    personal = Bundle(
        replace(bundle.manifest, personal=("head",)), bundle.graph, bundle.weights, bundle.state, bundle.frozen
    )
    personal.write(folder / "m.bundle")
    line = refusal_of(folder, 'kinds = ["float32"]')
    assert line.startswith(
        "error: inference.kinds: model gestures has personal layers, head, that only its devices know"
    )


def refusal_of(folder: Path, inference: str) -> str:
    return refusal(folder, server_toml(folder, inference), 2)


@pytest.mark.parametrize(
    ("inference", "says"),
    [
        ('kinds = ["int8"]', "inference.calibration is missing: kind int8 needs an .npz file with inputs x"),
        ('kinds = ["int4"]', "inference.kinds = 'int4' must be one of 'float32', 'dynamic', 'int8'"),
        ('kinds = ["float32"]\nevery_s = 0', "inference.every_s = 0.0 must be above 0 and finite"),
        ('kinds = ["float32"]\nmax_added_error = -1', "max_added_error = -1.0 must not be negative"),
        ('kinds = ["int8"]\ncalibration = "no.npz"', "no.npz: needs plain arrays x and y in an .npz file"),
        ('kinds = ["float32"]\nholdout = "recent.npz"\nmax_added_error = 0.1', "max_added_error needs holdout"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(folder: Path, inference: str, says: str) -> None:
    assert says in refusal_of(folder, inference)


def test_without_tensorflow_the_line_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(SettingsError, match=r"pip install 'pollen-fl\[server,compiler\]'"):
        InferenceSettings(("float32",)).holdout_for(bundle, None)
