"""Rewards: did an expert get better on held-out questions, and by more than chance?

Takes an expert (or what it made of the questions already) and held-out questions; gives a `Reward`.
The three kinds differ in the quantity: validation loss, perplexity, accuracy. The threshold says
what is made of it:

* a number: 1 if the quantity itself is better than it, else 0 (loss and perplexity below it,
  accuracy at least it);
* ``"auto"``: 1 if the quantity is better than the base model's on the same questions by more than
  the measured noise, else 0;
* ``None``: the improvement over the base model itself, positive where the expert is better.

**Noise.** Best is a `NoiseEstimate` from repeated trials. Without one, the standard error of the
paired differences over the questions stands in: it measures how far a result depends on which
questions were asked (as independent draws), and knows nothing of how it varies over training
seeds. The improvement must exceed ``z`` times the noise; 1.645 lets 5 % of the candidates without
effect pass (one-sided, normal approximation; with the stand-in of five questions it is about 9 %).

**Loss over questions** is weighted by tokens, as `metrics.summarize` does it: the summed negative
log-probability of all answer tokens over their number. Perplexity is its exponential.

This follows SEAL (Zweiger et al. 2025, arXiv 2506.10943, section 3.1): binary, better than without
the self-edit. Deviations: the paper's reward has no margin for noise, and needs written and judged
answers, where the loss of the reference answer needs one forward pass.

A trial that failed has no reward. `reward_of_outcome` passes its `Failure` on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import ClassVar, Literal, TypeAlias

from aios.core.data.probes import Probe
from aios.core.errors import BackendError, DataError, UsageError
from aios.core.evaluation.metrics import perplexity
from aios.core.protocols import LanguageModel
from aios.core.seal.graders import AnswerLogprob, Grader, check_same_questions, get_grader
from aios.core.seal.held_out_answers import HeldOutAnswers, TimeLimit, as_probes
from aios.core.seal.reliability import NoiseEstimate
from aios.core.trials import Answered, Reward, TrialOutcome
from aios.core.types import Failure, Passage

Threshold: TypeAlias = "float | Literal['auto'] | None"

Z_ONE_SIDED_95 = 1.645

_ROUNDING = 1e-12  # means of equal accuracies may differ by so much


class RewardFunction(ABC):
    """Makes one number of how an expert does on held-out questions.

    Args:
        grader: A grader or its name; `default_grader` if None.
        judge: The model that the grader ``judge`` asks.
        baseline: The base model, or whatever an expert must be better than; needed by
            `compute_reward` with ``auto`` or without a threshold.
        noise: Noise of one trial's improvement, measured by repeats, in the quantity's unit.
        z: How many standard deviations of noise an improvement must exceed under ``auto``.
        max_answer_tokens: Longest answer that is written, where the grader reads answers.
        timeout_seconds: Most time for one `compute_reward`. Scoring is not interrupted, writing
            is: each answer gets an equal share of the time that is left.

    Raises:
        UsageError: The grader is unknown, lacks its judge, or does not suit the quantity.
    """

    kind: ClassVar[str]
    sign: ClassVar[int]  # of an improvement: 1 if more is better, -1 if less is
    default_grader: ClassVar[str]

    def __init__(
        self,
        grader: Grader | str | None = None,
        *,
        judge: LanguageModel | None = None,
        baseline: LanguageModel | None = None,
        noise: NoiseEstimate | None = None,
        z: float = Z_ONE_SIDED_95,
        max_answer_tokens: int = 16,
        timeout_seconds: float | None = None,
    ) -> None:
        chosen = self.default_grader if grader is None else grader
        self.grader = get_grader(chosen, judge) if isinstance(chosen, str) else chosen
        if isinstance(self.grader, AnswerLogprob) != (self.default_grader == AnswerLogprob.name):
            raise UsageError(
                f"the grader {self.grader.name!r} gives no {self.kind}",
                "Accuracy is graded on written answers, loss and perplexity by logprob.",
            )
        self.baseline = baseline
        self.noise = noise
        self.z = z
        self.timeout_seconds = timeout_seconds
        self._answers = HeldOutAnswers(max_answer_tokens)

    @property
    def needs_text(self) -> bool:
        """Whether `of` reads written answers, which cost far more than log-probabilities."""
        return self.grader.needs_text

    def compute_reward(
        self,
        expert: LanguageModel,
        validation_dataset: Sequence[Probe] | Sequence[Passage],
        threshold: Threshold = "auto",
    ) -> Reward:
        """Puts the questions to expert and baseline, each in one batched call.

        Answers of a model with an `adapter_digest`, and of `baseline` itself, are kept and not
        asked for again; a model without one might be any expert in memory.

        Args:
            expert: The model with its adapter on.
            validation_dataset: Questions, or passages with questions. Never trained on.
            threshold: See the module's head.

        Returns:
            The reward: before, after, the improvement with its standard error, and how many
            questions.

        Raises:
            UsageError: `threshold` needs a baseline or is none; `DataError` where there are no
                questions, or too few for ``auto``.
            BackendError: A model failed (`NonFiniteError`, ...), or the time ran out (retryable).
        """
        rule = _rule(threshold)
        if self.baseline is None and rule != "number":
            raise UsageError(
                f"a reward with threshold {threshold!r} needs a base model to compare with",
                "Give the reward function a baseline, or a number as threshold.",
            )
        probes = as_probes(validation_dataset)
        time_limit = TimeLimit(self.timeout_seconds)
        ask = partial(self._answers.ask, probes=probes, written=self.needs_text, limit=time_limit)
        before = None if self.baseline is None else ask(self.baseline, keep=True)
        keep = bool(expert.adapter_digest) or expert is self.baseline
        return self.of(probes, before, ask(expert, keep=keep), threshold)

    def of(
        self,
        questions: Sequence[Probe],
        before: Sequence[Answered] | None,
        after: Sequence[Answered],
        threshold: Threshold = "auto",
    ) -> Reward:
        """The reward of answers that are there already; no expert is asked.

        Args:
            questions: The questions.
            before: What the base model made of them, in order; may be None where `threshold` is
                a number.
            after: What the expert made of them, in order.
            threshold: See the module's head.

        Raises:
            UsageError: `before` is missing, written answers are, or `threshold` is none of the
                three; `DataError` where there are no questions, or a single one under ``auto``
                without a noise estimate.
            NonFiniteError: A score is NaN or infinite.
            BackendError: The judge failed.
            ValueError: The answers are not those of the questions.
        """
        _rule(threshold)
        if not questions:
            raise DataError("there are no questions to reward by", "give passages with questions")
        new, pulls = self._measure_answers(questions, after)
        old = None
        if before is not None:
            old, old_pulls = self._measure_answers(questions, before)
            pulls = [b - a for a, b in zip(old_pulls, pulls, strict=True)]
        return self._decide(old, new, len(questions), _standard_error(pulls), threshold)

    def combine(self, rewards: Sequence[Reward], threshold: Threshold = "auto") -> Reward:
        """The reward of a candidate from those of its repeats (any thresholds), all successes.

        Quantities are averaged, then decided on. Under ``auto`` the noise of a trial shrinks with
        the square root of the repeats; a standard error over questions does not, since every
        repeat is asked the same ones.

        Raises:
            UsageError: As `of`; or there are no rewards.
            ValueError: They are rewards of different kinds or numbers of questions.
        """
        if not rewards:
            raise UsageError("there are no rewards to combine", "a failed trial has no reward")
        first = rewards[0]
        if {(r.kind, r.grader, r.n) for r in rewards} != {(self.kind, self.grader.name, first.n)}:
            raise ValueError("rewards of different kinds cannot be combined")
        trials = [r for r in rewards for _ in range(r.repeats)]
        befores = [r.before for r in trials if r.before is not None]
        errors = [r.standard_error for r in trials if r.standard_error is not None]
        return self._decide(
            fmean(befores) if len(befores) == len(trials) else None,
            fmean([r.after for r in trials]),
            first.n,
            fmean(errors) if errors else None,
            threshold,
            len(trials),
        )

    @abstractmethod
    def _measure(self, grades: Sequence[float], tokens: Sequence[int]) -> tuple[float, list[float]]:
        """The quantity of a model, and how far each question pulls it from where it is.

        Args:
            grades: One a question, in order.
            tokens: Tokens of each reference answer.

        Returns:
            The quantity, and its influence values (they sum to 0; see `_standard_error`).
        """

    def _is_reached(self, value: float, threshold: float) -> bool:
        """Whether a quantity is better than a number."""
        return value < threshold

    def _measure_answers(
        self, questions: Sequence[Probe], answered: Sequence[Answered]
    ) -> tuple[float, list[float]]:
        check_same_questions(questions, answered)
        grades = self.grader.grade(questions, answered)
        return self._measure(grades, [one.score.tokens for one in answered])

    def _decide(
        self,
        before: float | None,
        after: float,
        n: int,
        standard_error: float | None,
        threshold: Threshold,
        repeats: int = 1,
    ) -> Reward:
        rule = _rule(threshold)
        improvement = None if before is None else self.sign * (after - before)
        limit: float | None = None
        if isinstance(threshold, float | int):
            limit = float(threshold)
            value = float(self._is_reached(after, limit))
        elif improvement is None:
            message = f"a reward with threshold {threshold!r} needs the base model's answers"
            raise UsageError(message, "Give them, or a number as threshold.")
        elif threshold is None:
            value = improvement
        else:
            limit = self._margin(standard_error, repeats)
            value = float(improvement > limit + _ROUNDING)
        return Reward(
            value=value,
            before=before,
            after=after,
            n=n,
            grader=self.grader.name,
            threshold=limit,
            standard_error=standard_error,
            kind=self.kind,
            rule=rule,
            improvement=improvement,
            repeats=repeats,
        )

    def _margin(self, standard_error: float | None, repeats: int) -> float:
        """What an improvement must exceed to be more than noise."""
        if self.noise is not None:
            return self.z * self.noise.sd / math.sqrt(repeats)
        if standard_error is None:
            raise DataError(
                "a single question gives no measure of the noise, which threshold 'auto' needs",
                "Give more questions, a noise estimate from repeated trials, or a number.",
            )
        return self.z * standard_error


class ValidationLossReward(RewardFunction):
    """By the mean negative log-likelihood a token of the reference answers (nats)."""

    kind = "loss"
    sign = -1
    default_grader = "logprob"

    def _measure(self, grades: Sequence[float], tokens: Sequence[int]) -> tuple[float, list[float]]:
        total = sum(tokens)
        loss = -math.fsum(g * t for g, t in zip(grades, tokens, strict=True)) / total
        scale = len(grades) / total
        return loss, [(-g - loss) * t * scale for g, t in zip(grades, tokens, strict=True)]


class PerplexityReward(ValidationLossReward):
    """By ``exp(loss)``; its standard error is that of the loss by the delta method."""

    kind = "perplexity"

    def _measure(self, grades: Sequence[float], tokens: Sequence[int]) -> tuple[float, list[float]]:
        loss, pulls = super()._measure(grades, tokens)
        value = perplexity(loss)
        return value, [value * pull for pull in pulls]


class AccuracyReward(RewardFunction):
    """By the mean grade of the written answers: exact, contains, f1, judge, or one's own."""

    kind = "accuracy"
    sign = 1
    default_grader = "exact"

    def _measure(self, grades: Sequence[float], tokens: Sequence[int]) -> tuple[float, list[float]]:
        value = fmean(grades)
        return value, [grade - value for grade in grades]

    def _is_reached(self, value: float, threshold: float) -> bool:
        return value >= threshold - _ROUNDING


