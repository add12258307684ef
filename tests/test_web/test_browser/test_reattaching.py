"""A long run goes on whatever happens to its viewers: closed tabs, a killed server."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.test_web.running import wait_until
from tests.test_web.test_browser.conftest import ROOT, Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite, say
from tests.test_web.test_browser.test_speed import MOST_SHIFT, SHIFTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = BROWSER
LONG = (  # minutes of work, if nobody stops it
    "restem.keep=best_of_k",
    "restem.patience=0",
    "restem.held_out_fraction=0.1",
    "restem.estimate=false",
    "evaluation.bootstrap_samples=100",
)
GIVES_UP = "The server does not answer"


def start_run(page: Page) -> str:
    """Starts ReST-EM on the examples; gives the run's id."""
    choose_file(page)
    for label, number in (("Rounds", "60"), ("Passages a round", "25")):
        page.get_by_label(label).fill(number)
    page.get_by_label("Self-edits tried a passage").fill("12")
    page.get_by_text("25 passages, 12 self-edits of each").wait_for()
    page.get_by_role("button", name="Start this run").click()
    page.wait_for_url(re.compile("/restem/restem-"))
    return re.split("[/?]", page.url.split("/restem/")[1])[0]


def choose_file(page: Page) -> None:
    field = page.get_by_label("File of passages with questions")
    (value,) = [
        option.get_attribute("value") or ""
        for option in field.locator("option").all()
        if (option.text_content() or "").startswith("coast.jsonl")
    ]
    field.select_option(value)


def trials_done(site: RunningSite, run: str) -> int:
    """How much of a run is on disk."""
    events = site.artifacts / "runs" / run / "events.jsonl"
    return events.stat().st_size if events.is_file() else 0


def test_a_run_is_found_again_after_tabs_and_the_server_were_gone(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "coast.jsonl").write_bytes((ROOT / "examples" / "passages.jsonl").read_bytes())
    with RunningSite(tmp_path, *LONG, data=(data,)) as site:
        page = opened(site, "/restem")
        run = start_run(page)
        site.wait_for_job("restem", "running")
        left_open = opened.another(page, site, f"/restem/{run}")
        opened.watch(left_open).forgive("ERR_")
        left_open.evaluate("window.neverLoadedAgain = true")
        panel = left_open.get_by_role("region", name="How the run stands")
        panel.get_by_text("running").first.wait_for()
        panel.get_by_text("Trials done in this round").wait_for()
        page.close()
        shift = left_open.evaluate(SHIFTS)
        say(f"cumulative layout shift while a run goes on: {shift:.4f}")
        assert shift < MOST_SHIFT

        site.kill()
        left_open.get_by_text(GIVES_UP).wait_for()
        before = trials_done(site, run)
        wait_until(lambda: trials_done(site, run) > before, 30)  # it goes on without a server
        assert site.jobs.get(run).state == "running"

        site.start()
        left_open.get_by_text(GIVES_UP).wait_for(state="hidden")
        shown = panel.inner_text()
        wait_until(lambda: panel.inner_text() != shown, 30)
        assert left_open.evaluate("window.neverLoadedAgain") is True

        panel.get_by_role("button", name="Stop", exact=True).click()
        left_open.get_by_role("dialog").get_by_role("button", name="Stop").click()
        panel.get_by_role("button", name="Resume").wait_for(timeout=60_000)
        assert site.wait_for_job("restem", "stopped").id == run

        panel.get_by_role("button", name="Resume").click()
        job = site.wait_for_job("restem", "running")
        assert (job.id, job.attempts) == (run, 2)
        before = trials_done(site, run)
        wait_until(lambda: trials_done(site, run) > before, 30)


def test_a_finished_run_is_shown_from_its_directory_alone(
    own_demo: RunningSite, opened: Opener
) -> None:
    shutil.rmtree(own_demo.artifacts / "jobs")
    page = opened(own_demo, "/restem/restem-passages")
    page.get_by_role("heading", name="Results").wait_for()
    page.goto("/ab-tests/ab-test-passages")
    page.get_by_text("verdict").or_(page.locator(".verdict")).first.wait_for()


@pytest.mark.parametrize("path", ["/", "/jobs", "/experts"])
def test_a_live_page_recovers_by_itself(own_demo: RunningSite, opened: Opener, path: str) -> None:
    page = opened(own_demo, path)
    opened.watch(page).forgive("ERR_")
    page.evaluate("window.neverLoadedAgain = true")
    page.wait_for_timeout(700)
    own_demo.kill()
    page.get_by_text(GIVES_UP).wait_for()
    own_demo.start()
    page.get_by_text(GIVES_UP).wait_for(state="hidden")
    assert page.evaluate("window.neverLoadedAgain") is True
