"""ReST-EM as a job: what its directory holds, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aios.app.restem.job import ReSTEMReport, optimize, plan_restem
from aios.backends.scripted import Faults, ScriptedModel
from aios.backends.scripted_trials import ScriptedTrialBench
from aios.core.config.schemas import Config
from aios.core.errors import BackendError, RunInterrupted, StorageError, UsageError
from aios.core.events import (
    CandidateTried,
    Event,
    Notice,
    RoundFinished,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
)
from aios.core.protocols import TrialBench
from aios.core.restem import ReSTEMState, tried_from_json
from aios.core.trials import TrialJob
from aios.core.types import GenerationRequest, Passage
from aios.storage.generators import read_generator
from aios.storage.runs import RunDirectory
from tests.planted_world import PlantedModel, is_helpful, place, planted_passages
from tests.test_app.scripted_jobs import files_below, make_config, stop_after, without_times

KEEP_ALL = {
    "enable_quality_filter": False,
    "enable_grounding": False,
    "enable_deduplication": False,
    "min_length": 0,
}
SEAL = {
    "restem_iterations": 2,
    "restem_batch_size": 4,
    "restem_candidates_per_passage": 3,
}
RESTEM = {
    "estimate": False,
    "arms": ["implications", "rewrite"],
    "trial_tokens": 60,
    "trial_batch": 2,
    "held_out_fraction": 0.25,
    "held_out_candidates": 2,
    "patience": 0,
    "sft_rank": 2,
    "sft_alpha": 4,
}


def write_planted(path: Path, count: int = 8, questions: bool = True) -> Path:
    return write_data(path, planted_passages(count), questions)


def write_data(path: Path, passages: Sequence[Passage], questions: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "id": passage.id,
            "text": passage.text,
            "questions": [
                {"question": q.question, "answer": q.answers[0]} for q in passage.questions
            ]
            if questions
            else [],
        }
        for passage in passages
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def config_of(folder: Path, *, restem: Any = None, seal: Any = None, **more: Any) -> Config:
    return make_config(
        folder,
        restem={**RESTEM, **(restem or {})},
        seal={**KEEP_ALL, **SEAL, **(seal or {})},
        **more,
    )


class Job:
    """A job in a folder of its own."""

    def __init__(self, folder: Path, config: Config | None = None) -> None:
        self.folder = folder
        self.config = config or config_of(folder)
        self.data = folder / "passages.jsonl"
        if not self.data.exists():
            write_planted(self.data)
        self.output = folder / "generator"
        self.path = folder / "run"

    def run(self, *, resume: bool = False, **more: Any) -> ReSTEMReport:
        settings = {"model": PlantedModel(), "run_dir": self.path, **more}
        return optimize(self.config, self.data, self.output, resume=resume, **settings)

    def result(self) -> dict[str, Any]:
        """All that a run comes to, without times."""
        state = json.loads((self.path / "state.json").read_text())
        del state["dataset"]
        found: dict[str, Any] = {"state": without_times(state)}
        for file in sorted((self.path / "rounds").rglob("*.jsonl")):
            found[str(file.relative_to(self.path))] = file.read_text()
        return found


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that nothing disturbs."""
    job = Job(tmp_path_factory.mktemp("whole"))
    job.run()
    return job.result()


# ------------------------------------------------------------ what a run leaves


