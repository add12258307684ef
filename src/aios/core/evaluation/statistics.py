"""Paired statistics: is a difference between two arms more than chance?

Takes per-question values of two arms on the same questions; gives bootstrap intervals, McNemar's
test and the spread over seeds. Axes: ``S`` seeds, ``Q`` questions, ``P`` passages, ``B``
bootstrap samples.

**Passages are resampled, not questions.** Questions about one passage rise and fall together, so
they are a cluster: resampling single questions would give intervals that are too narrow. Each
bootstrap sample draws passages with replacement and takes all their questions in both arms, which
keeps the pairing (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 8; percentile
intervals, ch. 13).

**Seeds are resampled too** where an arm has several: a trained model depends on its seed, and
what is claimed is meant to hold for a new seed. Seeds and passages are crossed (every seed
answers every question), so both are drawn independently in each sample and the statistic is taken
on the drawn grid (Owen 2007, The pigeonhole bootstrap). The arms' seeds are drawn apart from each
other; that is right for independent trainings and errs to the wide side for related ones. With
one seed in each arm the interval says nothing about other seeds.

**n − 1 of n are drawn** at either level: the variance of a mean over n draws is too small by the
factor (n − 1)/n, a third for three seeds; drawing n − 1 corrects that exactly (Rao & Wu 1988).
Even so, two or three seeds measure their own variance poorly; more seeds beat any correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aios.core.errors import NonFiniteError, UsageError

FloatArray = npt.NDArray[np.float64]
Statistic = Callable[[FloatArray, FloatArray], FloatArray]

_CELLS_AT_ONCE = 2_000_000  # bootstrap weights held in memory: 16 MB
_EXACT_LIMIT = 1000  # above so many disagreements McNemar's chi-squared form is as good


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quantity that is a ratio of sums over questions, e.g. loss = Σ nll / Σ tokens.

    Attributes:
        numerators: Shape ``[S, Q]`` (or ``[Q]`` for one seed).
        denominators: Of the same shape; positive.
    """

    numerators: npt.ArrayLike
    denominators: npt.ArrayLike

    @classmethod
    def mean(cls, values: npt.ArrayLike) -> Ratio:
        """The mean of values of shape ``[S, Q]`` or ``[Q]``, as a ratio."""
        array = np.asarray(values, dtype=np.float64)
        return cls(array, np.ones_like(array))


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its bootstrap percentile interval.

    Attributes:
        estimate: The statistic on the data as they are.
        low: Lower end.
        high: Upper end.
        confidence: Nominal coverage, e.g. 0.95.
    """

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test for paired right/wrong answers.

    Attributes:
        b: Questions that only the treatment answered rightly.
        c: Questions that only the control answered rightly.
        statistic: ``(|b − c| − 1)² / (b + c)``, with continuity correction; 0 if b + c is 0.
        p_value: Two-sided; exact binomial up to 1000 disagreements, then chi-squared.
    """

    b: int
    c: int
    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A value over seeds; `sd` is the sample standard deviation, None for a single seed."""

    mean: float
    sd: float | None
    min: float
    max: float


def paired_bootstrap(
    treatment: Ratio,
    control: Ratio,
    clusters: Sequence[str],
    statistic: Statistic,
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of two ratios of sums on the same questions.

    Args:
        treatment: Values of the treatment arm, ``[S, Q]``.
        control: Values of the control arm, ``[S', Q]``; S' may differ from S.
        clusters: The passage of each of the Q questions; at least two different ones.
        statistic: Elementwise function of the treatment's and the control's ratios, each ``[B]``.
        samples: Bootstrap samples B.
        confidence: Nominal coverage in (0, 1).
        seed: Seed of the draws; the same seed gives the same interval.

    Raises:
        UsageError: Fewer than two clusters, from which no interval can be had.
        NonFiniteError: A value, or the statistic of the data or of a sample, is not finite.
        ValueError: Shapes do not fit, a denominator is not positive, or a setting is out of range.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"samples {samples} and confidence {confidence} are out of range")
    groups, of_question = np.unique(np.asarray(clusters), return_inverse=True)
    if len(groups) < 2:
        raise UsageError(
            f"{len(groups)} passage(s) with questions are too few for an interval",
            "give questions about at least two passages",
        )
    sums = [_cluster_sums(arm, of_question, len(groups)) for arm in (treatment, control)]
    ratios = [np.asarray([top.sum() / bottom.sum()]) for top, bottom in sums]
    with np.errstate(all="ignore"):
        estimate = statistic(*ratios)
        draws = np.concatenate(_draws(sums, statistic, len(groups), samples, seed))
    if not (np.isfinite(estimate).all() and np.isfinite(draws).all()):
        raise NonFiniteError("the statistic of a bootstrap sample is not a finite number")
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(estimate[0]), float(low), float(high), confidence)


def relative_change_interval(
    treatment: Ratio,
    control: Ratio,
    clusters: Sequence[str],
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of ``treatment / control − 1``; −0.1 means 10 % lower than the control.

    Arguments and errors are those of `paired_bootstrap`.
    """
    return paired_bootstrap(
        treatment,
        control,
        clusters,
        _relative_change,
        samples=samples,
        confidence=confidence,
        seed=seed,
    )


