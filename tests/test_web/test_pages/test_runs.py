"""The pages of runs: all of them, one from its directory alone, two beside each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.app.experts.training import train_expert
from aios.app.runs.listing import list_runs
from aios.storage.runs import RunDirectory
from tests.test_app.restem_run_files import make_run, report, set_record, untrained
from tests.test_app.scripted_jobs import make_config
from tests.test_web.test_pages.ab_runs import HOSTILE, change_metrics, copy_of, make_tests
from tests.test_web.visitor import Visitor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    artifacts = make_tests(folder)
    train_expert(make_config(folder), "mills", folder / "passages.jsonl")
    return artifacts


@pytest.fixture
def seen(made: Path, tmp_path: Path) -> Iterator[Visitor]:
    shutil.copytree(made, tmp_path / "artifacts")
    found = Visitor(tmp_path)
    yield found
    found.close()


def restem_runs(visitor: Visitor, *names: str, reward: str = "loss") -> None:
    for number, name in enumerate(names):
        run = make_run(visitor.artifacts / "runs", name)
        set_record(run, [untrained(), report(1, held_out=0.05 + number)], best=1)
        (run / "plan.json").write_text(json.dumps({"model": "m", "restem.reward": reward}))
        (run / "metrics.json").write_text(json.dumps({"verdict": "Known.", "comparison": None}))


# ------------------------------------------------------------ lists and single runs


def test_all_runs_of_all_kinds_are_listed(seen: Visitor) -> None:
    page = seen.look("/runs")
    assert "5 runs" in page
    assert "train-expert" in page
    assert seen.look("/runs?q=train-expert").count('<tr id="run-') == 1
    assert seen.look("/runs-table?q=train-expert").count('<tr id="run-') == 1


def test_without_runs_the_page_says_how_to_get_one(visitor: Visitor) -> None:
    assert "There is no run yet" in visitor.look("/runs")


def test_a_run_leads_to_the_page_of_its_kind(seen: Visitor) -> None:
    restem_runs(seen, "em")
    for run, place in (("one", "/ab-tests/one"), ("em", "/restem/em")):
        answer = seen.client.get(f"/runs/{run}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, place)


def test_another_run_is_shown_from_its_directory_alone(seen: Visitor) -> None:
    page = seen.look("/runs/train-expert-mills")
    assert "Run train-expert-mills" in page
    assert "RunFinished" in page
    assert "numpy" in page
    assert "config.yaml" in page
    assert seen.client.get("/runs/train-expert-mills/config.yaml").text.startswith("seed:")
    seen.look("/runs/train-expert-mills/checkpoints", status=404)
    seen.look("/runs/nothing", status=404)


def test_what_a_run_says_of_itself_is_shown_as_text(seen: Visitor) -> None:
    run = seen.artifacts / "runs" / "train-expert-mills"
    info = json.loads((run / "run.json").read_text())
    info |= {"argv": ["x", HOSTILE], "platform": HOSTILE, "kind": HOSTILE}
    (run / "run.json").write_text(json.dumps(info))
    (run / "config.yaml").write_text(HOSTILE)
    (run / "events.jsonl").write_text(HOSTILE + "\n")
    page = seen.look("/runs/train-expert-mills")
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 4
    assert HOSTILE not in seen.look("/runs")


def test_a_damaged_run_is_shown_as_far_as_it_goes(seen: Visitor) -> None:
    run = seen.artifacts / "runs" / "train-expert-mills"
    (run / "run.json").write_text("[")
    assert "is damaged" in seen.look("/runs/train-expert-mills")


def test_thousands_of_runs_stay_quick(seen: Visitor) -> None:
    source = (seen.artifacts / "runs" / "train-expert-mills" / "run.json").read_bytes()
    for number in range(300):
        folder = seen.artifacts / "runs" / f"many-{number}"
        folder.mkdir()
        (folder / "run.json").write_bytes(source)
    page = seen.look("/runs?page=3")
    assert page.count('<tr id="run-') == 50
    assert "page 3 of 7" in page
    assert len(list_runs(seen.artifacts)) == 305


# ------------------------------------------------------------ two runs


def test_two_runs_can_be_chosen(seen: Visitor) -> None:
    page = seen.look("/runs/compare?a=one")
    assert '<option value="one" selected>' in page
    assert '<option value="again">' in page
    assert '<option value="halfway"' not in page  # it has no results
    assert 'action="/runs/compare"' in page


def test_without_two_finished_runs_there_is_nothing_to_choose(visitor: Visitor) -> None:
    assert "There are not two finished runs" in visitor.look("/runs/compare")


def test_runs_on_the_same_questions_are_compared_with_intervals(seen: Visitor) -> None:
    page = seen.look("/runs/compare?a=one&b=again")
    assert "Both asked the same 6 questions" in page
    assert "95 % interval" in page
    assert "training.learning_rate" in page
    assert "0.0002" in page
    assert page.count("Learning curves of passage") == 3
    assert "<h3>passage+edits" in page
    assert "/runs/compare?a=again&amp;b=one" in page


def test_runs_that_cannot_be_compared_are_told_apart(seen: Visitor) -> None:
    page = seen.look("/runs/compare?a=one&b=other")
    assert "cannot be compared" in page
    assert "They asked different questions" in page
    assert "95 % interval</th>" not in page
    run = copy_of(seen.artifacts, "one", "foreign")
    info = json.loads((run / "metrics.json").read_text())["info"]
    change_metrics(run, info={**info, "model": HOSTILE, "model_digest": "f" * 64})
    page = seen.look("/runs/compare?a=one&b=foreign")
    assert "They are on different models" in page
    assert HOSTILE not in page


def test_runs_of_different_kinds_cannot_be_compared(seen: Visitor) -> None:
    restem_runs(seen, "em")
    assert "measure different things" in seen.look("/runs/compare?a=one&b=em")
    assert "only A/B tests" in seen.look("/runs/compare?a=one&b=train-expert-mills")
    assert "has no results yet" in seen.look("/runs/compare?a=one&b=halfway")


def test_two_runs_of_restem_are_compared_by_held_out_passages(seen: Visitor) -> None:
    restem_runs(seen, "em-1", "em-2")
    page = seen.look("/runs/compare?a=em-1&b=em-2")
    assert "2 held-out passages of both runs" in page
    assert "+1.000\xa0nats" in page
    assert "<h3>Best generator" in page
    assert "<h3>Round 1" in page
    assert "Improvement on held-out passages by round" in page
    restem_runs(seen, "em-3", reward="accuracy")
    assert "They measure different rewards" in seen.look("/runs/compare?a=em-1&b=em-3")


def test_what_is_no_pair_is_told(seen: Visitor) -> None:
    assert "compared with itself" in seen.look("/runs/compare?a=one&b=one", status=404)
    assert "there is no run gone" in seen.look("/runs/compare?a=one&b=gone", status=404)
    assert "not a valid run id" in seen.look("/runs/compare?a=one&b=../x", status=404)
    run = copy_of(seen.artifacts, "one", "bent")
    change_metrics(run, arms=3)
    assert "is not as this version" in seen.look("/runs/compare?a=one&b=bent", status=500)


def test_a_run_that_somebody_works_on_is_no_choice(seen: Visitor) -> None:
    with RunDirectory.open(seen.artifacts / "seal_experiments" / "one"):
        assert '<option value="one"' not in seen.look("/runs/compare")