def test_a_run_s_directory_holds_all_that_was_done(job: Job) -> None:
    events: list[Event] = []
    report = job.run(emit=events.append)
    files = files_below(job.path)
    assert {"run.json", "config.yaml", "events.jsonl", "state.json", "plan.json"} <= files
    assert {"report.html", "metrics.json"} <= files
    assert "rounds/0/held_out.jsonl" in files
    assert "rounds/0/candidates.jsonl" not in files
    for number in (1, 2):
        of_round = {f.removeprefix(f"rounds/{number}/") for f in files}
        assert {"candidates.jsonl", "held_out.jsonl"} <= of_round
        assert {f"generator/{name}" for name in ("generator.json", "README.md")} <= of_round
        read_generator(job.path / "rounds" / str(number) / "generator")
    state = json.loads((job.path / "state.json").read_text())
    assert ReSTEMState.from_json(state) == report.state
    assert state["finished"] is True
    assert state["dataset"] == str(job.data)
    assert sorted(state["train"] + state["held_out"]) == [f"p{n}" for n in range(8)]
    assert len(state["held_out"]) == 2
    for number in (1, 2):
        lines = (job.path / f"rounds/{number}/candidates.jsonl").read_text().splitlines()
        tried = [tried_from_json(json.loads(line)) for line in lines]
        assert len(tried) == report.state.rounds[number].passages == 4
        assert {p.passage_id for p in tried} <= set(state["train"])
        kept = [one for p in tried for one in p.candidates if one.kept]
        assert len(kept) == report.state.rounds[number].kept
    held_out = (job.path / "rounds/2/held_out.jsonl").read_text().splitlines()
    assert {json.loads(line)["passage_id"] for line in held_out} == set(state["held_out"])
    assert not (job.path / "checkpoints").exists()
    assert not (job.path / "stop").exists()
    assert not list(job.path.rglob("*.tmp"))
    assert (report.report_html, report.metrics_json) == (
        job.path / "report.html",
        job.path / "metrics.json",
    )
    assert json.loads(report.metrics_json.read_text()) == report.metrics
    page = report.report_html.read_text()
    assert "<svg" in page
    assert "<script" not in page
    shown = [e.stage for e in events if isinstance(e, StageStarted)]
    stages = [f"round {n}: {part}" for n in (1, 2) for part in ("write", "try", "fit", "held-out")]
    wanted = ["round 0: held-out", *(s for s in stages if not s.endswith("fit"))]
    assert [s for s in shown if s.startswith("round") and not s.endswith("fit")] == wanted
    assert len([s for s in shown if s.startswith("train ")]) == 2
    ended = [e.stage for e in events if isinstance(e, StageFinished)]
    assert sorted(ended) == sorted(shown)
    kinds = [type(event) for event in events]
    assert (kinds[0], kinds[-1]) == (RunStarted, RunFinished)
    assert kinds.count(RoundFinished) == 3
    tried_events = [e for e in events if isinstance(e, CandidateTried)]
    assert len([e for e in tried_events if not e.held_out]) == sum(
        report.state.rounds[n].tried for n in (1, 2)
    )


def test_the_generator_learns_what_helps_and_the_best_one_is_put_in_place(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        restem={"arms": ["implications"], "held_out_candidates": 4},
        seal={"restem_batch_size": 12, "restem_candidates_per_passage": 5},
    )
    write_planted(tmp_path / "passages.jsonl", 16)
    job = Job(tmp_path, config)
    report = job.run()
    assert report.state.best > 0
    best = report.state.rounds[report.state.best]
    adapter, card = read_generator(job.output)
    assert report.generator == job.output
    assert adapter.digest == best.digest
    assert (card.round, card.base_digest) == (best.number, PlantedModel().digest)
    assert len(card.rounds) == 3
    first, last = (
        [
            is_helpful("\n".join(one["edit"]["items"]))
            for line in (job.path / f"rounds/{n}/held_out.jsonl").read_text().splitlines()
            for one in json.loads(line)["candidates"]
        ]
        for n in (0, report.state.best)
    )
    assert sum(last) / len(last) > sum(first) / len(first)


def test_without_a_folder_the_generator_stays_in_the_run(job: Job) -> None:
    job.config = config_of(job.folder, restem={"held_out_fraction": 0.0})
    report = optimize(job.config, job.data, None, run_dir=job.path, model=PlantedModel())
    assert report.generator == job.path / "rounds" / "2" / "generator"
    assert not job.output.exists()
    state = json.loads((job.path / "state.json").read_text())
    assert state["held_out"] == []


def test_where_nothing_is_better_than_the_untrained_generator_none_is_given(job: Job) -> None:
    job.config = config_of(job.folder, restem={"threshold": 99.0})
    events: list[Event] = []
    report = job.run(emit=events.append)
    assert report.generator is None
    assert not job.output.exists()
    assert "no self-edit of round 1" in report.state.stopped
    warnings = [e.message for e in events if isinstance(e, Notice) and e.level == "warning"]
    assert any("no round's generator was better" in message for message in warnings)
    assert report.report_html.exists()


