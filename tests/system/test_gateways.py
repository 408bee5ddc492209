"""Several gateways on one shared subscription: whatever becomes of them, each update is merged exactly once."""

import re
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from tests.system.ledger import audit
from tests.system.whole import Whole

DEVICES = ("pi-1", "pi-2", "pi-3", "pi-4")
GATEWAYS = ("gateway-1", "gateway-2", "gateway-3")

pytestmark = pytest.mark.timeout(180)


def ready(whole: Whole, gateway: str, times: int = 1) -> None:
    """Wait until `gateway` has said for the `times`th time that it is ready."""
    whole.wait_for(
        lambda: whole.log(gateway).read_text().count("is ready") >= times, 40, f"{gateway} is ready ({times})"
    )


def carried(whole: Whole, gateway: str) -> int:
    """How many updates and results `gateway` says it has sent up."""
    lines = re.findall(r"(\d+) updates and results sent up", whole.log(gateway).read_text())
    return sum(map(int, lines))


def test_gateways_join_leave_and_die_and_every_update_is_merged_once(whole: Callable[..., Whole]) -> None:
    running = whole(devices=DEVICES, gateways=GATEWAYS)
    running.wait_for_merges(8)
    running.start_gateway("gateway-2")
    ready(running, "gateway-2")
    running.wait_for_merges(16)
    running.stop("gateway-1")
    running.wait_for_merges(8)
    running.start_gateway("gateway-3")
    ready(running, "gateway-3")
    running.wait_for_merges(8)
    running.kill("gateway-2")
    running.wait_for_merges(8, seconds=60)
    running.start_gateway("gateway-1")
    ready(running, "gateway-1", times=2)
    running.wait_for_merges(8, seconds=60)
    running.stop(*DEVICES)
    running.stop("gateway-1", "gateway-3")
    running.stop("server")
    ledger = audit(running, DEVICES)
    assert all(carried(running, name) for name in ("gateway-1", "gateway-3")), "each had its share"
    assert ledger.published_again > 0, "what the dead gateway's session got went through the others"


def test_a_server_that_stands_still_gets_everything_once_when_it_goes_on(whole: Callable[..., Whole]) -> None:
    running = whole(devices=DEVICES, gateways=GATEWAYS[:2])
    running.start_gateway("gateway-2")
    ready(running, "gateway-2")
    running.wait_for_merges(8)
    server = psutil.Process(running._running["server"].process.pid)
    server.send_signal(signal.SIGSTOP)
    try:
        running.wait_for(lambda: running.in_flight() >= len(DEVICES), 30, "every device's update is on its way")
        time.sleep(3.0)  # the devices publish again meanwhile
    finally:
        server.send_signal(signal.SIGCONT)
    running.wait_for_merges(8)
    running.stop(*DEVICES)
    running.stop(*GATEWAYS[:2])
    running.stop("server")
    ledger = audit(running, DEVICES)
    assert ledger.published_again > 0, "the devices did publish again, and nothing came of it twice"
