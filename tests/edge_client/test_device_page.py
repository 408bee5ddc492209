"""docs/device.md says what the settings do: every table, every setting, its default."""

import pytest

from edge_client.settings import EdgeSettings
from tests.settings_page import SettingsPage

PAGE = SettingsPage("device.md", EdgeSettings)


def test_the_page_has_every_table_in_order() -> None:
    PAGE.check_tables()


@pytest.mark.parametrize("table", PAGE.declared)
def test_the_page_has_every_setting_with_its_default(table: str) -> None:
    PAGE.check_table(table)


def test_settings_named_in_the_text_exist() -> None:
    PAGE.check_names(8, no_settings=("sqlite", "sock", "toml", "md"))
