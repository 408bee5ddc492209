"""Whether a decoder refused what it was given, and how: the one exception it may raise is MessageError."""

from collections.abc import Callable
from typing import Any

from pollen.errors import MessageError
from pollen.fields import MAX_TEXT


def refusal(decode: Callable[..., Any], *arguments: Any) -> str:
    """The text of the MessageError that `decode(*arguments)` raised, "" when it raised none.

    The text is one line that fits a receipt; any other exception fails the test.
    """
    try:
        decode(*arguments)
    except MessageError as error:
        text = str(error)
    else:
        return ""
    assert text
    assert "\n" not in text
    assert len(text) <= MAX_TEXT
    return text
