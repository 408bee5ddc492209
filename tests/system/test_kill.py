"""kill -9 of each part in the middle of a run: every update a device made is merged, and none twice."""

import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.system.ledger import Ledger, audit
from tests.system.whole import Whole

DEVICES = ("pi-1", "pi-2", "pi-3", "pi-4")
KILLS = 4

pytestmark = pytest.mark.timeout(150)


class Killing:
    """Kills parts of a whole in motion and starts them again."""

    def __init__(self, whole: Whole) -> None:
        seed = random.randrange(2**32)
        print("seed", seed)
        self._chance = random.Random(seed)
        self._whole = whole
        self.kills = 0
        self.in_flight: list[int] = []

    def kill(self, name: str, *, aimed: bool) -> None:
        """Kill `name` at a random moment, or, `aimed`, while an update waits for its receipt."""
        owners = (name,) if name in DEVICES else DEVICES
        time.sleep(self._chance.uniform(0.0, 0.5))
        if aimed:
            self._whole.wait_for(lambda: self._stands_still_for(owners), 40, "an update in flight")
        self._whole.kill(name)
        self.kills += 1
        self.in_flight.append(self._whole.in_flight(*owners))
        if aimed and name != "server":
            self._whole.signal("server", signal.SIGCONT)

    def _stands_still_for(self, owners: tuple[str, ...]) -> bool:
        """Stop the server, and whether an update then waits; a receipt takes 20 ms, so a kill may be too late without.

        It goes on when there is none: who has no task yet makes no update.
        """
        self._whole.signal("server", signal.SIGSTOP)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            if self._whole.in_flight(*owners):
                return True
            time.sleep(0.01)
        self._whole.signal("server", signal.SIGCONT)
        time.sleep(self._chance.uniform(0.0, 0.2))
        return False

    def restart(self, name: str, *, more: int = 8) -> None:
        """Start `name` again, at once or after a while; merging must go on, with everyone's part in it."""
        time.sleep(self._chance.uniform(0.0, 0.5))
        self._whole.restart(name)
        self._whole.wait_for_merges(more)


def finish(whole: Whole, killing: Killing, what: str) -> Ledger:
    """Stop all in order and audit."""
    whole.stop(*DEVICES)
    whole.stop("gateway-1")
    whole.stop("server")
    ledger = audit(whole, DEVICES)
    assert sum(killing.in_flight) >= 1, "no kill met an update in flight"
    print(f"{killing.kills} kills of the {what}, in flight {killing.in_flight}: {ledger}")
    return ledger


def test_a_killed_server_resumes_at_its_last_commit_and_merges_every_update_once(
    whole: Callable[..., Whole],
) -> None:
    running = whole(devices=DEVICES)
    running.wait_for_merges(8)
    killing = Killing(running)
    for number in range(KILLS):
        version = running.version()
        killing.kill("server", aimed=number % 2 == 0)
        assert running.version() >= version
        killing.restart("server")
    ledger = finish(running, killing, "server")
    starts = [line["version"] for line in running.history("start")]
    assert len(starts) == KILLS + 1
    assert starts == sorted(starts), "versions go on from the last commit"
    # Each kill may cost the lines of the one group that was committed and not yet written.
    assert len(running.history()) >= ledger.version - KILLS * len(DEVICES)
    assert ledger.replaced == 0


def test_a_killed_gateway_costs_redeliveries_and_no_update(whole: Callable[..., Whole]) -> None:
    running = whole(devices=DEVICES)
    running.wait_for_merges(8)
    killing = Killing(running)
    for number in range(KILLS):
        killing.kill("gateway-1", aimed=number % 2 == 0)
        killing.restart("gateway-1")
    ledger = finish(running, killing, "gateway")
    assert len(running.history()) == ledger.version


def test_a_killed_broker_loses_what_it_acknowledged_and_the_fleet_does_not(whole: Callable[..., Whole]) -> None:
    running = whole(devices=DEVICES)
    running.wait_for_merges(8)
    killing = Killing(running)
    for number in range(KILLS):
        killing.kill("broker", aimed=number % 2 == 0)
        killing.restart("broker")
    ledger = finish(running, killing, "broker")
    assert len(running.history()) == ledger.version


def test_a_killed_broker_has_the_model_again_for_a_device_that_is_new(whole: Callable[..., Whole]) -> None:
    """With its retained messages a broker loses the compiled model, which no merge brings back."""
    running = whole(devices=("pi-1",), others=("pi-5",))
    running.wait_for_merges(2)
    running.kill("broker")
    running.restart("broker")
    running.start_device("pi-5")
    running.wait_for(lambda: any(merge["device"] == "pi-5" for merge in running.history()), 25, "a merge of pi-5")


def test_a_killed_device_comes_back_with_its_outbox(whole: Callable[..., Whole]) -> None:
    running = whole(devices=DEVICES)
    running.wait_for_merges(8)
    killing = Killing(running)
    for number in range(2 * KILLS):
        device = DEVICES[number % len(DEVICES)]
        killing.kill(device, aimed=number % 2 == 0)
        killing.restart(device, more=4)
    ledger = finish(running, killing, "device")
    assert len(running.history()) == ledger.version
