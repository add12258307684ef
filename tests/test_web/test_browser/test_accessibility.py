"""Every page, light and dark, wide and narrow, is free of what axe calls serious; keys suffice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_web.test_browser.conftest import Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite, say
from tests.test_web.test_browser.walking import walk

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = BROWSER
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOURS = ["color-contrast", "link-in-text-block"]  # all that a scheme of colours changes
MOST_TABS = 60
_FOCUS = """() => {
  const it = document.activeElement, style = getComputedStyle(it), box = it.getBoundingClientRect();
  return {
    name: it.getAttribute("aria-label") || it.textContent.trim() || it.name || it.nodeName,
    outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    inside: box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth,
    body: it === document.body,
  };
}"""
_WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def serious(page: Page, rules: list[str]) -> list[str]:
    """What axe finds that is serious or critical, in a line each."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": rules, "resultTypes": ["violations"], "iframes": False}
    found: dict[str, Any] = Axe().run(page, options=options).response
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:160]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing_serious_on_any_page(
    demo_site: RunningSite, opened: Opener, width: int
) -> None:
    size = {"width": width, "height": 900}
    page = opened(demo_site, None, viewport=size, reduced_motion="reduce")
    problems, paths, began = [], [], time.monotonic()
    for path in walk(page, each=1):
        say(f"{time.monotonic() - began:.0f} s: {path}")
        paths.append(path)
        page.emulate_media(color_scheme="light")
        problems += [f"{path} light: {text}" for text in serious(page, RULES)]
        page.emulate_media(color_scheme="dark")
        problems += [f"{path} dark: {text}" for text in serious(page, COLOURS)]
        if page.evaluate(_WIDER) > 1:
            problems.append(f"{path}: wider than the window")
    assert len(paths) >= 20
    assert problems == []


def test_the_main_job_can_be_started_by_keys_alone(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/")
    page.keyboard.press("Tab")
    assert focus(page)["name"] == "Skip to the content"
    page.keyboard.press("Enter")
    tab_to(page, "passages.jsonl")
    page.keyboard.press("Enter")
    page.wait_for_url("**/files/*")
    tab_to(page, "Start: Measure whether self-edits help")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/*")
    assert any(job.id in page.url for job in own_demo.jobs.list())


def test_focus_is_seen_on_every_stop_of_a_page(demo_site: RunningSite, opened: Opener) -> None:
    page = opened(demo_site, "/experts")
    stops = []
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        found = focus(page)
        if found["body"]:
            break
        stops.append(found)
    assert len(stops) > 15
    assert [one["name"] for one in stops if not (one["outlined"] and one["inside"])] == []


def test_a_question_before_harm_holds_the_focus_and_gives_it_back(
    own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/jobs/generate-coast")
    button = page.get_by_role("button", name="Remove")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert focus(page)["name"] == "Cancel"
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert focus(page)["name"] == "Remove"
    assert any(job.id == "generate-coast" for job in own_demo.jobs.list())


def focus(page: Page) -> dict[str, Any]:
    """What has the focus."""
    found: dict[str, Any] = page.evaluate(_FOCUS)
    return found


def tab_to(page: Page, name: str) -> None:
    """Presses Tab until something with this name has the focus, which must be seen."""
    names = []
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        found = focus(page)
        names.append(found["name"])
        if found["name"].startswith(name):
            assert found["outlined"], found
            return
    raise AssertionError(f"no {name!r} among {names}")
