"""The server's settings: what would stop or spoil a run is refused at the start, by file, table and field."""

from pathlib import Path

import pytest

from edge_client.settings import EdgeSettings
from edge_client.training import train_task, trainer
from pollen import encoding, settings
from pollen.errors import SettingsError
from server.settings import MAX_UPDATE_BYTES, TASK_NUMBERS, Publishing, Settings, Tasks, UploadLimits

LEAST = 'bundle = "b"\nstate_dir = "s"\n'


def load(folder: Path, text: str) -> Settings:
    path = folder / "server.toml"
    path.write_text(LEAST + text)
    return settings.load(Settings, path, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[task]\nttl_s = inf", "task.ttl_s = inf must be a finite number"),
        ("[task]\nttl_s = -1", "task.ttl_s = -1.0 must be above 0"),
        ("[task]\nttl_s = 2147483649", "task.ttl_s = 2147483649.0 must be above 0 and at most 2147483648"),
        ("[limits]\nupdate_bytes = 0", "limits.update_bytes = 0 must be from 1 to"),
        (f"[limits]\nupdate_bytes = {MAX_UPDATE_BYTES + 1}", "limits.update_bytes = "),
        ("[publish]\nmin_interval_s = -1", "publish.min_interval_s = -1.0 must be finite and not negative"),
        ("[publish]\nmin_interval_s = nan", "publish.min_interval_s = nan must be a finite number"),
        ("[evaluation]\ninterval_s = 0", "evaluation.interval_s = 0.0 must be above 0"),
        ("[merge]\nsample_weight_cap = inf", "merge.sample_weight_cap = inf must be a finite number"),
        ("[merge]\nsample_weight_cap = 0.5", "merge.sample_weight_cap = 0.5 must be at least 1"),
        ('[merge]\nrule = "fedasinc"', "merge.rule = 'fedasinc' is not known; known: "),
        ('[merge]\nrule = "fedasync"\noptions.alpha = "x"', "merge.options.alpha = 'x' must be a number"),
        ("[merge]\nrule = 'fedasync'\noptions.alpha = 2", "merge.options.alpha = 2 must be above 0 and at most 1"),
        ("[merge]\nrule = 'delta'\noptions.alpa = 0.5", "merge.options.alpa is no option of rule delta; known: eta"),
        (
            "[task.config]\nnew_samples = 3",
            "task.config.new_samples is nothing a device knows; known: encoding, epochs",
        ),
        ("[task.config]\nlearning_rate = 0", "task.config.learning_rate = 0 must be a number from 1e-12 to 1000"),
        ('[task.config]\nlearning_rate = "high"', "task.config.learning_rate = 'high' must be a number"),
        ("[task.config]\nepochs = 0", "task.config.epochs = 0 must be a whole number from 1 to 1000"),
        ("[task.config]\nepochs = 1.5", "task.config.epochs = 1.5 must be a whole number"),
        ("[task.config]\nepochs = true", "task.config.epochs = True must be a whole number"),
        ("[task.config]\nmax_steps = 0", "task.config.max_steps = 0 must be a whole number from 1 to 100000"),
        ("[task.config]\nproximal_mu = -0.1", "task.config.proximal_mu = -0.1 must be a number from 0 to"),
        ("[task.config]\nmin_samples = 0", "task.config.min_samples = 0 must be a whole number from 1 to 2147483648"),
        ('[task.config]\nencoding = "q4"', "task.config.encoding = 'q4' must be one of f32, f16, q8, topk"),
        ("[task.config]\nencoding = 8", "task.config.encoding = 8 must be one of"),
        ("[listen]\nport = 7070\nca = 'x'", "listen.ca, certificate and key belong together"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path}/server.toml: ")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_everything_a_task_may_say_is_taken(tmp_path: Path) -> None:
    config = 'learning_rate = 0.1\nepochs = 2\nmax_steps = 10\nproximal_mu = 0\nencoding = "q8"\nmin_samples = 1\n'
    config += "skip_below_norm = 0.5\nskips = 3\ntopk_share = 0.1\n"
    loaded = load(tmp_path, "[task.config]\n" + config)
    assert set(loaded.task.config) == {*TASK_NUMBERS, "encoding"}


def test_the_limits_on_a_task_are_those_of_the_devices() -> None:
    assert TASK_NUMBERS["epochs"][1] == trainer.MAX_EPOCHS
    assert TASK_NUMBERS["max_steps"][1] == trainer.MAX_STEPS
    assert TASK_NUMBERS["min_samples"][1] == train_task.LARGEST_WAIT
    for name in ("learning_rate", "proximal_mu", "topk_share"):
        least, most, _ = TASK_NUMBERS[name]
        for value in (least, most):
            trainer.plan(EdgeSettings("d", "f", "m").training, {name: value})
    for name in encoding.ENCODINGS:
        assert Tasks(config={"encoding": name}).config["encoding"] == name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_given_in_python_are_checked_too(value: float) -> None:
    for make in (lambda: Tasks(ttl_s=value), lambda: Publishing(min_interval_s=value)):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_the_largest_update_is_half_a_bridge_message() -> None:
    assert UploadLimits(update_bytes=MAX_UPDATE_BYTES).update_bytes == MAX_UPDATE_BYTES


def several(folder: Path, text: str) -> Settings:
    path = folder / "server.toml"
    path.write_text('state_dir = "s"\n' + text)
    return settings.load(Settings, path, {})


def test_a_single_model_has_the_state_dir_to_itself(tmp_path: Path) -> None:
    (served,) = load(tmp_path, "[task]\nttl_s = 5\n").served()
    assert (served.name, served.bundle, served.folder) == ("", tmp_path / "b", tmp_path / "s")
    assert served.settings.task.ttl_s == 5


def test_several_models_each_have_a_folder_and_what_they_do_not_say_from_the_top(tmp_path: Path) -> None:
    text = '[task]\nttl_s = 5\n[models.a]\nbundle = "a.bundle"\n[models.b]\nbundle = "b.bundle"\ntask = {ttl_s = 7}\n'
    first, second = several(tmp_path, text).served()
    assert (first.name, first.bundle, first.folder) == ("a", tmp_path / "a.bundle", tmp_path / "s" / "a")
    assert (second.name, second.bundle, second.folder) == ("b", tmp_path / "b.bundle", tmp_path / "s" / "b")
    assert (first.settings.task.ttl_s, second.settings.task.ttl_s) == (5, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "bundle is missing; set it there"),
        ("[models.a]\n[models.b]\nbundle = 'b'", "models.a.bundle is missing; set it there"),
        ("bundle = 'x'\n[models.a]\nbundle = 'a'", "bundle is for a single model; with [models.<name>] tables"),
        ("[models.'a/b']\nbundle = 'a'", "models: 'a/b' is not a legal name"),
        ("[models.a]\nbundle = 'a'\nstate_dir = 'x'", "models.a.state_dir is no setting here; known: bundle,"),
        ("[models.a]\nbundle = 'a'\n[models.a.task]\nttl_s = 0", "models.a.task.ttl_s = 0.0 must be above 0"),
        ("[retention]\nevery = -1\n[models.a]\nbundle = 'a'", "retention.every = -1 must not be negative"),
    ],
)
def test_models_that_cannot_be_served_are_refused_by_file_and_table(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        several(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path}/server.toml: ")
    assert says in str(refusal.value)
