"""The buttons of a run, of files, of the cache and of the doctor, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aios.app.data.files import DataFiles
from tests.test_web.running import wait_until
from tests.test_web.test_browser.conftest import ROOT, Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite
from tests.test_web.test_browser.test_reattaching import LONG, start_run, trials_done

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = BROWSER


def sure(page: Page, name: str) -> None:
    """Presses a button and answers its question with yes."""
    page.get_by_role("button", name=name).first.click()
    page.get_by_role("dialog").locator("button.danger").click()


def test_a_run_is_paused_ended_and_gone_on_with_from_its_pages(
    tmp_path: Path, opened: Opener
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "coast.jsonl").write_bytes((ROOT / "examples" / "passages.jsonl").read_bytes())
    with RunningSite(tmp_path, *LONG, data=(data,)) as site:
        page = opened(site, "/restem")
        run = start_run(page)
        site.wait_for_job("restem", "running")
        wait_until(lambda: trials_done(site, run) > 0, 60)
        panel = page.get_by_role("region", name="How the run stands")

        panel.get_by_role("button", name="Pause").click()
        panel.get_by_role("button", name="Resume").wait_for(timeout=60_000)
        assert site.wait_for_job("restem", "stopped").id == run

        page.goto(f"/jobs/{run}")
        page.get_by_role("button", name="Resume").first.click()
        assert site.wait_for_job("restem", "running").attempts == 2

        page.goto("/jobs")
        page.get_by_role("button", name=f"Stop {run}").or_(
            page.locator(f"#job-{run}").get_by_role("button", name="Stop")
        ).first.click()
        assert site.wait_for_job("restem", "stopped").attempts == 2
        page.locator(f"#job-{run}").get_by_role("button", name="Resume").click(timeout=60_000)
        assert site.wait_for_job("restem", "running").attempts == 3
        assert trials_done(site, run) > 0


def test_an_uploaded_file_is_deleted_after_a_yes(
    tmp_path: Path, own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/")
    mine = tmp_path / "mine.txt"
    mine.write_text("A tide mill stood here.")
    page.locator("input[type=file]").set_input_files(mine)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_url("**/files/**")
    files = DataFiles(own_demo.artifacts)
    assert "mine.txt" in [file.name for file in files.list()]
    page.goto("/files")
    row = page.get_by_role("row").filter(has_text="mine.txt")
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").locator("button.danger").click()
    page.locator(".note-bar").wait_for()
    assert "mine.txt" not in [file.name for file in files.list()]


def test_the_cache_is_cleared_after_a_yes(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/cache")
    sure(page, "Clear the cache")
    page.locator(".note-bar").wait_for()
    page.get_by_text("The cache is empty.").wait_for()


def test_the_doctor_looks_when_asked(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/settings/doctor")
    page.get_by_role("button", name="Check now").click()
    page.get_by_role("button", name="Check again").wait_for(timeout=90_000)
    assert (own_demo.artifacts / "web" / "doctor.json").is_file()
