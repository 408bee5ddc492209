"""A wall clock that jumps by ten years, back and forth, under the whole agent: nothing changes but recorded times."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_client.agent import Agent
from edge_client.sensors.sampling import Sample
from pollen.bundle import Bundle
from pollen.messages import Birth
from tests.edge_client.clock import MovedClock
from tests.edge_client.fleet import Server, loaded, write_settings

pytest.importorskip("ai_edge_litert", reason="the agent runs in this process, where TensorFlow may be loaded already")

TEN_YEARS_S = 10 * 365.25 * 86400
JUMPS = (0.0, TEN_YEARS_S, -TEN_YEARS_S, 3 * TEN_YEARS_S, -5 * TEN_YEARS_S)  # to before 1980, too


class Jumping(MovedClock):
    """Jumps at every tenth look at the wall time."""

    def __init__(self) -> None:
        super().__init__(known=False)
        self.looks = 0

    def wall(self) -> float:
        self.looks += 1
        self.offset = JUMPS[self.looks // 10 % len(JUMPS)]
        return super().wall()


@pytest.fixture
def running(server: Server, tmp_path: Path) -> Iterator[Callable[[MovedClock], list[Sample]]]:
    """Runs an agent in a thread of this process; gives the list into which its samples go."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(clock: MovedClock) -> list[Sample]:
        tables = {
            "upload": {"retry_s": 0.5, "bytes_per_day": 10**10},
            "storage": {"flush_s": 0.2},
            "policy": {"quiet_hours": "00:00-23:59"},  # which a clock known to be wrong can't tell
        }
        settings = loaded(write_settings(tmp_path, "pi-1", server.port, tables))
        samples: list[Sample] = []

        def run() -> None:
            agent = Agent(settings, clock)  # here, since SQLite's connections belong to a thread
            take = agent._sampler.take

            def taken(most: int) -> list[Sample]:
                found = take(most)
                samples.extend(found)
                return found

            agent._sampler.take = taken  # type: ignore[method-assign]
            agent.run(stop)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        server.wait_for(server.online, 30, "its birth")
        return samples

    yield start
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_nothing_changes_but_the_recorded_wall_time(
    server: Server, bundles: Callable[[str], Bundle], running: Callable[[MovedClock], list[Sample]]
) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    clock = Jumping()
    samples = running(clock)
    seq = 0
    for done in range(3):
        task = server.task(bundle)
        update = server.update(task)
        assert update.seq == seq + 1
        seq = update.seq
        server.wait_for(lambda task=task: len(server.updates(task)) >= 2, 20, "the update again after retry_s")
        server.receipt(update)
        server.wait_for(lambda done=done: server.vitals()["receipts_merged"] == done + 1, 20, "the receipt")
    vitals = server.vitals()
    assert vitals["outbox_rows"] == 0
    assert vitals["stored_samples"] > 0
    assert vitals["stored_damaged"] == vitals["store_dropped"] == 0
    assert 0 < 10**10 - vitals["budget_left_bytes"] < 10**6
    assert vitals["sensor_gaps"] == vitals["sensor_failures"] == vitals["reconnects"] == 0
    assert clock.looks > 50 * len(JUMPS)
    births = [state for state in server.states() if isinstance(state, Birth)]
    assert {birth.clock for birth in births} == {"unsynchronised"}
    assert len({birth.session for birth in births}) == 1
    taken = list(samples)
    steps = [after.monotonic - before.monotonic for before, after in itertools.pairwise(taken)]
    assert min(steps) > 0
    assert max(steps) < 10
    walls = [sample.wall for sample in taken]
    assert max(walls) - min(walls) > 7 * TEN_YEARS_S
    assert not any(sample.synchronised for sample in taken)
    assert [sample.number for sample in taken] == list(range(len(taken)))


def test_vitals_come_as_often_whatever_the_wall_clock_does(
    server: Server, running: Callable[[MovedClock], list[Sample]]
) -> None:
    clock = MovedClock()
    running(clock)
    server.wait_for(server.vitals, 20, "vitals")
    for offset in (TEN_YEARS_S, -TEN_YEARS_S, 0.0):
        clock.offset = offset
        count = len(server.payloads("vitals"))
        started = clock.monotonic()
        server.wait_for(lambda count=count: len(server.payloads("vitals")) >= count + 2, 20, "two more")
        assert clock.monotonic() - started > 0.5, "one a second, not a flood"
