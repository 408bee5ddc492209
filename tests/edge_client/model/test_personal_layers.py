"""The table of personal values: which bundle finds which, and that they are stored with their update or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.model.personal_layers import Personal, layout_of
from edge_client.network.outbox import Outbox, Reply
from pollen.errors import StoreError
from pollen.manifest import Tensor
from tests.pollen.manifests import manifest

LIMIT = 2**22
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
HEAD = "m head/kernel[2, 1]"


def personal(bundle: bytes, *values: float, layout: str = HEAD, steps: int = 5) -> Personal:
    return Personal(bundle, layout, steps, np.array(values, np.float32))


def put(outbox: Outbox, kept: Personal, text: bytes = b"x") -> None:
    outbox.put(Reply(kept.bundle[:16], "update", lambda _: text, personal=kept))


def found(outbox: Outbox, bundle: bytes, layout: str = HEAD) -> tuple[int, list[float]] | None:
    kept = outbox.personal(bundle, layout)
    return None if kept is None else (kept.steps, kept.values.tolist())


def test_a_layout_names_the_model_and_its_personal_tensors_alone() -> None:
    weights = (Tensor("body/kernel", (3, 2)), Tensor("head/kernel", (2, 1)), Tensor("head/bias", (1,)))
    state = (Tensor("norm/moving_mean", (2,)),)
    shape = manifest(*weights, state=state, personal=("head",))
    assert layout_of(shape) == "m head/kernel[2, 1] head/bias[1]"
    assert layout_of(replace(shape, personal=("norm", "head"))) == layout_of(shape) + " norm/moving_mean[2]"
    assert layout_of(replace(shape, personal=())) == "m"


def test_the_newest_values_of_a_bundle_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    with Outbox(path, LIMIT) as outbox:
        assert found(outbox, A) is None
        put(outbox, personal(A, 1, 2))
        put(outbox, personal(A, 3, 4, steps=9))
    with Outbox(path, LIMIT) as outbox:
        assert found(outbox, A) == (9, [3, 4])
        assert found(outbox, A, "m other[2]") is None


def test_a_new_bundle_finds_the_newest_values_of_the_same_layout_without_their_steps(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        put(outbox, personal(A, 1, 2))
        put(outbox, personal(B, 3, 4))
        assert found(outbox, C) == (0, [3, 4])
        assert found(outbox, A) == (5, [1, 2]), "a bundle's own values come first"
        put(outbox, personal(A, 5, 6))
        assert found(outbox, C) == (0, [5, 6])


def test_the_last_two_bundles_trained_are_kept(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        for bundle in (A, B, A, C):
            put(outbox, personal(bundle, 1, layout=f"of {bundle[0]}"))
        assert found(outbox, A, f"of {A[0]}") == (5, [1])
        assert found(outbox, B, f"of {B[0]}") is None
        assert found(outbox, C, f"of {C[0]}") == (5, [1])


def test_the_steps_of_a_model_without_personal_layers_are_kept_too(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", LIMIT) as outbox:
        put(outbox, personal(A, layout="m", steps=7))
        assert found(outbox, A, "m") == (7, [])


def test_values_are_stored_with_their_update_or_not_at_all(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.sqlite", 2**18) as outbox:
        put(outbox, personal(A, 1, 2))
        with pytest.raises(StoreError, match="free some disk space"):
            put(outbox, personal(A, 3, 4), b"x" * 2**19)
        assert found(outbox, A) == (5, [1, 2])
        with pytest.raises(StoreError, match="free some disk space"):
            put(outbox, personal(A, *range(2**17)), b"small")
        assert found(outbox, A) == (5, [1, 2])
        assert outbox.payload(A[:16]) == b"x"
        outbox.freeze(A[:16])
        outbox.receipted(A[:16])
        assert found(outbox, A) == (5, [1, 2]), "a receipt ends the update, not what stays on the device"
