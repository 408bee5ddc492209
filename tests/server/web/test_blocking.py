"""Blocking a device at a real server: no task, nothing of it is read, also after a restart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pollen.errors import SettingsError, StoreError
from server.blocked import BlockedDevices
from tests.server.web.serving import TOKEN, Serving, SimulatedFleet

SHOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with Serving(tmp_path) as one:
        yield one


def post(serving: Serving, path: str, headers: dict[str, str] = SHOWN) -> tuple[int, Any]:
    status, _, body = serving.ask(path, "POST", headers)
    return status, json.loads(body)


def test_a_blocked_device_is_refused_unread_and_gets_no_task_until_it_is_let_in(serving: Serving) -> None:
    with SimulatedFleet(serving, ["pi-1", "pi-2"]) as fleet:
        fleet.wait_for_tasks("pi-1", "pi-2")
        assert post(serving, "/api/devices/pi-1/block") == (200, {"name": "pi-1", "blocked": True, "changed": True})
        assert post(serving, "/api/devices/pi-1/block")[1]["changed"] is False
        fleet.answer("pi-1")
        told = serving.wait_for(lambda: serving.api("/api/devices/pi-1")["rejections"], "the refusal")
        assert [(one["kind"], one["reason"]) for one in told] == [("blocked", "an operator has blocked this device")]
        fleet.merge("pi-2")  # the honest one is served, and time has passed
        fleet.merge("pi-2")
        fleet.birth("pi-1", python="3.12.0")  # as after a reconnect
        fleet.merge("pi-2")
        assert "pi-1" not in fleet.tasks
        assert serving.api("/api/devices/pi-1")["updates"] == 0
        assert serving.wait_for(
            lambda: serving.api("/api/fleet")["devices"] == {"known": 2, "online": 2, "blocked": 1}, "the count"
        )
        serving.stop()
        serving.start()
    with SimulatedFleet(serving, ["pi-1", "pi-2"]) as fleet:
        fleet.wait_for_tasks("pi-2")
        fleet.merge("pi-2")
        assert "pi-1" not in fleet.tasks
        assert serving.api("/api/devices/pi-1")["blocked"] is True
        assert post(serving, "/api/devices/pi-1/unblock")[1] == {"name": "pi-1", "blocked": False, "changed": True}
        fleet.merge("pi-1")
    history = [json.loads(line) for line in (serving.folder / "state" / "history.jsonl").read_text().splitlines()]
    audit = [(e["event"], e["device"], e["by"]) for e in history if e["event"] in ("block", "unblock")]
    assert audit == [("block", "pi-1", "127.0.0.1"), ("unblock", "pi-1", "127.0.0.1")]
    assert "pi-1: blocked, asked for by 127.0.0.1 with the token" in serving.log
    assert TOKEN not in serving.log


def test_an_open_task_waits_for_its_device_to_be_let_in(serving: Serving) -> None:
    with SimulatedFleet(serving, ["pi-1"]) as fleet:
        fleet.wait_for_tasks("pi-1")
        first = fleet.tasks.pop("pi-1").task
        post(serving, "/api/devices/pi-1/block")
        post(serving, "/api/devices/pi-1/unblock")
        fleet.wait_for_tasks("pi-1")
        assert fleet.tasks["pi-1"].task == first
        fleet.merge("pi-1")


def test_without_the_right_token_nothing_is_changed(serving: Serving) -> None:
    for shown in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer \xff"):
        headers = {} if shown is None else {"Authorization": shown}
        assert post(serving, "/api/devices/pi-1/block", headers) == (401, {"error": "wrong token"})
    assert not (serving.folder / "state" / "blocked.json").exists()


def test_without_a_token_in_the_settings_the_server_is_read_only(tmp_path: Path) -> None:
    with Serving(tmp_path, token="") as serving:
        assert post(serving, "/api/devices/pi-1/block")[0] == 403
        assert serving.ask("/api/devices/pi-1/block", "GET")[0] == 405
        assert serving.api("/api/fleet")["writable"] is False


def test_a_name_that_no_device_has_is_refused(serving: Serving) -> None:
    assert post(serving, "/api/devices/%2e%2e/block")[0] == 404
    assert post(serving, "/api/devices/a%20b/block")[0] == 404
    assert post(serving, "/api/devices/not-yet-seen/block")[0] == 200


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"blocked": 3}', '{"blocked": {"a b": 1}}', '{"blocked": {"a": "x"}}']
)
def test_a_damaged_list_lets_nobody_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "blocked.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"blocked\.json: is damaged"):
        BlockedDevices(path)


def test_a_list_that_can_not_be_written_changes_nothing(tmp_path: Path) -> None:
    blocked = BlockedDevices(tmp_path / "blocked.json")
    (tmp_path / "blocked.json").mkdir()
    with pytest.raises(StoreError, match="nothing has changed"):
        blocked.block("pi-1")
    assert blocked.names == frozenset()
