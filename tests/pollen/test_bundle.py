import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest

from pollen import bundle as bundle_module
from pollen.bundle import Bundle, Loss, Manifest, Optimizer, Tensor
from pollen.errors import BundleError
from pollen.objective import Schedule

NOTHING = np.zeros(0, np.float32)
MANIFEST = Manifest(
    model="lin",
    weights=(Tensor("dense/kernel", (3, 2)), Tensor("dense/bias", (2,))),
    state=(Tensor("norm/mean", (2,)),),
    frozen=(),
    personal=(),
    input_shape=(3,),
    input_dtype="float32",
    input_below=0,
    output_shape=(2,),
    label_shape=(),
    label_dtype="int32",
    batch=4,
    noise=((4, 3), (4, 2)),
    loss=Loss("sparse_categorical_crossentropy", from_logits=True),
    optimizer=Optimizer("momentum", 0.1, {"momentum": 0.9, "nesterov": 0.0}),
    keras_version="3.15.1",
    tensorflow_version="2.21.0",
    architecture="",
)


LOSS = {"name": "sparse_categorical_crossentropy", "from_logits": True, "delta": 1.0, "label_smoothing": 0.0}
SGD = {"name": "sgd", "learning_rate": 0.1, "settings": {}}
STEPS = {"initial_learning_rate": 0.1, "decay_steps": 10.0, "decay_rate": 0.5, "staircase": 0.0}
DECAY = {"name": "inverse_time_decay", "settings": STEPS, "boundaries": [], "rates": []}
PIECES = {
    "name": "piecewise_constant_decay",
    "settings": {},
    "boundaries": [3.0, 5.0],
    "rates": [0.3, 0.2, 0.1],
}


def _bundle() -> Bundle:
    return Bundle(MANIFEST, b"graph" * 20, np.arange(8, dtype=np.float32), np.array([0.5, 2], np.float32), NOTHING)


def _rewritten(change: dict[str, Any]) -> bytes:
    """The bundle's bytes with top-level fields replaced and a digest that matches again."""
    content = cbor2.loads(_bundle().to_bytes())
    content.pop("digest")
    content |= change
    digest = hashlib.sha256(cbor2.dumps(content, canonical=True)).digest()
    return cbor2.dumps(content | {"digest": digest}, canonical=True)


def _with_manifest(**change: Any) -> bytes:
    return _rewritten({"manifest": cbor2.loads(_bundle().to_bytes())["manifest"] | change})


