from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.data.probes import make_probes
from aios.core.errors import BackendError, DataError, RunInterrupted
from aios.core.evaluation.ab_test import (
    ABData,
    ABExperiment,
    ABSettings,
    make_questions,
    retention_requests,
    split_experiment,
)
from aios.core.evaluation.comparison import ArmRun
from aios.core.evaluation.metrics import summarize
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.types import AdapterRef, LoraRecipe, Passage, Question, SelfEdit

RECIPE = LoraRecipe(rank=2, alpha=4, epochs=3, batch_size=2)
SETTINGS = ABSettings(RECIPE, evaluations=4, selection_fraction=0.34)
NAMES = ("Arn", "Bosk", "Cald", "Eskel")


def passage(name: str, questions: int = 3) -> Passage:
    facts = [f"{name} feature {n} is the {name.lower()}thing{n}." for n in range(3)]
    asked = tuple(
        Question(f"What is {name} feature {n}?", (f"{name.lower()}thing{n}",))
        for n in range(questions)
    )
    return Passage.make(" ".join(facts), id=name, questions=asked)


def edit(name: str, *numbers: int) -> SelfEdit:
    items = tuple(
        f"Question: {name} feature {n} is the ____.\nAnswer: {name.lower()}thing{n}"
        for n in numbers
    )
    return SelfEdit(name, "cloze", 0, items)


def data(**changes: Any) -> ABData:
    passages = tuple(passage(name) for name in NAMES[:2])
    selection, report = make_questions(passages, SETTINGS, seed=0)
    values: dict[str, Any] = {
        "passages": passages,
        "selection": selection,
        "report": report,
        "edits": tuple(edit(name, 0, 1, 2) for name in NAMES[:2]),
        "other_edits": (edit("Cald", 0, 1),),
        "retention": retention_requests("The sun is warm.\n\nIt sets in\nthe west."),
    }
    return ABData(**{**values, **changes})


class Watched(ScriptedTrainer):
    """A scripted trainer that notes its jobs, and what is attached."""

    def __init__(self, model: ScriptedModel, **options: Any) -> None:
        super().__init__(model, **options)
        self.jobs: list[TrainingJob] = []
        self.results: list[TrainingResult] = []
        self.attached = 0

    def fit(
        self, job: TrainingJob, *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> TrainingResult:
        self.jobs.append(job)
        self.results.append(super().fit(job, emit=emit, should_stop=should_stop))
        return self.results[-1]

    def attach(self, adapter: AdapterRef) -> LanguageModel:
        self.attached += 1
        return super().attach(adapter)

    def detach(self, model: LanguageModel) -> None:
        self.attached -= 1
        super().detach(model)


class Lab:
    """An experiment on the scripted model, in a folder of its own."""

    def __init__(self, folder: Path, given: ABData | None = None, **settings: Any) -> None:
        self.folder = folder
        self.model = ScriptedModel()
        self.trainer = Watched(self.model)
        self.experiment = ABExperiment(
            self.model, self.trainer, given or data(), replace(SETTINGS, **settings), seed=5
        )

    def run(self, arm: str, number: int = 0, **options: Any) -> ArmRun:
        return self.experiment.run_arm(arm, number, self.folder / f"{arm}.{number}", **options)

    def job(self, arm: str, number: int = 0) -> TrainingJob:
        self.run(arm, number)
        return self.trainer.jobs[-1]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


# ------------------------------------------------------------ which passages, which questions


def test_the_first_passages_with_questions_are_learned_and_all_others_are_the_control() -> None:
    passages = [passage("Arn"), passage("Bosk", 0), passage("Cald"), passage("Eskel")]
    learned, others = split_experiment(passages, 2, with_control=True)
    assert [p.id for p in learned] == ["Arn", "Cald"]
    assert [p.id for p in others] == ["Bosk", "Eskel"]
    learned, others = split_experiment(passages, 2, with_control=False)
    assert ([p.id for p in learned], others) == (["Arn", "Cald"], ())


@pytest.mark.parametrize(("count", "learned"), [(2, 1), (3, 2), (4, 2)])
def test_the_control_gets_half_where_nothing_else_is_left(count: int, learned: int) -> None:
    passages = [passage(name) for name in NAMES[:count]]
    ours, others = split_experiment(passages, None, with_control=True)
    assert (len(ours), len(others)) == (learned, count - learned)
    assert [*ours, *others] == passages
    assert len(split_experiment(passages, None, with_control=False)[0]) == count


def test_without_any_question_there_is_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="no passage has questions"):
        split_experiment([passage("Arn", 0)], None, with_control=False)


def test_one_passage_alone_has_no_control() -> None:
    with pytest.raises(DataError, match="only one") as caught:
        split_experiment([passage("Arn")], None, with_control=True)
    assert "--arms" in caught.value.remedy


