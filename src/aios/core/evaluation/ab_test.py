"""The A/B experiment: one set of questions for a base model and experts trained in several ways.

Takes passages with questions and their self-edits; gives one `ArmRun` for each arm and seed.
Every trained arm has the same budget, chooses its best checkpoint on the same questions (the
selection side), and is examined on the other questions (the report side), which neither training
nor that choice has seen.

Arms: ``base`` (no training), ``passage`` (the passages), ``passage+edits`` (and their self-edits),
``passage+other-edits`` (and self-edits of other passages: the control that tells knowledge from
format), ``in-context`` (no training, the passage in the prompt: a ceiling).

Differs from the SEAL release (query/query_server.py): its baseline sees other prompts than its
experts, and it reports the passages that were chosen for. Here all arms get the same prompts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

from aios.core.data.probes import Probe, make_probes
from aios.core.data.splits import split_questions
from aios.core.errors import DataError
from aios.core.evaluation.comparison import ArmRun
from aios.core.evaluation.metrics import AnswerResult
from aios.core.protocols import AdapterTrainer, Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seeds import derive
from aios.core.training.examples import LossOn, augmented_examples, passage_examples
from aios.core.trainings import TrainingJob
from aios.core.types import (
    GenerationRequest,
    LoraRecipe,
    Passage,
    Question,
    SamplingParams,
    ScoreRequest,
    SelfEdit,
    TrainExample,
)

UNTRAINED = ("base", "in-context")
NO_QUESTIONS = (
    "no passage has questions, so there is nothing to compare",
    "add questions to the file, or give a file of them with --questions",
)
_IN_CONTEXT = "{context}\n\n"


@dataclass(frozen=True, slots=True)
class ABSettings:
    """How an A/B experiment is run.

    Attributes:
        recipe: How every arm is trained.
        match: What is the same in every trained arm.
        budget_tokens: Tokens that each arm is trained on under ``tokens``; None: the recipe's
            epochs over the passages with self-edits, or over the passages if no arm has edits.
        evaluations: Checkpoints that each arm chooses its best from, besides the untrained one.
        passage_copies: Times a passage stands in one pass over the augmented data.
        loss_on: Which part of question-answer items carries loss.
        question_template: What stands before an answer.
        max_answer_tokens: Longest answer that is generated.
        selection_fraction: Share of the questions that checkpoints are chosen on.
        answer_batch: Questions answered at once.
    """

    recipe: LoraRecipe
    match: Literal["epochs", "tokens", "steps"] = "tokens"
    budget_tokens: int | None = None
    evaluations: int = 6
    passage_copies: int = 1
    loss_on: LossOn = "all"
    question_template: str = "Question: {question}\nAnswer:"
    max_answer_tokens: int = 16
    selection_fraction: float = 0.34
    answer_batch: int = 32


@dataclass(frozen=True, slots=True)
class ABData:
    """What an A/B experiment is run on.

    Attributes:
        passages: The passages that are learned.
        selection: Questions that checkpoints are chosen on.
        report: Questions that are reported.
        edits: Self-edits of the passages.
        other_edits: Self-edits of other passages; empty if that arm is not run.
        retention: Unrelated text, scored by the paragraph; may be empty.
    """

    passages: tuple[Passage, ...]
    selection: tuple[Probe, ...]
    report: tuple[Probe, ...]
    edits: tuple[SelfEdit, ...] = ()
    other_edits: tuple[SelfEdit, ...] = ()
    retention: tuple[ScoreRequest, ...] = ()


def split_experiment(
    passages: Sequence[Passage], max_passages: int | None, *, with_control: bool
) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """The passages of the experiment, and those whose self-edits the control arm uses.

    The first `max_passages` passages with questions are the experiment's and all other passages
    are the control's. Where that would leave none for the control, the experiment gets half.

    Raises:
        DataError: No passage has questions, or there is none for the control.
    """
    asked = [p for p in passages if p.questions]
    if not asked:
        raise DataError(*NO_QUESTIONS)
    chosen = asked[:max_passages]
    taken = {p.id for p in chosen}
    others = [p for p in passages if p.id not in taken]
    if with_control and not others:
        if len(chosen) < 2:
            raise DataError(
                "the control arm needs self-edits of another passage, and there is only one",
                "add passages, or leave out the arm passage+other-edits (--arms)",
            )
        half = -(-len(chosen) // 2)
        chosen, others = chosen[:half], chosen[half:]
    return tuple(chosen), tuple(others if with_control else ())


def make_questions(
    passages: Sequence[Passage], settings: ABSettings, seed: int
) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """Splits the passages' questions into a selection and a report side."""
    selection, report = split_questions(passages, settings.selection_fraction, seed)
    template = settings.question_template
    return make_probes(selection, template), make_probes(report, template)