def test_a_bundle_written_is_read_back_whole(tmp_path: Path) -> None:
    written = _bundle()
    written.write(tmp_path / "lin.bundle")
    read = Bundle.read(tmp_path / "lin.bundle")
    assert read.manifest == MANIFEST
    assert read.graph == written.graph
    np.testing.assert_array_equal(read.weights, written.weights)
    np.testing.assert_array_equal(read.state, written.state)
    assert read.digest == written.digest
    assert (MANIFEST.parameters, MANIFEST.state_size) == (8, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["lin.bundle"]


def test_every_tensors_first_values_go_by_its_name() -> None:
    frozen = replace(MANIFEST, frozen=(Tensor("fixed/scale", ()), Tensor("fixed/bias", (1, 2))), personal=("norm",))
    read = replace(_bundle(), manifest=frozen, frozen=np.array([7, 8, 9], np.float32))
    assert {name: values.tolist() for name, values in read.values().items()} == {
        "dense/kernel": [[0, 1], [2, 3], [4, 5]],
        "dense/bias": [6, 7],
        "norm/mean": [0.5, 2],
        "fixed/scale": 7,
        "fixed/bias": [[8, 9]],
    }


def test_only_a_moving_variance_is_one() -> None:
    names = ["norm/moving_variance", "wrapper/norm/moving_variance", "norm/moving_mean", "moving_variance/kernel"]
    assert [Tensor(name, (1,)).is_variance for name in names] == [True, True, False, False]


def test_the_digest_is_the_sha256_of_the_canonical_map_without_it() -> None:
    content = cbor2.loads(_bundle().to_bytes())
    digest = content.pop("digest")
    assert digest == hashlib.sha256(cbor2.dumps(content, canonical=True)).digest() == _bundle().digest


def test_the_same_content_gives_the_same_bytes() -> None:
    payload = _bundle().to_bytes()
    assert payload == _bundle().to_bytes()
    assert Bundle.from_bytes(payload, "x").to_bytes() == payload


def test_a_bundle_cut_off_anywhere_is_refused_by_name() -> None:
    payload = _bundle().to_bytes()
    for length in range(len(payload)):
        with pytest.raises(BundleError, match=r"^lin\.bundle: "):
            Bundle.from_bytes(payload[:length], "lin.bundle")


def test_a_bundle_with_any_byte_changed_is_refused_by_name() -> None:
    payload = _bundle().to_bytes()
    for position in range(len(payload)):
        for bit in (0x01, 0x20, 0x80):
            damaged = bytearray(payload)
            damaged[position] ^= bit
            with pytest.raises(BundleError, match=r"^lin\.bundle: [^\n]+$"):
                Bundle.from_bytes(bytes(damaged), "lin.bundle")


def test_random_bytes_are_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        with pytest.raises(BundleError):
            Bundle.from_bytes(rng.bytes(int(rng.integers(0, 80))), "noise")


def test_a_newer_format_says_to_upgrade() -> None:
    with pytest.raises(BundleError, match="format 3, this software reads 2; upgrade pollen-fl"):
        Bundle.from_bytes(_rewritten({"v": 3}), "lin.bundle")


def test_a_digest_that_is_no_byte_string_is_refused() -> None:
    content = cbor2.loads(_bundle().to_bytes())
    payload = cbor2.dumps(content | {"digest": content["weights"]}, canonical=True)
    with pytest.raises(BundleError, match="'digest' must be bytes"):
        Bundle.from_bytes(payload, "lin.bundle")


def test_fields_that_are_not_known_are_refused() -> None:
    with pytest.raises(BundleError, match="fields this software doesn't know"):
        Bundle.from_bytes(_rewritten({"surprise": 1}), "lin.bundle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be 1 to 4096"),
        ({"batch": True}, "'batch' must be int"),
        ({"model": "../lin"}, "model name '../lin'"),
        ({"model": "Lin"}, "model name 'Lin'"),
        ({"loss": LOSS | {"name": "hinge"}}, "loss 'hinge' is not known"),
        ({"loss": {"name": "mse", "from_logits": True}}, "'delta' must be float"),
        ({"loss": LOSS | {"name": "huber", "delta": float("inf")}}, "delta must be above 0"),
        ({"loss": LOSS | {"label_smoothing": 0.5}}, "label_smoothing 0.5 is out of range"),
        ({"optimizer": {"name": "adam", "learning_rate": 0.1, "settings": {}}}, "optimizer adam takes"),
        ({"optimizer": {"name": "sgd", "learning_rate": 0.0, "settings": {}}}, "learning rate must be above 0"),
        ({"optimizer": {"name": "sgd", "learning_rate": float("nan"), "settings": {}}}, "learning rate"),
        ({"optimizer": SGD | {"settings": {"clipnorm": 0.0}}}, "clipnorm = 0.0 is out of range"),
        ({"optimizer": SGD | {"settings": {"clipnorm": 1.0, "clipvalue": 1.0}}}, "give one of clipnorm"),
        ({"optimizer": SGD | {"settings": {"weight_decay": float("inf")}}}, "weight_decay = inf"),
        ({"optimizer": SGD | {"settings": {"clipnorm": 1}}}, "'clipnorm' must be float"),
        ({"optimizer": SGD | {"learning_rate": DECAY | {"name": "warp"}}}, "schedule 'warp' is not known"),
        ({"optimizer": SGD | {"learning_rate": DECAY | {"settings": {}}}}, "inverse_time_decay takes"),
        ({"optimizer": SGD | {"learning_rate": DECAY | {"rates": [0.1]}}}, "0 boundaries, 1 rates"),
        ({"optimizer": SGD | {"learning_rate": DECAY | {"settings": STEPS | {"decay_steps": 0.0}}}}, "decay_steps = 0"),
        ({"optimizer": SGD | {"learning_rate": PIECES | {"boundaries": [3.0, 2.0]}}}, "needs rising boundaries"),
        ({"optimizer": SGD | {"learning_rate": PIECES | {"rates": [0.1, float("nan"), 0.1]}}}, "rate 1 = nan"),
        ({"optimizer": SGD | {"learning_rate": PIECES | {"boundaries": ["3", 4.0]}}}, "'boundaries' must be a list"),
        ({"weights": [{"name": "a", "shape": [4]}, {"name": "a", "shape": [4]}]}, "names must be unique"),
        ({"weights": [{"name": "a", "shape": [9]}]}, r"weights are float32 \[8\], the manifest says float32 \[9\]"),
        ({"weights": [{"name": "a", "shape": [-8, -1]}]}, "list of at most 8 lengths"),
        ({"weights": ["a"]}, "list of names and shapes"),
        ({"state": []}, r"state are float32 \[2\], the manifest says float32 \[0\]"),
        ({"input_dtype": "string"}, "dtypes must be float32 or int32"),
        ({"input_shape": [2**20, 2**20]}, "more than"),
        ({"noise": [[3, 3]]}, "must start with the batch"),
        ({"noise": [7]}, "'noise' must be list"),
        ({"noise": [[]]}, "is empty"),
        ({"noise": [[4, 2**23]] * 3}, "more than 67108864 random numbers"),
        ({"label_shape": [2**64 - 1] * 9}, "at most 8 lengths"),
    ],
)
def test_a_manifest_that_can_not_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.from_bytes(_with_manifest(**change), "lin.bundle")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = np.arange(8, dtype=np.float32)
    weights[3] = value
    with pytest.raises(BundleError, match="weights hold NaN or infinity"):
        Bundle(MANIFEST, b"", weights, np.zeros(2, np.float32), NOTHING)