def test_a_dry_plan_counts_what_a_run_then_does(job: Job) -> None:
    plan = plan_restem(job.config, job.data, model=PlantedModel())
    assert files_below(job.folder) == {"passages.jsonl"}
    report = job.run()
    first = report.state.rounds[1]
    assert (plan.passages, plan.held_out, plan.rounds) == (6, 2, 2)
    assert (plan.passages_per_round, plan.candidates) == (4, 12)
    assert first.asked == plan.candidates
    assert first.trials <= plan.trials  # fewer where the filter left nothing of a candidate


# ------------------------------------------------------------ stopped and resumed


def count_of_stops(folder: Path) -> int:
    """How often a run asks whether to stop."""
    asked = 0

    def never() -> bool:
        nonlocal asked
        asked += 1
        return False

    Job(folder).run(should_stop=never)
    return asked


@pytest.mark.slow
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_numbers(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    total = count_of_stops(tmp_path / "counted")
    assert total > 60
    stopped = 0
    for calls in range(0, total, 11):
        job = Job(tmp_path / str(calls))
        try:
            job.run(should_stop=stop_after(calls))
        except RunInterrupted:
            stopped += 1
        else:
            continue
        if calls % 22 == 0:  # once more, soon after
            with pytest.raises(RunInterrupted):
                job.run(resume=True, should_stop=stop_after(3))
        job.run(resume=True)
        assert job.result() == whole, f"stopped when asked for the {calls}th time"
        assert not job.output.exists() or read_generator(job.output)
    assert stopped >= total // 11 - 1


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_numbers(
    job: Job, whole: dict[str, Any]
) -> None:
    stops = 0
    while True:
        try:
            job.run(resume=stops > 0, should_stop=stop_after(25))
        except RunInterrupted:
            stops += 1
            assert stops < 60
        else:
            break
    assert stops > 3
    assert job.result() == whole


def test_with_filters_and_several_arms_it_is_the_same_too(tmp_path: Path) -> None:
    def one(name: str) -> Job:
        folder = tmp_path / name
        seal = {"enable_quality_filter": True, "enable_deduplication": True, "min_length": 3}
        restem = {"arms": ["implications", "rewrite", "self-qa"], "racing": False}
        return Job(folder, config_of(folder, restem=restem, seal=seal))

    undisturbed, stopped = one("whole"), one("stopped")
    undisturbed.run()
    stops = 0
    while True:
        try:
            stopped.run(resume=stops > 0, should_stop=stop_after(23))
        except RunInterrupted:
            stops += 1
        else:
            break
    assert stops > 2
    assert stopped.result() == undisturbed.result()


def test_a_finished_run_is_resumed_without_a_trial(job: Job, whole: dict[str, Any]) -> None:
    job.run()
    for name in ("report.html", "metrics.json"):
        (job.path / name).unlink()
    model = PlantedModel()
    report = job.run(resume=True, model=model)
    assert model.requests == []
    assert report.report_html.exists()
    assert report.metrics_json.exists()
    assert job.result() == whole


def test_a_run_needs_a_name_to_be_resumed(job: Job) -> None:
    with pytest.raises(UsageError, match="needs the run to go on with"):
        job.run(resume=True, run_dir=None)


def test_a_new_run_does_not_take_the_place_of_another(job: Job) -> None:
    job.run()
    with pytest.raises(UsageError, match="exists already"):
        job.run()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 5}, "seed"),
        ({"restem": {"reward": "perplexity"}}, "restem.reward"),
        ({"restem": {"repeats": 3}}, "restem.repeats"),
        ({"restem": {"sft_rank": 3}}, "restem.sft_rank"),
        ({"restem": {"held_out_fraction": 0.5}}, "restem.held_out_fraction"),
        ({"seal": {"restem_iterations": 3}}, "seal.restem_iterations"),
        ({"seal": {"temperature": 0.5}}, "seal.temperature"),
        ({"training": {"learning_rate": 0.5}}, "training recipe"),
        ({"evaluation": {"max_answer_tokens": 3}}, "evaluation.max_answer_tokens"),
        ({"evaluation": {"question_template": "{question}?"}}, "question template"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_goes_on_with_the_same_settings_only(
    job: Job, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_after(20))
    before = files_below(job.path)
    job.config = config_of(job.folder, **changes)
    with pytest.raises(UsageError, match=rf"was started with another {named}") as caught:
        job.run(resume=True)
    assert "start a new run" in caught.value.remedy
    assert files_below(job.path) == before


def test_a_run_goes_on_with_the_same_data_and_model_only(job: Job) -> None:
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_after(20))
    with pytest.raises(UsageError, match="another model"):
        job.run(resume=True, model=PlantedModel(context_length=999))
    text = job.data.read_text()
    job.data.write_text(text.replace("Which word opens", "What opens"))
    with pytest.raises(UsageError, match="another dataset"):
        job.run(resume=True)


