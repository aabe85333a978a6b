"""A real server with a small model, and a browser that may reach nothing but it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from cli.conftest import save_folder, tiny_checkpoint

START_S = 120
PATIENCE_MS = 60_000  # a machine may be busy; what is awaited comes within a second on one that is not
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# without the flags on background networking a browser calls home at every start
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """The browser of this machine. `make test-page` says how to get one."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    assert found, "no Chromium here: apt-get install chromium, or put one on PATH"
    return found


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, *arguments: str) -> Generator[str]:
    """The address of `mezzotint serve` with folder/model, started in `folder` and ended afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "mezzotint.cli.main", "serve", "-m", "model", "--port", str(port), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEZZOTINT_CACHE": str(folder / "cache")}
    log = folder / "server.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"not ready after {START_S} s\n{log.read_text()}"
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                        break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def photo() -> Image.Image:
    """A smooth picture with an orange on it, of the size that the small model works at."""
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    ImageDraw.Draw(image).ellipse((16, 12, 46, 40), fill="orange")
    return image


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small models and a photo."""
    folder = tmp_path_factory.mktemp("studio")
    save_folder(tiny_checkpoint(), folder / "model")
    shutil.copytree(folder / "model", folder / "models" / "another")
    photo().save(folder / "photo.png")
    return folder


@pytest.fixture(scope="session")
def site(studio: Path) -> Generator[str]:
    """The address of a server that every test of the page shares."""
    with serving(studio, "--models", "models") as address:
        yield address


@pytest.fixture(scope="session")
def playwright() -> Generator[Playwright]:
    """The driver of the browser."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Generator[Browser]:
    """One headless browser."""
    opened = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
    yield opened
    opened.close()


@dataclass
class Visit:
    """A page that was opened, and everything about it that may not happen."""

    page: Page
    context: BrowserContext
    address: str
    foreign: list[str] = field(default_factory=list[str])
    said: list[str] = field(default_factory=list[str])

    def go(self, view: str = "create") -> Page:
        """The page at a view, once it knows its server."""
        self.page.goto(f"{self.address}/#{view}")
        self.page.locator(".state.is-on, .state.is-busy").wait_for()
        return self.page


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, site: str) -> Generator[Open]:
    """Open the page of `site` (or another address) with these options of a browser context.

    Afterwards no request may have left its origin, and nothing may have been said on the console.
    """
    visits: list[Visit] = []

    def open_page(address: str = site, **options: Any) -> Visit:  # Any: a context's own options
        settings: dict[str, Any] = {"viewport": {"width": 1366, "height": 768}, **options}  # Any: as above
        context = browser.new_context(**settings)
        context.set_default_timeout(PATIENCE_MS)
        made = Visit(context.new_page(), context, address)

        def guard(route: Any) -> None:  # Any: playwright's Route, whose handler it types loosely
            url = str(route.request.url)
            if url.startswith((f"{address}/", "data:", "blob:")):
                route.continue_()
            else:
                made.foreign.append(url)
                route.abort()

        context.route("**/*", guard)
        made.page.on(
            "console", lambda one: made.said.append(f"{one.type}: {one.text}") if one.type != "debug" else None
        )
        made.page.on("pageerror", lambda error: made.said.append(str(error)))
        visits.append(made)
        return made

    yield open_page
    for made in visits:
        made.context.close()
    assert [url for made in visits for url in made.foreign] == []
    assert [line for made in visits for line in made.said] == []


OUTCOMES: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what became of each test of the page."""
    if "test_page.py" in report.nodeid and (report.when == "call" or report.failed):
        OUTCOMES[report.nodeid.split("::", 1)[-1]] = report.outcome


def pytest_sessionfinish() -> None:
    """Write down the last outcome of each of them, where PAGE_RESULTS names a file."""
    if OUTCOMES and (named := os.environ.get("PAGE_RESULTS")):
        path = Path(named)
        before: dict[str, str] = json.loads(path.read_text())["tests"] if path.exists() else {}
        tests = dict(sorted({**before, **OUTCOMES}.items()))
        version = subprocess.run([chromium(), "--version"], capture_output=True, text=True, check=False).stdout.strip()
        counts = {outcome: list(tests.values()).count(outcome) for outcome in sorted(set(tests.values()))}
        told = {"what": "make test-page", "browser": version, "outcomes": counts, "tests": tests}
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
