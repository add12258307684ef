"""An expert's own pages, goals, strategies, the cache and the chat's files, in a real browser."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from aios.app.data.files import DataFiles
from tests.test_web.running import wait_until
from tests.test_web.test_browser.conftest import ROOT, Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite
from tests.test_web.test_browser.test_buttons import changed_settings, experts, press
from tests.test_web.test_browser.test_run_buttons import sure

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = BROWSER


def noted(page: Page) -> str:
    """The note at the top, once it is there."""
    note = page.locator(".note-bar").first
    note.wait_for()
    return note.inner_text()


# ---------------------------------------------------------------- experts


def test_what_people_read_of_an_expert_is_edited(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts/animals/edit")
    page.get_by_label("Name").fill("Beasts & <b>moss</b>")
    page.get_by_label("Category").fill("fauna")
    page.get_by_role("button", name="Save").click()
    assert "was changed" in noted(page)
    found = experts(own_demo)["animals"]
    assert (found.name, found.category) == ("Beasts & <b>moss</b>", "fauna")
    assert page.get_by_role("heading", name="Beasts & <b>moss</b>").is_visible()


def test_an_expert_forgets_a_passage_and_is_rolled_back(
    own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/experts/animals/passages")
    documents = own_demo.artifacts / "experts" / "animals" / "documents.jsonl"
    before = documents.read_bytes()
    page.get_by_role("link", name="Forget").first.click()
    page.get_by_label("Keep the older versions").check()
    page.get_by_role("button", name="Train again without it").click()
    job = own_demo.wait_for_job("forget", "done", "failed")
    assert job.state == "done", own_demo.jobs.log_tail(job.id)
    assert documents.read_bytes() != before

    page.goto("/experts/animals/versions")
    rows = page.get_by_role("row").count()
    sure(page, "Roll back to version")
    noted(page)
    assert page.get_by_role("row").count() == rows + 1
    assert documents.read_bytes() == before


def test_an_expert_is_made_of_a_folder(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts/-/new")
    page.get_by_label("Folder").fill(str(own_demo.artifacts / "experts" / "animals"))
    page.locator("input[name=id]").fill("copy")
    page.get_by_label("Goals").fill("Know moss")
    page.get_by_role("button", name="Make the expert").click()
    assert "was made" in noted(page)
    assert experts(own_demo)["copy"].goals == ("Know moss",)


def test_a_goal_is_removed_after_a_yes(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/goals")
    page.get_by_label("New goal").fill("Know the tides")
    press(page, "Add goal")
    page.goto("/goals")
    sure(page, "Remove the goal")
    assert "removed" in noted(page)
    assert page.get_by_text("There are no goals yet.").is_visible()


# ---------------------------------------------------------------- settings, cache, files


def test_a_strategy_is_chosen_and_all_changes_are_reset(
    own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/settings/strategies")
    press(page, "Use rewrite")
    assert changed_settings(own_demo) == {"seal.strategy": "rewrite"}
    page.goto("/settings")
    sure(page, "Reset all")
    wait_until(lambda: changed_settings(own_demo) == {})


def test_the_cache_is_pruned(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/cache")
    page.get_by_label("What may stay").fill("1B")
    page.get_by_role("button", name="Prune").click()
    assert "0 are left" in noted(page)


def test_the_writing_of_a_file_is_timed(site: RunningSite, opened: Opener) -> None:
    lines = (ROOT / "examples" / "passages.jsonl").read_bytes()
    file = DataFiles(site.artifacts).add("coast.jsonl", io.BytesIO(lines))
    page = opened(site, f"/files/{file.id}")
    page.get_by_role("button", name="Time the writing").click()
    page.locator(".estimates").get_by_text("going by").first.wait_for(timeout=60_000)


# ---------------------------------------------------------------- the chat


def test_a_conversation_is_saved_forgotten_and_opened(
    own_demo: RunningSite, opened: Opener, tmp_path: Path
) -> None:
    page = opened(own_demo, "/chat")
    page.get_by_label("Your message").fill("Who designed the Brellow tide engine?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Good: answer 1").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save to a file").click()
    file = tmp_path / "talk.json"
    waiting.value.save_as(file)
    assert json.loads(file.read_text())["messages"][0]["content"].startswith("Who designed")

    with page.expect_request("**/chat/forget"):
        sure(page, "New conversation")
    page.get_by_text("Nothing was said yet.").wait_for()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a file").click()
    chooser.value.set_files(file)
    page.get_by_role("article").nth(1).wait_for()
    assert "Who designed" in page.get_by_role("article").first.inner_text()


def test_learning_is_switched_off(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/chat")
    page.locator("summary", has_text="Learning from this conversation").click()
    tick = page.get_by_label("Learn from what is said here")
    with page.expect_request("**/chat/adapting"):
        tick.uncheck()
    page.reload()
    page.locator("summary", has_text="Learning from this conversation").click()
    assert not tick.is_checked()
