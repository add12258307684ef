"""Buttons do what they say, and what is on disk agrees: one of each kind, in a real browser."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from aios.app.page_settings import FILE
from aios.storage.experts import FileExpertStore
from tests.test_web.running import wait_until
from tests.test_web.test_browser.conftest import Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from aios.core.types import Expert

pytestmark = BROWSER


def experts(site: RunningSite) -> dict[str, Expert]:
    """The experts on disk."""
    store = FileExpertStore(site.artifacts / "experts", "scripted")
    return {expert.expert_id: expert for expert in store.list()}


def changed_settings(site: RunningSite) -> dict[str, Any]:
    """What was changed on pages, on disk."""
    file = site.artifacts / "web" / FILE
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def press(page: Page, name: str, *, sure: bool = False) -> None:
    """Presses a button, answers the question that may follow, and waits for the note."""
    page.get_by_role("button", name=name, exact=True).first.click()
    if sure:
        page.get_by_role("dialog").locator("button.danger").click()
    page.locator(".note-bar").first.wait_for()


def test_an_expert_is_switched_off_and_on_and_frozen(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts")
    assert experts(own_demo)["animals"].is_active
    press(page, "Deactivate animals")
    assert not experts(own_demo)["animals"].is_active
    press(page, "Activate animals")
    assert experts(own_demo)["animals"].is_active
    press(page, "Freeze animals")
    assert experts(own_demo)["animals"].is_frozen
    press(page, "Unfreeze animals")
    assert not experts(own_demo)["animals"].is_frozen


def test_a_deleted_expert_comes_back_by_undo(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts")
    before = experts(own_demo)["animals"]
    press(page, "Delete animals")
    assert "animals" not in experts(own_demo)
    assert page.locator("#expert-animals").count() == 0
    press(page, "Undo")
    assert experts(own_demo)["animals"] == before
    assert page.locator("#expert-animals").is_visible()


def test_the_trash_is_emptied_only_after_a_yes(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts")
    press(page, "Delete animals")
    page.get_by_role("link", name="Trash").click()
    page.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.reload()
    assert page.get_by_role("button", name="Empty the trash").is_visible()
    press(page, "Empty the trash", sure=True)
    assert page.get_by_text("The trash is empty.").is_visible()


def test_parents_and_goals_are_set_and_cleared(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts/animals")
    page.get_by_label("New parent").fill("harbours")
    page.get_by_role("button", name="Set parent").click()
    page.locator(".note-bar").wait_for()
    assert experts(own_demo)["animals"].parent_expert_id == "harbours"
    press(page, "Clear parent")
    assert not experts(own_demo)["animals"].parent_expert_id

    page.goto("/goals")
    page.get_by_label("New goal").fill("Know the tides")
    press(page, "Add goal")
    page.goto("/experts/animals")
    page.locator("select[name=goal]").select_option(label="Know the tides")
    press(page, "Link goal")
    assert "Know the tides" in experts(own_demo)["animals"].goals
    press(page, "Unlink the goal Know the tides")
    assert "Know the tides" not in experts(own_demo)["animals"].goals


def test_experts_are_found_as_one_types(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts")
    page.keyboard.press("/")
    page.keyboard.type("sandpeckers and")
    page.locator("#experts-list").get_by_text("No expert matches.").wait_for()
    page.get_by_label("Search").fill("harb")
    page.locator("#expert-harbours").wait_for()
    assert page.locator("#expert-animals").count() == 0
    assert "q=harb" in page.url
    assert page.evaluate("document.activeElement.name") == "q"
    page.get_by_label("Search").fill("")
    page.locator("#expert-animals").wait_for()


def test_a_setting_is_changed_refused_and_reset(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/settings")
    page.get_by_label("Search").fill("temperature")
    field = page.get_by_label("seal.temperature", exact=True)
    field.wait_for()
    field.fill("0.7")
    page.get_by_role("button", name="Save seal.temperature").click()
    wait_until(lambda: changed_settings(own_demo) == {"seal.temperature": "0.7"})
    page.get_by_role("button", name="Reset seal.temperature").wait_for()
    field.fill("99")
    opened.watch(page).forgive("status of 4")
    page.get_by_role("button", name="Save seal.temperature").click()
    page.locator("#set-seal\\.temperature-wrong").wait_for()
    assert field.input_value() == "99"
    assert changed_settings(own_demo) == {"seal.temperature": "0.7"}
    page.get_by_role("button", name="Reset seal.temperature").click()
    wait_until(lambda: changed_settings(own_demo) == {})


def test_a_job_is_removed_and_its_results_stay(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/jobs")
    row = page.locator("#job-generate-coast")
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    row.wait_for(state="detached")
    assert "generate-coast" not in [job.id for job in own_demo.jobs.list()]
    assert (own_demo.artifacts / "edits" / "generate-coast" / "edits.jsonl").is_file()


def test_the_table_of_jobs_shows_what_other_programs_do(
    own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/jobs")
    row = page.locator("#job-ab-test-again")
    row.wait_for()
    page.evaluate("window.neverLoadedAgain = true")
    own_demo.jobs.delete("ab-test-again")
    row.wait_for(state="detached")
    assert page.evaluate("window.neverLoadedAgain") is True


def test_the_theme_is_kept(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/", color_scheme="light")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(ground)
    assert dark != "rgb(255, 255, 255)"
    page.goto("/jobs")
    assert page.evaluate(ground) == dark


def test_pages_work_without_scripts(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts", java_script_enabled=False)
    press(page, "Deactivate animals")
    assert not experts(own_demo)["animals"].is_active
    page.get_by_label("Search").fill("harb")
    page.get_by_role("button", name="Search").click()
    assert page.locator("#expert-animals").count() == 0
    assert page.locator("#expert-harbours").is_visible()


def test_an_adapter_is_downloaded(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/experts/animals")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").first.click()
    with closing(open(waiting.value.path(), "rb")) as handle:
        assert handle.read(2) == b"PK"
