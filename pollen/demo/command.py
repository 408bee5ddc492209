"""`pollen demo`: a fleet of devices, a broker, a gateway and a server on this machine, learning while you watch."""

import argparse
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from pollen import mosquitto
from pollen.demo import ending, preparation
from pollen.demo.console import Screen
from pollen.demo.fleet import FLEET, Fleet
from pollen.demo.observer import Observer
from pollen.demo.options import Options
from pollen.demo.processes import Processes
from pollen.demo.recording import DataError
from pollen.demo.split import Split
from pollen.demo.tools import StoppedError
from pollen.demo.watch import Watch
from pollen.errors import PollenError

INTERRUPTED = 130

EXAMPLES = """\
examples:
  pollen demo                                    6 devices learn for 3 minutes from this machine's telemetry
  pollen demo --devices 10 --minutes 10
  pollen demo --data recording.csv               columns: subject or device, label or target, channels
  pollen demo --data recording.npz --model own.keras

Data: .csv or .npz, split by its subject/device column. With labels (CSV: label, NPZ: integer y) the fleet
classifies, with numbers (target, float y) it estimates them, with neither it forecasts the next reading. The
last 15 % of every subject's rows (of each class) are held out for the server's evaluation; rows with a label are
replayed in a shuffled order, all others as recorded.

Ctrl-C ends it early, in order; a second Ctrl-C at once. Exit code: 0 when something was merged, nothing was lost
and every process ended as asked (also after Ctrl-C), 1 when not, 2 for wrong usage, 130 when it was interrupted
before anything was merged.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns its exit code."""
    options = _options(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stopper(stop))
    screen = Screen()
    try:
        data = preparation.read_data(options)
        with Processes() as processes:
            return _run(options, data, processes, screen, stop)
    except (StoppedError, KeyboardInterrupt):
        print("interrupted; everything it started has ended", file=sys.stderr)
        return INTERRUPTED
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PollenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _stopper(stop: threading.Event) -> "signal._HANDLER":
    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    return handle


def _run(options: Options, data: Split | None, processes: Processes, screen: Screen, stop: threading.Event) -> int:
    recording = None if data is None else data.recording
    screen.say(preparation.describe(recording, options.data))
    with screen.working("Looking for Mosquitto, the MQTT broker"):
        binary = mosquitto.ensure(preparation.CACHE, screen.say)
    folder = preparation.run_folder(options.output)
    plan = preparation.plan(options, data, folder, processes=processes, screen=screen, stop=stop)
    fleet = Fleet(plan, binary, processes)
    with screen.working("Starting broker, server and gateway"):
        fleet.start()
    screen.say(f"Passwords without TLS, as all of it stays on loopback. The fleet's page: {fleet.page}")
    username, password = fleet.observer_account
    with Observer(fleet.broker.port, username, password, FLEET, list(plan.sources)) as observer:
        fleet.start_devices()
        watch = Watch(fleet, observer, processes=processes, screen=screen, stop=stop, total_s=options.seconds)
        watch.wait_online()
        watch.run()
        interrupted = stop.is_set()
        problems = ending.accident_lines(processes)
        if interrupted:
            screen.say("Interrupted; ending in order. Ctrl-C again ends at once.")
        problems += ending.stop_devices(fleet, observer, screen)
    problems += ending.stop_services(fleet, screen)
    problems += [line for line in ending.accident_lines(processes) if line not in problems]
    problems += ending.losses(fleet, observer, watch)
    summary = ending.conclude(fleet, observer, watch, processes)
    if summary.merges == 0 and interrupted and not problems:
        raise StoppedError("interrupted")
    if summary.merges == 0:
        problems.append("nothing was merged")
    elif not interrupted and plan.cut_device is not None and (summary.cut is None or summary.cut.merged_s is None):
        problems.append(f"{plan.cut_device}: it was to be cut off and come back, but no update was merged after that")
    if summary.merges:
        problems += ending.leave_behind(fleet, processes, screen)
    is_classification = recording is not None and recording.task == "classification"
    ending.say_summary(summary, screen, folder, "the most frequent class" if is_classification else "persistence")
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if not problems:
        screen.say("No update was lost.")
    return 1 if problems else 0


def _options(argv: list[str] | None) -> Options:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="pollen demo",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=default.devices, metavar="N", help="2 or more (default: 6)")
    parser.add_argument(
        "--minutes", type=float, default=default.minutes, metavar="M", help="how long to learn (default: 3)"
    )
    parser.add_argument("--model", type=Path, metavar="FILE.keras", help="your own Keras model")
    parser.add_argument("--data", type=Path, metavar="FILE", help="replay recorded sensor data (.csv or .npz)")
    parser.add_argument(
        "--cut-device",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="cut one device off from the broker for the middle third (default: yes)",
    )
    parser.add_argument("--output", type=Path, default=default.output, metavar="DIR", help="default: runs")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the default model's first weights")
    arguments = parser.parse_args(argv)
    if not 2 <= arguments.devices <= 200:
        parser.error(f"--devices {arguments.devices}: a fleet needs 2 devices, and a machine holds 200")
    if not 0.1 <= arguments.minutes <= 24 * 60:
        parser.error(f"--minutes {arguments.minutes}: from 0.1 to 1440")
    return Options(**vars(arguments))


if __name__ == "__main__":
    sys.exit(main())