def difference_interval(
    treatment: npt.ArrayLike,
    control: npt.ArrayLike,
    clusters: Sequence[str],
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the difference of two means of per-question values, ``[S, Q]`` each.

    Arguments and errors are those of `paired_bootstrap`.
    """
    return paired_bootstrap(
        Ratio.mean(treatment),
        Ratio.mean(control),
        clusters,
        np.subtract,
        samples=samples,
        confidence=confidence,
        seed=seed,
    )


def mcnemar(treatment: npt.ArrayLike, control: npt.ArrayLike) -> McNemar:
    """McNemar's test (McNemar 1947) on the majority answer over seeds.

    A question counts as right if strictly more than half of an arm's seeds answer it rightly; a
    tie counts as wrong. Pooling seeds as if they were more questions would count each question
    several times. The test takes questions as independent although those of a passage are not:
    its p-value is somewhat too small where a passage has many questions, and the bootstrap
    interval is what a verdict should rest on.

    Args:
        treatment: Right or wrong, ``[S, Q]`` or ``[Q]``.
        control: The same for the control; the number of seeds may differ.

    Raises:
        ValueError: The numbers of questions differ.
    """
    ours, theirs = _majority(treatment), _majority(control)
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.size} questions in one arm, {theirs.size} in the other")
    b, c = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    n = b + c
    statistic = (abs(b - c) - 1) ** 2 / n if n else 0.0
    if n <= _EXACT_LIMIT:
        tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
        p_value = min(1.0, 2 * tail / 2**n)
    else:
        p_value = math.erfc(math.sqrt(statistic / 2))  # upper tail of chi-squared, 1 degree
    return McNemar(b, c, statistic, p_value)


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation, least and greatest of a value over seeds (at least one)."""
    if not values:
        raise ValueError("no values to take the spread of")
    array = np.asarray(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return Spread(float(array.mean()), sd, float(array.min()), float(array.max()))


def _relative_change(treatment: FloatArray, control: FloatArray) -> FloatArray:
    change: FloatArray = treatment / control - 1
    return change


def _majority(correct: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Right by strict majority over seeds, ``[Q]``."""
    votes = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    majority: npt.NDArray[np.bool_] = votes.mean(axis=0) > 0.5
    return majority


def _cluster_sums(
    arm: Ratio, of_question: npt.NDArray[np.intp], passages: int
) -> tuple[FloatArray, FloatArray]:
    """Sums over the questions of each passage: numerators and denominators, ``[S, P]`` each."""
    numerators = np.atleast_2d(np.asarray(arm.numerators, dtype=np.float64))
    denominators = np.atleast_2d(np.asarray(arm.denominators, dtype=np.float64))
    if numerators.shape != denominators.shape or numerators.shape[1] != of_question.size:
        raise ValueError(
            f"shapes {numerators.shape} and {denominators.shape} do not fit "
            f"{of_question.size} questions"
        )
    if not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise NonFiniteError("a per-question value is NaN or infinite")
    if (denominators <= 0).any():
        raise ValueError("a denominator is not positive")
    member = np.zeros((of_question.size, passages))
    member[np.arange(of_question.size), of_question.ravel()] = 1.0
    return numerators @ member, denominators @ member


def _draws(
    sums: Sequence[tuple[FloatArray, FloatArray]],
    statistic: Statistic,
    passages: int,
    samples: int,
    seed: int,
) -> list[FloatArray]:
    """The statistic of each bootstrap sample, in chunks that fit into memory."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS_AT_ONCE // passages)
    draws = []
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn_passages = _weights(rng, passages, size)  # [B, P], the same passages in both arms
        ratios = []
        for numerators, denominators in sums:
            drawn_seeds = _weights(rng, numerators.shape[0], size)  # [B, S]
            top = ((drawn_seeds @ numerators) * drawn_passages).sum(axis=1)
            bottom = ((drawn_seeds @ denominators) * drawn_passages).sum(axis=1)
            ratios.append(top / bottom)
        draws.append(statistic(*ratios))
    return draws


def _weights(rng: np.random.Generator, n: int, size: int) -> FloatArray:
    """How often each of n units is drawn in n − 1 draws with replacement, ``[size, n]``."""
    counts = rng.multinomial(max(1, n - 1), np.full(n, 1 / n), size=size)
    return counts.astype(np.float64)
