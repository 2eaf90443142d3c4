"""Chromium without a window, driven through chromedriver's HTTP interface (W3C WebDriver) with the standard library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine


class Browser:
    """One session."""

    def __init__(self, address: str, profile: Path) -> None:
        self.address = address
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS.split(), f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command; raises `urllib.error.HTTPError` if the driver refuses it."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with DIRECT.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        """What a piece of JavaScript returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries since the last call."""
        return self.call("POST", "/se/log", {"type": kind})

    def developer(self, command: str, **parameters: Any) -> None:
        """A command of the DevTools protocol."""
        self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Open a file as a window of this width shows it, light or dark."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.developer("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.developer("Emulation.setEmulatedMedia", features=features)
        self.call("POST", "/url", {"url": page.resolve().as_uri()})


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; it and its driver end with the block."""
    assert DRIVER is not None
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert driver.stdout is not None
    browser = None
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        browser = Browser(f"http://127.0.0.1:{port}", profile)
        yield browser
    finally:
        if browser is not None:
            browser.call("DELETE", "")
        driver.terminate()
        driver.wait(timeout=30)
        driver.stdout.close()
