"""The chat: answers come as they are written, can be stopped, rated and kept."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tests.test_web.running import wait_until
from tests.test_web.test_browser.conftest import Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = BROWSER


def test_an_answer_comes_as_it_is_written_and_can_be_stopped(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    with RunningSite(tmp_path, "adaptation.enabled=false", seconds_per_token=0.15) as site:
        page = opened(site, "/chat")
        page.get_by_label("Your message").fill("Tell me all.")
        page.keyboard.press("Enter")
        draft = page.locator("#draft")
        wait_until(lambda: len(draft.inner_text()) > 60)
        first = len(draft.inner_text())
        wait_until(lambda: len(draft.inner_text()) > first + 10)
        page.get_by_role("button", name="Stop").click()
        answer = page.get_by_role("article").nth(1)
        answer.get_by_text("stopped").wait_for()
        kept = answer.locator(".text").inner_text()
        time.sleep(0.6)
        assert answer.locator(".text").inner_text() == kept
        assert page.get_by_role("button", name="Send").is_visible()

        page.reload()
        assert kept[:40] in page.get_by_role("article").nth(1).inner_text()


def test_a_thumb_is_in_the_record_and_survives_a_reload(
    own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/chat")
    page.get_by_label("Who answers").select_option("harbours")
    page.get_by_label("Your message").fill("Who designed the Brellow tide engine?")
    page.get_by_role("button", name="Send").click()
    good = page.get_by_role("button", name="Good: answer 1")
    good.click()
    page.get_by_text("Noted.", exact=True).wait_for()
    assert page.get_by_role("article").nth(1).get_by_role("link", name="harbours").is_visible()
    file = own_demo.artifacts / "experts" / "activity.sqlite3"
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master")]
        assert "feedback" in tables, tables
        assert database.execute("select count(*) from feedback").fetchone() == (1,)
    page.reload()
    assert good.get_attribute("aria-pressed") == "true"


def test_a_conversation_outlives_the_server(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/chat")
    opened.watch(page).forgive("ERR_")
    page.get_by_label("Your message").fill("Who designed the Brellow tide engine?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Good: answer 1").wait_for()
    own_demo.kill()
    page.get_by_label("Your message").fill("Are you there?")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not answer").first.wait_for()
    assert page.get_by_label("Your message").input_value() == "Are you there?"
    own_demo.start()
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Good: answer 2").wait_for()


def test_what_was_learned_is_shown_and_taken_back(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    with RunningSite(tmp_path, "adaptation.every=1", "adaptation.strategy=cloze") as site:
        page = opened(site, "/chat")
        page.get_by_label("Your message").fill("My dog is called Rufus. <b>He</b> is from Orrin.")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Good: answer 1").wait_for()
        page.locator("summary", has_text="Learning from this conversation").click()
        learned = page.get_by_role("region", name="Adaptations of this conversation")
        learned.get_by_text("My dog is called Rufus. <b>He</b> is from Orrin.").wait_for()
        assert learned.get_by_text("✓ in use").is_visible()
        page.get_by_role("button", name="Take back the last adaptation").click()
        learned.get_by_text("taken back").wait_for()
        assert learned.get_by_text("My dog is called Rufus.").is_visible()
        assert page.get_by_role("button", name="Take back the last adaptation").is_disabled()
