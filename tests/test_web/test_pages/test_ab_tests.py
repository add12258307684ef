"""The pages of A/B tests: the list, one while it runs, its result, its questions, its report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest

from aios.app.jobs.commands import ab_test_job
from aios.app.jobs.records import to_document
from aios.core.files import atomic_write_json
from tests.test_web.test_pages.ab_runs import (
    HOSTILE,
    change_metrics,
    copy_of,
    make_tests,
    worked_on,
)
from tests.test_web.visitor import Visitor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tests(tmp_path_factory.mktemp("ab"))


@pytest.fixture
def seen(made: Path, tmp_path: Path) -> Iterator[Visitor]:
    """A visitor of a copy of the artifacts."""
    shutil.copytree(made, tmp_path / "artifacts")
    found = Visitor(tmp_path)
    yield found
    found.close()


def metrics(visitor: Visitor, name: str = "one") -> dict[str, object]:
    file = visitor.artifacts / "seal_experiments" / name / "metrics.json"
    found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------ the list


def test_without_tests_the_page_says_how_to_get_one(visitor: Visitor) -> None:
    page = visitor.look("/ab-tests")
    assert "No A/B test was made yet" in page
    assert 'href="/"' in page


def test_the_list_shows_state_file_and_main_change_of_each(seen: Visitor) -> None:
    page = seen.look("/ab-tests")
    assert page.count('<tr id="run-') == 4
    for name in ("one", "again", "other", "halfway"):
        assert f'href="/ab-tests/{name}"' in page
    assert "passages.jsonl" in page
    assert "interrupted" in page
    assert "4 runs" in page


def test_the_list_is_searched_sorted_and_paged_on_the_server(seen: Visitor) -> None:
    found = seen.look("/ab-tests?q=OTHERS")
    assert found.count('<tr id="run-') == 1
    assert "1 of 4 runs" in found
    assert 'data-live="/ab-tests-table/live?q=OTHERS' in found
    assert "No run fits" in seen.look("/ab-tests?q=nothing-like-it")
    page = seen.look("/ab-tests?sort=state&down=0")
    assert page.index("run-one") < page.index("run-halfway")
    assert seen.look("/ab-tests?sort=<b>&page=999&down=x").count('<tr id="run-') == 4


def test_a_search_is_shown_as_text(seen: Visitor) -> None:
    page = seen.look("/ab-tests", status=200) and seen.look(
        "/ab-tests?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"
    )
    assert "<script>alert" not in page


def test_broken_folders_do_not_break_the_list(seen: Visitor) -> None:
    root = seen.artifacts / "seal_experiments"
    (root / "empty").mkdir()
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text("{")
    (root / "file").write_text("no folder")
    (root / "one" / "metrics.json").write_text('{"verdict": 3, "comparison": [')
    page = seen.look("/ab-tests")
    assert page.count('<tr id="run-') == 5
    assert "damaged" in page
    assert "is damaged" in seen.look("/ab-tests/damaged")


# ------------------------------------------------------------ one that is done


def test_a_finished_test_begins_with_its_verdict(seen: Visitor) -> None:
    page, found = seen.look("/ab-tests/one"), metrics(seen)
    assert str(escape(str(found["verdict"]))) in page
    assert page.index("verdict") < page.index("The arms")
    for arm in ("base", "passage", "passage+edits", "passage+other-edits"):
        assert f'<th scope="row">{arm}<' in page
    for column in ("Validation loss", "Perplexity", "Retention loss", "Peak memory"):
        assert column in page
    assert page.count('class="chart"') == 3
    assert "data-live" not in page  # nothing of it changes any more


def test_its_files_can_be_had_and_no_others(seen: Visitor) -> None:
    page = seen.look("/ab-tests/one")
    for name in ("metrics.json", "report.html"):
        assert f'href="/ab-tests/one/{name}" download' in page
    answer = seen.client.get("/ab-tests/one/metrics.json")
    assert answer.json() == metrics(seen)
    assert answer.headers["content-disposition"] == 'attachment; filename="one-metrics.json"'
    seen.look("/ab-tests/one/arms.journal", status=404)
    seen.look("/ab-tests/one/..%2Fagain%2Frun.json", status=404)


def test_a_link_that_leads_out_of_the_run_is_not_followed(seen: Visitor, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret text")
    file = seen.artifacts / "seal_experiments" / "one" / "run.json"
    shutil.copy(file, tmp_path / "run.json")
    report = file.with_name("report.html")
    report.unlink()
    report.symlink_to(secret)
    assert "secret text" not in seen.look("/ab-tests/one/report.html", status=400)
    assert "secret text" not in seen.look("/ab-tests/one/report", status=400)


def test_the_whole_report_stands_in_a_frame_in_which_nothing_runs(seen: Visitor) -> None:
    page = seen.look("/ab-tests/one/whole")
    assert '<iframe class="report" src="/ab-tests/one/report"' in page
    assert " sandbox></iframe>" in page
    answer = seen.client.get("/ab-tests/one/report")
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert answer.text == (seen.artifacts / "seal_experiments" / "one" / "report.html").read_text(
        encoding="utf-8"
    )
    assert "has no report yet" in seen.look("/ab-tests/halfway/whole")


def test_questions_show_what_each_arm_wrote(seen: Visitor) -> None:
    page = seen.look("/ab-tests/one/questions")
    assert "6 of 6 questions" in page
    assert "passage+edits wrote" in page
    found = seen.look("/ab-tests/one/questions?q=founded&sort=worsened")
    assert 0 < found.count("exact</small>") // 2 < 6
    assert "No question holds that text" in seen.look("/ab-tests/one/questions?q=nowhere")


def test_hostile_questions_show_as_text(seen: Visitor) -> None:
    for path in ("", "/questions", "/report", "/whole"):
        page = seen.look(f"/ab-tests/one{path}")
        assert HOSTILE not in page
        assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in seen.look("/ab-tests/one/questions?q=alert")


def test_numbers_of_another_form_are_told_and_the_report_still_opens(seen: Visitor) -> None:
    run = copy_of(seen.artifacts, "one", "bent")
    change_metrics(run, arms={"base": {"runs": 3}})
    page = seen.look("/ab-tests/bent")
    assert "What this test found cannot be shown here" in page
    assert str(escape(str(metrics(seen)["verdict"]))) in page
    assert 'href="/ab-tests/bent/whole"' in page
    seen.look("/ab-tests/bent/questions", status=500)
    change_metrics(run, schema_version=99)
    assert "another version" in seen.look("/ab-tests/bent")


def test_a_test_that_is_not_there_is_told(visitor: Visitor) -> None:
    assert "there is no run nothing" in visitor.look("/ab-tests/nothing", status=404)
    assert "not a valid run id" in visitor.look("/ab-tests/a..b", status=400)


# ------------------------------------------------------------ one that is not done


def test_a_running_test_shows_what_it_has_done_so_far(seen: Visitor) -> None:
    with worked_on(seen.artifacts / "seal_experiments" / "halfway"):
        page = seen.look("/ab-tests/halfway")
        assert 'data-live="/ab-tests/halfway/panel/live"' in page
        assert "running" in page
        assert "Arms and seeds" in page
        assert page.count('<tr id="unit-') == 7
        assert "of 7" in page
        assert seen.look("/ab-tests/halfway/panel").count('<tr id="unit-') == 7
    page = seen.look("/ab-tests/halfway")
    assert "was interrupted" in page
    assert "--resume" in page


def test_a_test_that_ends_while_it_is_looked_at_shows_its_result(seen: Visitor) -> None:
    run = seen.artifacts / "seal_experiments" / "one"
    with worked_on(run):
        assert "The arms" not in seen.look("/ab-tests/one/panel")
    assert "The arms" in seen.look("/ab-tests/one/panel")


def test_a_test_of_a_job_has_the_buttons_of_the_job(seen: Visitor) -> None:
    folder = add_job(seen, "halfway")
    atomic_write_json(folder / "started.json", {"started": "2026-01-01T00:00:00+00:00"})
    atomic_write_json(
        folder / "ended.json", {"exit_code": 130, "ended": "2026-01-01T00:01:00+00:00"}
    )
    page = seen.look("/ab-tests/halfway")
    assert 'action="/jobs/halfway/resume"' in page
    assert 'aria-label="Resume this A/B test"' in page
    assert 'href="/jobs/halfway"' in page
    with worked_on(folder):
        (folder / "ended.json").unlink()
        assert 'aria-label="Stop this A/B test"' in seen.look("/ab-tests/halfway")


def test_a_test_whose_job_waits_is_there_before_its_directory(seen: Visitor) -> None:
    folder = add_job(seen, "soon")
    with worked_on(folder):
        assert "waits until no other job runs" in seen.look("/ab-tests/soon")
        assert 'id="run-soon"' in seen.look("/ab-tests")


def add_job(visitor: Visitor, job_id: str) -> Path:
    """The folder of a job that was asked for, as the store writes it."""
    from datetime import datetime, timezone

    request = ab_test_job(visitor.artifacts, job_id, visitor.artifacts / "passages.jsonl")
    folder = visitor.artifacts / "jobs" / job_id
    folder.mkdir(parents=True)
    atomic_write_json(folder / "job.json", to_document(request, datetime.now(timezone.utc)))
    return folder
