"""SIGHUP: what a running server takes over of its settings file, and what it says of the rest."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pollen import settings
from server.reload import tunings
from server.settings import Settings
from tests.server.web.serving import Serving, SimulatedFleet


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with Serving(tmp_path) as one:
        yield one


def reloaded(serving: Serving, text: str, *replaced: tuple[str, str]) -> str:
    """The log since a SIGHUP after `text` was added to server.toml; it must have been taken or refused by then."""
    path = serving.folder / "server.toml"
    changed = path.read_text()
    for before, after in replaced:
        assert before in changed
        changed = changed.replace(before, after)
    path.write_text(changed + text)
    seen = len(serving.log)
    assert serving.process is not None
    serving.process.send_signal(signal.SIGHUP)
    return serving.wait_for(
        lambda: "reloaded" in serving.log[seen:] and serving.log[seen:], "the settings are read again"
    )


def test_the_next_task_and_the_next_update_go_by_the_new_settings(serving: Serving) -> None:
    with SimulatedFleet(serving, ["pi-1"]) as fleet:
        fleet.wait_for_tasks("pi-1")
        assert "max_steps" not in fleet.tasks["pi-1"].config
        log = reloaded(
            serving,
            "[task]\nttl_s = 120.0\nconfig.max_steps = 7\n[guard]\nmost_samples = 5\n[limits]\nupdate_bytes = 500\n",
            ('rule = "fedasync"', 'rule = "fedbuff"'),
            ("alpha = 0.3", "k = 3"),
            ("min_interval_s = 0.2", "min_interval_s = 0.1"),
        )
        taken = ("guard.most_samples", "limits.update_bytes", "publish.min_interval_s", "task.config", "task.ttl_s")
        assert all(name in log for name in taken)
        serving.wait_for(lambda: "only a restart takes it over: merge." in serving.log, "the others are named")
        assert "merge.rule" in serving.log
        refused = []
        while not refused:  # the loop takes it over at its next turn
            fleet.wait_for_tasks("pi-1")
            fleet.answer("pi-1")  # of 10 samples
            row = serving.wait_for(
                lambda: (
                    (read := serving.api("/api/devices/pi-1"))["updates"] + read["rejected"] == fleet.merged["pi-1"]
                    and read
                ),
                "it is decided",
            )
            refused = row["rejections"]
        assert refused[0]["kind"] == "samples"
        before = row["updates"]
        fleet.wait_for_tasks("pi-1")
        task = fleet.tasks["pi-1"]
        assert (task.config["max_steps"], task.ttl_s) == (7, 120.0)
        fleet.answer("pi-1", samples=3)
        serving.wait_for(lambda: serving.api("/api/devices/pi-1")["updates"] > before, "a small one is merged")
        fleet.wait_for_tasks("pi-1")
        fleet.answer("pi-1", samples=3, metrics={f"{n:064}": 1.0 for n in range(20)})
        serving.wait_for(lambda: serving.api("/api/devices/pi-1")["rejections"][0]["kind"] == "size", "too large")


def test_a_wrong_file_changes_nothing(serving: Serving) -> None:
    assert "settings not reloaded: " in reloaded(serving, "[task]\nttl_s = -1\n")
    with SimulatedFleet(serving, ["pi-1"]) as fleet:
        fleet.merge("pi-1")


def load(folder: Path, text: str) -> Settings:
    path = folder / "server.toml"
    path.write_text('state_dir = "state"\n' + text)
    return settings.load(Settings, path, {})


def test_each_model_takes_over_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "[task]\nttl_s = {ttl}\n[models.a]\nbundle = 'a'\n[models.b]\nbundle = 'b'\ntask = {{ttl_s = 5.0}}\n"
    old = load(tmp_path, text.format(ttl=10.0))
    new = load(tmp_path, text.format(ttl=20.0) + "merge = {rule = 'fedbuff'}\n[models.c]\nbundle = 'c'\n")
    taken = tunings(old, new)
    assert {name: tuning.task_ttl_s for name, tuning in taken.items()} == {"a": 20.0, "b": 5.0}
    assert "only a restart takes it over: models.c, models.b.merge.rule" in caplog.text


def test_a_guard_that_privacy_rests_on_stays(tmp_path: Path) -> None:
    private = "bundle = 'a'\n[privacy]\nclip_norm = 1.0\n[merge]\nrule = 'fedasync'\nsample_weighting = 'equal'\n"
    old = load(tmp_path, private + "[guard]\nnorm = 'off'\n")
    new = load(tmp_path, "bundle = 'a'\n[guard]\nnorm = 'clip'\nnorm_window = 5\n")
    assert tunings(old, new)[""].guard.norm == "off"
    assert tunings(new, load(tmp_path, "bundle = 'a'\n[guard]\nnorm_window = 9\nnorm_factor = 3.0\n"))[
        ""
    ].guard == new.guard.__class__(norm_window=5, norm_factor=3.0)


def test_federated_evaluation_can_not_be_switched_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tunings(load(tmp_path, "bundle = 'a'\n"), load(tmp_path, "bundle = 'a'\n[evaluation]\nfederated_interval_s = 9\n"))
    assert "a restart takes it over: evaluation.federated_interval_s, which was 0" in caplog.text
