from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aios.app.ab_tests.job import run_ab_test
from aios.app.ab_tests.results import arm_runs, find_changes, read_document, read_result
from aios.app.runs.beside import RunComparison
from aios.app.runs.comparison import compare_runs
from aios.app.runs.listing import RunEntry, read_entry
from aios.core.errors import StorageError, UsageError
from aios.core.evaluation.comparison import ComparisonSettings, available_pairs, compare
from tests.test_app.restem_run_files import make_run, report, set_record, untrained
from tests.test_app.scripted_jobs import make_config, write_passages


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    data = write_passages(folder / "passages.jsonl", 6)
    run_ab_test(make_config(folder), data, output=folder / "one")
    arms = {"arms": ["base", "passage"], "seeds": 1, "max_passages": 3}
    weak = make_config(folder, training={"learning_rate": 0.0001}, ab_test=arms)
    run_ab_test(weak, data, output=folder / "weak")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "two"))


def entry(path: Path) -> RunEntry:
    found = read_entry(path)
    assert found is not None
    return found


def compared(folder: Path, first: str = "one", second: str = "weak") -> RunComparison:
    return compare_runs(entry(folder / first), entry(folder / second))


def change(path: Path, edit: Any) -> None:
    document = json.loads((path / "metrics.json").read_text())
    edit(document)
    (path / "metrics.json").write_text(json.dumps(document, indent=2))


def test_the_runs_of_a_document_give_the_comparisons_of_the_document(made: Path) -> None:
    document = read_document(made / "one")
    arms = arm_runs(document, made / "one")
    settings = ComparisonSettings(samples=200)
    again = [found.to_dict() for found in compare(arms, available_pairs(arms), settings)]
    assert json.loads(json.dumps(again)) == document["comparisons"]


def test_arms_of_both_are_compared_on_the_same_questions(made: Path) -> None:
    found = compared(made)
    assert found.problem == ""
    assert found.basis.startswith("Both asked the same 6 questions")
    assert "about 3 passages" in found.basis  # few
    assert [block.name for block in found.blocks] == ["base", "passage"]
    assert found.only == ("Only the first run has passage+edits, passage+other-edits.",)
    loss = found.blocks[1].rows[0]
    documents = [read_document(made / name) for name in ("one", "weak")]
    means = [d["arms"]["passage"]["summary"]["validation_loss"]["mean"] for d in documents]
    assert (loss.first, loss.second) == tuple(f"{mean:.3f}" for mean in means)
    assert loss.interval
    assert loss.verdict
    assert found.blocks[0].rows[0].change == "0.0\N{NO-BREAK SPACE}%"
    assert found.blocks[0].chart is None
    assert "first run" in str(found.blocks[1].chart)


def test_settings_that_differ_are_named(made: Path) -> None:
    settings = {one.name: (one.first, one.second) for one in compared(made).settings}
    assert settings["training.learning_rate"] == ("not set", "0.0001")
    assert settings["ab_test.seeds"] == ("2", "1")
    assert "seed" not in settings