def reward_of_outcome(
    reward: RewardFunction,
    outcome: TrialOutcome,
    questions: Sequence[Probe],
    before: Sequence[Answered] | None,
    threshold: Threshold = "auto",
) -> Reward | Failure:
    """The reward of a trial; a trial that failed, or that cannot be judged, has none.

    Args:
        reward: How to reward.
        outcome: What came of the trial.
        questions: The job's questions.
        before: What the base model made of them; may be None where `threshold` is a number.
        threshold: See the module's head.

    Returns:
        The reward; the trial's own failure; or one at the boundary ``score`` where a score is
        not finite, the judge failed, or the questions are too few.

    Raises:
        UsageError: As `RewardFunction.of`, but for its `DataError`.
        ValueError: The answers are not those of the questions.
    """
    if outcome.failure is not None:
        return outcome.failure
    try:
        return reward.of(questions, before, outcome.answers, threshold)
    except BackendError as error:
        return Failure("score", outcome.job_id, error.message, error.retryable)
    except DataError as error:
        return Failure("score", outcome.job_id, error.message)


def _rule(threshold: object) -> Literal["number", "auto", "improvement"]:
    """What a threshold asks for; refuses what is none."""
    if threshold is None:
        return "improvement"
    if threshold == "auto":
        return "auto"
    if isinstance(threshold, float | int) and math.isfinite(threshold):
        return "number"
    raise UsageError(f"{threshold!r} is no threshold", "Give 'auto', a finite number or None.")


def _standard_error(pulls: Sequence[float]) -> float | None:
    """``sqrt(sum pulls^2 / (n (n - 1)))``; None for a single question."""
    n = len(pulls)
    return math.sqrt(math.fsum(x * x for x in pulls) / (n * (n - 1))) if n > 1 else None
