from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from aios.app.ab_tests import job as job_module
from aios.app.ab_tests.job import ABReport, run_ab_test
from aios.backends.scripted import Faults, ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.config.schemas import Config
from aios.core.errors import (
    BackendError,
    DataError,
    RunInterrupted,
    StorageError,
    UnknownStrategyError,
    UsageError,
)
from aios.core.events import Event, Notice, RunFinished, StageProgress, StageStarted
from aios.core.trainings import TrainingJob
from aios.storage.event_log import read_events
from aios.storage.journal import Journal
from tests.test_app.scripted_jobs import (
    ab_test,
    files_below,
    kill_on_the_way,
    make_config,
    record,
    stop_after,
    without_times,
    write_passages,
)

ARMS = ("base", "passage", "passage+edits", "passage+other-edits")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", 6)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "ab"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ABReport:
    """An experiment that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_passages(folder / "passages.jsonl", 6)
    report: ABReport = ab_test(folder, resume=False)
    return report


@pytest.fixture
def finished(output: Path, whole: ABReport) -> Path:
    """A copy of the folder of that experiment."""
    return Path(shutil.copytree(whole.run_dir, output))


def events_of(run: Path) -> list[Event]:
    return [event for _, event in read_events(run / "events.jsonl")]


def same_numbers(one: ABReport, other: ABReport) -> bool:
    equal: bool = without_times(one.metrics) == without_times(other.metrics)
    return equal


def only(*arms: str) -> dict[str, Any]:
    return {"ab_test": {"arms": list(arms), "seeds": 1}}


# ------------------------------------------------------------ a complete experiment


def test_every_arm_is_run_and_compared(whole: ABReport) -> None:
    assert tuple(whole.metrics["arms"]) == ARMS
    seeds = {name: arm["seeds"] for name, arm in whole.metrics["arms"].items()}
    assert seeds == {"base": [0], **{arm: [0, 1] for arm in ARMS[1:]}}
    comparison = whole.metrics["comparison"]
    assert (comparison["treatment"], comparison["control"]) == ("passage+edits", "passage")
    assert {"metric", "relative_change", "ci95", "n", "seeds", "verdict"} <= set(comparison)
    assert (comparison["n"], comparison["seeds"]) == (6, 2)
    assert whole.metrics["verdict"].endswith(".")


def test_the_folder_holds_what_the_contract_says(whole: ABReport) -> None:
    files = files_below(whole.run_dir)
    assert {"config.yaml", "metrics.json", "events.jsonl", "report.html", "run.json"} <= files
    assert not any(name.startswith("checkpoints/") for name in files)
    assert whole.metrics_json == whole.run_dir / "metrics.json"
    assert json.loads(whole.metrics_json.read_text(encoding="utf-8")) == whole.metrics
    assert whole.report_html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_metrics_hold_every_arm_seed_and_question(whole: ABReport) -> None:
    questions = set(whole.metrics["questions"])
    assert len(questions) == 6
    for arm in whole.metrics["arms"].values():
        for run in arm["runs"]:
            assert {result["probe_id"] for result in run["results"]} == questions
    trained = whole.metrics["arms"]["passage+edits"]["runs"][0]
    assert len(trained["curve"]) == 4
    assert trained["train_seconds"] >= 0
    assert trained["peak_memory_bytes"] > 0


def test_the_info_says_what_the_numbers_follow_from(whole: ABReport) -> None:
    info = whole.metrics["info"]
    assert (info["model"], info["match"], info["seed"]) == ("scripted", "tokens", 0)
    assert (info["strategy"], info["strategy_source"]) == ("implications", "chosen by you")
    assert (info["passages"], info["selection_questions"], info["report_questions"]) == (3, 3, 6)
    assert (info["edits_kept"], info["items_kept"], info["items_dropped"]) == (3, 12, 3)
    assert info["versions"]["numpy"]
    assert info["wall_seconds"] > 0
    assert info["recipe"]["rank"] == 2


def test_the_page_shows_the_set_up_in_figures_for_people(whole: ABReport) -> None:
    page = whole.report_html.read_text(encoding="utf-8")
    assert f"{whole.metrics['info']['generation_seconds']:,.1f} s" in page
    assert str(whole.metrics["info"]["wall_seconds"]) not in page
    assert whole.metrics["info"]["model_digest"] not in page
    assert whole.metrics["info"]["model_digest"][:12] in page
    assert 'href="events.jsonl"' in page
    assert "near duplicate" in page
    assert "Tove Lind-Arn" in page


def test_the_control_are_self_edits_of_passages_that_are_not_learned(
    config: Config, data: Path, output: Path
) -> None:
    trained: dict[str, TrainingJob] = {}

    class Watched(ScriptedTrainer):
        def fit(self, job: TrainingJob, **options: Any) -> Any:
            trained[job.output_dir.name] = job
            return super().fit(job, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "load_trainer", lambda config, model: Watched(model))
        run_ab_test(config, data, output=output)
    ids = [record(n)["id"] for n in range(6)]
    edited = {
        arm: {e.passage_id for e in trained[f"{arm}.0"].examples if e.source != "passage"}
        for arm in ARMS[1:]
    }
    assert edited == {
        "passage": set(),
        "passage+edits": set(ids[:3]),
        "passage+other-edits": set(ids[3:]),
    }
    assert {job.max_tokens for job in trained.values()} == {trained["passage.0"].max_tokens}
    assert trained["passage.1"].seed == trained["passage+edits.1"].seed
    assert trained["passage.1"].seed != trained["passage.0"].seed
    notices = [event.message for event in events_of(output) if isinstance(event, Notice)]
    assert notices[0].startswith("3 passages are learned; the self-edits of 3 others")


def test_progress_counts_arms_and_seeds(whole: ABReport) -> None:
    events = events_of(whole.run_dir)
    assert StageStarted("arms", 7, "arms and seeds") in events
    done = [e for e in events if isinstance(e, StageProgress) and e.stage == "arms"]
    assert [e.done for e in done] == [1, 2, 3, 4, 5, 6, 7]
    assert (done[0].note, done[-1].note) == ("base, seed 0", "passage+other-edits, seed 1")


def test_without_an_output_the_run_is_below_the_artifacts(config: Config, data: Path) -> None:
    first, second = (run_ab_test(config, data) for _ in range(2))
    folder = config.paths.artifacts / "seal_experiments"
    assert {first.run_dir.parent, second.run_dir.parent} == {folder}
    assert first.run_dir != second.run_dir
    assert first.run_dir.name.startswith("ab-test-2")
    assert second.metrics["info"]["edits_from_cache"] == 6
    assert same_numbers(first, first)


@pytest.mark.parametrize(
    ("arms", "match"),
    [
        (("base",), "tokens"),
        (("base", "passage"), "tokens"),
        (("base", "passage"), "steps"),
        (("passage", "in-context"), "epochs"),
        (("base", "passage+other-edits"), "tokens"),
        (("base", "passage+other-edits"), "steps"),
        (("passage+edits",), "epochs"),
    ],
)
def test_any_choice_of_arms_can_be_run(
    tmp_path: Path, data: Path, output: Path, arms: tuple[str, ...], match: str
) -> None:
    config = make_config(
        tmp_path,
        ab_test={"arms": list(arms), "seeds": 1, "match": match},
        training={"passage_copies": 0},
    )
    model = ScriptedModel()
    report = run_ab_test(config, data, output=output, model=model)
    assert set(report.metrics["arms"]) == set(arms)
    needs_edits = any("edits" in arm for arm in arms)
    assert (report.metrics["info"]["edits_kept"] > 0) is needs_edits
    assert any("Passage:" in r.prompt for r in model.requests) is needs_edits
    assert report.report_html.stat().st_size > 1000


def test_the_budget_does_not_depend_on_the_arms_that_are_run(tmp_path: Path, data: Path) -> None:
    tokens = set()
    for number, arms in enumerate(
        [("passage", "passage+other-edits"), ("passage", "passage+edits", "passage+other-edits")]
    ):
        config = make_config(tmp_path, **only(*arms))
        report = run_ab_test(config, data, output=tmp_path / f"ab{number}")
        tokens.add(report.metrics["arms"]["passage"]["runs"][0]["tokens"])
    assert len(tokens) == 1


def test_retention_is_measured_where_there_is_a_text(
    tmp_path: Path, data: Path, output: Path, whole: ABReport
) -> None:
    text = tmp_path / "retention.txt"
    text.write_text("The sun is warm.\n\nThe sea is wide and the wind is cold.")
    config = make_config(tmp_path, training={"retention_file": text}, **only("base", "passage"))
    report = run_ab_test(config, data, output=output)
    assert all(arm["retention"]["loss"]["mean"] > 0 for arm in report.metrics["arms"].values())
    assert whole.metrics["arms"]["base"]["retention"] is None


def test_questions_may_come_from_a_file_of_their_own(
    tmp_path: Path, output: Path, whole: ABReport
) -> None:
    data = write_passages(tmp_path / "bare.jsonl", 6, questions=0)
    asked = tmp_path / "questions.jsonl"
    rows = [{"passage_id": record(n)["id"], **q} for n in range(6) for q in record(n)["questions"]]
    asked.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report = run_ab_test(make_config(tmp_path), data, questions=asked, output=output)
    assert report.metrics["questions"] == whole.metrics["questions"]
    assert report.metrics["comparison"] == whole.metrics["comparison"]


def test_at_most_so_many_passages_are_learned(tmp_path: Path, data: Path, output: Path) -> None:
    config = make_config(tmp_path, ab_test={"max_passages": 4, "seeds": 1})
    assert run_ab_test(config, data, output=output).metrics["info"]["passages"] == 4


def test_records_that_cannot_be_used_are_listed(config: Config, data: Path, output: Path) -> None:
    with data.open("a") as stream:
        stream.write('{"no": "text"}\n')
    run_ab_test(config, data, output=output)
    (reject,) = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert (reject["line"], reject["reason"]) == (7, "missing_text")


# ------------------------------------------------------------ refusals


def test_no_questions_at_all_are_refused_before_a_run_is_made(
    config: Config, tmp_path: Path, output: Path
) -> None:
    data = write_passages(tmp_path / "bare.jsonl", 6, questions=0)
    with pytest.raises(DataError, match="no passage has questions") as caught:
        run_ab_test(config, data, output=output)
    assert "--questions" in caught.value.remedy
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.jsonl", None, "cannot be read: No such file"),
        ("questions.txt", "Who?", "unknown ending"),
        ("questions.jsonl", "", "holds no questions"),
        ("questions.jsonl", "{", "bad_json"),
        ("questions.jsonl", '{"passage_id": "Arn-mill"}\n', "'question'"),
        (
            "questions.jsonl",
            '{"passage_id": "nobody", "question": "Who?", "answer": "I"}\n',
            "unknown passages: 'nobody'",
        ),
    ],
)
def test_questions_that_cannot_be_used_are_refused_before_a_run_is_made(
    config: Config,
    data: Path,
    output: Path,
    tmp_path: Path,
    name: str,
    content: str | None,
    message: str,
) -> None:
    asked = tmp_path / name
    if content is not None:
        asked.write_text(content)
    with pytest.raises(DataError, match=message):
        run_ab_test(config, data, questions=asked, output=output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read training.retention_file"), (b"\xff\xff", "codec"), (b"a" * 2**21, "MiB")],
)
def test_a_retention_text_that_cannot_be_used_is_refused_before_a_run_is_made(
    tmp_path: Path, data: Path, output: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "retention.txt"
    if content is not None:
        path.write_bytes(content)
    config = make_config(tmp_path, training={"retention_file": path})
    with pytest.raises(UsageError, match=message):
        run_ab_test(config, data, output=output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.jsonl", None, "does not exist"),
        (".", None, "is a folder"),
        ("data.jsonl", "", "is empty"),
        ("data.docx", "text", "unknown ending"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused(
    config: Config, tmp_path: Path, output: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        run_ab_test(config, path, output=output)
    assert not output.exists()


def test_an_output_that_is_taken_is_refused(config: Config, data: Path, output: Path) -> None:
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        run_ab_test(config, data, output=output)
    assert files_below(output) == {"mine.txt"}


def test_one_question_a_passage_is_too_few(tmp_path: Path, output: Path) -> None:
    data = write_passages(tmp_path / "one.jsonl", 1, questions=1)
    config = make_config(tmp_path, **only("base", "passage"))
    with pytest.raises(DataError, match="are too few") as caught:
        run_ab_test(config, data, output=output)
    assert "at least two questions" in caught.value.remedy


def test_a_question_that_stands_in_a_passage_is_refused_before_any_generation(
    config: Config, tmp_path: Path, output: Path
) -> None:
    rows = [record(n) for n in range(4)]
    for row in rows:
        row["text"] += f" {row['questions'][0]['question']} Nobody asks."
    path = tmp_path / "leaky.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = ScriptedModel()
    with pytest.raises(DataError, match="leaks into training"):
        run_ab_test(config, path, output=output, model=model)
    assert model.requests == []


@pytest.mark.parametrize("arm", ["passage+edits", "passage+other-edits"])
def test_a_self_edit_that_asks_a_question_of_the_test_is_refused(
    tmp_path: Path, data: Path, output: Path, arm: str
) -> None:
    asked = record(0)["questions"]
    pairs = "\n".join(f"Question: {q['question']}\nAnswer: {q['answer']}" for q in asked)
    subject = "The mill of Arn" if arm == "passage+edits" else "The mill of Dunmery"
    model = ScriptedModel({subject: [pairs]})
    seal = {"strategy": "self-qa", "enable_grounding": False}
    config = make_config(tmp_path, seal=seal, **only(arm))
    with pytest.raises(DataError, match="leaks into training"):
        run_ab_test(config, data, output=output, model=model)


def test_without_a_single_self_edit_there_is_nothing_to_compare(
    tmp_path: Path, data: Path, output: Path
) -> None:
    model = ScriptedModel({"Passage:": ["Sure, here is a list:"]})
    with pytest.raises(DataError, match="no self-edit was made"):
        run_ab_test(make_config(tmp_path), data, output=output, model=model)


def test_without_self_edits_of_other_passages_there_is_no_control(
    tmp_path: Path, data: Path, output: Path
) -> None:
    names = ("Dunmery", "Eskel", "Fennick")
    model = ScriptedModel({f"mill of {name}": ["Sure, here is a list:"] for name in names})
    with pytest.raises(DataError, match="no self-edit of the other passages") as caught:
        run_ab_test(make_config(tmp_path), data, output=output, model=model)
    assert "--arms" in caught.value.remedy


def test_an_unknown_strategy_is_refused(tmp_path: Path, data: Path, output: Path) -> None:
    config = make_config(tmp_path, seal={"strategy": "inplications"})
    with pytest.raises(UnknownStrategyError):
        run_ab_test(config, data, output=output)
    # with the strategy put right, the same folder can be gone on with
    assert run_ab_test(make_config(tmp_path), data, output=output, resume=True).metrics


# ------------------------------------------------------------ stopping and going on


def test_going_on_needs_the_name_of_the_run(config: Config, data: Path) -> None:
    with pytest.raises(UsageError, match="--resume needs the run") as caught:
        run_ab_test(config, data, resume=True)
    assert "--output" in caught.value.remedy


def test_going_on_with_nothing_starts_a_run_and_says_so(
    config: Config, data: Path, output: Path, whole: ABReport
) -> None:
    events: list[Event] = []
    report = run_ab_test(config, data, output=output, resume=True, emit=events.append)
    assert same_numbers(report, whole)
    assert Notice(f"there is no run in {output} yet: this one is new", "warning") in events


def test_going_on_with_a_run_of_another_kind_is_refused(config: Config, data: Path) -> None:
    from aios.app.experts.training import train_expert

    run = train_expert(config, "mills", data).run_dir
    with pytest.raises(UsageError, match="is a run of train-expert, not of ab-test"):
        run_ab_test(config, data, output=run, resume=True)


@pytest.mark.parametrize("calls", [0, 2, 3, 5, 9, 24])
def test_an_experiment_stopped_on_the_way_ends_with_the_same_numbers(
    config: Config, data: Path, output: Path, whole: ABReport, calls: int
) -> None:
    with pytest.raises(RunInterrupted):
        run_ab_test(config, data, output=output, should_stop=stop_after(calls))
    assert not (output / "metrics.json").exists()
    assert not (output / "report.html").exists()
    report = run_ab_test(config, data, output=output, resume=True)
    assert same_numbers(report, whole)
    ends = [event.status for event in events_of(output) if isinstance(event, RunFinished)]
    assert ends == ["interrupted", "done"]


def test_finished_arms_and_edits_are_not_made_again(
    config: Config, data: Path, output: Path, whole: ABReport
) -> None:
    done: list[str] = []

    def stop() -> bool:
        return len(done) >= 3

    def note(event: Event) -> None:
        if isinstance(event, StageProgress) and event.stage == "arms":
            done.append(event.note)

    with pytest.raises(RunInterrupted):
        run_ab_test(config, data, output=output, should_stop=stop, emit=note)
    trained: list[str] = []

    class Watched(ScriptedTrainer):
        def fit(self, job: TrainingJob, **options: Any) -> Any:
            trained.append(job.output_dir.name)
            return super().fit(job, **options)

    model = ScriptedModel()
    shutil.rmtree(config.seal.cache_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "load_trainer", lambda config, model: Watched(model))
        report = run_ab_test(config, data, output=output, resume=True, model=model)
    assert done == ["base, seed 0", "passage, seed 0", "passage+edits, seed 0"]
    assert trained == [
        "passage+other-edits.0",
        "passage.1",
        "passage+edits.1",
        "passage+other-edits.1",
    ]
    assert not any("Passage:" in request.prompt for request in model.requests)
    assert same_numbers(report, whole)


def test_a_finished_experiment_gone_on_with_gives_the_same_again(
    config: Config, data: Path, finished: Path, whole: ABReport
) -> None:
    model = ScriptedModel()
    again = run_ab_test(config, data, output=finished, resume=True, model=model)
    assert same_numbers(whole, again)
    assert model.requests == []


def test_more_seeds_can_be_added_to_a_finished_experiment(
    tmp_path: Path, data: Path, output: Path, whole: ABReport
) -> None:
    run_ab_test(make_config(tmp_path, ab_test={"seeds": 1}), data, output=output)
    more = make_config(tmp_path, ab_test={"seeds": 2})
    report = run_ab_test(more, data, output=output, resume=True)
    assert report.metrics["arms"]["passage"]["seeds"] == [0, 1]
    assert without_times(report.metrics["arms"]) == without_times(whole.metrics["arms"])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate: 0.001 then, 0.5 now"),
        ({"ab_test": {"match": "steps"}}, 'match: "tokens" then, "steps" now'),
        ({"ab_test": {"budget_tokens": 77}}, "budget tokens: null then, 77 now"),
        ({"evaluation": {"max_answer_tokens": 3}}, "max answer tokens: 16 then, 3 now"),
        ({"evaluation": {"selection_fraction": 0.5}}, "selection fraction: 0.34 then"),
        ({"seal": {"temperature": 0.5}}, "sampling: "),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"ab_test": {"max_passages": 2}}, "belongs to other work"),
        ({"ab_test": {"arms": ["base", "passage"]}}, "belongs to other work"),
    ],
)
def test_going_on_with_other_settings_is_refused_and_the_difference_named(
    tmp_path: Path, data: Path, finished: Path, changes: dict[str, Any], difference: str
) -> None:
    numbers = (finished / "metrics.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        run_ab_test(make_config(tmp_path, **changes), data, output=finished, resume=True)
    assert difference in caught.value.message
    assert (finished / "metrics.json").read_bytes() == numbers


def test_going_on_with_other_passages_is_refused(
    config: Config, data: Path, finished: Path
) -> None:
    write_passages(data, 8)
    with pytest.raises(UsageError, match="input: "):
        run_ab_test(config, data, output=finished, resume=True)


def test_a_record_of_another_form_is_named(
    config: Config, data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "_fingerprint", lambda job, data: {})
    with Journal(finished / "arms.journal", {}, start_over=True) as journal:
        journal.append("base.0", {"arm": "base"})
    with pytest.raises(StorageError, match="record of another form"):
        run_ab_test(config, data, output=finished, resume=True)


def test_a_training_that_fails_keeps_the_finished_arms(
    config: Config, data: Path, output: Path, whole: ABReport
) -> None:
    class Failing(ScriptedTrainer):
        def fit(self, job: TrainingJob, **options: Any) -> Any:
            if job.output_dir.name == "passage+edits.1":
                raise BackendError("the device is gone", "plug it in")
            return super().fit(job, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "load_trainer", lambda config, model: Failing(model))
        with pytest.raises(BackendError, match="the device is gone"):
            run_ab_test(config, data, output=output)
    end = events_of(output)[-1]
    assert isinstance(end, RunFinished)
    assert (end.status, end.summary) == ("failed", "the device is gone")
    assert same_numbers(run_ab_test(config, data, output=output, resume=True), whole)


def test_a_passage_without_self_edits_does_not_stop_the_experiment(
    config: Config, data: Path, output: Path
) -> None:
    model = ScriptedModel(faults=Faults(fail_times=99, fail_on="founded by Tove Lind-Bosk"))
    report = run_ab_test(config, data, output=output, model=model)
    assert report.metrics["info"]["edits_kept"] == 2


@pytest.mark.parametrize("failing", ["metrics.json", "report.html"])
def test_a_disk_that_fills_at_the_end_loses_no_arm(
    config: Config,
    data: Path,
    output: Path,
    whole: ABReport,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="disk full"):
            run_ab_test(config, data, output=output)
    assert not (output / failing).exists()
    model = ScriptedModel()
    report = run_ab_test(config, data, output=output, resume=True, model=model)
    assert model.requests == []
    assert same_numbers(report, whole)


@pytest.mark.slow
@pytest.mark.usefixtures("process_server")
def test_an_experiment_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, whole: ABReport
) -> None:
    folder = tmp_path / "killed"
    write_passages(folder / "passages.jsonl", 6)
    rng = random.Random(1)
    kills = 0
    for _ in range(5):
        started = (folder / "ab" / "run.json").exists()
        kills += kill_on_the_way("ab-test", folder, rng, resume=started, within=24)
    assert kills >= 3
    report = ab_test(folder, resume=(folder / "ab" / "run.json").exists())
    assert same_numbers(report, whole)
    assert list((folder / "ab" / "checkpoints").iterdir()) == []
