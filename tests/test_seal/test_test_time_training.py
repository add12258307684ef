"""Temporary experts: what they are trained on, what a call gives, and that nothing is left over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from inspect import signature
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.backends.scripted_trials import ScriptedTrialBench
from aios.core.errors import BackendError, RunInterrupted, StorageError, UsageError
from aios.core.events import Event, StageFinished, StageStarted, WorkFailed
from aios.core.protocols import (
    Emit,
    LanguageModel,
    ShouldStop,
    TemporaryExpert,
    TrialBench,
    ignore,
    never,
)
from aios.core.seal.test_time_training import SEAL_RECIPE, TTTTrainer, own_bench
from aios.core.seal.trainable_edits import Edit, text_items
from aios.core.trials import TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Failure, LoraRecipe, Passage, ScoreRequest, SelfEdit, TrainExample

PASSAGE = Passage.make("The mill at Orvane was built in 1871.", id="p", title="Orvane")
EDIT = SelfEdit("p", "self-qa", 0, ("Question: Who built it?\nAnswer: Ada Brandt", "It is old."))
ASKED = [ScoreRequest("Who built the mill?", " Ada Brandt")]
YEAR = [ScoreRequest("When was it built?", " 1871")]


class Bench(ScriptedTrialBench):
    """A scripted bench that notes its jobs and hands out experts that it knows of."""

    def __init__(self, model: ScriptedModel, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.jobs: list[TrialJob] = []
        self.experts: list[TemporaryExpert] = []
        self.ended = 0

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[tuple[TrialJob, TemporaryExpert, TrialMetrics] | TrialOutcome]:
        def noted() -> Iterator[TrialJob]:
            for job in jobs:
                self.jobs.append(job)
                yield job

        try:
            for result in super().train(noted(), emit=emit, should_stop=should_stop):
                if not isinstance(result, TrialOutcome):
                    self.experts.append(result[1])
                yield result
        finally:
            self.ended += 1


class TrainableModel(ScriptedModel):
    """A scripted model with a bench of its own."""

    bench: Bench | None = None

    def trial_bench(self) -> TrialBench:
        self.bench = self.bench or Bench(self)
        return self.bench


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
def bench(model: ScriptedModel) -> Bench:
    return Bench(model)


def trainer(bench: TrialBench, **settings: Any) -> TTTTrainer:
    return TTTTrainer(lambda model: bench, **settings)


def texts(job: TrialJob) -> list[str]:
    return [example.text for example in job.examples]


def loss(model: LanguageModel, requests: list[ScoreRequest] = ASKED) -> float:
    return model.score(requests)[0].loss


def is_released(expert: TemporaryExpert) -> bool:
    try:
        expert.score(ASKED)
    except BackendError:
        return True
    return False


def second_fails(job: TrialJob) -> BackendError | None:
    return BackendError("too hot", retryable=True) if job.id == "edit-1" else None


# --- one expert


def test_it_is_called_as_the_plan_says() -> None:
    parameters = list(signature(TTTTrainer.train_temporary_expert).parameters.values())[1:5]
    assert [p.name for p in parameters] == ["base_expert", "self_edit", "epochs", "learning_rate"]
    assert [p.default for p in parameters[2:]] == [5, 1e-4]


def test_a_model_with_a_bench_of_its_own_needs_no_other_argument() -> None:
    model = TrainableModel()
    expert, metrics = TTTTrainer().train_temporary_expert(model, EDIT)
    assert loss(expert) < loss(model)
    assert metrics.steps == len(metrics.losses) == 5 * 2
    assert metrics.losses[-1] < metrics.losses[0]
    TTTTrainer().train_temporary_expert(model, EDIT)
    assert model.bench is not None
    assert len(model.bench.jobs) == 2


def test_a_model_that_cannot_be_trained_here_is_refused() -> None:
    model: Any = SimpleNamespace(name="endpoint")  # a model without a bench of its own
    calls: list[Callable[[], object]] = [
        lambda: TTTTrainer().train_temporary_expert(model, EDIT),
        lambda: TTTTrainer().train_many(model, [EDIT]),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="no adapter can be trained on endpoint") as caught:
            call()
        assert "bench_for" in caught.value.remedy
    with pytest.raises(UsageError):
        own_bench(model)


def test_the_defaults_are_the_plans_and_the_release_s(model: ScriptedModel, bench: Bench) -> None:
    trainer(bench).train_temporary_expert(model, EDIT)
    (job,) = bench.jobs
    assert job.recipe == replace(SEAL_RECIPE, epochs=5, learning_rate=1e-4)
    recipe = job.recipe
    assert (recipe.rank, recipe.alpha, recipe.dropout, recipe.batch_size) == (32, 64, 0.0, 1)
    assert (job.seed, job.patience, job.questions) == (0, 0, ())


def test_settings_reach_the_job(model: ScriptedModel, bench: Bench) -> None:
    recipe = LoraRecipe(rank=8, alpha=8, epochs=7, learning_rate=2e-3, batch_size=2)
    training = trainer(bench, recipe=recipe, patience=3, seed=5)
    training.train_temporary_expert(model, EDIT, 2, 3e-4)
    training.train_temporary_expert(model, EDIT, epochs=None, learning_rate=None, seed=9)
    first, second = bench.jobs
    assert first.recipe == replace(recipe, epochs=2, learning_rate=3e-4)
    assert second.recipe == recipe
    assert (first.seed, second.seed, first.patience) == (5, 9, 3)


@pytest.mark.parametrize(
    "edit",
    [
        EDIT,
        EDIT.text,
        [TrainExample.whole(item, source="self-qa", passage_id="p") for item in EDIT.items],
    ],
    ids=["record", "text", "examples"],
)
def test_an_edit_may_be_a_record_a_text_or_examples(
    model: ScriptedModel, bench: Bench, edit: Edit
) -> None:
    trainer(bench).train_temporary_expert(model, edit)
    assert texts(bench.jobs[0]) == list(EDIT.items)


def test_a_text_is_an_item_a_line_and_an_answer_stays_with_its_question() -> None:
    assert text_items(EDIT.text) == list(EDIT.items)
    text = " One. \n\nTwo.\nAnswer: alone\nQuestion: a?\nAnswer: b\nAnswer: c\nQuestion: d?"
    assert text_items(text) == [
        "One.",
        "Two.",
        "Answer: alone",
        "Question: a?\nAnswer: b",
        "Answer: c",
        "Question: d?",
    ]
    assert text_items(" \n ") == []


def test_loss_may_be_on_answers_alone(model: ScriptedModel, bench: Bench) -> None:
    trainer(bench, loss_on="answer").train_temporary_expert(model, EDIT)
    first, second = bench.jobs[0].examples
    assert [first.text[a:b] for a, b in first.loss_spans] == [" Ada Brandt"]
    assert second.loss_spans == ((0, len(second.text)),)


def test_the_passage_is_trained_on_too_where_it_is_given(
    model: ScriptedModel, bench: Bench
) -> None:
    one, _ = trainer(bench).train_temporary_expert(model, EDIT, passage=PASSAGE)
    trainer(bench, passage_copies=3).train_temporary_expert(model, EDIT, passage=PASSAGE)
    trainer(bench, passage_copies=0).train_temporary_expert(model, EDIT, passage=PASSAGE)
    without, _ = trainer(bench).train_temporary_expert(model, EDIT)
    text = f"{PASSAGE.title}\n{PASSAGE.text}"
    assert [texts(job).count(text) for job in bench.jobs] == [1, 3, 0, 0]
    assert loss(one, YEAR) < loss(without, YEAR) == loss(model, YEAR)


def test_the_base_stays_as_it_is(model: ScriptedModel, bench: Bench) -> None:
    before = model.score([*ASKED, *YEAR])
    expert, _ = trainer(bench).train_temporary_expert(model, EDIT, passage=PASSAGE)
    assert model.score([*ASKED, *YEAR]) == before
    expert.release()
    assert model.score([*ASKED, *YEAR]) == before


def test_a_training_ends_early_on_a_plateau(model: ScriptedModel, bench: Bench) -> None:
    _, metrics = trainer(bench, patience=2).train_temporary_expert(model, EDIT, epochs=500)
    assert metrics.stopped_early
    assert metrics.steps < 2 * 500
    _, metrics = trainer(bench, patience=2).train_temporary_expert(model, EDIT, epochs=4)
    assert (metrics.steps, metrics.stopped_early) == (8, False)


def test_a_checkpoint_is_the_expert(model: ScriptedModel, bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    expert, _ = trainer(bench).train_temporary_expert(model, EDIT, checkpoint_dir=folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 32, 64)
    adapter = expert.export(tmp_path / "again")
    attached = ScriptedTrainer(model).attach(replace(adapter, path=folder))
    assert attached.score(ASKED) == expert.score(ASKED)


def test_nothing_is_written_without_a_checkpoint_folder(
    model: ScriptedModel, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(bench).train_temporary_expert(model, EDIT)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_training_is_raised(model: ScriptedModel) -> None:
    error = BackendError("too hot", retryable=True)
    training = trainer(Bench(model, fail=lambda job: error))
    with pytest.raises(BackendError, match="not trained: too hot") as caught:
        training.train_temporary_expert(model, EDIT)
    assert caught.value.retryable


def test_an_interrupted_training_leaves_no_expert(model: ScriptedModel, bench: Bench) -> None:
    with pytest.raises(RunInterrupted):
        trainer(bench).train_temporary_expert(model, EDIT, should_stop=lambda: True)
    assert bench.experts == []
    assert bench.ended == 1


def test_a_checkpoint_that_cannot_be_written_leaves_no_expert(
    model: ScriptedModel, bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        trainer(bench).train_temporary_expert(model, EDIT, checkpoint_dir=tmp_path / "file")
    (expert,) = bench.experts
    assert is_released(expert)


def test_an_expert_can_be_trained_further_but_not_kept(tmp_path: Path) -> None:
    below, _ = TTTTrainer().train_temporary_expert(TrainableModel(), EDIT, 1)
    assert isinstance(below, ScriptedModel)
    bench = Bench(below)
    above, _ = trainer(bench).train_temporary_expert(below, EDIT, 1)
    assert loss(above) < loss(below)
    with pytest.raises(UsageError, match="on top of another"):
        trainer(bench).train_temporary_expert(below, EDIT, checkpoint_dir=tmp_path / "x")
    assert is_released(bench.experts[1])
    assert not is_released(below)


@pytest.mark.parametrize(
    "edit", ["", " \n", replace(EDIT, items=()), replace(EDIT, items=(" ",)), []]
)
def test_an_empty_edit_is_refused_even_with_a_passage(
    model: ScriptedModel, bench: Bench, edit: Edit
) -> None:
    with pytest.raises(UsageError, match="the self-edit is empty"):
        trainer(bench).train_temporary_expert(model, edit, passage=PASSAGE)


@pytest.mark.parametrize(
    "arguments", [{"epochs": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}]
)
def test_numbers_out_of_range_are_refused_before_anything_is_trained(
    model: ScriptedModel, bench: Bench, arguments: dict[str, Any]
) -> None:
    (name,) = arguments
    with pytest.raises(UsageError, match=name):
        trainer(bench).train_temporary_expert(model, EDIT, **arguments)
    with pytest.raises(UsageError, match=name):
        trainer(bench).train_many(model, [EDIT], **arguments)
    assert bench.jobs == []


@pytest.mark.parametrize(
    "settings",
    [{"passage_copies": -1}, {"patience": -1}, {"recipe": replace(SEAL_RECIPE, dropout=0.1)}],
)
def test_settings_out_of_range_are_refused(bench: Bench, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        trainer(bench, **settings)


def test_it_tells_what_happens(model: ScriptedModel, bench: Bench) -> None:
    events: list[Event] = []
    trainer(bench).train_temporary_expert(model, EDIT, emit=events.append)
    assert isinstance(events[0], StageStarted)
    assert isinstance(events[-1], StageFinished)


# --- for the time of a block


def test_a_block_has_the_expert_and_releases_it(model: ScriptedModel, bench: Bench) -> None:
    with trainer(bench).temporary_expert(model, EDIT, passage=PASSAGE) as expert:
        assert loss(expert) < loss(model)
        assert loss(expert, YEAR) < loss(model, YEAR)
    assert is_released(expert)


def test_a_block_releases_the_expert_on_an_error(model: ScriptedModel, bench: Bench) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        trainer(bench).temporary_expert(model, EDIT, 2, 1e-3, seed=4) as expert,
    ):
        raise ZeroDivisionError
    assert is_released(expert)
    (job,) = bench.jobs
    assert (job.recipe.epochs, job.recipe.learning_rate, job.seed) == (2, 1e-3, 4)


# --- many


def edits(number: int) -> list[SelfEdit]:
    """Edits with a text less each, so that the last are ready first."""
    facts = [f"Ada Brandt built mill number {i}." for i in range(number)]
    return [SelfEdit("p", "implications", i, tuple(facts[i:])) for i in range(number)]


def test_many_give_what_each_gives_alone(model: ScriptedModel, bench: Bench) -> None:
    training = trainer(bench, seed=3)
    wanted = edits(5)
    found = list(training.train_many(model, wanted, 2, 1e-3, passages=PASSAGE))
    assert len(found) == 5
    order = []
    for result in found:
        assert not isinstance(result, Failure)
        edit, expert, metrics = result
        order.append(edit.index)
        alone, how = training.train_temporary_expert(model, edit, 2, 1e-3, passage=PASSAGE)
        assert expert.score(ASKED) == alone.score(ASKED)
        assert (metrics.losses, metrics.steps) == (how.losses, how.steps)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order != sorted(order)
    assert {job.seed for job in bench.jobs} == {3}
    assert len(bench.jobs) == 10


def test_none_give_nothing(model: ScriptedModel, bench: Bench) -> None:
    assert list(trainer(bench).train_many(model, [])) == []


def test_the_same_edit_may_come_twice(model: ScriptedModel, bench: Bench) -> None:
    wanted: list[str | SelfEdit] = [EDIT, EDIT, EDIT.text]
    found = list(trainer(bench).train_many(model, wanted))
    assert len(found) == 3
    assert not any(isinstance(result, Failure) for result in found)


def test_a_failure_stops_no_other(model: ScriptedModel) -> None:
    events: list[Event] = []
    bench = Bench(model, fail=second_fails)
    found = list(trainer(bench).train_many(model, edits(3), emit=events.append))
    (failure,) = (result for result in found if isinstance(result, Failure))
    assert failure == Failure("train", "edit-1", "too hot", True)
    assert sorted(r[0].index for r in found if not isinstance(r, Failure)) == [0, 2]
    assert [e.subject for e in events if isinstance(e, WorkFailed)] == ["edit-1"]


@pytest.mark.parametrize("groups", [1, 8])
def test_an_empty_edit_among_many_is_a_failure(model: ScriptedModel, groups: int) -> None:
    events: list[Event] = []
    bench = Bench(model, groups=groups)
    empty = replace(EDIT, items=())
    wanted = [empty, *edits(2), empty, *edits(1), empty]
    found = list(trainer(bench).train_many(model, wanted, emit=events.append))
    failures = [result for result in found if isinstance(result, Failure)]
    assert [failure.subject for failure in failures] == ["edit-0", "edit-3", "edit-5"]
    assert all("nothing to train on" in failure.error for failure in failures)
    assert len(found) == 6
    told = [e.subject for e in events if isinstance(e, WorkFailed)]
    assert told == ["edit-0", "edit-3", "edit-5"]
    only = list(trainer(bench).train_many(model, [empty]))
    assert [type(result) for result in only] == [Failure]


def test_each_edit_gets_its_own_passage(model: ScriptedModel, bench: Bench) -> None:
    other = Passage.make("The lighthouse of Sund is red.", id="q")
    wanted = [EDIT, replace(EDIT, passage_id="q"), replace(EDIT, index=1)]
    passages = {"p": PASSAGE, "q": other}
    list(trainer(bench).train_many(model, wanted, passages=passages))
    assert [job.examples[0].passage_id for job in bench.jobs] == ["p", "q", "p"]
    assert other.text in texts(bench.jobs[1])[0]


def test_an_edit_without_a_passage_among_those_given_is_refused(
    model: ScriptedModel, bench: Bench
) -> None:
    wrong: list[tuple[Edit, str]] = [(replace(EDIT, passage_id="z"), "'z'"), ("text", "passage id")]
    for edit, message in wrong:
        with pytest.raises(UsageError, match=message):
            list(trainer(bench).train_many(model, [edit], passages={"p": PASSAGE}))


def test_edits_are_pulled_as_there_is_room(model: ScriptedModel) -> None:
    bench = Bench(model, groups=2)
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        for pulled in count(1):
            yield f"Fact {pulled}."

    for seen, result in enumerate(islice(trainer(bench).train_many(model, endless()), 5), 1):
        assert not isinstance(result, Failure)
        result[1].release()
        assert pulled <= seen + 2


def test_checkpoints_of_many_have_folders_by_position(
    model: ScriptedModel, bench: Bench, tmp_path: Path
) -> None:
    results = list(trainer(bench).train_many(model, edits(3), checkpoint_dir=tmp_path / "all"))
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["edit-0", "edit-1", "edit-2"]
    for result in results:
        assert not isinstance(result, Failure)
        edit, expert, _ = result
        kept = (tmp_path / "all" / f"edit-{edit.index}" / "adapter_model.safetensors").read_bytes()
        again = expert.export(tmp_path / "again" / str(edit.index)).path
        assert (again / "adapter_model.safetensors").read_bytes() == kept


def test_a_checkpoint_of_many_that_cannot_be_written_ends_the_call(
    model: ScriptedModel, bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "edit-1").write_text("in the way")
    kept = []
    with pytest.raises(StorageError):
        for result in trainer(bench).train_many(model, edits(3), checkpoint_dir=tmp_path):
            kept.append(result)
    (first,) = kept  # the shortest, edit-2, was ready first
    assert not isinstance(first, Failure)
    assert first[0].index == 2
    assert not is_released(first[1])
    assert is_released(bench.experts[-1])
    assert bench.ended == 1


def test_leaving_early_ends_the_bench_s_work(model: ScriptedModel, bench: Bench) -> None:
    running = trainer(bench).train_many(model, edits(3))
    next(running)
    assert bench.ended == 0
    close: Callable[[], None] = running.close  # type: ignore[attr-defined]
    close()
    assert bench.ended == 1


def test_stopping_many_is_raised(model: ScriptedModel, bench: Bench) -> None:
    done: list[object] = []
    running = trainer(bench).train_many(model, edits(4), should_stop=lambda: len(done) == 2)
    with pytest.raises(RunInterrupted):
        for result in running:
            done.append(result)
    assert len(done) == 2


def test_many_are_trained_at_the_rate_of_one(model: ScriptedModel, bench: Bench) -> None:
    for _ in trainer(bench).train_many(model, [EDIT]):
        pass
    trainer(bench).train_temporary_expert(model, EDIT)
    assert [job.recipe.learning_rate for job in bench.jobs] == [1e-4, 1e-4]
    assert [job.recipe.epochs for job in bench.jobs] == [5, 5]


def test_an_empty_edit_fails_where_it_would_be_trained(model: ScriptedModel, bench: Bench) -> None:
    told: list[Event] = []
    (failure,) = trainer(bench).train_many(model, [""], emit=told.append)
    assert isinstance(failure, Failure)
    assert (failure.boundary, failure.subject) == ("train", "edit-0")
    (event,) = [event for event in told if isinstance(event, WorkFailed)]
    assert (event.boundary, event.subject, event.error) == ("train", "edit-0", failure.error)


def test_the_items_of_a_text_belong_to_its_passage(model: ScriptedModel, bench: Bench) -> None:
    trainer(bench).train_temporary_expert(model, "It is old.\nIt is tall.", passage=PASSAGE)
    trainer(bench).train_temporary_expert(model, "It is old.")
    with_passage, without = bench.jobs
    assert [e.passage_id for e in with_passage.examples] == ["p", "p", "p"]
    assert [e.passage_id for e in without.examples] == [""]
