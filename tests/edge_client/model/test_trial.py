"""A new bundle that crashes, gives no numbers or does much worse is left for the one before it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.learning.prequential import Prequential
from edge_client.model import bundle_record
from edge_client.model.bundle_record import CRASHES, REFUSED, BundleRecord
from edge_client.model.trial import START, Trial
from edge_client.settings import Trust
from pollen.bundle import Bundle
from pollen.errors import BundleError
from pollen.messages import Result
from tests.edge_client.fleet import Device, Server

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]
PATIENCE_S = 60.0
A, B = b"a" * 32, b"b" * 32


# --- the trial


def scored(prequential: Prequential, error: float, count: int, baseline: float = 0.1) -> Prequential:
    for _ in range(count):
        prequential.add(error, baseline)
    return prequential


def reason(trial: Trial, prequential: Prequential, error: float, count: int, baseline: float = 0.1) -> str:
    """Why the bundle can't stay, within the next `count` windows, all of one error."""
    for _ in range(count):
        found = trial.judge(scored(prequential, error, 1, baseline))
        if found or trial.over:
            return found
    return ""


def begun(before: float | None = 0.1, **settings: float) -> tuple[Trial, Prequential]:
    prequential = scored(Prequential(), 0.1, 500)
    trial = Trial(Trust(**settings), A, before)  # type: ignore[arg-type]
    assert not trial.judge(prequential)
    return trial, prequential


def test_a_bundle_as_good_as_the_last_one_passes_after_its_samples_and_a_training() -> None:
    trial, prequential = begun(trial_samples=50)
    assert not reason(trial, prequential, 0.12, 60)
    assert not trial.over
    trial.trained()
    assert not reason(trial, prequential, 0.12, 1)
    assert trial.over


def test_a_bundle_that_begins_without_knowledge_has_time_to_learn() -> None:
    trial, prequential = begun(trial_samples=100)
    trial.trained()
    assert not reason(trial, prequential, 1.5, 40)  # 15 times the error before
    assert not reason(trial, prequential, 0.1, 300)
    assert trial.over


def test_one_that_is_still_much_worse_at_the_end_goes() -> None:
    trial, prequential = begun(trial_samples=100)
    trial.trained()
    assert not reason(trial, prequential, 0.5, 99)
    assert "its error 0.5 is above 4 times the 0.1 of the model before or the baseline" in reason(
        trial, prequential, 0.5, 1
    )


def test_an_error_that_explodes_does_not_wait_for_the_end() -> None:
    trial, prequential = begun()
    assert not reason(trial, prequential, 0.2, 2 * START)
    assert "after" in reason(trial, prequential, 20.0, 5)


def test_predictions_that_are_no_numbers_end_it_at_the_first_look() -> None:
    trial, prequential = begun()
    assert not reason(trial, prequential, 1000.0, START - 1)
    assert reason(trial, prequential, 1000.0, 1)


def test_a_stream_that_is_hard_for_the_baseline_too_is_not_the_models_fault() -> None:
    trial, prequential = begun(trial_samples=300)
    trial.trained()
    assert not reason(trial, prequential, 0.1, 50)
    assert not reason(trial, prequential, 3.0, 300, baseline=3.0)
    assert trial.over


@pytest.mark.parametrize("before", [0.0, 1e-4, None])
def test_on_a_constant_stream_a_small_error_is_no_explosion(before: float | None) -> None:
    trial, prequential = Trial(Trust(trial_samples=100), A, before), Prequential()
    trial.trained()
    assert not reason(trial, prequential, 1e-3, START, baseline=0.0)
    assert not reason(trial, prequential, 0.02, 200, baseline=0.0)
    assert trial.over
    trial = Trial(Trust(trial_samples=100), A, before)
    assert not reason(trial, prequential, 1e-3, START, baseline=0.0)
    assert reason(trial, prequential, 3.0, 100, baseline=0.0)


def test_the_windows_before_the_bundle_do_not_hide_it() -> None:
    trial, prequential = begun(trial_samples=20)
    trial.trained()
    assert reason(trial, prequential, 0.5, 20)
    assert prequential.error < 0.2  # most of which is the last model's


