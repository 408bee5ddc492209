"""`pollen ca` as an operator runs it."""

import json
from pathlib import Path

import pytest

from firmware_scripts.authority.authority import Authority
from firmware_scripts.authority.registry import Registry
from pollen.command import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority.create(tmp_path / "ca", "garden")
    return tmp_path / "ca"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `pollen ca …`."""
    code = main(["ca", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_fleets_certificates_are_made_with_a_few_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "ca"
    code, told, _ = run(capsys, "init", "garden", "--dir", folder)
    assert code == 0
    assert f"{folder}/ca.key: WHOEVER HAS THIS FILE CAN BE ANYONE IN THE FLEET" in told
    everything = told
    for words in (
        ("broker", "--role", "broker", "--host", "broker.example"),
        ("server", "--role", "server", "--host", "server.example", "--host", "192.0.2.7"),
        ("gateway-1", "--role", "gateway"),
        ("pi-01", "pi-02", "--role", "device"),
        ("pi-01", "--role", "device", "--replace"),
    ):
        code, told, _ = run(capsys, "issue", *words, "--dir", folder)
        assert code == 0
        everything += told
    assert f"{folder}/issued/pi-02.pem and {folder}/issued/pi-02.key: pi-02, device, until " in everything
    assert "what was replaced is revoked; copy it to the broker's folder" in told

    code, told, _ = run(capsys, "list", "--json", "--dir", folder)
    assert code == 0
    listed = json.loads(told)
    assert listed["fleet"] == "garden"
    assert [(one["name"], one["role"], one["state"]) for one in listed["certificates"]] == [
        ("broker", "broker", "valid"),
        ("gateway-1", "gateway", "valid"),
        ("pi-01", "device", "valid"),
        ("pi-02", "device", "valid"),
        ("server", "server", "valid"),
    ]
    for key in folder.rglob("*.key"):
        secret = key.read_text().splitlines()[1]
        assert secret not in everything + told


def test_the_table_marks_what_ends_soon(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    authority = Authority.open(folder)
    authority.issue("pi-01", "device")
    authority.issue("pi-02", "device", days=29)
    authority.issue("pi-03", "device")
    authority.revoke("pi-03")
    code, told, _ = run(capsys, "crl", "--days", "20", "--dir", folder)
    assert code == 0
    assert told.startswith(f"{folder}/crl.pem: written, good until ")
    code, told, _ = run(capsys, "list", "--dir", folder)
    assert code == 0
    states = [line.partition("  ")[0] + line[line.rindex("  ") :] for line in told.splitlines()[1:4]]
    assert states[:2] == ["pi-01  valid", "pi-02  expires soon"]
    assert states[2].startswith("pi-03  revoked 20")
    assert told.splitlines()[4].startswith("authority of garden: until ")
    assert told.splitlines()[5].startswith("revocation list 3, of 20")
    assert told.splitlines()[5].endswith(", RENEW IT NOW")


def test_an_expired_revocation_list_is_shouted_about(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with Registry.open(folder / "registry.sqlite") as registry:
        Authority.open(folder)._write_crl(registry, 0)
    _, told, _ = run(capsys, "list", "--dir", folder)
    assert told.splitlines()[-1].endswith(", EXPIRED: the broker turns everyone away")


def test_a_name_that_was_revoked_is_issued_with_a_warning(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    authority = Authority.open(folder)
    authority.issue("pi-01", "device")
    authority.revoke("pi-01")
    code, told, _ = run(capsys, "issue", "pi-01", "--role", "device", "--dir", folder)
    assert code == 0
    assert "pi-01 was revoked before: broker and server refuse that name until" in told
    assert f"pollen revoke pi-01 --readmit --ca {folder} " in told


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["issue", "pi 1", "--role", "device"], 2, "error: name: 'pi 1' is not a legal name"),
        (["issue", "pi-01", "--role", "device"], 1, "error: 'pi-01' has a certificate, valid until "),
        (["issue", "pi-01", "--role", "gateway"], 1, "error: 'pi-01' is the name of a device and stays that"),
        (["init", "garden"], 2, "error: "),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    capsys: pytest.CaptureFixture[str], folder: Path, words: list[str], code: int, text: str
) -> None:
    Authority.open(folder).issue("pi-01", "device")
    found, _, told = run(capsys, *words, "--dir", folder)
    assert found == code
    assert told.startswith(text)
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["issue", "pi-01"], ["issue", "pi-01", "--role", "king"], ["list"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(capsys, *words)
    assert ended.value.code == 2


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(capsys, "--help")
    assert ended.value.code == 0
    assert "pollen ca issue gateway-1 --role gateway --dir ca" in capsys.readouterr().out


def test_the_documented_commands_make_a_fleet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## A fleet's certificates")
    block = section.partition("\n## ")[0].replace("\\\n", " ")
    commands = [line.split()[1:] for line in block.splitlines() if line.startswith("    pollen ")]
    assert len(commands) == 8
    monkeypatch.chdir(tmp_path)
    for words in commands:
        assert main(words) == 0, capsys.readouterr().err
    assert sorted(path.stem for path in Path("ca/issued").glob("*.pem")) == [
        "broker", "gateway-1", "ops", "pi-01", "pi-02", "pi-03", "server",
    ]  # fmt: skip
    assert "user gateway-1" in Path("for-the-broker/access-rules").read_text()
