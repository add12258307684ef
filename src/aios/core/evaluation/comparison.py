"""Comparison of the arms of an A/B experiment.

Takes the runs of each arm (one a seed) with their results on the same held-out questions; gives
for each pair of arms the change of every metric with its 95 % interval and a verdict. The
sentence and the document that are made of these stand in `aios.core.evaluation.document`.

The changes of loss and perplexity are relative to the control; those of the three accuracies are
differences of shares, which stay meaningful where the control is at zero. One comparison is the
main one (self-edits added to passages, validation loss); the others are reported as they are,
without a correction for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from aios.core.errors import UsageError
from aios.core.evaluation.metrics import AnswerResult, perplexity, summarize
from aios.core.evaluation.statistics import (
    FloatArray,
    Interval,
    McNemar,
    Ratio,
    difference_interval,
    mcnemar,
    paired_bootstrap,
    relative_change_interval,
)
from aios.core.trainings import CurvePoint

ARMS = ("base", "passage", "passage+edits", "passage+other-edits", "in-context")
MAIN_PAIR = ("passage+edits", "passage")
CONTROL_PAIR = ("passage+edits", "passage+other-edits")
METRICS = ("validation_loss", "perplexity", "exact_match", "f1", "contains_answer")
CONFIDENCE = 0.95
_SMALLEST_CHANGE = 0.0005  # an interval within ±0.05 % prints as 0.0 % and is no difference

Verdict = Literal["better", "worse", "no difference found", "too few passages to tell"]
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm trained and evaluated with one seed.

    Attributes:
        arm: Name of the arm; the known ones are `ARMS`.
        seed: Its seed. An arm that trains nothing has a single run.
        results: One result per report question.
        retention_loss: Loss per token on unrelated text, or None where it was not measured.
        curve: Evaluations during training; empty where nothing was trained.
        best_step: Optimiser step of the checkpoint that was evaluated.
        steps: Optimiser steps done.
        tokens: Real tokens trained on.
        train_seconds: Training time, evaluation excluded.
        peak_memory_bytes: Peak memory of the training.
        examples: Training examples.
        evaluation_seconds: Time of the training's evaluations, and of its begin and end; 0 where
            it was gone on with and is not known.
        examination_seconds: Time of the report questions, scored and answered.
        retention_seconds: Time of the unrelated text.
    """

    arm: str
    seed: int
    results: tuple[AnswerResult, ...]
    retention_loss: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    best_step: int = 0
    steps: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    peak_memory_bytes: int = 0
    examples: int = 0
    evaluation_seconds: float = 0.0
    examination_seconds: float = 0.0
    retention_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """How intervals are made: bootstrap samples and the seed of their draws."""

    samples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The change of one metric from a control arm to a treatment arm.

    Attributes:
        treatment: Name of the treatment arm.
        control: Name of the control arm.
        metric: One of `METRICS`.
        treatment_value: The treatment's value over all its seeds.
        control_value: The control's value over all its seeds.
        change: ``treatment_value − control_value``.
        relative_change: ``treatment_value / control_value − 1``; None where the control is 0.
        scale: Which of the two `ci95` is about: ``relative`` or ``absolute``.
        ci95: Bootstrap interval over passages and seeds; None with fewer than two passages.
        n: Questions.
        passages: Passages that the questions are about.
        seeds: Seeds of the arm that has more of them.
        verdict: Whether the interval is clear of zero, and on which side.
        mcnemar: McNemar's test, for exact match and contains-answer.
    """

    treatment: str
    control: str
    metric: str
    treatment_value: float
    control_value: float
    change: float
    relative_change: float | None
    scale: Literal["relative", "absolute"]
    ci95: tuple[float, float] | None
    n: int
    passages: int
    seeds: int
    verdict: Verdict
    mcnemar: McNemar | None = None

    @property
    def estimate(self) -> float | None:
        """The change that `ci95` is about."""
        return self.relative_change if self.scale == "relative" else self.change

    def to_dict(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return {**asdict(self), "ci95": None if self.ci95 is None else list(self.ci95)}


@dataclass(frozen=True, slots=True)
class _Grid:
    """Per-question values of an arm on the questions in a common order; all ``[S, Q]``."""

    nll: FloatArray
    tokens: FloatArray
    exact: FloatArray
    f1: FloatArray
    contains: FloatArray

    @property
    def loss(self) -> Ratio:
        return Ratio(self.nll, self.tokens)

    @property
    def seeds(self) -> int:
        return int(self.nll.shape[0])


def available_pairs(arms: Mapping[str, Sequence[ArmRun]]) -> list[Pair]:
    """The pairs to compare, ``(treatment, control)``, of the arms that were run.

    The main pair comes first, then the control for format, then each arm against the base model.
    """
    names = ordered_arms(arms)
    pairs = [MAIN_PAIR, CONTROL_PAIR, *((name, "base") for name in names if name != "base")]
    return [pair for pair in pairs if all(name in names for name in pair)]


def ordered_arms(arms: Mapping[str, object]) -> list[str]:
    """Names of the arms in the order of `ARMS`, unknown ones after them."""
    return [*(a for a in ARMS if a in arms), *(a for a in arms if a not in ARMS)]


def compare(
    arms: Mapping[str, Sequence[ArmRun]],
    pairs: Sequence[Pair],
    settings: ComparisonSettings = ComparisonSettings(),
) -> list[Comparison]:
    """Compares arms, every metric of `METRICS` for each pair, in the order of `pairs`.

    Args:
        arms: Runs by arm, one a seed; all on the same questions.
        pairs: ``(treatment, control)`` names; see `available_pairs`.
        settings: How intervals are made.

    Raises:
        UsageError: A pair names an arm that was not run, or there are no questions.
        NonFiniteError: A result or a statistic is NaN or infinite.
        ValueError: The runs do not hold the same questions, once each.
    """
    missing = sorted({name for pair in pairs for name in pair if not arms.get(name)})
    if missing:
        raise UsageError(
            f"arms to compare that were not run: {', '.join(missing)}",
            f"run them, or compare only {', '.join(ordered_arms(arms))}",
        )
    if not pairs:
        return []
    questions = shared_questions(arms)
    clusters = [result.passage_id for result in questions.values()]
    grids = {name: _grid(arms[name], list(questions)) for pair in pairs for name in pair}
    return [
        _compare_metric(pair, metric, grids[pair[0]], grids[pair[1]], clusters, settings)
        for pair in pairs
        for metric in METRICS
    ]


def shared_questions(arms: Mapping[str, Sequence[ArmRun]]) -> dict[str, AnswerResult]:
    """The questions by probe id, as results of the first run.

    Raises:
        UsageError: There are no questions.
        ValueError: The runs do not hold the same questions, once each.
    """
    runs = [run for arm in arms.values() for run in arm]
    if not runs or not runs[0].results:
        raise UsageError("there are no questions to report on", "give passages with questions")
    questions = {result.probe_id: result for result in runs[0].results}
    for run in runs:
        probes = [result.probe_id for result in run.results]
        if len(set(probes)) != len(probes) or set(probes) != set(questions):
            raise ValueError(
                f"arm {run.arm}, seed {run.seed}: its {len(probes)} results are not one for each "
                f"of the {len(questions)} questions of the other runs"
            )
    return questions


def _compare_metric(
    pair: Pair,
    metric: str,
    treatment: _Grid,
    control: _Grid,
    clusters: Sequence[str],
    settings: ComparisonSettings,
) -> Comparison:
    ours, theirs = _value(metric, treatment), _value(metric, control)
    test = None
    if metric in ("exact_match", "contains_answer"):
        test = mcnemar(_accuracy(metric, treatment), _accuracy(metric, control))
    interval = None
    if len(set(clusters)) > 1:
        interval = _interval(metric, treatment, control, clusters, settings)
    return Comparison(
        treatment=pair[0],
        control=pair[1],
        metric=metric,
        treatment_value=ours,
        control_value=theirs,
        change=ours - theirs,
        relative_change=ours / theirs - 1 if theirs else None,
        scale="relative" if metric in ("validation_loss", "perplexity") else "absolute",
        ci95=(interval.low, interval.high) if interval else None,
        n=len(clusters),
        passages=len(set(clusters)),
        seeds=max(treatment.seeds, control.seeds),
        verdict=_verdict(metric, interval),
        mcnemar=test,
    )


def _value(metric: str, grid: _Grid) -> float:
    """The metric over all seeds; perplexity is that of the mean loss over seeds."""
    if metric in ("validation_loss", "perplexity"):
        loss = float(grid.nll.sum() / grid.tokens.sum())
        return perplexity(loss) if metric == "perplexity" else loss
    return float(_accuracy(metric, grid).mean())


def _accuracy(metric: str, grid: _Grid) -> FloatArray:
    by_name = {"exact_match": grid.exact, "f1": grid.f1, "contains_answer": grid.contains}
    return by_name[metric]


def _interval(
    metric: str,
    treatment: _Grid,
    control: _Grid,
    clusters: Sequence[str],
    settings: ComparisonSettings,
) -> Interval:
    options: dict[str, Any] = {
        "samples": settings.samples,
        "confidence": CONFIDENCE,
        "seed": settings.seed,
    }
    if metric == "validation_loss":
        return relative_change_interval(treatment.loss, control.loss, clusters, **options)
    if metric == "perplexity":
        return paired_bootstrap(
            treatment.loss, control.loss, clusters, _perplexity_change, **options
        )
    pair = _accuracy(metric, treatment), _accuracy(metric, control)
    return difference_interval(*pair, clusters, **options)


def _perplexity_change(treatment: FloatArray, control: FloatArray) -> FloatArray:
    """Relative change of ``exp(loss)``."""
    change: FloatArray = np.expm1(treatment - control)
    return change


def _verdict(metric: str, interval: Interval | None) -> Verdict:
    if interval is None:
        return "too few passages to tell"
    negligible = max(abs(interval.low), abs(interval.high)) < _SMALLEST_CHANGE
    if negligible or interval.low <= 0 <= interval.high:
        return "no difference found"
    lower_is_better = metric in ("validation_loss", "perplexity")
    return "better" if (interval.high < 0) == lower_is_better else "worse"


def _grid(runs: Sequence[ArmRun], probes: Sequence[str]) -> _Grid:
    rows = []
    for run in runs:
        summarize(run.results)  # names the probe of a value that is not finite
        by_probe = {result.probe_id: result for result in run.results}
        rows.append([by_probe[probe] for probe in probes])

    def array(value: Callable[[AnswerResult], float]) -> FloatArray:
        return np.asarray([[value(result) for result in row] for row in rows], dtype=np.float64)

    return _Grid(
        nll=array(lambda r: -r.logprob),
        tokens=array(lambda r: r.tokens),
        exact=array(lambda r: r.exact),
        f1=array(lambda r: r.f1),
        contains=array(lambda r: r.contains),
    )
