"""The pages in headless Chromium, of a real pollen-server that merges the updates of simulated devices."""

import itertools
import re
from collections.abc import Iterator

import pytest

from tests.server.web.browser import Browser
from tests.server.web.serving import TOKEN, Serving, SimulatedFleet

NAMES = [f"pi-{number:02d}" for number in range(1, 13)]
EVIL = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture(scope="module")
def fleet(serving: Serving) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(serving, NAMES) as one:
        one.merge(NAMES[0])
        one.vitals(NAMES[0])
        yield one


@pytest.fixture(autouse=True)
def nothing_leaves_and_nothing_fails(browser: Browser, serving: Serving) -> Iterator[None]:
    """Each test begins on a large light window; in each, no request may leave the server and no script fail."""
    browser.look()
    yield
    assert [url for url in browser.requests() if not url.startswith((serving.url + "/", "data:"))] == []
    faults = [line for line in browser.complaints() if "ERR_CONNECTION_REFUSED" not in line]
    assert [line for line in faults if "status of 404" not in line and "status of 401" not in line] == []


def figure(browser: Browser, label: str) -> str:
    """The number of the headline that is called `label`."""
    shown: str = browser.script(
        "const tile = [...document.querySelectorAll('.tile')].find("
        "tile => tile.querySelector('dt').textContent === arguments[0]);"
        "return tile?.querySelector('dd').firstChild.textContent ?? ''",
        label,
    )
    return shown


def test_an_empty_fleet_says_what_to_do(browser: Browser, serving: Serving) -> None:
    browser.open(serving.url)
    browser.wait_for(
        lambda: "No device has been seen yet" in browser.text("#map-empty"), "it says that nobody is there"
    )
    assert "No gateway is connected" in browser.text("#gateways")
    assert "No update was refused" in browser.text("#rejections")
    assert figure(browser, "Devices online") == "0"


def test_the_fleet_page_shows_devices_and_merges_as_they_happen(
    browser: Browser, serving: Serving, fleet: SimulatedFleet
) -> None:
    browser.open(serving.url)
    browser.wait_for(lambda: figure(browser, "Devices online") == str(len(NAMES)), "all devices are online")
    assert "12/12 online" in browser.driver.title
    assert "gateway-1" in browser.text("#gateways")
    before = int(figure(browser, "Merged"))
    fleet.merge(NAMES[1])
    browser.wait_for(lambda: int(figure(browser, "Merged")) == before + 1, "the merge is counted")
    newest = "return [...document.querySelectorAll('.event.merge .name')].map(link => link.textContent)[0]"
    browser.wait_for(lambda: browser.script(newest) == NAMES[1], "the merge is in the stream")
    browser.wait_for(lambda: browser.text("#map-status") == "12 devices, 12 online", "the map has them all")
    browser.wait_for(lambda: "Loss over" in browser.script(CHARTS)[0], "the loss is drawn")
    assert "accuracy (central)" in browser.script(CHARTS)[1]


CHARTS = "return [...document.querySelectorAll('svg.plot')].map(plot => plot.getAttribute('aria-label') ?? '')"


def test_a_refused_update_is_counted_by_its_reason(browser: Browser, serving: Serving, fleet: SimulatedFleet) -> None:
    browser.open(serving.url)
    fleet.refuse(NAMES[2])
    browser.wait_for(lambda: "not-finite" in browser.text("#rejections"), "a bar for it")
    browser.wait_for(lambda: "not finite" in browser.text(".event.rejection .about"), "its reason in the stream")
    assert figure(browser, "Rejected") == str(serving.api("/api/fleet")["updates"]["rejected"])


def test_the_filter_finds_devices_in_map_and_table(browser: Browser, serving: Serving, fleet: SimulatedFleet) -> None:
    browser.open(serving.url)
    browser.wait_for(lambda: browser.text("#map-status") == "12 devices, 12 online", "the map has them all")
    browser.find("#table-details summary").click()
    rows = "return [...document.querySelectorAll('#devices tbody .name')].map(link => link.textContent)"
    browser.wait_for(lambda: browser.script(rows) == NAMES, "the table has them all")
    browser.find("#filter").send_keys("PI-1")
    browser.wait_for(lambda: browser.text("#map-status") == "3 devices of 12, 3 online", "the map has three")
    browser.find("#filter").clear()
    browser.find("#filter").send_keys("pi-07")
    browser.wait_for(lambda: browser.script(rows) == ["pi-07"], "the table has one")
    browser.find("#filter").send_keys("x")
    browser.wait_for(lambda: "pi-07x" in browser.text("#map-empty"), "it says that nothing is called so")


