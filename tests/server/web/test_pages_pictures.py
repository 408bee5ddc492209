"""Makes the pictures in docs/images: pytest tests/server/web/test_pages_pictures.py -m slow."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.web.browser import Browser
from tests.server.web.serving import TOKEN, Serving, SimulatedFleet

IMAGES = Path(__file__).parents[3] / "docs" / "images"
DEVICES = 60
MERGES = 600
SHOWN = "pi-07"
WRONG: list[dict[str, Any]] = [{"value": float("nan")}, {"samples": 0}, {"base": 10**6}]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_pictures_of_the_documentation_are_made(tmp_path: Path) -> None:
    names = [f"pi-{number:02d}" for number in range(1, DEVICES + 1)]
    chance = random.Random(7)
    with Browser(tmp_path) as browser, Serving(tmp_path) as serving, SimulatedFleet(serving, names) as fleet:
        # Devices differ: some never answer, some stop early and fall behind, some come often.
        silent, early = set(names[20:23]), set(names[30:34]) | set(names[50:53])
        often = [name for name in names if name not in silent]
        for merged in range(MERGES):
            if merged == MERGES // 6:
                often = [name for name in often if name not in early]
            name = SHOWN if merged % 12 == 0 else chance.choice(often)
            fleet.wait_for_tasks(name)
            fleet.answer(name, chance.gauss(0.01, 0.004), samples=chance.randrange(5, 60))
            fleet.vitals(name)
            if merged % 60 == 30:
                refused = chance.choice(often[:40])
                fleet.wait_for_tasks(refused)
                wrong = WRONG[merged // 60 % 3]
                fleet.answer(refused, **wrong)
            time.sleep(0.08)
        for name in names[40:46]:
            fleet.death(name)
        assert serving.ask("/api/devices/pi-13/block", "POST", {"Authorization": f"Bearer {TOKEN}"})[0] == 200
        serving.wait_for(lambda: serving.api("/api/fleet")["devices"]["online"] == DEVICES - 6, "six are offline")
        IMAGES.mkdir(exist_ok=True)
        for path, picture in (("/", "fleet.png"), (f"/devices/{SHOWN}", "device.png")):
            browser.open(serving.url + path)
            charts = "return [...document.querySelectorAll('svg.plot')].filter(plot => plot.ariaLabel).length"
            browser.wait_for(lambda charts=charts: browser.script(charts) >= 2, "the charts are drawn")
            height = browser.script("return document.documentElement.scrollHeight")
            browser.look(1280, height)
            browser.wait_for(lambda height=height: browser.script("return innerHeight") == height, "all of it is seen")
            time.sleep(1.0)  # what is drawn anew at the new size
            browser.picture(IMAGES / picture)
            browser.look()