def test_only_questions_of_both_are_compared(folder: Path) -> None:
    def drop_one(document: dict[str, Any]) -> None:
        probe = next(iter(document["questions"]))
        del document["questions"][probe]
        for arm in document["arms"].values():
            for run in arm["runs"]:
                run["results"] = [r for r in run["results"] if r["probe_id"] != probe]

    change(folder / "weak", drop_one)
    found = compared(folder)
    assert found.basis.startswith("5 questions were put to both (the first run asked 6, the second")
    assert found.blocks[0].rows[0].first == found.blocks[0].rows[0].second


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d["info"].update(model_digest="f" * 64), "different models"),
        (lambda d: [q.update(question="Another?") for q in d["questions"].values()], "different q"),
        (lambda d: [q.update(answers=["No"]) for q in d["questions"].values()], "different q"),
    ],
)
def test_what_cannot_be_compared_is_beside_each_other_without_differences(
    folder: Path, edit: Any, problem: str
) -> None:
    change(folder / "weak", edit)
    found = compared(folder)
    assert problem in found.problem
    assert found.basis == ""
    assert [row.change for block in found.blocks for row in block.rows] == [""] * 18


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("arms"),
        lambda d: d["arms"]["base"]["runs"][0].update(seed="zero"),
        lambda d: d["arms"]["base"]["runs"][0]["results"][0].update(logprob="low"),
        lambda d: d["arms"]["base"]["runs"][0]["results"].pop(),
        lambda d: d.update(questions=[]),
        lambda d: d.update(schema_version=2),
    ],
)
def test_numbers_of_another_form_are_refused(folder: Path, edit: Any) -> None:
    change(folder / "weak", edit)
    with pytest.raises(StorageError):
        compared(folder)


def test_a_run_is_not_compared_with_itself(made: Path) -> None:
    with pytest.raises(UsageError, match="with itself"):
        compared(made, "one", "one")


def test_questions_are_searched_and_sorted(made: Path) -> None:
    changes = read_result(made / "one").changes
    assert len(find_changes(changes, "FOUNDED")) < len(changes)
    assert find_changes(changes, "no such text") == []
    worst = [one.change for one in find_changes(changes, sort="worsened")]
    assert worst == sorted(worst, reverse=True)
    assert [one.change for one in find_changes(changes)] == sorted(worst)


# ------------------------------------------------------------ ReST-EM


def restem(folder: Path, name: str, held_out: float = 0.05, **plan: Any) -> None:
    run = make_run(folder, name)
    set_record(run, [untrained(), report(1, held_out=held_out)], best=1)
    (run / "metrics.json").write_text("{}")
    (run / "plan.json").write_text(json.dumps({"model": "m", "restem.reward": "loss", **plan}))


def test_generators_are_compared_on_the_held_out_passages_of_both(tmp_path: Path) -> None:
    restem(tmp_path, "a")
    restem(tmp_path, "b", held_out=0.15, dataset="other")
    found = compared(tmp_path, "a", "b")
    assert found.problem == ""
    assert "2 held-out passages of both runs, which are taken as the same by their ids" in (
        found.basis
    )
    best, base, first = found.blocks
    assert (best.name, base.name, first.name) == (
        "Best generator", "Untrained generator", "Round 1",
    )  # fmt: skip
    row = best.rows[0]
    assert (row.first, row.second, row.change) == tuple(
        f"{number}\N{NO-BREAK SPACE}nats" for number in ("+0.050", "+0.150", "+0.100")
    )
    assert (row.verdict, row.tone) == ("better", "good")
    assert base.rows[0].verdict == "no difference found"
    assert first.rows[2].first == "50\N{NO-BREAK SPACE}% (3 of 6)"


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ({"model": "n"}, "different models"),
        ({"restem.reward": "accuracy"}, "different rewards"),
        ({"restem.baseline": "base"}, "different baselines"),
    ],
)
def test_runs_that_measure_other_things_have_no_differences(
    tmp_path: Path, plan: dict[str, Any], problem: str
) -> None:
    restem(tmp_path, "a")
    restem(tmp_path, "b", **plan)
    found = compared(tmp_path, "a", "b")
    assert problem in found.problem
    assert not any(row.change for block in found.blocks for row in block.rows)


def test_a_run_without_rounds_or_results_is_told(tmp_path: Path) -> None:
    restem(tmp_path, "a")
    make_run(tmp_path, "b")
    assert "b has no results yet" in compared(tmp_path, "a", "b").problem
    (tmp_path / "b" / "metrics.json").write_text("{}")
    (tmp_path / "b" / "plan.json").write_text('{"model": "m", "restem.reward": "loss"}')
    assert "no held-out passage in common" in compared(tmp_path, "a", "b").problem