def test_where_trials_are_run_may_change(job: Job, whole: dict[str, Any]) -> None:
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_after(20))
    job.config = config_of(
        job.folder,
        restem={"workers": 7, "executor": "serial", "estimate": True},
        seal={"enable_cache": False, "cache_dir": job.folder / "elsewhere"},
    )
    job.run(resume=True)
    assert job.result() == whole


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "{", "null"])
def test_a_plan_that_cannot_be_read_is_an_error_and_no_crash(job: Job, text: str) -> None:
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_after(20))
    (job.path / "plan.json").write_text(text)
    if text == "null":
        job.run(resume=True)
        return
    with pytest.raises(StorageError, match=r"plan\.json is corrupt") as caught:
        job.run(resume=True)
    assert caught.value.remedy


def test_records_that_cannot_be_used_are_listed_once(job: Job) -> None:
    with job.data.open("a") as file:
        file.write("no JSON\n")
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_after(20))
    job.run(resume=True)
    assert len((job.path / "rejects.jsonl").read_text().splitlines()) == 1


def test_a_run_of_another_kind_is_not_resumed(job: Job) -> None:
    RunDirectory.create(job.folder, "ab-test", run_id=job.path.name, config_yaml="", seed=0).close()
    with pytest.raises(UsageError, match="is a run of ab-test, not of restem"):
        job.run(resume=True)


# ------------------------------------------------------------ asked to stop


def test_a_stop_file_stops_gracefully_and_is_forgotten_on_resume(
    job: Job, whole: dict[str, Any]
) -> None:
    events: list[Event] = []

    def ask(event: Event) -> None:
        events.append(event)
        if isinstance(event, RoundFinished) and event.number == 1:
            (job.path / "stop").write_text("please")

    with pytest.raises(RunInterrupted):
        job.run(emit=ask)
    (end,) = [e for e in events if isinstance(e, RunFinished)]
    assert end.status == "interrupted"
    state = json.loads((job.path / "state.json").read_text())
    assert len(state["rounds"]) == 2
    assert state["finished"] is False
    assert not (job.path / "report.html").exists()
    job.run(resume=True)
    assert not (job.path / "stop").exists()
    assert job.result() == whole


