"""The work of an A/B test and of an expert's training, counted; checked against the engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.evaluation.ab_test import ABData, ABExperiment, ABSettings, make_questions
from aios.core.restem_workload import Span
from aios.core.training_work import ArmWork, EditSizes, TextSizes, ab_work, expert_work
from aios.core.types import LoraRecipe, Passage, Question, SelfEdit

ARMS = ("base", "passage", "passage+edits", "passage+other-edits")
RECIPE = LoraRecipe(rank=2, alpha=4, epochs=3, batch_size=4)
EDITS = EditSizes(Span.exactly(2.0), Span.exactly(3.0))
SIZES = TextSizes(
    passages=10,
    tokens=500.0,
    written=Span.exactly(20.0),
    validation_tokens=40.0,
    questions=6,
    context_tokens=700.0,
    retention_tokens=100.0,
)


def by_name(work: object) -> dict[str, ArmWork]:
    assert work is not None
    return {arm.name: arm for arm in work.arms}  # type: ignore[attr-defined]


def test_a_budget_of_tokens_needs_no_lengths_of_self_edits() -> None:
    settings = ABSettings(RECIPE, budget_tokens=8000, evaluations=4)
    work = ab_work(SIZES, None, settings, ARMS, 3)
    assert work is not None
    arms = by_name(work)
    assert [arms[name].times for name in ARMS] == [1, 3, 3, 3]
    assert arms["base"] == ArmWork("base", 1, Span(0, 0, 0), Span.exactly(100), 6)
    assert arms["passage"].trained == Span(8000, 8100, 8200)  # and what the last step adds
    assert arms["passage"].scored == Span.exactly(5 * 40 + 100)
    assert (work.trainings, work.answered) == (9, 60)
    assert work.trained == Span(9 * 8000, 9 * 8100, 9 * 8200)
    assert work.scored.middle == 100 + 9 * 300
    assert work.written == Span.exactly(20.0)


def test_without_a_budget_the_lengths_of_self_edits_count() -> None:
    settings = ABSettings(RECIPE, evaluations=4)
    assert ab_work(SIZES, None, settings, ARMS, 1) is None
    whole = by_name(ab_work(SIZES, EDITS, settings, ARMS, 1))
    assert whole["passage"].trained.low == 3 * (500 + 1000)
    assert whole["passage+edits"].trained.high == 4500 + 4 * 1500 / 40  # a step of its own
    assert whole["passage"].trained.high == 4500 + 4 * 50
    alone = by_name(ab_work(SIZES, None, settings, ("base", "passage"), 1))
    assert alone["passage"].trained.low == 3 * 500


def test_under_epochs_each_arm_goes_over_its_own_data() -> None:
    settings = ABSettings(RECIPE, match="epochs", passage_copies=2)
    arms = by_name(ab_work(SIZES, EDITS, settings, ARMS, 1))
    assert arms["passage"].trained == Span.exactly(1500)
    assert arms["passage+edits"].trained == Span.exactly(3 * (1000 + 1000))
    assert arms["passage"].scored == Span.exactly(4 * 40 + 100)
    assert ab_work(SIZES, None, settings, ARMS, 1) is None


def test_questions_in_context_are_read_with_their_passages() -> None:
    settings = ABSettings(RECIPE, budget_tokens=100)
    arms = by_name(ab_work(SIZES, None, settings, ("base", "in-context"), 5))
    assert arms["in-context"].scored.middle - arms["base"].scored.middle == 1400
    assert arms["in-context"].times == 1


def recipe_of(**changes: object) -> ResolvedRecipe:
    return replace(resolve_recipe(Config(), "scripted"), lora=RECIPE, **changes)  # type: ignore[arg-type]


def test_an_expert_is_trained_for_its_epochs_and_evaluated_in_each() -> None:
    recipe = recipe_of(evaluations_per_epoch=2, patience=0, max_tokens=None)
    work = expert_work(SIZES, EDITS, recipe, use_self_edits=True)
    (arm,) = by_name(work).values()
    assert arm.trained == Span.exactly(3 * 1500)
    assert arm.scored == Span.exactly((1 + 6 + 2) * 40)
    assert arm.answered == 0
    bare = expert_work(SIZES, None, recipe, use_self_edits=False)
    assert bare is not None
    assert (bare.trained, bare.written.high) == (Span.exactly(1500), 0)
    assert expert_work(SIZES, None, recipe, use_self_edits=True) is None


def test_patience_may_end_a_training_early() -> None:
    recipe = recipe_of(evaluations_per_epoch=2, patience=2, max_tokens=None)
    work = expert_work(SIZES, EDITS, recipe, use_self_edits=True)
    assert work is not None
    assert work.trained == Span(1500, 4500, 4500)
    unasked = expert_work(replace(SIZES, validation_tokens=0.0), EDITS, recipe, use_self_edits=True)
    assert unasked is not None
    assert unasked.trained == Span.exactly(4500)  # nothing is validated, so patience never ends
    assert unasked.scored.high == 0


def test_a_token_budget_of_an_expert_goes_before_epochs() -> None:
    recipe = recipe_of(evaluations_per_epoch=1, patience=0, max_tokens=700)
    work = expert_work(SIZES, EDITS, recipe, use_self_edits=True)
    assert work is not None
    assert work.trained == Span(700, 775, 850)


@pytest.mark.parametrize("match", ["tokens", "steps", "epochs"])
@pytest.mark.parametrize("copies", [0, 1, 2])
def test_the_count_is_what_the_engine_does(match: str, copies: int, tmp_path: Path) -> None:
    model = ScriptedModel()
    passages = tuple(
        Passage.make(
            f"The mill of place number {n} has stood by the river since the year 18{n:02d}.",
            id=f"p{n}",
            questions=tuple(Question(f"What {i} of {n}?", (f"a{n}{i}",)) for i in range(4)),
        )
        for n in range(8)
    )
    edits = tuple(
        SelfEdit(p.id, "implications", 0, ("It stands.", "A mill stands by the river."), "m")
        for p in passages
    )
    settings = ABSettings(
        RECIPE,
        match=match,  # type: ignore[arg-type]
        evaluations=4,
        passage_copies=copies,
    )
    selection, report = make_questions(passages, settings, 0)
    data = ABData(passages, selection, report, edits, edits)
    experiment = ABExperiment(model, ScriptedTrainer(model), data, settings)
    count = model.count_tokens
    whole = sum(count(p.text) for p in passages)
    added = sum(count(item) for edit in edits for item in edit.items)
    asked = sum(count(p.request.prompt) + count(p.request.continuation) for p in selection)
    sizes = TextSizes(8, whole, validation_tokens=asked, questions=len(report))
    known = EditSizes(Span.exactly(added / whole), Span.exactly(2.0))
    work = by_name(ab_work(sizes, known, settings, ARMS[1:], 1))
    for name, arm in work.items():
        run = experiment.run_arm(name, 0, tmp_path / name)
        step = RECIPE.batch_size * whole / 8
        assert arm.trained.low - step <= run.tokens <= arm.trained.high + step
        assert arm.scored.low <= len(run.curve) * asked <= arm.scored.high
        assert arm.answered == len(run.results)
        assert run.evaluation_seconds > 0
        assert run.examination_seconds > 0
