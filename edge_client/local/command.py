"""`pollen-edge status`, `predict` and `doctor`: what someone beside the device wants to know."""

import argparse
import json
import os
import sys
from pathlib import Path

from edge_client.settings import EdgeSettings
from pollen import logs, settings
from pollen.errors import PollenError, SettingsError

EXAMPLES = {
    "status": """examples:
  pollen-edge status --config /etc/pollen/edge.toml
  pollen-edge status --config /etc/pollen/edge.toml --json | jq .error.now
""",
    "predict": """examples:
  pollen-edge predict --config /etc/pollen/edge.toml
  pollen-edge predict --config /etc/pollen/edge.toml --count 10 | jq -c .values

One line of JSON a window, from the running agent, until it stops or the count is reached:
  {"window":812,"time":1795370944.7,"clock":"synchronised","version":41,"values":[21.43],
   "error":0.0312,"anomaly":false,"anomaly_probability":0.41}
""",
    "doctor": """examples:
  pollen-edge doctor --config /etc/pollen/edge.toml
  sudo -u pollen-edge pollen-edge doctor --config /etc/pollen/edge.toml   # as the agent's own user

Exit code 0: everything is there; 1: something isn't, and its line says what to do. It takes at most a minute. Beside an
agent that runs, neither the sensor is opened nor the broker logged in to.
""",
}
SUMMARIES = {
    "status": "Show what the running agent learns, how well, and what it waits for.",
    "predict": "Print the running agent's predictions, one line of JSON a window.",
    "doctor": "Check settings, disk, clock, certificate, interpreter, model, sensor and broker.",
}


def main(argv: list[str]) -> int:
    """Run one of the three; returns the exit code: 0, 1 for a failure or a finding, 2 for wrong usage or settings."""
    options = _parser(argv[0]).parse_args(argv[1:])
    try:
        chosen = settings.load(EdgeSettings, options.config)
        code = {"status": _status, "predict": _predict, "doctor": _doctor}[argv[0]](chosen, options)
        sys.stdout.flush()
    except PollenError as error:
        sys.stderr.write(f"error: {logs.one_line(str(error))}\n")
        return 2 if isinstance(error, SettingsError) else 1
    except BrokenPipeError:  # the reader has had enough; what is still buffered must not fail at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"pollen-edge {name}",
        description=SUMMARIES[name],
        epilog=EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the agent's settings file (TOML)")
    if name == "predict":
        parser.add_argument("--count", type=int, metavar="N", help="stop after N windows")
    else:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _status(chosen: EdgeSettings, options: argparse.Namespace) -> int:
    from edge_client.local.local_socket import ask_status
    from edge_client.local.status import render

    status = ask_status(_socket(chosen))
    print(json.dumps(status, indent=2) if options.json else render(status))
    return 0


def _predict(chosen: EdgeSettings, options: argparse.Namespace) -> int:
    from edge_client.local.local_socket import NotRunningError, follow_predictions

    if options.count is not None and options.count < 1:
        raise SettingsError(f"--count {options.count} must be at least 1")
    socket, number = _socket(chosen), 0
    for number, line in enumerate(follow_predictions(socket), 1):
        print(line, flush=True)
        if number == options.count:
            return 0
    if options.count is not None or not number:
        raise NotRunningError(f"{socket}: the agent stopped, or has too many readers already; look at its log")
    return 0


def _doctor(chosen: EdgeSettings, options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edge_client.local.doctor import examine

    findings = []
    for finding in examine(chosen):
        findings.append(finding)
        if not options.json:
            print("ok  " if finding.ok else "FAIL", f"{finding.what:<11}", logs.one_line(finding.seen), flush=True)
            if not finding.ok:
                print(f"{'':<16} fix: {finding.fix}", flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 0 if all(finding.ok for finding in findings) else 1


def _socket(chosen: EdgeSettings) -> Path:
    path = chosen.local.path_in(chosen.state_dir)
    if path is None:
        raise SettingsError('local.socket = "off": the agent answers nobody; give it a path, or leave it out')
    return path
