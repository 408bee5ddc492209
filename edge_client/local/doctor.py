"""`pollen-edge doctor`: is everything there that the agent needs? Each finding comes with its fix."""

import calendar
import importlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_client import sensors, state_lock
from edge_client.clock import SystemClock
from edge_client.local.broker_check import broker_findings
from edge_client.local.finding import Finding
from edge_client.local.local_socket import NotRunningError, ask_status
from edge_client.local.status import span
from edge_client.model.store import ModelStore
from edge_client.sensors import Reading, Sensor
from edge_client.settings import EdgeSettings
from pollen import interpreter
from pollen.errors import PollenError

READ_S: Final = (10.0, 30.0)  # least and most seconds until a sensor that says nothing counts as silent
HANGS_S: Final = 5.0  # beyond that, until a sensor counts as hanging
DISK_FREE_BYTES: Final = 50 * 2**20
CERTIFICATE_DAYS: Final = 30
DAY_S: Final = 86400.0


def examine(settings: EdgeSettings) -> Iterator[Finding]:
    """Look at everything, one after the other; sensor and broker may take up to 30 s each.

    An agent that runs keeps its sensor, and its session at the broker.
    """
    runs = state_lock.is_held(settings.state_dir)
    yield from _agent(settings, runs=runs)
    for check in (_state_folder, _clock, _certificate, _interpreter, _model):
        yield from check(settings)
    if not runs:
        yield from _sensor(settings)
    yield from broker_findings(settings, connect=not runs)


def _agent(settings: EdgeSettings, *, runs: bool) -> Iterator[Finding]:
    socket = settings.local.path_in(settings.state_dir)
    if socket is None:
        start = "systemctl start pollen-edge, or pollen-edge --config FILE"
        yield Finding("agent", runs, "running" if runs else "not running", start)
        return
    try:
        status = ask_status(socket)
    except NotRunningError as error:
        fix = "look at its log, and become its user" if runs else "systemctl start pollen-edge, or look at its log"
        yield Finding("agent", False, str(error), fix)
        return
    yield Finding("agent", True, f"running for {span(status['running_s'])}")
    for problem in status["problems"]:
        yield Finding("agent", False, problem, "journalctl -u pollen-edge says more")


def _state_folder(settings: EdgeSettings) -> Iterator[Finding]:
    folder = settings.state_dir
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    foreign = [] if os.access(existing, os.W_OK | os.X_OK) else [folder]
    for path in foreign or state_lock.unwritable(folder):
        fix = f"chown -R {folder} to the agent's user, or run this as that user"
        yield Finding("disk", False, f"{path} can't be written by this user", fix)
        return
    free = shutil.disk_usage(existing).free
    yield Finding(
        "disk",
        free >= DISK_FREE_BYTES,
        f"{free / 2**20:.0f} MiB free at {folder}",
        f"free at least {DISK_FREE_BYTES / 2**20:.0f} MiB: a full disk stops the learner's memory from growing",
    )


def _clock(_settings: EdgeSettings) -> Iterator[Finding]:
    clock = SystemClock()
    known = {True: "synchronised", False: "not synchronised", None: "this system can't say whether it is right"}
    synchronised = clock.synchronised()
    shown = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(clock.wall()))
    yield Finding(
        "clock",
        synchronised is not False,
        f"{shown}, {known[synchronised]}",
        "enable time synchronisation: timedatectl set-ntp true, and check that its server can be reached",
    )


def _certificate(settings: EdgeSettings) -> Iterator[Finding]:
    path = settings.broker.certificate
    if path is None:
        return
    ends = certificate_end(path)
    if ends is None:
        yield Finding(
            "certificate", False, f"{path} can't be read as a certificate", "issue it again, or install openssl"
        )
        return
    days = (ends - time.time()) / DAY_S
    yield Finding(
        "certificate",
        days > CERTIFICATE_DAYS,
        f"{path} is valid until {time.strftime('%Y-%m-%d', time.gmtime(ends))} ({days:.0f} days)",
        "renew it before it expires; if the date is far off, it is the clock that is wrong",
    )


def certificate_end(path: Path) -> float | None:
    """When the certificate in a PEM file expires, in seconds since 1970, by `openssl x509`; None when it can't say."""
    try:
        done = subprocess.run(
            ["openssl", "x509", "-in", str(path), "-noout", "-enddate", "-dateopt", "iso_8601"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        text = done.stdout.strip().removeprefix("notAfter=").removesuffix("Z")
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S")))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _interpreter(settings: EdgeSettings) -> Iterator[Finding]:
    names = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}
    chosen = [settings.training.runtime] if settings.training.runtime in names else list(names)
    found = []
    for runtime in chosen:
        try:
            importlib.import_module(f"{names[runtime]}.interpreter")
        except ImportError:
            continue
        found.append(names[runtime])
    yield Finding(
        "interpreter",
        bool(found),
        f"{', '.join(found) or 'none'}; Python {sys.version.split()[0]} on {os.uname().machine}",
        "install one: pip install 'pollen-fl[edge]', or 'pollen-fl[edge-tflite]' on a 32-bit Pi",
    )


def _model(settings: EdgeSettings) -> Iterator[Finding]:
    store = ModelStore(settings.state_dir / "model", settings.upload.snapshot_limit_bytes)
    bundles = store.bundles()
    if not bundles:
        yield Finding("model", True, f"{settings.model}: none here yet; it comes from the broker with the first task")
        return
    manifest = bundles[0].manifest
    try:
        graph = interpreter.load(bundles[0], settings.training.runtime)
    except PollenError as error:
        yield Finding("model", False, str(error), "compile it again, and restart the server with it")
        return
    yield Finding("model", True, f"{manifest.model}: {manifest.parameters} parameters, loads on {graph.runtime}")


def _sensor(settings: EdgeSettings) -> Iterator[Finding]:
    found: list[Finding] = []
    # A driver may hang in opening or reading; the thread is then left behind with the process.
    thread = threading.Thread(target=lambda: found.append(_read_sensor(settings)), daemon=True)
    thread.start()
    thread.join(READ_S[1] + HANGS_S)
    kind = settings.sensor.kind
    yield found[0] if found else Finding("sensor", False, f"{kind} hangs", "check its cable and its driver: dmesg")


def _read_sensor(settings: EdgeSettings) -> Finding:
    chosen = settings.sensor
    fix = "check [sensor] in the settings, the cable, and the groups of the agent's user"
    try:
        sensor = sensors.find(chosen.kind)(chosen.options)
        try:
            reading = _first_reading(sensor, chosen.period_s)
        finally:
            sensor.close()
    except Exception as error:  # noqa: BLE001 - a user's sensor may raise anything
        return Finding("sensor", False, f"{chosen.kind}: {error or error.__class__.__name__}", fix)
    if reading is None:
        return Finding("sensor", False, f"{chosen.kind} says nothing", "check what feeds it, and its options")
    values = zip(sensor.channels, reading.values[-1], strict=True)
    shown = ", ".join(f"{channel.name} {value:.4g} {channel.unit}".strip() for channel, value in values)
    return Finding("sensor", True, f"{chosen.kind}: {shown}")


def _first_reading(sensor: Sensor, period_s: float) -> Reading | None:
    least, most = READ_S
    deadline = time.monotonic() + min(max(least, 3 * period_s), most)
    while (reading := sensor.read()) is None and time.monotonic() < deadline:
        time.sleep(min(period_s, 0.1))
    return reading
