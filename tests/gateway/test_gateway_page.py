"""docs/gateway.md says what the settings and metrics are: every table, every setting, its default."""

import re
from pathlib import Path

import pytest

from gateway.counts import Counts, Gauges
from gateway.metrics import GatewayMetrics
from gateway.settings import Gateway, Server
from tests.settings_page import SettingsPage

PAGE = SettingsPage("gateway.md", Gateway)


def test_the_page_has_every_table_in_order() -> None:
    PAGE.check_tables()


@pytest.mark.parametrize("table", PAGE.declared)
def test_the_page_has_every_setting_with_its_default(table: str) -> None:
    PAGE.check_table(table)


def test_settings_named_in_the_text_exist() -> None:
    PAGE.check_names(4)


def test_the_page_has_every_metric() -> None:
    settings = Gateway(fleet="test", server=Server(ca=Path("a"), certificate=Path("b"), key=Path("c")))
    gauges = Gauges(True, True, 0, 0, 0, 0, 0, 0, {"to_server": 0})
    exported = GatewayMetrics(Counts(), lambda: gauges, lambda: settings).collect()
    suffix = {"counter": "_total", "info": "_info"}
    names = {family.name + suffix.get(family.type, "") for family in exported}
    assert names == set(re.findall(r"`(pollen_gateway_\w+)`", PAGE.text))
