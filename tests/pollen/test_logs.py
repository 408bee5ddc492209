"""Log lines for people: what a device sent stays on the line that tells of it."""

import io
import logging
from collections.abc import Iterator

import pytest

from pollen import logs

FORGED = "x\n2026-01-01 00:00:00,000 ERROR   pollen.server: state store lost\r\x1b[31m\x9b\u2028\x00"


@pytest.fixture
def written() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.TextLines())
    logger = logging.Logger("pollen.test")
    logger.addHandler(handler)
    yield logger, stream
    handler.close()


def test_control_characters_of_a_message_are_escaped(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    logger.warning("pi-1: %s: ünïcode stays", FORGED)
    line = stream.getvalue()
    assert line.splitlines() == [line.removesuffix("\n")]
    assert all(character.isprintable() for character in line.removesuffix("\n"))
    assert r"pi-1: x\n2026-01-01" in line
    assert r"lost\r\x1b[31m\x9b\u2028\x00: ünïcode stays" in line


def test_an_exception_keeps_its_lines_but_none_looks_like_a_record(
    written: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = written
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("evaluation failed")
    first, *others = stream.getvalue().split("\n")
    assert first.endswith("ERROR   pollen.test: evaluation failed")
    assert others[0] == "  Traceback (most recent call last):"
    assert len(others) > 3
    assert all(line.startswith("  ") for line in others if line)
    assert "\x1b" not in stream.getvalue()


def test_one_line_leaves_printable_text_alone() -> None:
    assert logs.one_line("fleet = 'gärten' \\n") == "fleet = 'gärten' \\n"