@dataclass(slots=True)
class ABExperiment:
    """Runs one arm with one seed at a time; see `run_arm`.

    Attributes:
        model: The base model.
        trainer: Trains on it.
        data: What on.
        settings: How.
        seed: The run's seed, that those of the trainings are derived from.
        emit: Shows events.
        should_stop: Asked at every training step.
    """

    model: LanguageModel
    trainer: AdapterTrainer
    data: ABData
    settings: ABSettings
    seed: int = 0
    emit: Emit = ignore
    should_stop: ShouldStop = never
    _arms: dict[str, tuple[TrainExample, ...]] = field(default_factory=dict)

    def run_arm(self, arm: str, number: int, output_dir: Path, *, resume: bool = False) -> ArmRun:
        """Trains and examines one arm.

        Args:
            arm: Its name.
            number: Which of its seeds, from 0.
            output_dir: Where the training's checkpoints and adapter go.
            resume: Go on from a checkpoint there.

        Raises:
            BackendError: Training or examination failed.
            RunInterrupted: `should_stop` said so.
        """
        if arm in UNTRAINED:
            return self._examined(self.model, arm, number)
        examples = self.examples(arm)
        began = time.perf_counter()
        result = self.trainer.fit(
            self._job(examples, number, output_dir, resume),
            emit=self.emit,
            should_stop=self.should_stop,
        )
        evaluations = 0.0 if resume else max(0.0, time.perf_counter() - began - result.seconds)
        expert = self.trainer.attach(result.adapter)
        try:
            return replace(
                self._examined(expert, arm, number),
                curve=result.curve,
                best_step=result.best.step,
                steps=result.steps,
                tokens=result.tokens,
                train_seconds=result.seconds,
                peak_memory_bytes=result.peak_memory_bytes,
                examples=len(examples),
                evaluation_seconds=evaluations,
            )
        finally:
            self.trainer.detach(expert)

    def _examined(self, model: LanguageModel, arm: str, number: int) -> ArmRun:
        """What a model makes of the questions and the unrelated text, with the time for each."""
        began = time.perf_counter()
        results = self._examine(model, in_context=arm == "in-context")
        examined = time.perf_counter()
        retention = self._retention(model)
        return ArmRun(
            arm,
            number,
            results,
            retention,
            examination_seconds=examined - began,
            retention_seconds=time.perf_counter() - examined,
        )

    def examples(self, arm: str) -> tuple[TrainExample, ...]:
        """What a trained arm is trained on."""
        if arm not in self._arms:
            self._arms[arm] = self._examples(arm)
        return self._arms[arm]

    def budget_tokens(self) -> int:
        """Tokens of every trained arm under ``match: tokens``."""
        if self.settings.budget_tokens is not None:
            return self.settings.budget_tokens
        epoch = sum(self.model.count_tokens(e.text) for e in self._yardstick())
        return epoch * self.settings.recipe.epochs

    def _yardstick(self) -> tuple[TrainExample, ...]:
        """The examples whose epochs are the budget of all arms, whichever of them are run."""
        return self.examples("passage+edits" if self.data.edits else "passage")

    def _examples(self, arm: str) -> tuple[TrainExample, ...]:
        passages, settings = self.data.passages, self.settings
        if arm == "passage":
            return tuple(passage_examples(passages))
        edits: Sequence[SelfEdit] = self.data.edits
        if arm == "passage+other-edits":
            edits = _as_many_items(self.data.other_edits, like=edits)
        return augmented_examples(
            passages, edits, passage_copies=settings.passage_copies, loss_on=settings.loss_on
        )

    def _job(
        self, examples: tuple[TrainExample, ...], number: int, output_dir: Path, resume: bool
    ) -> TrainingJob:
        settings = self.settings
        budgets: dict[str, Any] = {}
        if settings.match == "tokens":
            budget = self.budget_tokens()
            budgets["max_tokens"] = budget
            budgets["evaluate_every_tokens"] = -(-budget // settings.evaluations)
        elif settings.match == "steps":
            batches = -(-len(self._yardstick()) // settings.recipe.batch_size)
            budgets["max_steps"] = batches * settings.recipe.epochs
        return TrainingJob(
            examples=examples,
            recipe=settings.recipe,
            seed=derive(self.seed, "arm", number),  # the same for all arms: paired
            output_dir=output_dir,
            validation=tuple(probe.request for probe in self.data.selection),
            resume=resume,
            **budgets,
        )

    def _examine(
        self, model: LanguageModel, *, in_context: bool = False
    ) -> tuple[AnswerResult, ...]:
        """Scores the reference answers and has the model answer, greedily, to the line's end."""
        probes = self._with_passage() if in_context else self.data.report
        scores = model.score([probe.request for probe in probes])
        sampling = SamplingParams(0.0, 1.0, self.settings.max_answer_tokens, ("\n",))
        size = self.settings.answer_batch
        answers: list[str] = []
        for start in range(0, len(probes), size):
            requests = [
                GenerationRequest(p.prompt, (0,), sampling) for p in probes[start : start + size]
            ]
            answers += [completions[0].text.strip() for completions in model.generate(requests)]
        return tuple(
            AnswerResult.judge(
                probe.id,
                probe.passage_id,
                Question(probe.question, probe.answers, probe.category),
                score,
                answer,
            )
            for probe, score, answer in zip(probes, scores, answers, strict=True)
        )

    def _with_passage(self) -> tuple[Probe, ...]:
        questions: dict[str, list[Question]] = {}
        for probe in self.data.report:
            question = Question(probe.question, probe.answers, probe.category)
            questions.setdefault(probe.passage_id, []).append(question)
        contexts = {p.id: p.text for p in self.data.passages}
        template = _IN_CONTEXT + self.settings.question_template
        return make_probes(questions, template, contexts=contexts)

    def _retention(self, model: LanguageModel) -> float | None:
        if not self.data.retention:
            return None
        scores = model.score(self.data.retention)
        return -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)


def _as_many_items(others: Sequence[SelfEdit], *, like: Sequence[SelfEdit]) -> list[SelfEdit]:
    """Edits of other passages with as many items as `like` has, repeated where there are fewer."""
    wanted = sum(len(edit.items) for edit in like)
    if not others:
        return []
    items = islice(cycle((edit, item) for edit in others for item in edit.items), wanted)
    return [
        SelfEdit(edit.passage_id, edit.strategy, edit.index, (item,), edit.model)
        for edit, item in items
    ]


def retention_requests(text: str) -> tuple[ScoreRequest, ...]:
    """Unrelated text as score requests, one a paragraph."""
    paragraphs = [" ".join(block.split()) for block in text.split("\n\n")]
    return tuple(ScoreRequest("", paragraph) for paragraph in paragraphs if paragraph)
