"""How reliable is a reward: would the same candidate get it again?

Takes the rewards of repeated trials, ``passage -> candidate -> rewards``, candidates and repeats
in any number; gives the noise of one reward and how far rewards tell candidates apart. A trial
that failed is absent from the table; it is not a 0.

**Intraclass correlation.** One-way random effects, ICC(1) of a single reward and ICC(k) of the
mean of k (Shrout & Fleiss 1979, Psychological Bulletin 86: ICC(1,1) and ICC(1,k)), by analysis of
variance: with mean squares ``MSB`` between candidates and ``MSW`` between repeats of a candidate,

    ICC(1) = (MSB - MSW) / (MSB + (k0 - 1) MSW),    ICC(k0) = (MSB - MSW) / MSB

where ``k0`` is the number of repeats, corrected where candidates have differing numbers of them.
Negative estimates are left as they are: they say "about 0". Below -1 they are given as -1.

**Raw and within passages.** Raw figures compare all candidates. Most of what they measure is that
some passages are easier than others, which is no help to a choice among the candidates of one
passage. The figures *within* passages are those that matter: between-candidate squares are taken
from the passage's own mean, and each passage costs one degree of freedom (candidates nested in
passages). Centring first and then taking the usual degrees of freedom would be biased low.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aios.core.errors import NonFiniteError, UsageError

FloatArray = npt.NDArray[np.float64]
Candidate = TypeVar("Candidate", str, int)
Groups = list[list[FloatArray]]  # [passage][candidate] -> rewards of its repeats

_SAME = 1e-9  # rewards closer than this are tied
_FEWEST_PAIRS = 3  # two points always correlate perfectly
_FEWEST_PASSAGES = 5  # for an interval by resampling passages
_RESAMPLES = 2000
_SIMULATED_CHOICES = 20_000


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """How much the reward of one trial varies when the trial is repeated with other seeds.

    Attributes:
        sd: Standard deviation of a single reward about its candidate's mean, pooled over
            candidates (square root of MSW), in the reward's unit.
        n: Candidates that it comes from, each with at least two repeats.
        repeats: Mean number of repeats of these.
    """

    sd: float
    n: int
    repeats: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far repeats agree. None where it cannot be computed.

    Attributes:
        icc: ICC(1), of a single reward.
        icc_mean: ICC(k), of the mean of a candidate's repeats.
        pearson: Pearson correlation of two repeats, mean over the pairs of repeats.
        spearman: The same of their ranks.
    """

    icc: float | None
    icc_mean: float | None
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How reliable a set of rewards is. None where it cannot be computed.

    Attributes:
        passages: Passages with a reward.
        candidates: Candidates with a reward.
        rewards: Rewards in all.
        repeats: Repeats a candidate, k0 of the module's head; exactly the number of repeats
            where all candidates have the same.
        noise: Noise of a single reward; None without a repeat.
        standard_error: Of a candidate's mean reward, ``noise.sd / sqrt(repeats)``.
        within: Agreement on which candidate of a passage is better.
        raw: Agreement on all candidates, the passages' differences included.
        interval: 95 % bootstrap interval of ``within.icc``, passages resampled.
        tied_share: Share of passages (with two or more candidates) where two or more candidates
            share the best mean reward.
        correct_picks: Expected share of passages where the candidate with the best mean reward
            is truly the best, if true rewards and noise are normal; by chance it would be
            ``chance_picks``.
        chance_picks: Expected share of correct picks at random.
        gain_share: Expected gain of the pick as a share of that of the truly best candidate,
            ``sqrt(ICC(k))`` under the same assumption; 0 if ICC(k) is negative.
    """

    passages: int
    candidates: int
    rewards: int
    repeats: float
    noise: NoiseEstimate | None
    standard_error: float | None
    within: Agreement
    raw: Agreement
    interval: tuple[float, float] | None
    tied_share: float | None
    correct_picks: float | None
    chance_picks: float | None
    gain_share: float | None

    def describe(self) -> str:
        """One plain sentence."""
        if self.noise is None:
            return (
                f"The reward's reliability is not known: each of the {self.candidates} candidates"
                " has one trial; repeat some."
            )
        noise = f"a single trial's reward varies by ±{self.noise.sd:.3g}"
        icc, mean = self.within.icc, self.within.icc_mean
        if icc is None or mean is None or self.correct_picks is None or self.chance_picks is None:
            return f"In repeats {noise}; how far it tells candidates apart cannot be computed."
        interval = (
            "" if self.interval is None else " (95 % {:.2f} to {:.2f})".format(*self.interval)
        )
        return (
            f"In repeats {noise} and agrees on the better candidate of a passage with ICC"
            f" {icc:.2f}{interval}, {mean:.2f} for the mean of {self.repeats:.3g}; the best mean is"
            f" expected to be the truly best candidate in {self.correct_picks:.0%} of passages"
            f" ({self.chance_picks:.0%} by chance)."
        )


def report(rewards: Mapping[str, Mapping[Candidate, Sequence[float]]]) -> Reliability:
    """Measures how reliable rewards are.

    Args:
        rewards: Rewards of each candidate's repeats by passage and candidate. Candidates without
            a reward are left out.

    Raises:
        UsageError: There is no reward.
        NonFiniteError: A reward is NaN or infinite; the message names passage and candidate.
    """
    groups = _groups(rewards)
    candidates = [one for passage in groups for one in passage]
    within, raw = _squares(groups), _squares([candidates])
    noise = _noise(candidates)
    k0 = float(_k0(raw.sum(axis=0))) if len(candidates) > 1 else float(candidates[0].size)
    icc, icc_mean = _icc(within.sum(axis=0))
    correct = chance = gain = None
    if icc_mean is not None:
        sizes = [len(passage) for passage in groups if len(passage) > 1]
        chance = sum(1 / size for size in sizes) / len(sizes)
        correct = _correct_picks(icc_mean, sizes)
        gain = math.sqrt(max(icc_mean, 0.0))
    return Reliability(
        passages=len(groups),
        candidates=len(candidates),
        rewards=sum(one.size for one in candidates),
        repeats=k0,
        noise=noise,
        standard_error=None if noise is None else noise.sd / math.sqrt(k0),
        within=Agreement(icc, icc_mean, *_correlations(groups, centred=True)),
        raw=Agreement(*_icc(raw.sum(axis=0)), *_correlations([candidates], centred=False)),
        interval=None if icc is None else _interval(within),
        tied_share=_tied_share(groups),
        correct_picks=correct,
        chance_picks=chance,
        gain_share=gain,
    )


def estimate_noise(
    rewards: Mapping[str, Mapping[Candidate, Sequence[float]]],
) -> NoiseEstimate | None:
    """The noise of a single reward; None if no candidate has two. Errors are those of `report`."""
    return _noise([one for passage in _groups(rewards) for one in passage])


def _groups(rewards: Mapping[str, Mapping[Candidate, Sequence[float]]]) -> Groups:
    """The table as arrays, without empty candidates and passages."""
    groups: Groups = []
    for passage, candidates in rewards.items():
        arrays = []
        for candidate, repeats in candidates.items():
            array = np.asarray(repeats, dtype=np.float64)
            if not np.isfinite(array).all():
                raise NonFiniteError(
                    f"passage {passage}, candidate {candidate}: a reward is not a finite number"
                )
            if array.size:
                arrays.append(array)
        if arrays:
            groups.append(arrays)
    if not groups:
        raise UsageError("there are no rewards to report on", "every trial failed; see why first")
    return groups


def _squares(groups: Groups) -> FloatArray:
    """Sums from which the analysis of variance is made, one row a group, ``[groups, 5]``.

    Columns: squares between candidates, their degrees of freedom, squares within candidates,
    their degrees of freedom, and the numerator of k0. Rows can be added up.
    """
    rows = []
    for candidates in groups:
        sizes = np.asarray([one.size for one in candidates], dtype=np.float64)
        means = np.asarray([one.mean() for one in candidates])
        n = sizes.sum()
        grand = (sizes * means).sum() / n
        between = float((sizes * (means - grand) ** 2).sum())
        inner = sum(float(((one - one.mean()) ** 2).sum()) for one in candidates)
        rows.append([between, sizes.size - 1, inner, n - sizes.size, n - (sizes**2).sum() / n])
    return np.asarray(rows, dtype=np.float64)


def _k0(sums: FloatArray) -> FloatArray:
    """Effective number of repeats, for sums of shape ``[..., 5]`` with candidates to compare."""
    k0: FloatArray = sums[..., 4] / sums[..., 1]
    return k0


def _iccs(sums: FloatArray) -> FloatArray:
    """ICC(1) and ICC(k0) for sums of shape ``[..., 5]``, as ``[..., 2]``.

    NaN without repeats, without candidates to compare, or where nothing varies.
    """
    between, between_df, inner, inner_df, _ = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        msb, msw, k0 = between / between_df, inner / inner_df, _k0(sums)
        total = msb + (k0 - 1) * msw  # can be 0 or less where repeats are few and unequal
        single = np.where(total > 0, (msb - msw) / total, -1.0)
        iccs = np.stack([single, (msb - msw) / msb], axis=-1)
    known = (between_df >= 1) & (inner_df >= 1) & ((msb > _SAME**2) | (msw > _SAME**2))
    return np.where(known[..., None], np.maximum(iccs, -1.0), np.nan)


def _icc(sums: FloatArray) -> tuple[float | None, float | None]:
    """ICC(1) and ICC(k0) for sums of shape ``[5]``; None where they are not known."""
    single, mean = _iccs(sums)
    return (None, None) if np.isnan(single) else (float(single), float(mean))


def _interval(sums: FloatArray) -> tuple[float, float] | None:
    """95 % percentile interval of ICC(1), passages resampled (n - 1 of n)."""
    passages = len(sums)
    if passages < _FEWEST_PASSAGES:
        return None
    rng = np.random.default_rng(0)
    counts = rng.multinomial(passages - 1, np.full(passages, 1 / passages), size=_RESAMPLES)
    drawn = _iccs(counts @ sums)[:, 0]
    if np.isnan(drawn).all():
        return None
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _noise(candidates: Iterable[FloatArray]) -> NoiseEstimate | None:
    repeated = [one for one in candidates if one.size > 1]
    if not repeated:
        return None
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in repeated)
    freedom = sum(one.size - 1 for one in repeated)
    repeats = sum(one.size for one in repeated) / len(repeated)
    return NoiseEstimate(math.sqrt(squares / freedom), len(repeated), repeats)


def _correlations(groups: Groups, *, centred: bool) -> tuple[float | None, float | None]:
    """Pearson and Spearman between repeats, mean over pairs of repeat numbers.

    Args:
        groups: Rewards by group and candidate.
        centred: Take each group's own mean from each repeat first; groups where fewer than two
            candidates have both repeats are then left out.
    """
    most = max(one.size for group in groups for one in group)
    pearson, spearman = [], []
    for i, j in combinations(range(most), 2):
        pairs = []
        for group in groups:
            both = np.asarray([[one[i], one[j]] for one in group if one.size > j])
            if len(both) > centred:
                pairs.append(both - both.mean(axis=0) if centred else both)
        if not pairs or sum(map(len, pairs)) < _FEWEST_PAIRS:
            continue
        left, right = np.concatenate(pairs).T
        pearson.append(_pearson(left, right))
        spearman.append(_pearson(_ranks(left), _ranks(right)))
    return _mean(pearson), _mean(spearman)


def _pearson(left: FloatArray, right: FloatArray) -> float | None:
    """Correlation; None where one side does not vary."""
    x, y = left - left.mean(), right - right.mean()
    if np.abs(x).max() <= _SAME or np.abs(y).max() <= _SAME:
        return None
    return float((x @ y) / math.sqrt((x @ x) * (y @ y)))


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks, tied values sharing their mean rank."""
    _, group, counts = np.unique(values.round(9), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: FloatArray = (last - (counts - 1) / 2)[group.ravel()]
    return ranks


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _tied_share(groups: Groups) -> float | None:
    """Share of groups with a choice in which the best mean is shared."""
    tied = []
    for group in groups:
        if len(group) > 1:
            means = np.asarray([one.mean() for one in group])
            tied.append(int((means >= means.max() - _SAME).sum()) > 1)
    return sum(tied) / len(tied) if tied else None


def _correct_picks(icc_mean: float, sizes: Sequence[int]) -> float:
    """Expected share of groups where the best measured candidate is the truly best.

    True rewards and noise are drawn as normal variables with variances ICC(k) and 1 - ICC(k), with
    a fixed seed; the standard error of the result is below 0.004.

    Args:
        icc_mean: ICC(k) of the measured means.
        sizes: Candidates of each group, at least two.
    """
    icc = min(max(icc_mean, 0.0), 1.0)
    shares = {}
    for size in set(sizes):
        true, noise = _simulated(size)
        seen = math.sqrt(icc) * true + math.sqrt(1 - icc) * noise
        shares[size] = float((seen.argmax(axis=1) == true.argmax(axis=1)).mean())
    return sum(shares[size] for size in sizes) / len(sizes)


@lru_cache(maxsize=4)
def _simulated(size: int) -> tuple[FloatArray, FloatArray]:
    """True rewards and noise of groups of `size` candidates, ``[_SIMULATED_CHOICES, size]``."""
    rng = np.random.default_rng(size)
    shape = (_SIMULATED_CHOICES, size)
    return rng.standard_normal(shape), rng.standard_normal(shape)
