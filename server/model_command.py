"""`pollen model`: the versions of a server's model."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from pollen.errors import PollenError, SettingsError
from server import lifecycle
from server.versions import KeptVersion

EXAMPLES = """examples:
  pollen model list state
  pollen model export state -o newest.npz
  pollen model export state --version 1200 -o model-1200.keras
  pollen model rollback state 1200        # stop the server first

STATE_DIR is the server's state_dir; where it serves several models, state_dir/<name>. Which
versions are kept is set in server.toml: merge.snapshots, and [retention] for older ones.
"""
_KEPT_AS = {"newest": "newest", "base": "base model", "archive": "archive"}


def main(argv: list[str]) -> int:
    """Run `pollen model`; returns 0, or 1 or 2 with one line on stderr."""
    options = _parser().parse_args(argv)
    try:
        match options.action:
            case "list":
                _list(options.state_dir)
            case "export":
                _export(options.state_dir, options.version, options.output, options.model)
            case _:
                _roll_back(options.state_dir, options.version)
    except PollenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pollen model",
        description="List, export and roll back the versions of a server's model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    state_dir = argparse.ArgumentParser(add_help=False)
    state_dir.add_argument("state_dir", type=Path, metavar="STATE_DIR", help="the folder that holds state.sqlite")
    actions.add_parser("list", parents=[state_dir], help="show which versions are kept; the server may run")
    export = actions.add_parser(
        "export", parents=[state_dir], help="write a version as .npz or .keras; the server may run"
    )
    export.add_argument("--version", type=int, metavar="N", help="by default the newest")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file.npz or file.keras")
    export.add_argument("--model", type=Path, metavar="FILE", help="a .keras file to fill, instead of the bundle's")
    rollback = actions.add_parser(
        "rollback",
        parents=[state_dir],
        help="go on from an earlier version",
        description="Make the weights of version N the next version. Updates trained from the versions in between will "
        "be refused, and what the merge rule remembers is dropped. The server must not run.",
    )
    rollback.add_argument("version", type=int, metavar="N")
    return parser


def _list(folder: Path) -> None:
    found = lifecycle.kept_versions(folder)
    sys.stdout.write(f"{'version':>10}  {'published (UTC)':<19}  kept as\n")
    for entry in found:
        sys.stdout.write(_line(entry))


def _line(entry: KeptVersion) -> str:
    at = "" if entry.at is None else datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    remark = ", rolled back" if entry.withdrawn else ""
    return f"{entry.version:>10}  {at:<19}  {_KEPT_AS[entry.where]}{remark}\n"


def _export(folder: Path, version: int | None, output: Path, model: Path | None) -> None:
    if output.suffix not in (".npz", ".keras"):
        raise SettingsError(f"{output}: the file's name must end in .npz or .keras")
    exported = lifecycle.export(folder, version)
    if output.suffix == ".npz":
        lifecycle.write_npz(exported.weights, output)
    else:
        _write_keras(exported, output, model)
    parameters = exported.bundle.manifest.shared_size
    sys.stdout.write(
        f"{output}: version {exported.version} of {exported.bundle.manifest.model}, {parameters} parameters\n"
    )


def _write_keras(exported: lifecycle.Exported, output: Path, model: Path | None) -> None:
    # Only here: it needs TensorFlow, which the server does without.
    from pollen.compiler import export, quiet  # noqa: PLC0415

    if sys.stderr.isatty():
        sys.stderr.write("loading TensorFlow for a .keras file, which takes a few seconds …\n")
    try:
        with quiet.native_stderr_to_log():
            if model is not None:
                export.export_keras(model, exported.weights, output)
            else:
                export.export_bundle(exported.bundle, exported.source, exported.weights, output)
    except ImportError as error:
        hint = "install it with: pip install 'pollen-fl[compiler]', or export to .npz"
        raise PollenError(f"{error}; a .keras file needs it; {hint}") from error


def _roll_back(folder: Path, version: int) -> None:
    newest = lifecycle.roll_back(folder, version)
    sys.stdout.write(f"version {newest} has the weights of version {version}; start the server to go on from there\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