def test_a_second_process_is_refused_and_harms_nothing(job: Job, whole: dict[str, Any]) -> None:
    refused: list[StorageError] = []

    def intrude(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.number == 1:
            with pytest.raises(StorageError, match="in use by another process") as caught:
                job.run(resume=True)
            refused.append(caught.value)

    job.run(emit=intrude)
    assert len(refused) == 1
    assert refused[0].remedy
    assert job.result() == whole


# ------------------------------------------------------------ data that is no good


@pytest.mark.parametrize("content", ["", "\n", "no JSON\n"])
def test_a_file_without_a_passage_is_refused(job: Job, content: str) -> None:
    job.data.write_text(content)
    with pytest.raises(UsageError):
        job.run()
    assert not (job.path / "state.json").exists()


def test_passages_without_questions_are_refused_or_left_out_and_told(job: Job) -> None:
    write_planted(job.data, questions=False)
    with pytest.raises(UsageError, match=r"no passage of .* has questions"):
        job.run()
    events: list[Event] = []
    passages = planted_passages(8)
    write_data(job.data, [*passages[:7], Passage.make("Nobody asks about the hills.", id="x")])
    report = job.run(run_dir=job.folder / "other", emit=events.append)
    assert any(isinstance(e, Notice) and "1 passages have no" in e.message for e in events)
    text = (report.run_dir / "state.json").read_text()
    assert '"x"' not in text


def test_a_single_passage_cannot_be_split_and_can_be_optimised_on_alone(job: Job) -> None:
    write_planted(job.data, 1)
    with pytest.raises(UsageError, match="cannot be split") as caught:
        job.run()
    assert caught.value.remedy
    job.config = config_of(job.folder, restem={"held_out_fraction": 0.0})
    report = job.run(run_dir=job.folder / "other")
    assert report.state.rounds[1].passages == 1
    assert report.state.rounds[1].held_out is None


def test_passages_that_nearly_repeat_one_another_cannot_be_split(job: Job) -> None:
    (one,) = planted_passages(1)
    text = "A long text that stands in each passage of this file, word for word. " * 5
    copies = [
        Passage.make(f"{text} Number {n}.", id=f"c{n}", questions=one.questions) for n in range(4)
    ]
    write_data(job.data, copies)
    with pytest.raises(UsageError, match="one near-duplicate group") as caught:
        job.run()
    assert caught.value.remedy


def test_a_question_that_does_not_fit_the_model_names_its_passage(job: Job) -> None:
    text = job.data.read_text()
    job.data.write_text(text.replace("Which word opens", "Which word " * 60 + "opens", 1))
    with pytest.raises(BackendError, match=r"passage p0 .* do not fit"):
        job.run(model=PlantedModel(context_length=60))


# ------------------------------------------------------------ places that are no good


def test_a_generator_is_refused_as_the_base(job: Job) -> None:
    job.run()
    job.config = config_of(job.folder, seal={"generator": job.path / "rounds/1/generator"})
    with pytest.raises(UsageError, match="begins with the base model"):
        job.run(run_dir=job.folder / "other")
    assert not (job.folder / "other").exists()


def test_a_folder_that_holds_something_else_is_refused_before_any_work(job: Job) -> None:
    job.output.mkdir()
    (job.output / "diary.txt").write_text("mine")
    model = PlantedModel()
    with pytest.raises(UsageError, match=r"holds 'diary.txt'"):
        job.run(model=model)
    assert model.requests == []
    assert not job.path.exists()
    assert (job.output / "diary.txt").read_text() == "mine"


def test_a_file_in_the_generator_s_place_is_refused_before_any_work(job: Job) -> None:
    job.output.write_text("mine")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        job.run()
    assert not job.path.exists()


def test_an_older_generator_is_replaced(job: Job) -> None:
    job.config = config_of(job.folder, restem={"held_out_fraction": 0.0})
    first = job.run()
    assert first.generator is not None
    job.config = config_of(job.folder, restem={"held_out_fraction": 0.0}, seed=3)
    second = job.run(run_dir=job.folder / "other")
    adapter, _ = read_generator(job.output)
    assert adapter.digest == second.state.rounds[-1].digest != first.state.rounds[-1].digest


# ------------------------------------------------------------ disks


def fail_writes_after(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Every write, rename and sync fails after so many."""
    left = calls
    for name in ("write", "replace", "rename", "fsync"):
        real = getattr(os, name)

        def failing(*arguments: Any, _real: Callable[..., Any] = real, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return _real(*arguments, **more)

        patch.setattr(os, name, failing)


def count_of_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = 0
    with monkeypatch.context() as patch:
        for name in ("write", "replace", "rename", "fsync"):
            real = getattr(os, name)

            def counting(*arguments: Any, _real: Callable[..., Any] = real, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                return _real(*arguments, **more)

            patch.setattr(os, name, counting)
        Job(folder).run()
    return calls


def test_a_full_disk_leaves_the_state_before_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    total = count_of_writes(tmp_path / "counted", monkeypatch)
    rounds: list[int] = []
    for calls in (*range(0, total, total // 10), total - 1):
        job = Job(tmp_path / str(calls))
        with monkeypatch.context() as patch:
            fail_writes_after(patch, calls)
            with pytest.raises(StorageError, match="disk full") as caught:
                job.run()
        assert caught.value.remedy
        if (job.path / "state.json").exists():
            state = ReSTEMState.from_json(json.loads((job.path / "state.json").read_text()))
            rounds.append(len(state.rounds))
        job.run(resume=(job.path / "run.json").exists())
        assert job.result() == whole, f"the disk was full after {calls} writes"
    assert set(rounds) == {1, 2, 3}


def test_a_line_of_a_journal_that_is_spoiled_is_done_again(job: Job, whole: dict[str, Any]) -> None:
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_after(45))
    journals = sorted(job.path.rglob("*.journal"))
    spoiled = 0
    for file in journals:
        lines = file.read_bytes().splitlines(keepends=True)
        if len(lines) > 2:
            lines[1] = lines[1].replace(b'"value"', b'"valve"')
            spoiled += 1
        file.write_bytes(b"".join(lines))
    assert spoiled >= 3
    job.config = config_of(job.folder, seal={"enable_cache": False})
    job.run(resume=True)
    assert without_trials(job.result()) == without_trials(whole)


def without_trials(result: Any) -> Any:
    """A result without the numbers of trials: a baseline that is lost is trained again."""
    if isinstance(result, dict):
        return {k: without_trials(v) for k, v in result.items() if k != "trials"}
    if isinstance(result, str) and result.startswith("{"):
        return [without_trials(json.loads(line)) for line in result.splitlines()]
    return [without_trials(one) for one in result] if isinstance(result, list) else result


def test_a_state_that_is_spoiled_is_an_error_and_no_crash(job: Job) -> None:
    job.run()
    path = job.path / "state.json"
    good = json.loads(path.read_text())
    untrained, first, _ = good["rounds"]
    for bad in (
        "[]",
        "{",
        json.dumps({**good, "best": 9}),
        json.dumps({**good, "shares": {"implications": "x"}}),
        json.dumps({**good, "shares": {"implications": 7.0, "rewrite": 1.0}}),
        json.dumps({**good, "stopped": "", "shares": {"unknown": 1.0}}),
        json.dumps({**good, "best": 1, "rounds": [untrained, {**first, "generator": "../.."}]}),
        json.dumps({**good, "rounds": [untrained, {**first, "trials": "many"}]}),
        json.dumps({**good, "rounds": [untrained, {**first, "number": 7}]}),
    ):
        path.write_text(bad)
        with pytest.raises((StorageError, UsageError)) as caught:
            job.run(resume=True)
        assert caught.value.message


def test_candidates_that_are_spoiled_do_not_stop_the_report(job: Job) -> None:
    job.run()
    file = job.path / "rounds" / "1" / "candidates.jsonl"
    file.write_bytes(b'{"no": "candidate"}\nno JSON\n' + file.read_bytes())
    assert job.run(resume=True).report_html.exists()


def test_a_generator_of_the_run_that_is_spoiled_is_an_error(job: Job) -> None:
    with pytest.raises(RunInterrupted):
        job.run(should_stop=stop_at_round(job, 1))
    weights = job.path / "rounds/1/generator/adapter_model.safetensors"
    weights.write_bytes(b"nothing of the kind")
    with pytest.raises(StorageError):
        job.run(resume=True)


def stop_at_round(job: Job, number: int) -> Callable[[], bool]:
    """A `ShouldStop` that says yes when a round is committed."""

    def should_stop() -> bool:
        path = job.path / "state.json"
        return path.exists() and len(json.loads(path.read_text())["rounds"]) > number

    return should_stop


# ------------------------------------------------------------ what fails


class FlakyModel(PlantedModel):
    """Its trials of a text fail, or what it writes does, while `broken`."""

    def __init__(self, *, text: str, trials: bool, **more: Any) -> None:
        super().__init__(**more)
        self.text, self.trials, self.broken = text, trials, True

    def trial_bench(self) -> TrialBench:
        def fail(job: TrialJob) -> BackendError | None:
            found = any(self.text in e.text for e in job.examples)
            wanted = self.trials and self.broken and found
            return BackendError("out of luck", retryable=True) if wanted else None

        return ScriptedTrialBench(self, fail=fail)

    def _text(self, prompt: str, seed: int | None) -> str:
        if self.broken and not self.trials and self.text in prompt and "Rewrit" not in prompt:
            raise BackendError("out of words", retryable=True)
        return super()._text(prompt, seed)


def test_too_many_failed_trials_stop_the_run_and_it_goes_on_when_the_reason_is_gone(
    job: Job, whole: dict[str, Any]
) -> None:
    model = FlakyModel(text="Orv", trials=True)
    events: list[Event] = []
    with pytest.raises(BackendError, match=r"trials failed, more than restem\.max_failed_share"):
        job.run(model=model, emit=events.append)
    (end,) = [e for e in events if isinstance(e, RunFinished)]
    assert end.status == "failed"
    assert "out of luck" in end.summary
    model.broken = False
    job.run(resume=True, model=model)
    assert job.result() == whole


def test_trials_that_failed_stay_failed_when_the_run_goes_on(tmp_path: Path) -> None:
    """What the next generator learned from does not change under it."""

    def run(name: str, stops: Sequence[int]) -> dict[str, Any]:
        job, model = Job(tmp_path / name), FlakyModel(text=place(2), trials=True)
        for number, calls in enumerate(stops):
            with pytest.raises(RunInterrupted):
                job.run(resume=number > 0, model=model, should_stop=stop_after(calls))
        job.run(resume=bool(stops), model=model)
        return job.result()

    undisturbed = run("whole", [])
    assert sum(r["failed"] for r in undisturbed["state"]["rounds"]) > 0
    for stops in ([30], [40, 10], [25, 9, 9, 9]):
        assert run("-".join(map(str, stops)), stops) == undisturbed


def test_what_could_not_be_written_is_not_written_once_its_trials_have_begun(job: Job) -> None:
    def run(job: Job, stop_at: str) -> dict[str, Any]:
        model = FlakyModel(text=place(2), trials=False)
        stop_at_file = job.path / "rounds" / "1" / stop_at
        with pytest.raises(RunInterrupted):
            job.run(model=model, should_stop=stop_at_file.exists)
        model.broken = False
        job.run(resume=True, model=model)
        counted: dict[str, Any] = job.result()["state"]["rounds"][1]
        assert counted["asked"] == counted["tried"] + counted["filtered"] + counted["failed"]
        return counted

    assert run(job, "candidates.trials.journal")["failed"] > 0
    earlier = Job(job.folder / "earlier")
    assert run(earlier, "candidates.edits.journal")["failed"] == 0


def test_a_generator_that_writes_nothing_stops_with_the_reason(job: Job) -> None:
    class Mute(ScriptedModel):
        def _text(self, prompt: str, seed: int | None) -> str:
            return " " if "Passage:" in prompt else super()._text(prompt, seed)

    report = job.run(model=Mute())
    assert report.state.stopped == "no self-edit of round 1 was good enough to learn from"
    assert report.state.rounds[1].filtered == report.state.rounds[1].asked == 12
    assert report.state.rounds[1].trials == 0
    assert report.generator is None


def test_a_model_that_scores_no_numbers_stops_with_the_reason(job: Job) -> None:
    with pytest.raises(BackendError, match="NaN"):
        job.run(model=ScriptedModel(faults=Faults(nan_scores=True)))


def test_held_out_passages_and_their_questions_are_never_trained_on(job: Job) -> None:
    seen: list[str] = []

    class Watched(PlantedModel):
        def trial_bench(self) -> TrialBench:
            def note(trial: TrialJob) -> None:
                seen.extend(example.text for example in trial.examples)

            return ScriptedTrialBench(self, fail=note)

    report = job.run(model=Watched())
    state = json.loads((report.run_dir / "state.json").read_text())
    questions = [q.question for p in planted_passages(8) for q in p.questions]
    assert not [text for text in seen for question in questions if question in text]
    for number in (1, 2):
        adapter, _ = read_generator(report.run_dir / f"rounds/{number}/generator")
        learned = (adapter.path / "adapter_model.safetensors").read_bytes().decode("latin-1")
        names = {f"p{n}" for n in range(8) if place(n) in learned}
        assert names
        assert names <= set(state["train"])


def test_the_seeds_of_held_out_passages_are_the_same_in_every_round(job: Job) -> None:
    class Watched(PlantedModel):
        asked: ClassVar[list[GenerationRequest]] = []

        def with_memory(self, memory: Any, adapter_digest: str) -> PlantedModel:
            return Watched(memory=memory, adapter_digest=adapter_digest)

        def stream(self, requests: Any, *, width: int | None = None) -> Any:
            def noted() -> Any:
                for request in requests:
                    Watched.asked.append(request)
                    yield request

            return super().stream(noted(), width=width)

    report = job.run(model=Watched())
    state = json.loads((report.run_dir / "state.json").read_text())
    texts = {p.id: p.text for p in planted_passages(8)}
    seeds = [
        sorted((r.prompt, r.seeds) for r in Watched.asked if texts[one] in r.prompt)
        for one in state["held_out"]
    ]
    assert seeds
    for of_passage in seeds:
        assert of_passage
        assert len(of_passage) % 3 == 0
        assert of_passage[::3] == of_passage[1::3] == of_passage[2::3]