def test_only_trainings_that_diverge_from_the_first_count() -> None:
    trial, _ = begun()
    assert not trial.diverged()
    assert trial.diverged() == "its first 2 trainings diverged"
    trial, _ = begun()
    trial.trained()
    assert not any(trial.diverged() for _ in range(10))


# --- the record


def crashed(file: Path, times: int) -> BundleRecord:
    for _ in range(times):
        BundleRecord(file).attempt(A)  # and then the process is gone
    return BundleRecord(file)


def test_a_bundle_is_refused_after_its_last_crash_and_not_before(tmp_path: Path) -> None:
    crashed(tmp_path / "r.json", CRASHES - 1).check(A)
    record = crashed(tmp_path / "r.json", 1)
    with pytest.raises(
        BundleError, match=f"bundle 61616161 is refused on this device: it crashed this device {CRASHES}"
    ):
        record.check(A)
    record.check(B)
    with pytest.raises(BundleError):
        BundleRecord(tmp_path / "r.json").check(A)


def test_kills_between_two_successes_are_no_crashes_in_a_row(tmp_path: Path) -> None:
    for _ in range(10):
        crashed(tmp_path / "r.json", CRASHES - 1).prove(A, "run")
    BundleRecord(tmp_path / "r.json").check(A)


def test_a_process_that_ended_well_has_not_crashed(tmp_path: Path) -> None:
    for _ in range(10):
        record = BundleRecord(tmp_path / "r.json")
        record.attempt(A)
        record.rest()
    BundleRecord(tmp_path / "r.json").check(A)


def test_a_bounded_number_is_remembered_and_another_release_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = BundleRecord(tmp_path / "r.json")
    for number in range(3 * REFUSED):
        record.refuse(bytes([number]) * 32, "why")
        record.prove(bytes([number]) * 32, "run")
    again = BundleRecord(tmp_path / "r.json")
    assert len(again.refused) == REFUSED
    assert again.refused == record.refused
    assert (tmp_path / "r.json").stat().st_size < 4096
    monkeypatch.setattr(bundle_record, "__version__", "99.0")
    assert not BundleRecord(tmp_path / "r.json").refused


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'{"software": 3}', b"[" * 60000, b'{"attempt": 1e999}']
)
def test_a_damaged_record_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    record = BundleRecord(tmp_path / "r.json")
    record.check(A)
    record.refuse(A, "why")
    assert json.loads((tmp_path / "r.json").read_text())["refused"] == {A.hex(): "why"}


def test_a_record_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    record = BundleRecord(tmp_path / "folder" / "r.json")
    record.refuse(A, "why")
    with pytest.raises(BundleError):
        record.check(A)


# --- the device


def answer(server: Server, task: bytes) -> Result:
    reply = server.result(task, PATIENCE_S)
    server.receipt(reply, outcome="accepted")
    return reply


def metrics(server: Server, bundle: Bundle) -> dict[str, float]:
    """The device's vitals now."""
    return dict(answer(server, server.task(bundle, kind="query")).metrics)


def exploding(bundle: Bundle) -> Bundle:
    """The model with an output layer a million times too large."""
    weights = bundle.weights.copy()
    weights[-34:] *= 1e6
    return replace(bundle, weights=weights)


def overflowing(bundle: Bundle) -> Bundle:
    """The model with weights that make infinities of whatever comes."""
    return replace(bundle, weights=np.full_like(bundle.weights, 3e38))


@pytest.mark.parametrize("change", [exploding, overflowing])
def test_a_bundle_whose_error_explodes_is_left_for_the_one_before_and_not_taken_again(
    server: Server, device: Devices, bundles: Bundles, change: Callable[[Bundle], Bundle], device_python: str
) -> None:
    good = bundles("forecast")
    server.publish_model(good, 3)
    how = {"python": device_python, "training": {"new_samples": 200}}
    one = device(**how)
    first = server.update(server.task(good, version=3), PATIENCE_S)
    server.receipt(first)
    bad = change(good)
    server.publish_model(bad, 4)
    server.task(bad, version=4)
    server.wait_for(lambda: "; back to" in one.log(), PATIENCE_S, "the way back")
    assert "is refused on this device: its error" in answer(server, server.task(bad, version=4)).error
    server.wait_for(lambda: server.vitals().get("bundle_refused") == 1, PATIENCE_S, "the vitals to say so")
    again = server.task(good, version=3, config={"min_samples": 1})
    server.publish_model(good, 3)
    update = server.update(again, PATIENCE_S)
    assert update.base == 3
    assert np.isfinite(update.metrics["loss_after"])
    server.receipt(update)
    assert one.terminate() == 0
    restarted = device(**how)
    assert "is refused on this device" in answer(server, server.task(bad, version=4)).error
    assert server.update(server.task(good, version=3, config={"min_samples": 1}), PATIENCE_S).base == 3
    assert restarted.process.poll() is None