def test_weights_of_another_type_are_refused() -> None:
    with pytest.raises(BundleError, match="weights are float64"):
        Bundle(MANIFEST, b"", np.zeros(8), np.zeros(2, np.float32), NOTHING)  # type: ignore[arg-type]


def test_weights_can_not_be_changed_in_a_bundle() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _bundle().weights[0] = 1


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lin.bundle"
    with pytest.raises(BundleError, match=r"lin\.bundle: can't be read \(No such file"):
        Bundle.read(path)
    _bundle().write(path)
    monkeypatch.setattr(bundle_module, "LIMIT_BYTES", 100)
    with pytest.raises(BundleError, match=r"a bundle has at most 100"):
        Bundle.read(path)


def test_writing_where_nothing_can_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match=r"lin\.bundle: can't be written"):
        _bundle().write(tmp_path / "file" / "lin.bundle")


def test_another_optimizer_needs_no_other_graph() -> None:
    adam = Optimizer("adam", 0.001, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7})
    other = replace(_bundle(), manifest=replace(MANIFEST, optimizer=adam))
    assert Bundle.from_bytes(other.to_bytes(), "x").manifest.optimizer == adam
    assert other.digest != _bundle().digest


@pytest.mark.parametrize(
    "rate",
    [
        Schedule("inverse_time_decay", STEPS),
        Schedule("piecewise_constant_decay", boundaries=(3.0, 5.0), rates=(0.3, 0.2, 0.1)),
    ],
)
def test_a_schedule_and_clipping_are_read_back(rate: Schedule) -> None:
    scheduled = Optimizer("sgd", rate, {"clipvalue": 0.5, "weight_decay": 0.01})
    other = replace(_bundle(), manifest=replace(MANIFEST, optimizer=scheduled))
    assert Bundle.from_bytes(other.to_bytes(), "x").manifest == other.manifest
