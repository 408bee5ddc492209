"""Topic names: built and taken apart in one place, and no name can step out of its level."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollen import topics
from pollen.errors import SettingsError
from pollen.identity import check_name, is_name, node_id
from pollen.topics import FROM_DEVICE, TO_DEVICE, DeviceTopic

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(names, names, st.sampled_from([*FROM_DEVICE, *TO_DEVICE]))
def test_a_device_topic_is_taken_apart_into_what_it_was_built_of(fleet: str, device: str, leaf: str) -> None:
    topic = topics.device(fleet, device, leaf)  # type: ignore[arg-type]
    assert topics.parse_device(topic) == DeviceTopic(fleet, device, leaf)
    assert topic.startswith(f"pollen/1/{fleet}/d/{device}/")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "pollen/1/fleet/d/pi",
        "pollen/1/fleet/d/pi/update/more",
        "pollen/2/fleet/d/pi/update",
        "other/1/fleet/d/pi/update",
        "pollen/1/fleet/m/model/head",
        "pollen/1/fleet/d/+/update",
        "pollen/1/fleet/d/#/update",
        "pollen/1/fleet/d//update",
        "pollen/1/fleet/d/../update",
        "pollen/1/fleet/d/p i/update",
        "/pollen/1/fleet/d/pi",
        "$share/g/pollen/1/fleet/d/pi/update",
    ],
)
def test_what_is_no_device_topic_is_none(topic: str) -> None:
    assert topics.parse_device(topic) is None


@given(st.text(max_size=60))
def test_no_text_makes_parsing_fail(topic: str) -> None:
    found = topics.parse_device(topic)
    assert found is None or is_name(found.device)


def test_shared_and_model_topics_have_their_form() -> None:
    assert topics.model("garden", "telemetry", "weights") == "pollen/1/garden/m/telemetry/weights"
    assert topics.shared("gw", topics.device("garden", "+", "update")) == "$share/gw/pollen/1/garden/d/+/update"


@given(st.text(max_size=80))
def test_a_legal_name_is_one_topic_level_and_one_file_name(text: str) -> None:
    if is_name(text):
        assert check_name(text, "device") == text
        assert not set(text) & set("+#/$ \0\n")
        assert text not in (".", "..")
        assert 1 <= len(text) <= 64
    else:
        with pytest.raises(SettingsError, match=r"^device: "):
            check_name(text, "device")


@pytest.mark.parametrize("text", ["", "-a", ".a", "_a", "a b", "a/b", "a+", "a#", "é", "a\n", "a" * 65])
def test_an_illegal_name_is_refused(text: str) -> None:
    assert not is_name(text)


@given(st.sets(names, min_size=2, max_size=50))
def test_node_ids_are_stable_distinct_and_fit_63_bits(devices: set[str]) -> None:
    ids = {node_id(device) for device in devices}
    assert len(ids) == len(devices)
    assert all(2 <= number < 2**63 for number in ids)


def test_a_node_id_never_changes_between_releases() -> None:
    assert node_id("pi-1") == 5583247455447837078  # printf pi-1 | sha256sum, the first 64 bits shifted right by 1
