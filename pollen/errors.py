"""Errors a user sees: one line that names the file, field or topic, and the fix."""

from typing import Literal

Malformed = Literal["unreadable", "size", "names", "shapes", "dtype", "not-finite"]


class PollenError(Exception):
    """Base of every error that Pollen raises on purpose; its text is one line for a person to act on."""


class SettingsError(PollenError):
    """A settings file or environment variable holds something that can't be used."""


class MessageError(PollenError):
    """A payload from the network is not a well-formed message; nothing of it may be used.

    `kind` says what is wrong with it: the last four are those of an update's tensors.
    """

    def __init__(self, text: str, kind: Malformed = "unreadable") -> None:
        super().__init__(text)
        self.kind: Malformed = kind


class SignatureError(PollenError):
    """A model isn't signed by the key that this device trusts; nothing of it may be used."""


class BundleError(PollenError):
    """A model bundle is damaged, of another format, or doesn't fit its manifest."""


class CompileError(PollenError):
    """A Keras model can't be compiled to a training graph; the text names the layer."""


class InterpreterError(PollenError):
    """No usable TensorFlow Lite interpreter, or it refused the graph."""


def missing_package(program: str, extra: str, error: ModuleNotFoundError) -> str:
    """One line on a package that `program` needs and that the project's `extra` brings."""
    return f"error: {program} needs package {error.name!r}; install it: pip install 'pollen-fl[{extra}]'"


class StoreError(PollenError):
    """A state file (SQLite) is damaged, newer than this software, or can't be written."""


class SensorError(PollenError):
    """A sensor can't be opened or read."""