def test_the_map_is_worked_by_keys_and_leads_to_a_device(
    browser: Browser, serving: Serving, fleet: SimulatedFleet
) -> None:
    browser.open(serving.url)
    browser.wait_for(lambda: browser.text("#map-status") == "12 devices, 12 online", "the map has them all")
    canvas = browser.find("#map")
    canvas.send_keys("\ue014")  # from the first device to the right
    assert browser.text("#map-status").startswith("pi-02: online")
    assert "pi-02" in browser.text("#map-tooltip")
    canvas.send_keys("\ue010")  # to the last
    assert browser.text("#map-status").startswith("pi-12: online")
    canvas.send_keys("\ue007")  # open it
    browser.wait_for(lambda: browser.driver.current_url == f"{serving.url}/devices/pi-12", "its page is open")


def test_a_device_has_a_page_with_vitals_and_history(browser: Browser, serving: Serving, fleet: SimulatedFleet) -> None:
    fleet.merge(NAMES[0])
    for celsius in (51.26, 52.26):
        fleet.vitals(NAMES[0], temperature_celsius=celsius, outbox_bytes=1.5e6, sensor_silent_s=0.25)
    browser.open(f"{serving.url}/devices/{NAMES[0]}")
    browser.wait_for(lambda: figure(browser, "Temperature") == "52.3 °C", "the newest temperature")
    assert browser.text("h1") == NAMES[0]
    assert figure(browser, "State") == "online"
    assert figure(browser, "Updates") == str(serving.api(f"/api/devices/{NAMES[0]}")["updates"])
    vitals = "return [...document.querySelectorAll('#vitals tr')].map(row => row.textContent)"
    assert {"temperature52.3 °C", "outbox1.50 MB", "sensor silent250 ms"} <= set(browser.script(vitals))
    assert "ai-edge-litert 2.3.0" in browser.text("#birth")
    assert "4.29 GB" in browser.text("#birth")
    browser.wait_for(lambda: all(browser.script(CHARTS)), "all six charts are drawn")
    assert "baseline from" in browser.script(CHARTS)[0]


def test_an_unknown_device_is_said_to_be_unknown(browser: Browser, serving: Serving) -> None:
    browser.open(f"{serving.url}/devices/pi-99")
    browser.wait_for(lambda: "No device pi-99 has been seen" in browser.text("#unknown"), "it says so")
    assert not browser.find("#block").is_displayed()


def test_what_devices_send_is_shown_as_text(browser: Browser, serving: Serving, fleet: SimulatedFleet) -> None:
    name = NAMES[3]
    fleet.death(name, EVIL)
    fleet.birth(name, software=EVIL, machine=EVIL, sensors=(EVIL,), interpreter="\u202eesrever")
    fleet.vitals(name, **{EVIL: 1.0})
    browser.open(f"{serving.url}/devices/{name}")
    browser.wait_for(lambda: EVIL in browser.text("#vitals") and EVIL in browser.text("#birth"), "both as text")
    browser.open(f"{serving.url}/devices/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    browser.wait_for(lambda: "<img src=x" in browser.text("h1"), "a name as text")
    browser.open(serving.url)
    browser.wait_for(lambda: EVIL in browser.text("#events"), "the event as text")
    browser.find("#table-details summary").click()
    browser.wait_for(lambda: EVIL in browser.text("#devices"), "the table as text")
    assert browser.script("return document.querySelectorAll('main img, main script').length") == 0
    assert "owned" not in browser.driver.title


def test_inline_scripts_would_not_run(browser: Browser, serving: Serving) -> None:
    """The last line of defence: the browser itself refuses what the policy does not name."""
    browser.open(serving.url)
    browser.script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script); document.body.insertAdjacentHTML('beforeend', arguments[0])",
        '<img src="/page/icon.svg" onload="window.ran = true"><img src="https://example.invalid/x.png">',
    )
    refusals: list[str] = []

    def three() -> bool:
        refusals.extend(browser.complaints())
        return len(refusals) >= 3

    browser.wait_for(three, "a refusal for each")
    assert all("Content Security Policy" in line for line in refusals)
    assert browser.script("return window.ran ?? null") is None
    browser.requests()  # the refused one is listed, though it was not made


