"""What is shared and what is personal: for any model, nothing is lost, mixed up or sent by mistake."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollen.encoding import named
from pollen.manifest import Manifest, Tensor
from pollen.sharing import Sharing
from tests.pollen.manifests import manifest


@st.composite
def models(draw: st.DrawFn) -> Manifest:
    """Up to six layers, each with some weights and some state, any of them personal but for one that has weights."""
    shapes = st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), max_size=3)
    layers = [(f"layer_{number}", draw(shapes), draw(shapes)) for number in range(draw(st.integers(1, 6)))]
    layers.insert(draw(st.integers(0, len(layers))), ("shared", [(2, 2)], draw(shapes)))
    weights = tuple(Tensor(f"{name}/w{i}", shape) for name, found, _ in layers for i, shape in enumerate(found))
    state = tuple(Tensor(f"{name}/s{i}", shape) for name, _, found in layers for i, shape in enumerate(found))
    able = sorted({tensor.layer for tensor in weights + state} - {"shared"})
    personal = draw(st.sets(st.sampled_from(able))) if able else set()
    return manifest(*weights, state=state, personal=tuple(sorted(personal)))


def numbered(model: Manifest) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weights and state in which every value occurs once."""
    weights = np.arange(model.parameters, dtype=np.float32)
    return weights, np.arange(model.parameters, model.parameters + model.state_size, dtype=np.float32)


@given(models())
def test_joining_what_was_split_gives_every_value_back_in_its_place(model: Manifest) -> None:
    sharing, (weights, state) = Sharing(model), numbered(model)
    shared, personal = sharing.split(weights, state)
    assert (shared.dtype, personal.dtype) == (np.float32, np.float32)
    assert (len(shared), len(personal)) == (sharing.shared_size, sharing.personal_size)
    assert len(shared) + len(personal) == len(weights) + len(state)
    for found, expected in zip(sharing.join(shared, personal), (weights, state), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@given(models())
def test_shared_values_are_those_of_the_tensors_that_the_manifest_sends(model: Manifest) -> None:
    weights, state = numbered(model)
    shared, personal = Sharing(model).split(weights, state)
    before = named(weights, model.weights) | named(state, model.state)
    sent = named(shared, model.shared)
    assert set(sent) == {name for name in before if name.partition("/")[0] not in model.personal}
    for name, values in sent.items():
        np.testing.assert_array_equal(values, before[name])
    kept = [values for name, values in before.items() if name not in sent]
    np.testing.assert_array_equal(personal, np.concatenate([np.zeros(0), *(values.ravel() for values in kept)]))


@given(models(), st.integers(0, 2**32 - 1))
def test_new_shared_values_leave_the_personal_ones_alone(model: Manifest, seed: int) -> None:
    sharing, (weights, state) = Sharing(model), numbered(model)
    _, personal = sharing.split(weights, state)
    new = np.random.default_rng(seed).normal(size=sharing.shared_size).astype(np.float32)
    shared_again, personal_again = sharing.split(*sharing.join(new, personal))
    np.testing.assert_array_equal(shared_again, new)
    np.testing.assert_array_equal(personal_again, personal)


@given(models())
def test_what_was_split_is_no_view_of_the_weights(model: Manifest) -> None:
    weights, state = numbered(model)
    for part in Sharing(model).split(weights, state):
        part[:] = -1
    np.testing.assert_array_equal(weights, np.arange(model.parameters))
    np.testing.assert_array_equal(state, np.arange(model.parameters, model.parameters + model.state_size))


def test_without_personal_layers_joining_copies_nothing() -> None:
    model = manifest(Tensor("a/kernel", (2, 3)), state=(Tensor("b/moving_mean", (2,)),))
    shared = np.arange(8, dtype=np.float32)
    weights, state = Sharing(model).join(shared, np.zeros(0, np.float32))
    assert np.shares_memory(weights, shared)
    assert np.shares_memory(state, shared)


def test_values_of_another_size_are_refused() -> None:
    model = manifest(Tensor("a/kernel", (3,)), Tensor("b/kernel", (2,)), personal=("b",))
    sharing = Sharing(model)
    for shared, personal in ((2, 2), (3, 1), (5, 0), (2, 3)):
        with pytest.raises(ValueError, match=r"the model has \[3\] and \[2\]"):
            sharing.join(np.zeros(shared, np.float32), np.zeros(personal, np.float32))
