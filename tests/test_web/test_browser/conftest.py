"""Chromium, found by name, and pages in it that fail a test when anything goes wrong in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_web.test_browser.running_site import RunningSite

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHOSEN = os.environ.get("AIOS_CHROMIUM", "")  # read before tests have an environment of their own
WIDE = {"width": 1280, "height": 900}


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return CHOSEN or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; each has contexts of its own, without the others' cookies."""
    program = chromium()
    if program is None:
        pytest.skip(f"needs a web browser: none of {', '.join(NAMES)} is there; see AIOS_CHROMIUM")
    from playwright.sync_api import sync_playwright

    home = str(tmp_path_factory.mktemp("browser"))
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=arguments, env={**os.environ, "HOME": home}
        )
        yield opened
        opened.close()


class Watch:
    """What goes wrong in a page: errors, violations of the policy, dialogs, foreign requests."""

    def __init__(self, page: Page, url: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._home = f"{url}/"
        self._forgiven: list[re.Pattern[str]] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)

    def forgive(self, pattern: str) -> None:
        """Problems with this text are what the test wants."""
        self._forgiven.append(re.compile(pattern))

    def left(self) -> list[str]:
        """The problems that nobody forgave."""
        return [p for p in self.problems if not any(f.search(p) for f in self._forgiven)]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            where = message.location.get("url", "")
            self.problems.append(f"{message.type}: {message.text} {where}")

    def _dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((self._home, "data:", "blob:")):
            self.problems.append(f"request: {request.url}")


class Opener:
    """Opens pages of a site, each in a context of its own, and looks what goes wrong in them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._stack = ExitStack()
        self._watches: dict[Page, Watch] = {}

    def __call__(self, site: RunningSite, path: str | None = "/", **context: Any) -> Page:
        """A page of a new visitor; with a path, gone to it."""
        made = self._browser.new_context(**{"viewport": WIDE, "base_url": site.url, **context})
        self._stack.callback(made.close)
        return self._watched(made.new_page(), site, path)

    def another(self, page: Page, site: RunningSite, path: str) -> Page:
        """Another tab of the same visitor."""
        return self._watched(page.context.new_page(), site, path)

    def watch(self, page: Page) -> Watch:
        """What goes wrong in a page."""
        return self._watches[page]

    def close(self) -> list[str]:
        """Closes all; what went wrong in any."""
        with self._stack:
            return [problem for watch in self._watches.values() for problem in watch.left()]

    def _watched(self, page: Page, site: RunningSite, path: str | None) -> Page:
        page.set_default_timeout(20_000)
        page.set_default_navigation_timeout(60_000)
        self._watches[page] = Watch(page, site.url)
        if path is not None:
            page.goto(path)
        return page


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens pages; the test fails if anything goes wrong in one that it does not forgive."""
    opener = Opener(browser)
    yield opener
    assert opener.close() == []


@pytest.fixture
def site(tmp_path: Path, browser: Browser) -> Iterator[RunningSite]:
    """A server of its own, with nothing in its artifacts."""
    with RunningSite(tmp_path) as running:
        yield running


@pytest.fixture(scope="package")
def demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose artifacts hold something of everything; nobody changes them."""
    folder = tmp_path_factory.mktemp("demo")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
    program = [sys.executable, str(ROOT / "scripts" / "demo_artifacts.py")]
    subprocess.run(
        [*program, str(folder / "artifacts")],
        check=True,
        stdin=subprocess.DEVNULL,
        env={**kept, "HOME": str(folder)},
        timeout=280,
    )
    return folder


@pytest.fixture(scope="package")
def demo_site(demo: Path) -> Iterator[RunningSite]:
    """A server of the demonstration, for tests that only look."""
    with RunningSite(demo) as running:
        yield running


@pytest.fixture
def own_demo(demo: Path, tmp_path: Path, browser: Browser) -> Iterator[RunningSite]:
    """A server of a copy of the demonstration, for tests that press buttons."""
    shutil.copytree(demo / "artifacts", tmp_path / "artifacts")
    with RunningSite(tmp_path) as running:
        yield running
