"""Settings: each error names file and field, variables win over the file, secrets are never shown."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.settings import EdgeSettings
from gateway.settings import Gateway
from pollen import settings
from pollen.errors import SettingsError
from pollen.settings import SECRET
from server.settings import Settings as ServerSettings


@dataclass(frozen=True)
class Inner:
    port: int = 1
    rate: float = 0.5
    password: str = field(default="", metadata=SECRET)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.port > 9:
            raise ValueError(f"port = {self.port} must be at most 9")


@dataclass(frozen=True)
class Example:
    name: str
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    file: Path | None = None
    extra: dict[str, bool | int | float | str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def write(folder: Path, text: str) -> Path:
    path = folder / "example.toml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'name = "n"\nflag = true\nkind = "b"\nfile = "data/x.npz"\nextra = {a = 1, b = "t", c = true, d = 0.5}\n'
        '[inner]\nport = 7\nrate = 2\npassword = "p"\nnames = ["x", "y"]\n',
    )
    loaded = settings.load(Example, path, {})
    assert loaded == Example(
        "n", True, "b", tmp_path / "data/x.npz", {"a": 1, "b": "t", "c": True, "d": 0.5}, Inner(7, 2.0, "p", ("x", "y"))
    )
    assert isinstance(loaded.inner.rate, float)


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    assert settings.load(Example, write(tmp_path, 'name = "n"\nfile = "/etc/x"'), {}).file == Path("/etc/x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "name is missing"),
        ("name = 5", "name = 5 must be text"),
        ('name = "n"\nflag = 1', "flag = 1 must be true or false"),
        ('name = "n"\nkind = "c"', "kind = 'c' must be one of 'a', 'b'"),
        ('name = "n"\nfile = 3', "file = 3 must be text"),
        ('name = "n"\nextra = 3', "extra = 3 must be a table"),
        ('name = "n"\nextra = {a = [1]}', "must be a table of finite numbers, texts or switches"),
        ('name = "n"\ninner = 3', "inner must be a table, [inner]"),
        ('name = "n"\n[inner]\nport = 1.5', "inner.port = 1.5 must be a whole number"),
        ('name = "n"\n[inner]\nport = true', "inner.port = True must be a whole number"),
        ('name = "n"\n[inner]\nport = "1"', "inner.port = '1' must be a whole number"),
        ('name = "n"\n[inner]\nport = 10', "inner.port = 10 must be at most 9"),
        ('name = "n"\n[inner]\nrate = "fast"', "inner.rate = 'fast' must be a finite number"),
        ('name = "n"\n[inner]\nrate = nan', "inner.rate = nan must be a finite number"),
        ('name = "n"\n[inner]\nrate = -inf', "inner.rate = -inf must be a finite number"),
        ('name = "n"\n[inner]\nrate = 1' + "0" * 400, "must be a finite number"),
        ('name = "n"\nextra = {a = nan}', "must be a table of finite numbers"),
        ('name = "n"\n[inner]\nnames = "x"', "inner.names = 'x' must be a list"),
        ('name = "n"\n[inner]\nnames = [1]', "inner.names = 1 must be text"),
        ('name = "n"\n[inner]\nprot = 1', "inner.prot is no setting here; known: names, password, port, rate"),
        ('name = "n"\nnmae = 1', "nmae is no setting here; known: extra, file, flag, inner, kind, name"),
        ('name = "n', "can't be read as TOML"),
    ],
)
def test_an_error_names_the_file_and_the_field(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as refusal:
        settings.load(Example, path, {})
    assert str(refusal.value).startswith(f"{path}: ")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: no such settings file; create it"):
        settings.load(Example, tmp_path / "nowhere.toml", {})
    path = tmp_path / "example.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"example\.toml: can't be read as TOML"):
        settings.load(Example, path, {})
    with pytest.raises(SettingsError, match="can't be read"):
        settings.load(Example, tmp_path, {})


def test_variables_win_over_the_file_and_suffice_alone(tmp_path: Path) -> None:
    environment = {
        "POLLEN_NAME": "from the environment",
        "POLLEN_FLAG": "TRUE",
        "POLLEN_KIND": "b",
        "POLLEN_FILE": "relative",
        "POLLEN_INNER_PORT": "8",
        "POLLEN_INNER_RATE": "1e-3",
        "POLLEN_INNER_NAMES": "x, y,,z",
        "UNRELATED": "x",
    }
    expected = Example("from the environment", True, "b", Path("relative"), {}, Inner(8, 1e-3, "", ("x", "y", "z")))
    assert settings.load(Example, None, environment) == expected
    path = write(tmp_path, 'name = "n"\n[inner]\nport = 2\npassword = "stays"')
    loaded = settings.load(Example, path, environment)
    assert (loaded.name, loaded.inner.port, loaded.inner.password) == ("from the environment", 8, "stays")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("POLLEN_INNER_PORT", "eight", "inner.port = 'eight' must be a whole number"),
        ("POLLEN_INNER_RATE", "nan", "inner.rate = 'nan' must be a finite number"),
        ("POLLEN_INNER_PORT", "10", "port = 10 must be at most 9"),
        ("POLLEN_FLAG", "yes", "flag = 'yes' must be true or false"),
        ("POLLEN_KIND", "z", "kind = 'z' must be one of"),
    ],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_a_wrong_variable_is_refused_by_its_own_name_and_its_field(
    tmp_path: Path, with_file: bool, variable: str, value: str, says: str
) -> None:
    path = write(tmp_path, 'name = "n"\n[inner]\nrate = 1') if with_file else None
    with pytest.raises(SettingsError) as refusal:
        settings.load(Example, path, {"POLLEN_NAME": "n", variable: value})
    assert str(refusal.value).startswith(f"{variable}: ")
    assert says in str(refusal.value)


def test_a_wrong_value_of_the_file_is_blamed_on_the_file_whatever_variables_there_are(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "n"\n[inner]\nport = 10')
    with pytest.raises(SettingsError) as refusal:
        settings.load(Example, path, {"POLLEN_INNER_RATE": "1", "POLLEN_NAME": "m"})
    assert str(refusal.value) == f"{path}: inner.port = 10 must be at most 9"


def test_a_mistyped_variable_of_a_known_table_is_refused_and_others_are_left_alone() -> None:
    with pytest.raises(SettingsError) as refusal:
        settings.load(Example, None, {"POLLEN_NAME": "n", "POLLEN_INNER_PROT": "1"})
    assert str(refusal.value) == (
        "POLLEN_INNER_PROT: [inner] has no such setting; known: "
        "POLLEN_INNER_NAMES, POLLEN_INNER_PASSWORD, POLLEN_INNER_PORT, POLLEN_INNER_RATE"
    )
    assert (
        settings.load(Example, None, {"POLLEN_NAME": "n", "POLLEN_OTHER_PORT": "1", "POLLEN_INNERT": "x"}).name == "n"
    )


def test_a_variable_for_a_table_that_the_file_has_as_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="POLLEN_INNER_PORT: 'inner' in the settings file is a value"):
        settings.load(Example, write(tmp_path, 'name = "n"\ninner = 3'), {"POLLEN_INNER_PORT": "1"})


@dataclass(frozen=True, kw_only=True)
class Shared:
    size: int = 1
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Several(Shared):
    name: str = "top"
    parts: dict[str, Shared] = field(default_factory=dict)


def test_named_tables_take_what_they_do_not_say_from_the_table_around_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "size = 2\n[inner]\nport = 5\n[parts.a]\n[parts.b-1]\nsize = 3\n[parts.c.inner]\nrate = 1.5\n",
    )
    loaded = settings.load(Several, path, {})
    expected = {
        "a": Shared(size=2, inner=Inner(5)),
        "b-1": Shared(size=3, inner=Inner(5)),
        "c": Shared(size=2, inner=Inner(rate=1.5)),  # a table is taken whole, or not at all
    }
    assert loaded == Several(size=2, inner=Inner(5), parts=expected)
    again = write(tmp_path, settings.to_toml(loaded))
    assert settings.load(Several, again, {}) == loaded


def test_variables_reach_named_tables(tmp_path: Path) -> None:
    path = write(tmp_path, "[parts.a]\n[parts.b-1]\nsize = 3\n")
    environment = {"POLLEN_SIZE": "4", "POLLEN_PARTS_B_1_SIZE": "5", "POLLEN_PARTS_A_INNER_PORT": "6"}
    loaded = settings.load(Several, path, environment)
    assert loaded.parts == {"a": Shared(size=4, inner=Inner(6)), "b-1": Shared(size=5)}
    for variable in ("POLLEN_PARTS_C_SIZE", "POLLEN_PARTS_A_SIZZE"):
        with pytest.raises(SettingsError, match=f"{variable}: \\[parts\\] has no such setting; known: POLLEN_PARTS_A_"):
            settings.load(Several, path, {variable: "1"})
    with pytest.raises(SettingsError, match=r"POLLEN_PARTS_A_SIZE: parts\.a\.size = 'x' must be a whole number"):
        settings.load(Several, path, {"POLLEN_PARTS_A_SIZE": "x"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("parts = 3", "parts must hold tables, [parts.<name>]"),
        ("[parts]\na = 3", "parts.a must be a table, [parts.a]"),
        ("[parts.a]\nname = 'x'", "parts.a.name is no setting here; known: inner, size"),
        ("[parts.a.inner]\nport = 10", "parts.a.inner.port = 10 must be at most 9"),
    ],
)
def test_an_error_in_a_named_table_names_it(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as refusal:
        settings.load(Several, path, {})
    assert str(refusal.value) == f"{path}: {says}"


texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
examples = st.builds(
    Example,
    texts,
    st.booleans(),
    st.sampled_from(["a", "b"]),
    st.none() | st.sampled_from([Path("/a/b c"), Path("/ü")]),
    st.dictionaries(texts, st.booleans() | st.integers(-(2**60), 2**60) | numbers | texts, max_size=3),
    st.builds(Inner, st.integers(-9, 9), numbers, texts, st.lists(texts, max_size=3).map(tuple)),
)


@given(examples)
def test_what_is_written_as_toml_is_read_back_the_same(tmp_path_factory: Any, example: Example) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(settings.to_toml(example, show_secrets=True), encoding="utf-8")
    assert settings.load(Example, path, {}) == example


@given(examples)
def test_secrets_are_masked(example: Example) -> None:
    shown = tomllib.loads(settings.to_toml(example))
    assert shown["inner"]["password"] == ("********" if example.inner.password else "")
    assert tomllib.loads(settings.to_toml(example, show_secrets=True))["inner"]["password"] == example.inner.password


@pytest.mark.parametrize(
    ("cls", "least"),
    [
        (EdgeSettings, 'device = "pi-1"\nfleet = "f"\nmodel = "m"\n'),
        (Gateway, 'fleet = "f"\n'),
        (ServerSettings, 'bundle = "m.bundle"\nstate_dir = "state"\n'),
    ],
)
def test_each_roles_settings_need_little_and_are_read_back_as_shown(tmp_path: Path, cls: type[Any], least: str) -> None:
    loaded = settings.load(cls, write(tmp_path, least), {})
    again = tmp_path / "again.toml"
    again.write_text(settings.to_toml(loaded, show_secrets=True))
    assert settings.load(cls, again, {}) == loaded


@pytest.mark.parametrize(
    ("cls", "text", "says"),
    [
        (EdgeSettings, 'device = "a b"\nfleet = "f"\nmodel = "m"', "device = 'a b' must be"),
        (
            EdgeSettings,
            'device = "d"\nfleet = "f"\nmodel = "m"\n[sensor]\nperiod_s = 0',
            "sensor.period_s = 0.0 must be",
        ),
        (EdgeSettings, 'device = "d"\nfleet = "f"\nmodel = "m"\n[upload]\nencoding = "q4"', "upload.encoding = 'q4'"),
        (EdgeSettings, 'device = "d"\nfleet = "f"\nmodel = "m"\n[broker]\nport = 0', "broker.port = 0 must be from 1"),
        (Gateway, 'fleet = "f"\n[broker]\ncertificate = "c"', "broker.certificate and key belong together"),
        (Gateway, 'fleet = "f"\n[limits]\nupdate_bytes = 0', "limits.update_bytes = 0 must be from 1"),
        (Gateway, 'fleet = "f"\n[limits]\nreceive_maximum = 10001', "limits.receive_maximum = 10001 must be from 1 to"),
        (Gateway, 'fleet = "f"\n[broker]\nhost = "example.org"', "broker.host = 'example.org' is not loopback: set ca"),
        (Gateway, 'fleet = "f"\n[server]\nhost = "example.org"', "server.host = 'example.org' is not loopback"),
        (
            ServerSettings,
            'bundle = "b"\nstate_dir = "s"\n[merge]\nsample_weighting = "no"',
            "merge.sample_weighting = 'no'",
        ),
        (ServerSettings, 'bundle = "b"\nstate_dir = "s"\n[merge]\nsnapshots = 0', "merge.snapshots = 0 must be"),
        (ServerSettings, 'bundle = "b"\nstate_dir = "s"\n[task]\nttl_s = 0', "task.ttl_s = 0.0 must be above 0"),
        (ServerSettings, 'bundle = "b"\nstate_dir = "s"\n[listen]\nhost = "0.0.0.0"', "listen.host = '0.0.0.0' is not"),
        (ServerSettings, 'bundle = "b"\nstate_dir = "s"\n[logging]\nlevel = "loud"', "logging.level = 'loud' must be"),
        (ServerSettings, 'bundle = "b"\nstate_dir = "s"\nfleet = "a/b"', "fleet"),
    ],
)
def test_a_roles_wrong_setting_is_refused_with_file_table_and_field(
    tmp_path: Path, cls: type[Any], text: str, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as refusal:
        settings.load(cls, path, {})
    assert str(path) in str(refusal.value)
    assert says in str(refusal.value)
