"""`pollen`: its help, and what it says when there is no such command."""

import pytest

from pollen import command
from pollen.command import main


class Entry:
    """An installed sub-command, as importlib.metadata shows it."""

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


def test_help_says_a_word_on_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("plot", "server.plots:main"), Entry("compile", "x:main"), Entry("water", "garden.water:main")]
    monkeypatch.setattr(command, "entry_points", lambda **_: entries)
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  pollen compile  turn a Keras model into a bundle that devices train" in lines
    assert "  pollen plot     draw a run's history as PNG files" in lines
    assert "  pollen water    (garden.water:main)" in lines


def test_every_command_of_this_project_has_its_word() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert set(command.SUMMARIES) == set(project["project"]["entry-points"][command.GROUP])


def test_an_unknown_command_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["colour"]) == 2
    assert capsys.readouterr().err.startswith("error: pollen has no command 'colour'; known: ")


def test_a_missing_package_is_told_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> object:
        raise ModuleNotFoundError("No module named 'cryptography'", name="cryptography")

    entry = Entry("ca", "x:main")
    monkeypatch.setattr(entry, "load", load, raising=False)
    monkeypatch.setattr(command, "entry_points", lambda **_: [entry])
    assert main(["ca", "list"]) == 1
    assert capsys.readouterr().err.endswith("install it: pip install 'pollen-fl[authority]'\n")


def test_every_extra_of_a_command_is_one_of_the_project() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(command.EXTRAS) <= set(command.SUMMARIES)
    assert set(command.EXTRAS.values()) <= set(project["optional-dependencies"])
