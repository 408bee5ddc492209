"""AsyncClientManager under several threads at once: nobody is given out twice, nobody who left comes back."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from server import AsyncClientManager, flower_private
from tests.server.grids import SilentGrid

THREADS = 8
GRID = SilentGrid()


def client(number: int) -> ClientProxy:
    return flower_private.proxy(number, GRID)


def filled(count: int) -> AsyncClientManager:
    manager = AsyncClientManager()
    for number in range(count):
        assert manager.register(client(number))
    return manager


def together(work: Callable[[int], None]) -> None:
    """Run `work(number)` in `THREADS` threads that start at the same moment; what one raises fails the test."""
    barrier = threading.Barrier(THREADS)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait(10)
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def test_a_registered_client_is_free_until_it_is_given_out() -> None:
    manager = filled(2)
    assert (manager.num_available(), manager.num_free(), len(manager)) == (2, 2, 2)
    assert manager.set_client_to_busy("1")
    assert not manager.set_client_to_busy("1")
    assert set(manager.all_free()) == {"0"}
    assert set(manager.all()) == {"0", "1"}
    assert manager.set_client_to_free("1")
    assert not manager.set_client_to_free("1")
    assert manager.num_free() == 2


def test_a_client_registers_once() -> None:
    manager = filled(1)
    assert not manager.register(client(0))
    assert manager.num_available() == 1


@pytest.mark.parametrize("change", ["set_client_to_busy", "set_client_to_free"])
def test_an_unknown_client_is_neither_busy_nor_free(change: str) -> None:
    manager = filled(1)
    assert not getattr(manager, change)("99")
    assert manager.num_free() == 1


def test_a_busy_client_that_unregisters_and_comes_back_is_free() -> None:
    manager = filled(1)
    manager.set_client_to_busy("0")
    manager.unregister(client(0))
    assert (manager.num_available(), manager.num_free(), manager.all_free()) == (0, 0, {})
    assert manager.register(client(0))
    assert set(manager.all_free()) == {"0"}


def test_sampling_free_clients_takes_each_once() -> None:
    manager = filled(10)
    first = {c.cid for c in manager.sample_free(6)}
    second = {c.cid for c in manager.sample_free(4)}
    assert first | second == {str(number) for number in range(10)}
    assert first & second == set()
    assert manager.num_free() == 0


class Even(Criterion):
    def select(self, client: ClientProxy) -> bool:
        return int(client.cid) % 2 == 0


def test_a_criterion_chooses_and_too_few_that_fit_give_none() -> None:
    manager = filled(6)
    assert {c.cid for c in manager.sample(3, criterion=Even())} == {"0", "2", "4"}
    assert manager.sample(4, criterion=Even()) == []
    assert {c.cid for c in manager.sample_free(3, criterion=Even())} == {"0", "2", "4"}
    assert manager.sample_free(1, min_num_free_clients=1, criterion=Even()) == []
    assert manager.num_free() == 3


def test_sampling_is_as_flowers_own_manager_does_it() -> None:
    ours, flowers = filled(20), SimpleClientManager()
    for number in range(20):
        flowers.register(client(number))
    for seed in range(20):
        random.seed(seed)
        expected = [c.cid for c in flowers.sample(7)]
        random.seed(seed)
        assert [c.cid for c in ours.sample(7)] == expected
    assert {c.cid for c in ours.sample(20)} == {c.cid for c in flowers.sample(20)}


def test_waiting_for_clients_ends_when_they_are_there_or_time_is_up() -> None:
    manager = AsyncClientManager()
    started = time.monotonic()
    assert not manager.wait_for(1, timeout=0)
    assert not manager.wait_for_free(1, timeout=0.05)
    assert time.monotonic() - started < 5
    come = threading.Thread(target=manager.register, args=(client(0),))
    come.start()
    assert manager.wait_for(1, timeout=10)
    come.join()
    manager.set_client_to_busy("0")
    release = threading.Thread(target=manager.set_client_to_free, args=("0",))
    release.start()
    assert manager.wait_for_free(1, timeout=10)
    release.join()


def test_a_client_is_never_with_two_callers_at_once() -> None:
    manager = filled(5)
    holders: Counter[str] = Counter()
    most: Counter[str] = Counter()
    given: Counter[str] = Counter()
    lock = threading.Lock()

    def work(_: int) -> None:
        for _ in range(300):
            (taken,) = manager.sample_free(1)  # waits until one is free
            with lock:
                holders[taken.cid] += 1
                most[taken.cid] = max(most[taken.cid], holders[taken.cid])
                given[taken.cid] += 1
            time.sleep(0)
            with lock:
                holders[taken.cid] -= 1
            assert manager.set_client_to_free(taken.cid)

    together(work)
    assert set(most.values()) == {1}
    assert sum(given.values()) == THREADS * 300
    assert len(given) == 5
    assert manager.num_free() == 5


def test_only_one_of_many_callers_marks_a_client_busy() -> None:
    manager = filled(200)
    won: list[str] = []

    def work(_: int) -> None:
        won.extend(str(number) for number in range(200) if manager.set_client_to_busy(str(number)))

    together(work)
    assert sorted(won, key=int) == [str(number) for number in range(200)]
    assert manager.num_free() == 0


def test_clients_that_come_and_go_under_load_leave_no_ghosts() -> None:
    """Each thread owns 10 clients that register and unregister while all threads sample, free and count."""
    manager = AsyncClientManager()
    sampled = Counter[int]()

    def work(thread: int) -> None:
        chance = random.Random(thread)
        mine = [client(1000 * thread + number) for number in range(10)]
        for _ in range(150):
            one = chance.choice(mine)
            manager.register(one)
            for taken in manager.sample_free(1, min_num_free_clients=0):
                sampled[thread] += 1
                if chance.random() < 0.5:  # else it stays busy for whoever owns it
                    manager.set_client_to_free(taken.cid)
            assert 0 <= manager.num_free() <= THREADS * 10
            if chance.random() < 0.7:
                manager.unregister(one)
                assert one.cid not in manager.all()
                assert one.cid not in manager.all_free()
                assert not manager.set_client_to_busy(one.cid)
        for one in mine:
            manager.unregister(one)

    together(work)
    assert sum(sampled.values()) > 100
    assert (manager.num_available(), manager.num_free()) == (0, 0)
    assert (manager.all(), manager.all_free()) == ({}, {})
    assert manager.sample_free(1, min_num_free_clients=0) == []
