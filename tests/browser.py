"""A real browser for tests: headless Chromium without a network, through selenium.

    with browser.chromium() as page:        # skips the test where there is no Chromium
        page.open(path)
        page.size(400)
        assert page.errors() == []
        assert page.run("return document.title") == "..."

Nothing is fetched: the browser is told to be offline before it opens a page, and ``requests`` says
what a page asked for all the same. Each browser has a profile of its own, removed with it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps"),
)


class Page:
    """One tab of a browser; ``driver`` is selenium's, for what is not here."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        """Open a local file in a fresh log; returns when the page and its scripts are loaded."""
        self.errors(), self.requests()
        self.driver.get(path.resolve().as_uri())

    def run(self, script: str, *values: object) -> Any:
        """The value that JavaScript ``return``s; elements and ``values`` pass both ways."""
        return self.driver.execute_script(script, *values)

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Return when a JavaScript expression is true; fails the test where it stays false."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(
            lambda _: self.run(f"return !!({condition})"), f"still false: {condition}"
        )

    def size(self, width: int, height: int = 900) -> None:
        """The size of the visible page in CSS pixels, however small."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", size)

    def media(self, media: str = "", scheme: str = "light") -> None:
        """Show the page as on ``print`` or ``screen``, to a reader of ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def overflow(self) -> int:
        """How many pixels the page is wider than the window; 0 where nothing hangs out."""
        told = "const e = document.scrollingElement; return e.scrollWidth - e.clientWidth"
        return int(self.run(told))

    def errors(self) -> list[str]:
        """What the console complained about since the last call: errors and warnings."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call; ``data:`` and ``blob:`` are part of the page."""
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def picture(self, file: Path) -> None:
        """Save the whole page as a PNG, not only what is in the window."""
        shot = self._command("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(shot["data"]))

    def paper(self, file: Path) -> None:
        """Print the page to a PDF on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
        file.write_bytes(base64.b64decode(self._command("Page.printToPDF", size)["data"]))

    def _command(self, name: str, options: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(name, options)


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser without a network; skips the test, with a reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.common.exceptions import SessionNotCreatedException

    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    control = shutil.which("chromedriver")
    if not binary or not control:
        pytest.skip(f"no {'chromedriver' if binary else 'Chromium'} on this machine")
    # A page of ours cannot harm, and the sandbox refuses to start for root or in a container.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*_QUIET, "--no-sandbox", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(control, log_output=os.devnull)
        try:
            driver = webdriver.Chrome(options=options, service=service)
        except SessionNotCreatedException as error:
            pytest.skip(f"Chromium does not start: {(error.msg or '').splitlines()[0]}")
        try:
            driver.set_script_timeout(30)
            driver.set_network_conditions(offline=True, latency=0, throughput=0)
            yield Page(driver)
        finally:
            driver.quit()
