"""A headless Chromium for the tests of the pages, which sees everything a browser complains about or asks for."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any, Self

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WAIT_S = 60.0
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip


class Browser:
    """One session with a profile of its own in `folder`. Skips the test where Chromium or its driver is absent."""

    def __init__(self, folder: Path) -> None:
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip("no chromium or chromedriver on this machine; scripts/test-tools installs them")
        options = Options()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_page_load_timeout(WAIT_S)
        self.look()
        self.driver.get("about:blank")
        self.requests()  # those of Chromium's own first page

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False, scale: float = 1.0) -> None:
        """The size of the window, and whether the user likes it dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str) -> None:
        """Open a page, and wait until it has its first data."""
        self.driver.get(url)
        self.wait_for(lambda: self.text("#live") == "live", f"{url} has its data")

    def find(self, css: str) -> WebElement:
        """The first element for a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """All text in the first element for a CSS selector, shown or not."""
        return self.script("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def script(self, source: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(source, *arguments)

    def wait_for(self, condition: Any, what: str) -> Any:
        """The condition's first true value."""
        return WebDriverWait(self.driver, WAIT_S, 0.1).until(lambda _driver: condition(), f"not in time: {what}")

    def complaints(self) -> list[str]:
        """What the console has said since the last call: errors of scripts, refusals of the policy, failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses of all requests of pages since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, path: Path) -> None:
        """Write the whole page, however long, as a PNG."""
        self.script("scrollTo(0, 0)")
        made = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(made["data"]))
