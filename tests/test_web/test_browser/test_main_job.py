"""The main job, from Home to its report, in three clicks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.test_web.test_browser.conftest import ROOT, Opener
from tests.test_web.test_browser.running_site import BROWSER, RunningSite

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = BROWSER
QUICK = ("ab_test.seeds=1", "evaluation.bootstrap_samples=100")


def a_file(folder: Path, passages: int) -> Path:
    """A folder with a file of the first passages of the examples."""
    lines = (ROOT / "examples" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    folder.mkdir()
    (folder / "few.jsonl").write_text("\n".join(lines[:passages]), encoding="utf-8")
    return folder


def three_clicks(page: Page, seconds: float) -> None:
    """From Home to the result of the main job on the file."""
    page.get_by_role("link", name="few.jsonl").click()
    page.get_by_role("button", name="Start: Measure whether self-edits help").click()
    page.get_by_role("link", name="Open the result").click(timeout=seconds * 1000)


def check_report(page: Page, site: RunningSite) -> None:
    """The page shows the verdict that the command has written."""
    (job,) = site.jobs.list()
    assert job.state == "done", site.jobs.log_tail(job.id)
    metrics = json.loads((job.request.output / "metrics.json").read_text(encoding="utf-8"))
    assert page.url.endswith(f"/ab-tests/{job.id}")
    page.get_by_text(metrics["verdict"][:60]).first.wait_for()
    assert (job.request.output / "report.html").is_file()


def test_three_clicks_lead_from_home_to_the_report(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    data = a_file(tmp_path / "data", 4)
    settings = ("seal.num_edits_per_passage=2", "training.max_tokens=300")
    with RunningSite(
        tmp_path, *QUICK, *settings, "ab_test.budget_tokens=200", data=(data,)
    ) as site:
        page = opened(site, "/")
        three_clicks(page, 60)
        check_report(page, site)


def test_an_uploaded_file_is_previewed_and_can_be_measured(
    tmp_path: Path, opened: Opener, site: RunningSite
) -> None:
    data = a_file(tmp_path / "data", 4)
    page = opened(site, "/")
    page.get_by_label("Or upload one").set_input_files(data / "few.jsonl")
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("heading", name="few.jsonl").wait_for()
    page.get_by_role("heading", name="Brellow tide engine").wait_for()
    (folder,) = (site.artifacts / "uploads").iterdir()
    assert (folder / "few.jsonl").read_bytes() == (data / "few.jsonl").read_bytes()
    assert page.get_by_role("button", name="Start: Measure whether self-edits help").is_enabled()


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_bundled_model_is_measured_in_three_clicks(
    tmp_path: Path, opened: Opener, browser: Browser, models_folder: Path
) -> None:
    data = a_file(tmp_path / "data", 2)
    less = (
        "model.name=smollm2-135m-instruct",
        f"model.cache_dir={models_folder}",
        "seal.num_edits_per_passage=1",
        "seal.max_new_tokens=80",
        "ab_test.arms=[base, passage, passage+edits]",
        "ab_test.budget_tokens=300",
        "ab_test.evaluations=1",
        "training.epochs=1",
    )
    with RunningSite(tmp_path, *QUICK, *less, data=(data,)) as site:
        page = opened(site, "/")
        three_clicks(page, 500)
        check_report(page, site)