def test_blocking_asks_for_the_token_and_keeps_it_nowhere(
    browser: Browser, serving: Serving, fleet: SimulatedFleet
) -> None:
    name = NAMES[4]
    browser.open(f"{serving.url}/devices/{name}")
    browser.wait_for(lambda: browser.find("#block").is_displayed(), "the button is there")
    browser.find("#block").click()
    assert browser.find("#ask").is_displayed()
    browser.find("#token").send_keys("wrong")
    browser.find("#ask-do").click()
    browser.wait_for(lambda: browser.text("#ask-problem") == "That token is wrong.", "it is refused")
    assert not serving.api(f"/api/devices/{name}")["blocked"]
    browser.find("#token").clear()
    browser.find("#token").send_keys(TOKEN + "\n")
    browser.wait_for(lambda: figure(browser, "State") == "blocked", "it is blocked")
    assert serving.api(f"/api/devices/{name}")["blocked"]
    browser.find("#block").click()
    browser.find("#ask-do").click()
    browser.wait_for(lambda: figure(browser, "State") == "online", "it is let in again, without asking twice")
    stored = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    assert TOKEN not in browser.script(stored)
    assert TOKEN not in browser.script("return document.documentElement.outerHTML")


@pytest.mark.parametrize("path", ["/", f"/devices/{NAMES[0]}"])
def test_the_pages_fit_a_phone_and_are_dark_where_that_is_liked(
    browser: Browser, serving: Serving, fleet: SimulatedFleet, path: str
) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    browser.look(360, 740, dark=True)
    browser.open(serving.url + path)
    browser.wait_for(lambda: len(browser.script("return [...document.querySelectorAll('.tile')]")) >= 6, "the numbers")
    assert browser.script("return document.documentElement.scrollWidth") <= 360
    assert max(browser.script(ground)) < 60
    browser.look(360, 740)
    assert min(browser.script(ground)) > 200


def test_everything_that_can_be_used_has_a_name_and_ids_are_unique(
    browser: Browser, serving: Serving, fleet: SimulatedFleet
) -> None:
    for path in ("/", f"/devices/{NAMES[0]}"):
        browser.open(serving.url + path)
        unnamed = browser.script(
            "return [...document.querySelectorAll('a, button, input, select, canvas[tabindex], svg[role]')]"
            ".filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.textContent.trim()))"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == []
        ids = browser.script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        headings = browser.script("return [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
        assert headings[0] == 1
        assert all(b - a <= 2 for a, b in itertools.pairwise(headings))


def test_the_page_says_that_the_server_is_gone_and_goes_on_when_it_is_back(browser: Browser, serving: Serving) -> None:
    browser.open(serving.url)
    started = serving.api("/api/fleet")["started_at"]
    serving.stop()
    browser.wait_for(lambda: browser.find("#banner").is_displayed(), "the banner")
    assert re.match(r"Connection to the server lost; what you see is old\. Retrying", browser.text("#banner"))
    assert browser.text("#live") == "no connection"
    serving.start()
    browser.wait_for(lambda: not browser.find("#banner").is_displayed(), "the banner is gone")
    with SimulatedFleet(serving, NAMES[:2]) as fleet:
        browser.wait_for(lambda: figure(browser, "Devices online") == "2", "it shows what is there now")
        fleet.merge(NAMES[0])
        merges = "return [...document.querySelectorAll('.event.merge .name')].map(link => link.textContent)"
        browser.wait_for(lambda: NAMES[0] in browser.script(merges), "the stream goes on")
    assert serving.api("/api/fleet")["started_at"] > started
