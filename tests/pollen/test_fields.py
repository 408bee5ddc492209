"""Typed access to a decoded message's fields: a right value is returned, any other is refused by its name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollen.errors import MessageError
from pollen.fields import Fields
from tests.pollen.refusals import refusal

GETTERS: dict[str, tuple[Callable[[Fields], Any], list[Any], list[Any]]] = {
    "bytes": (lambda f: f.bytes("x", 2), [b"ab"], [b"a", b"abc", "ab", None, [97, 98]]),
    "whole": (lambda f: f.whole("x"), [0, 1, 2**63 - 1], [-1, 2**63, 1.0, True, "1", None]),
    "real": (lambda f: f.real("x"), [0, -1.5, 2**60], [float("nan"), float("inf"), True, "1", 2**64, None]),
    "real from": (lambda f: f.real("x", minimum=1.0), [1, 1.5], [0.999, -1, float("inf")]),
    "boolean": (lambda f: f.boolean("x"), [True, False], [0, 1, None, "true"]),
    "text": (lambda f: f.text("x"), ["", "a" * 1024], ["a" * 1025, b"a", 1, None]),
    "texts": (lambda f: list(f.texts("x")), [[], ["a", "b"]], ["a", ["a", 1], ["a" * 1025], ["a"] * 257, None]),
    "choice": (lambda f: f.choice("x", ("a", "b")), ["a", "b"], ["c", "", 1, ["a"], np.zeros(3), np.zeros(0), None]),
    "reals": (
        lambda f: f.reals("x"),
        [{}, {"a": 1, "b": 2.5}, {"a" * 64: 1}, {str(n): 1 for n in range(64)}],
        [{"a": float("nan")}, {1: 1}, {"a": True}, {"a" * 65: 1}, {str(n): 1 for n in range(65)}, [], None],
    ),
    "scalars": (
        lambda f: f.scalars("x"),
        [{}, {"a": 1, "b": True, "c": "d", "e": 0.5}, {"a": "a" * 1024}, {"a" * 64: 1}],
        [
            {"a": None},
            {"a": [1]},
            {"a": float("inf")},
            {"a": b"b"},
            {"a": "a" * 1025},
            {"a" * 65: 1},
            {str(n): 1 for n in range(65)},
            None,
        ],
    ),
}


@pytest.mark.parametrize("getter", GETTERS)
def test_right_values_are_returned_and_wrong_ones_refused_by_name(getter: str) -> None:
    get, right, wrong = GETTERS[getter]
    for value in right:
        assert get(Fields({"x": value}, "task")) == value
    for value in wrong:
        with pytest.raises(MessageError, match=r"^task: field 'x'"):
            get(Fields({"x": value}, "task"))


@pytest.mark.parametrize("getter", ["bytes", "whole", "real", "boolean", "text", "choice"])
def test_a_missing_field_is_refused_by_name(getter: str) -> None:
    with pytest.raises(MessageError, match=r"^task: field 'x' is missing$"):
        GETTERS[getter][0](Fields({}, "task"))


def test_fields_with_a_default_may_be_missing() -> None:
    empty = Fields({}, "task")
    assert (empty.whole("x", 7), empty.text("x", "d"), empty.texts("x"), empty.reals("x")) == (7, "d", (), {})


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.just(np.zeros(2))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(), st.integers()), inner)),
    max_leaves=5,
)


@pytest.mark.parametrize("getter", GETTERS)
def test_no_value_raises_anything_but_message_error(getter: str) -> None:
    @given(anything)
    def check(value: Any) -> None:
        refused = refusal(GETTERS[getter][0], Fields({"x": value}, "task"))
        assert not refused or refused.startswith("task: field 'x'")

    check()
