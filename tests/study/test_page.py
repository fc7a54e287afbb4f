"""Pages of studies, sweeps and evaluations in a browser: nothing overflows or fails, on a phone and on a desk.

Chromium is driven over plain HTTP (W3C WebDriver and its ``goog/cdp`` extension), so that no package is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glscl.evaluation.report import write_report
from glscl.reporting.published import PACKAGED, read_published
from glscl.shifts.report import render_shifts
from glscl.study.report import render_study
from tests.evaluation.test_report import make_results
from tests.shifts.fake import made_up
from tests.study.study_fixture import make_study
from tests.tune.fake import make_sweep
from tune.report import render_sweep

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    not (DRIVER and CHROMIUM), reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"
)


class Browser:
    """One headless window."""

    def __init__(self, port: int, profile: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += [f"--user-data-dir={profile}", "--hide-scrollbars"]
        options = {"binary": CHROMIUM, "args": flags}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/session/{session['sessionId']}"

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)["value"]

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, path: Path, width: int, *, dark: bool = False, paper: bool = False) -> None:
        """Open a file in a window of that width."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme])
        self._post("/url", {"url": path.as_uri()})

    def evaluate(self, expression: str) -> Any:
        """Value of an expression on the page."""
        return self._post("/execute/sync", {"script": f"return {expression}", "args": []})

    def console(self) -> list[str]:
        """What the page's console said since the last time: blocked resources, errors."""
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"})]

    def close(self) -> None:
        """End the browser."""
        urllib.request.urlopen(urllib.request.Request(self.address, method="DELETE"), timeout=600).close()


@contextlib.contextmanager
def start_browser(folder: Path) -> Iterator[Browser]:
    """A browser of its own, ended with its driver."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    with subprocess.Popen(
        [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as driver:
        try:
            deadline = time.monotonic() + 600
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=60).close()
                    break
                except urllib.error.URLError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            browser = Browser(port, folder)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "study.html"
    study = make_study(("32_words_12_frames", "64_words_64_frames"))
    path.write_text(render_study(study, read_published(PACKAGED)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run_page") / "report.html"
    write_report(make_results(), str(path))
    return path


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep_page") / "sweep.html"
    path.write_text(render_sweep(make_sweep()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shifts_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shifts_page") / "shifts.html"
    path.write_text(render_shifts(made_up()), encoding="utf-8")
    return path


@pytest.mark.parametrize("which", ["page", "run_page", "sweep_page", "shifts_page"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_the_screen(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int, dark: bool
) -> None:
    browser.open(request.getfixturevalue(which), width, dark=dark)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)") is None
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.console() == []
    luminance = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_thumbnails_are_loaded_under_the_content_policy(browser: Browser, page: Path) -> None:
    browser.open(page, 1440)
    assert browser.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") > 0


def test_text_of_figures_does_not_collide(browser: Browser, page: Path) -> None:
    browser.open(page, 1440)
    collisions = browser.evaluate(
        """[...document.querySelectorAll('.chart')].flatMap(plot => {
            const boxes = [...plot.querySelectorAll('.name')].map(each => each.getBoundingClientRect());
            return boxes.flatMap((a, i) => boxes.slice(0, i).filter(b =>
                a.left < b.right && b.left < a.right && a.top + 3 < b.bottom - 3 && b.top + 3 < a.bottom - 3));
        }).length"""
    )
    assert collisions == 0


def test_paper_is_light_and_whole(browser: Browser, page: Path) -> None:
    browser.open(page, 800, dark=True, paper=True)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 800
    assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
