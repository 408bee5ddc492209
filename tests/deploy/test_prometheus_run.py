"""A real Prometheus with the configuration of deploy/, scraping real services."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Tool
from tests.deploy.metric_names import recorded
from tests.deploy.services import Fleet, free_port
from tests.deploy.unit_files import PROJECT

WAIT_S = 60.0
Query = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def query(fleet: Fleet, tool: Tool, tmp_path: Path) -> Iterator[Query]:
    """Asks a Prometheus that scrapes `fleet` every second."""
    folder = tmp_path / "prometheus"
    shutil.copytree(PROJECT / "deploy" / "prometheus", folder)
    configuration = folder / "prometheus.yml"
    text = configuration.read_text(encoding="utf-8")
    configuration.write_text(re.sub(r"_interval: 15s", "_interval: 1s", text), encoding="utf-8")
    for job, role, port in (("pollen-server", "server", 7080), ("pollen-gateway", "gateway", 7081)):
        targets = folder / "targets" / f"{job}.yml"
        text = targets.read_text(encoding="utf-8")
        targets.write_text(text.replace(f":{port}", f":{fleet.http[role]}"), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    options = [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}", "--log.level=warn"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [tool("prometheus", "prometheus"), f"--config.file={configuration}", *options], stdout=log, stderr=log
        )

    def ask(expression: str) -> list[dict[str, Any]]:
        assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
        question = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{address}/api/v1/query?{question}", timeout=20) as answer:
                found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
                return found
        except OSError:  # it has only begun
            return []

    yield ask
    process.terminate()
    process.wait(30)


def test_prometheus_sees_the_fleet_and_records_what_dashboards_show(query: Query) -> None:
    missing = set(recorded()) - {"instance_kind:pollen_server_rejections:rate15m"}  # nothing is refused here
    deadline = time.monotonic() + WAIT_S
    while missing or len(query("up == 1")) < 2:
        assert time.monotonic() < deadline, f"not there: {missing}; up: {query('up')}"
        missing = {name for name in missing if not query(name)}
        time.sleep(0.2)
    assert query("pollen_server_devices_online")[0]["value"][1] == "1"
    assert [one["metric"]["alertname"] for one in query('ALERTS{alertstate="firing"}')] == []