def test_questions_that_choose_are_not_reported() -> None:
    passages = [passage(name, 3) for name in NAMES]
    selection, report = make_questions(passages, SETTINGS, seed=1)
    chosen, reported = ({p.id for p in side} for side in (selection, report))
    assert not chosen & reported
    assert len(chosen | reported) == 12
    assert len(chosen) == 4
    assert make_questions(passages, SETTINGS, seed=1) == (selection, report)
    assert make_questions(passages, SETTINGS, seed=2) != (selection, report)


def test_the_template_is_that_of_the_settings() -> None:
    settings = replace(SETTINGS, question_template="Q {question} A")
    selection, report = make_questions([passage("Arn")], settings, seed=0)
    assert all(p.prompt.startswith("Q What") and p.prompt.endswith(" A") for p in selection)
    assert all(p.request.continuation.startswith(" arnthing") for p in report)


# ------------------------------------------------------------ what the arms are trained on


def test_the_passage_arm_is_trained_on_the_passages_alone(lab: Lab) -> None:
    examples = lab.job("passage").examples
    assert [e.text for e in examples] == [passage(n).text for n in NAMES[:2]]


def test_the_edit_arm_adds_the_self_edits(tmp_path: Path) -> None:
    examples = Lab(tmp_path, passage_copies=2, loss_on="answer").job("passage+edits").examples
    assert [e.source for e in examples] == ["passage"] * 4 + ["cloze"] * 6
    assert examples[-1].text[slice(*examples[-1].loss_spans[0])] == " boskthing2"


