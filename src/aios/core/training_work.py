"""What an A/B test or the training of an expert does, counted before it is started.

Takes the sizes of its texts (`TextSizes`) and its settings; gives self-edits to write, tokens to
train on, tokens to score and questions to answer, in all and for each arm (`TrainingWork`). What
is not known exactly is a `Span`. Pure arithmetic.

How long self-edits are is known once they are written. Where the work depends on that and nobody
has measured it (`EditSizes`), there is no work to tell: None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aios.core.config.recipes import ResolvedRecipe
from aios.core.evaluation.ab_test import UNTRAINED, ABSettings
from aios.core.restem_workload import ENDS, Span

NOTHING = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TextSizes:
    """The texts of a job, counted. Tokens are the base model's.

    Attributes:
        passages: Passages that are trained on.
        tokens: Their tokens.
        written: Self-edits to write; those in the cache left out.
        validation_tokens: Tokens that are scored at each evaluation; 0 without validation.
        questions: Questions that are answered after each training.
        context_tokens: Tokens of the passages of these questions, once for each question.
        retention_tokens: Tokens of unrelated text that is scored after each training.
    """

    passages: int
    tokens: float
    written: Span = NOTHING
    validation_tokens: float = 0.0
    questions: int = 0
    context_tokens: float = 0.0
    retention_tokens: float = 0.0

    def divided(self, by: float) -> TextSizes:
        """The same in another unit, such as tokens for characters.

        Args:
            by: Units of these for one of the new.
        """
        return replace(
            self,
            tokens=self.tokens / by,
            validation_tokens=self.validation_tokens / by,
            context_tokens=self.context_tokens / by,
            retention_tokens=self.retention_tokens / by,
        )


@dataclass(frozen=True, slots=True)
class EditSizes:
    """How much self-edits add to the passages.

    Attributes:
        tokens: Tokens of what was kept, for a token of the passages.
        items: Examples of it, for a passage.
    """

    tokens: Span
    items: Span


@dataclass(frozen=True, slots=True)
class ArmWork:
    """An arm of an A/B test, or the one training of an expert.

    Attributes:
        name: The arm's name; empty for an expert.
        times: Trainings, or examinations where nothing is trained.
        trained: Tokens of each, every pass counted.
        scored: Tokens that are scored in each, every evaluation counted.
        answered: Questions that are answered in each.
    """

    name: str
    times: int
    trained: Span
    scored: Span
    answered: int


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """What is to be done.

    Attributes:
        written: Self-edits to write.
        arms: The arms.
    """

    written: Span
    arms: tuple[ArmWork, ...]

    @property
    def trainings(self) -> int:
        """Trainings, all seeds counted."""
        return sum(arm.times for arm in self.arms if arm.trained.high)

    @property
    def trained(self) -> Span:
        """Tokens trained on in all."""
        return added(arm.trained.times(arm.times) for arm in self.arms)

    @property
    def scored(self) -> Span:
        """Tokens scored in all."""
        return added(arm.scored.times(arm.times) for arm in self.arms)

    @property
    def answered(self) -> int:
        """Questions answered in all."""
        return sum(arm.answered * arm.times for arm in self.arms)


def added(spans: Iterator[Span] | Sequence[Span]) -> Span:
    """The sum, ends with ends."""
    all_of_them = list(spans)
    return Span(*(math.fsum(getattr(span, end) for span in all_of_them) for end in ENDS))


def ab_work(
    texts: TextSizes,
    edits: EditSizes | None,
    settings: ABSettings,
    arms: Sequence[str],
    seeds: int,
) -> TrainingWork | None:
    """The work of an A/B test.

    Args:
        texts: The sizes of its texts.
        edits: How much self-edits add; None where that is not known.
        settings: How it is run.
        arms: What is compared.
        seeds: Trainings of each arm.
    """
    rows: list[ArmWork] = []
    for arm in arms:
        if arm in UNTRAINED:  # a question in context is read to be scored, and to be answered
            read = texts.retention_tokens + 2 * texts.context_tokens * (arm == "in-context")
            rows.append(ArmWork(arm, 1, NOTHING, Span.exactly(read), texts.questions))
            continue
        own = _data(texts, edits, settings.passage_copies, with_edits=arm != "passage")
        training = _ab_training(texts, edits, settings, arms, own)
        if training is None:
            return None
        trained, evaluations = training
        scored = evaluations.times(texts.validation_tokens)
        scored = added([scored, Span.exactly(texts.retention_tokens)])
        rows.append(ArmWork(arm, seeds, trained, scored, texts.questions))
    return TrainingWork(texts.written, tuple(rows))


def expert_work(
    texts: TextSizes, edits: EditSizes | None, recipe: ResolvedRecipe, *, use_self_edits: bool
) -> TrainingWork | None:
    """The work of an expert's training.

    With patience it may end early: the low end is the earliest end that patience allows.

    Args:
        texts: The sizes of its texts; questions in them are only scored.
        edits: How much self-edits add; None where that is not known.
        recipe: How it is trained.
        use_self_edits: Whether it is trained on self-edits, too.
    """
    copies = recipe.passage_copies if use_self_edits else 1
    own = _data(texts, edits, copies, with_edits=use_self_edits)
    if own is None:
        return None
    size, epochs = recipe.lora.batch_size, recipe.lora.epochs
    trained = own.tokens.times(epochs)
    if recipe.max_tokens:
        trained = _budget(Span.exactly(recipe.max_tokens), own.step(size))
    passes = trained.middle / max(own.tokens.middle, 1.0)
    steps = max(1.0, own.examples.middle / size)  # of a pass
    evaluations = max(1.0, round(passes * min(recipe.evaluations_per_epoch, steps)))
    least = min(evaluations, recipe.patience) if recipe.patience else evaluations
    if texts.validation_tokens and least < evaluations:
        trained = replace(trained, low=trained.low * least / evaluations)
    # before the first step, and of every question without the expert and with it
    further = 1 + 2 * bool(texts.validation_tokens)
    counted = Span(least + further, evaluations + further, evaluations + further)
    scored = counted.times(texts.validation_tokens)
    return TrainingWork(
        texts.written if use_self_edits else NOTHING, (ArmWork("", 1, trained, scored, 0),)
    )


# ------------------------------------------------------------ small parts


@dataclass(frozen=True, slots=True)
class _Data:
    """What one pass of a training goes over."""

    tokens: Span
    examples: Span

    def step(self, size: int) -> float:
        """Tokens of a step with so many examples, about."""
        examples = max(1.0, self.examples.middle)
        return self.tokens.middle * min(size, examples) / examples


def _data(
    texts: TextSizes, edits: EditSizes | None, copies: int, *, with_edits: bool
) -> _Data | None:
    """The data of a training; None where it holds self-edits of unknown length."""
    if not with_edits:
        return _Data(Span.exactly(texts.tokens), Span.exactly(texts.passages))
    if edits is None:
        return None
    return _Data(
        added([Span.exactly(copies * texts.tokens), edits.tokens.times(texts.tokens)]),
        added([Span.exactly(copies * texts.passages), edits.items.times(texts.passages)]),
    )


def _ab_training(
    texts: TextSizes,
    edits: EditSizes | None,
    settings: ABSettings,
    arms: Sequence[str],
    own: _Data | None,
) -> tuple[Span, Span] | None:
    """Tokens and evaluations of one training; None where they depend on what is not known."""
    size, epochs = settings.recipe.batch_size, settings.recipe.epochs
    if settings.match == "epochs":
        if own is None:
            return None
        return own.tokens.times(epochs), Span.exactly(epochs + 1)
    # The yardstick is the same for all arms: passages with self-edits, if any are written.
    writes = any(arm.startswith("passage+") for arm in arms)
    yard = _data(texts, edits, settings.passage_copies, with_edits=writes)
    if settings.match == "tokens":
        evaluations = Span.exactly(settings.evaluations + 1)
        passages = _Data(Span.exactly(texts.tokens), Span.exactly(texts.passages))
        step = (own or passages).step(size)
        if settings.budget_tokens is not None:
            return _budget(Span.exactly(settings.budget_tokens), step), evaluations
        return None if yard is None else (_budget(yard.tokens.times(epochs), step), evaluations)
    if yard is None or own is None:
        return None
    passes = Span(
        *(
            epochs * _batches(getattr(yard.examples, end), size) / _batches(other, size)
            for end, other in zip(
                ENDS, (own.examples.high, own.examples.middle, own.examples.low), strict=True
            )
        )
    )
    tokens = own.tokens.times(passes.middle)
    return tokens, Span(1 + math.floor(passes.low), 1 + passes.middle, 2 + math.ceil(passes.high))


def _batches(examples: float, size: int) -> int:
    return max(1, math.ceil(examples / size))


def _budget(tokens: Span, step: float) -> Span:
    """A budget of tokens: the step that reaches it is the last."""
    return added([tokens, Span(0.0, step / 2, step)])