def test_a_bundle_that_crashes_the_process_is_refused_by_the_restarted_one(
    server: Server, device: Devices, bundles: Bundles, tmp_path: Path
) -> None:
    good = bundles("forecast")
    good.write(tmp_path / "good.bundle")
    finder = Path(__file__).parents[1] / "crashing.py"
    words = [sys.executable, str(finder), str(tmp_path / "good.bundle"), str(tmp_path / "bad.bundle")]
    environment = os.environ | {"PYTHONPATH": str(finder.parents[2])}
    assert subprocess.run(words, timeout=150, check=False, env=environment).returncode == 0, (
        "no crashing graph was found"
    )
    bad = Bundle.read(tmp_path / "bad.bundle")
    server.publish_model(good, 3)
    one = device()
    server.receipt(server.update(server.task(good, version=3), PATIENCE_S))
    server.publish_model(bad, 3)
    task = b""
    for _ in range(CRASHES):
        task = server.task(bad, version=3)
        assert -one.process.wait(PATIENCE_S) in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE), (
            one.log()
        )
        server.wait_for(lambda: not server.online(), PATIENCE_S, "its will")
        one = device()
    assert f"it crashed this device {CRASHES} times" in answer(server, server.task(bad, version=3)).error
    assert task
    server.publish_model(good, 3)
    assert server.update(server.task(good, version=3), PATIENCE_S).base == 3


def test_a_device_that_is_killed_in_its_first_training_each_time_goes_back(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    good = bundles("forecast")
    server.publish_model(good, 3)
    one = device()
    server.receipt(server.update(server.task(good, version=3), PATIENCE_S))
    other = bundles("wide")
    server.publish_model(other, 4)
    record = one.state_dir / "model" / "bundles.json"

    def trains(found: dict[str, Any]) -> bool:
        """Not when it only tries the graph out: a kill there is forgotten once that succeeds."""
        return found["attempt"] == other.digest.hex() and f"run {other.digest.hex()}" in found["proven"]

    for _ in range(CRASHES):
        server.task(other, version=4, config={"epochs": 1000, "max_steps": 100_000})
        server.wait_for(lambda: trains(json.loads(record.read_bytes())), PATIENCE_S, "its first training")
        one.kill()
        server.wait_for(lambda: not server.online(), PATIENCE_S, "its will")
        one = device()
    assert "it crashed this device" in answer(server, server.task(other, version=4)).error
    server.publish_model(good, 3)
    assert server.update(server.task(good, version=3), PATIENCE_S).base == 3


def test_a_bundle_no_interpreter_can_load_is_not_fetched_again_and_again(
    server: Server, device: Devices, bundles: Bundles
) -> None:
    good = bundles("forecast")
    server.publish_model(good, 3)
    one = device()
    server.receipt(server.update(server.task(good, version=3), PATIENCE_S))
    # Half a graph would do for ai-edge-litert, but ends a process with tflite-runtime.
    broken = replace(good, graph=bytes(len(good.graph)))
    server.publish_model(broken, 3)
    assert "no interpreter can run" in answer(server, server.task(broken, version=3)).error
    got = metrics(server, good)["received_bytes"]
    assert "is refused on this device: no interpreter can run" in answer(server, server.task(broken, version=3)).error
    assert metrics(server, good)["received_bytes"] - got < len(broken.to_bytes())
    server.publish_model(good, 3)
    assert server.update(server.task(good, version=3), PATIENCE_S).base == 3
    assert one.process.poll() is None