@pytest.mark.parametrize("other", [(0,), (0, 1), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_the_control_has_as_many_items_as_the_edit_arm(tmp_path: Path, other: Any) -> None:
    lab = Lab(tmp_path, data(other_edits=(edit("Cald", *other),)))
    control = [e for e in lab.job("passage+other-edits").examples if e.source != "passage"]
    assert len(control) == 6
    assert {e.passage_id for e in control} == {"Cald"}
    assert len({e.text for e in control}) == min(6, len(other))
    ours = [e for e in lab.experiment.examples("passage+edits") if e.source != "passage"]
    assert not {e.text for e in ours} & {e.text for e in control}


def test_examples_are_made_once(lab: Lab) -> None:
    assert lab.experiment.examples("passage+edits") is lab.experiment.examples("passage+edits")


# ------------------------------------------------------------ budgets and seeds


def test_every_arm_has_the_same_seeds_and_another_for_each_number(lab: Lab) -> None:
    arms = ("passage", "passage+edits", "passage+other-edits")
    seeds = {number: {lab.job(arm, number).seed for arm in arms} for number in (0, 1, 2)}
    assert all(len(of_number) == 1 for of_number in seeds.values())
    assert len(set.union(*seeds.values())) == 3


def test_the_same_tokens_for_every_arm_by_default(lab: Lab) -> None:
    words = sum(len(e.text.split()) for e in lab.experiment.examples("passage+edits"))
    for arm in ("passage", "passage+edits", "passage+other-edits"):
        job = lab.job(arm)
        assert (job.max_tokens, job.max_steps) == (3 * words, None)
        assert job.evaluate_every_tokens == -(-3 * words // 4)
        tokens = lab.trainer.results[-1].tokens
        assert 3 * words <= tokens < 3 * words + 40
    # equally many checkpoints to choose from, besides the untrained one
    assert {len(result.curve) for result in lab.trainer.results} == {5}


@pytest.mark.parametrize("arm", ["passage", "passage+edits"])
def test_a_budget_that_is_not_a_multiple_gives_no_checkpoint_more(tmp_path: Path, arm: str) -> None:
    lab = Lab(tmp_path, budget_tokens=401)
    lab.run(arm)
    assert lab.trainer.jobs[0].max_tokens == 401
    assert len(lab.trainer.results[0].curve) == 5


def test_a_tiny_budget_still_trains_a_step(tmp_path: Path) -> None:
    lab = Lab(tmp_path, budget_tokens=1)
    assert lab.run("passage").steps == 1


def test_the_same_steps_for_every_arm(tmp_path: Path) -> None:
    lab = Lab(tmp_path, match="steps")
    for arm in ("passage", "passage+edits", "passage+other-edits"):
        job = lab.job(arm)
        assert (job.max_steps, job.max_tokens) == (12, None)  # 3 epochs of 8 examples by 2
        assert lab.trainer.results[-1].steps == 12


def test_the_same_epochs_for_every_arm(tmp_path: Path) -> None:
    lab = Lab(tmp_path, match="epochs")
    steps = {arm: lab.run(arm).steps for arm in ("passage", "passage+edits")}
    assert steps == {"passage": 3, "passage+edits": 12}
    assert all(job.max_tokens is job.max_steps is None for job in lab.trainer.jobs)


@pytest.mark.parametrize(
    ("match", "budget"), [("tokens", ("max_tokens", 108)), ("steps", ("max_steps", 3))]
)
def test_without_self_edits_the_passages_are_the_measure(
    tmp_path: Path, match: str, budget: tuple[str, int]
) -> None:
    lab = Lab(tmp_path, data(edits=(), other_edits=()), match=match, passage_copies=0)
    assert getattr(lab.job("passage"), budget[0]) == budget[1]


# ------------------------------------------------------------ training and examination


def test_training_chooses_on_the_selection_questions(lab: Lab) -> None:
    assert lab.job("passage").validation == tuple(p.request for p in lab.experiment.data.selection)


def test_the_best_checkpoint_is_examined(tmp_path: Path) -> None:
    class WorseAndWorse(Watched):
        """Its validation loss is best at step 2."""

        def _evaluate(self, job: Any, plan: Any, state: Any, emit: Any) -> None:
            super()._evaluate(job, plan, state, emit)
            loss = abs(state.step - 2.0)
            state.curve[-1] = replace(state.curve[-1], validation_loss=loss)
            if state.step == 2:
                state.best, state.best_seen = len(state.curve) - 1, dict(state.seen)

    lab = Lab(tmp_path, match="epochs")
    lab.experiment.trainer = WorseAndWorse(lab.model)
    run = lab.run("passage")
    assert (run.best_step, run.steps) == (2, 3)
    assert len(run.curve) == 4


def test_self_edits_help_where_they_hold_the_answers(lab: Lab) -> None:
    base, edits, other = (
        summarize(lab.run(arm).results) for arm in ("base", "passage+edits", "passage+other-edits")
    )
    assert edits.loss < other.loss < base.loss


def test_every_arm_answers_the_report_questions(lab: Lab) -> None:
    report = {p.id for p in lab.experiment.data.report}
    for arm in ("base", "passage", "passage+edits", "in-context"):
        run = lab.run(arm)
        assert {result.probe_id for result in run.results} == report
        assert {result.passage_id for result in run.results} == set(NAMES[:2])
        assert (run.arm, run.seed) == (arm, 0)
        assert run.retention_loss is not None


def test_an_untrained_arm_trains_nothing(lab: Lab) -> None:
    run = lab.run("base")
    assert (run.curve, run.steps, run.tokens, run.train_seconds) == ((), 0, 0, 0.0)
    assert lab.trainer.jobs == []
    assert not lab.folder.joinpath("base.0").exists()


def test_the_ceiling_has_the_passage_in_the_prompt(lab: Lab) -> None:
    base, ceiling = lab.run("base"), lab.run("in-context")
    asked = [request.prompt for request in lab.model.requests]
    half = len(asked) // 2
    assert all(prompt.startswith("Question: ") for prompt in asked[:half])
    for prompt in asked[half:]:
        name = next(name for name in NAMES if f"What is {name} feature" in prompt)
        assert prompt == f"{passage(name).text}\n\n{prompt[prompt.index('Question: ') :]}"
    assert summarize(ceiling.results).loss < summarize(base.results).loss


def test_answers_are_greedy_short_and_end_with_the_line(tmp_path: Path) -> None:
    lab = Lab(tmp_path, max_answer_tokens=3, answer_batch=1)
    lab.model.script = {"What is": ["arnthing0 \nand more", "another"]}
    run = lab.run("base")
    assert {result.prediction for result in run.results} == {"arnthing0"}
    sampling = {request.sampling for request in lab.model.requests}
    (one,) = sampling
    assert (one.temperature, one.max_new_tokens, one.stop) == (0.0, 3, ("\n",))


def test_retention_is_the_loss_on_unrelated_text(lab: Lab, tmp_path: Path) -> None:
    scores = lab.model.score(lab.experiment.data.retention)
    loss = -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)
    assert lab.run("base").retention_loss == pytest.approx(loss)
    assert Lab(tmp_path, data(retention=())).run("base").retention_loss is None


def test_retention_text_is_scored_by_the_paragraph() -> None:
    requests = retention_requests("One\nline.\n\n\n  \n\nTwo. ")
    assert [(r.prompt, r.continuation) for r in requests] == [("", "One line."), ("", "Two.")]
    assert retention_requests(" \n\n ") == ()


def test_an_arm_run_again_gives_the_same_numbers(lab: Lab, tmp_path: Path) -> None:
    first = lab.run("passage+edits")
    second = Lab(tmp_path / "again").run("passage+edits")
    assert first.results == second.results
    assert [p.validation_loss for p in first.curve] == [p.validation_loss for p in second.curve]


def test_an_arm_that_was_stopped_goes_on(lab: Lab, tmp_path: Path) -> None:
    whole = Lab(tmp_path / "whole").run("passage+edits")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    lab.experiment.should_stop = stop
    with pytest.raises(RunInterrupted):
        lab.run("passage+edits")
    lab.experiment.should_stop = never
    resumed = lab.run("passage+edits", resume=True)
    assert lab.trainer.jobs[-1].resume
    assert resumed.results == whole.results
    assert resumed.best_step == whole.best_step


def test_the_expert_is_taken_off_also_when_its_examination_fails(lab: Lab) -> None:
    lab.run("passage")
    assert lab.trainer.attached == 0
    whole = lab.experiment.data
    empty = make_probes({"Arn": [Question("Why?", ("word " * 4000,))]})
    lab.experiment.data = replace(whole, report=empty)
    with pytest.raises(BackendError):
        lab.run("passage")
    assert lab.trainer.attached == 0
