"""The choice of the format: strategies share the candidates of a round by what they paid.

A strategy of self-edits is an *arm*. `deal` turns the arms' shares into numbers of candidates for
each passage; when their trials are done, `next_shares` moves the shares towards the arms that
paid more for a token, and `arm_reports` says what each arm came to.

**What an arm is worth.** The gain of a candidate is the positive part of its improvement over the
baseline: a harmful candidate is not learned from, so it costs its tokens and no more. An arm's
value is its gain over its tokens, both summed over the candidates that were asked of it:

* a candidate that was tried costs the tokens written for it and those that one trial of it is
  trained on (repeats under racing go to the better candidates; counting them would punish those);
* one that was filtered away, or could not be written, gains 0. Its tokens are not known; it is
  taken to cost what was written for the others of its arm on average, and no training;
* one whose trials all failed has no number. It counts in neither sum.

**Shrinking.** A few candidates say little, so each value is the mean over the arm's own
candidates and `PSEUDO_CANDIDATES` more that paid as the arms did on average (weighted by their
candidates). An arm without any candidate is given that average.

**Floor.** A share of the candidates is divided evenly whatever was measured. An arm that was
unlucky once can come back, and self-edits stay varied: the field's known failure is collapse onto
one form.

Shares follow the values of the last round alone; nothing older is remembered, since the generator
changes from round to round.

Deviation: SEAL (Zweiger et al. 2025, arXiv 2506.10943) has one prompt for all self-edits of a run.
The rule is that of a bandit with a share of uniform exploration (Auer et al. 2002, SIAM Journal on
Computing 32: Exp3), with plain proportions in place of exponential weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from aios.core.restem import ArmReport, Tried, TriedPassage
from aios.core.seeds import derive

PSEUDO_CANDIDATES = 5
"""Candidates of average value that are added to each arm's own; as many as a passage has."""

_ROUNDING = 1e-6  # by how much shares may miss a sum of 1


def even_shares(arms: Sequence[str]) -> dict[str, float]:
    """The same share for each arm.

    Raises:
        ValueError: There is no arm, or one is named twice.
    """
    if not arms or len(set(arms)) != len(arms):
        raise ValueError(f"arms must be named, each once: {list(arms)}")
    return {arm: 1 / len(arms) for arm in arms}


def deal(
    shares: Mapping[str, float], passages: Sequence[str], candidates: int, seed: int
) -> dict[str, dict[str, int]]:
    """Says how many candidates each arm writes for each passage.

    All candidates lie in one row, arm after arm, and are dealt to the passages in turn. So each
    passage gets an arm's candidates or one fewer than another passage does, never more apart:
    passages are as varied as the totals allow.

    Args:
        shares: Each arm's share of all candidates; they sum to 1.
        passages: Ids, each once. Their order does not matter.
        candidates: Candidates of each passage, at least 1.
        seed: Decides which passages get an arm's odd candidates, and which arm gets the odd
            candidate where remainders tie.

    Returns:
        For each passage, in the order given, the arms that write for it (in the order of
        `shares`) and how many candidates each writes: `candidates` in all. Totals over the
        passages follow the shares by largest remainder.

    Raises:
        ValueError: The shares do not sum to 1 or one is negative, an id is there twice, or
            `candidates` is below 1.
    """
    _check_shares(shares)
    if candidates < 1 or len(set(passages)) != len(passages):
        raise ValueError(f"cannot deal {candidates} candidates to {len(passages)} passages")
    rng = random.Random(derive(seed, "deal"))
    arms, order = sorted(shares), sorted(passages)
    rng.shuffle(arms)
    rng.shuffle(order)
    totals = _largest_remainder({arm: shares[arm] for arm in arms}, candidates * len(passages))
    hands = {passage: dict.fromkeys(shares, 0) for passage in passages}
    row = (arm for arm in arms for _ in range(totals[arm]))
    for number, arm in enumerate(row):
        hands[order[number % len(order)]][arm] += 1
    return {
        passage: {arm: count for arm, count in hand.items() if count}
        for passage, hand in hands.items()
    }


def next_shares(
    passages: Sequence[TriedPassage],
    asked: Mapping[str, int],
    shares: Mapping[str, float],
    *,
    floor: float,
) -> dict[str, float]:
    """Each arm's share of the next round's candidates.

    With A arms and values v (module's head): ``floor / A + (1 - floor) v / sum(v)``. Where no
    candidate gained anything the shares stay as they are.

    Args:
        passages: The passages of the round that was tried.
        asked: Candidates that were asked of each arm, over all passages.
        shares: The shares of that round.
        floor: Share of the candidates that is divided evenly, in [0, 1].

    Returns:
        Shares that sum to 1, each at least ``floor / A``, in the order of `shares`.

    Raises:
        ValueError: `floor` or the shares are out of range, a candidate is of no arm, or an arm
            has more candidates than were asked of it.
    """
    _check_shares(shares)
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}; it must be from 0 to 1")
    least = floor / len(shares)
    values = _shrunk(_tallies(passages, asked, shares))
    total = math.fsum(values.values())
    if total > 0:
        weights = {arm: values[arm] / total for arm in shares}
    elif all(share >= least - _ROUNDING for share in shares.values()):
        return dict(shares)
    else:
        weights = dict(shares)
    return {arm: least + (1 - floor) * weight for arm, weight in weights.items()}


def arm_reports(
    passages: Sequence[TriedPassage],
    asked: Mapping[str, int],
    shares: Mapping[str, float],
    next_shares: Mapping[str, float],
) -> dict[str, ArmReport]:
    """What each arm came to in a round.

    A report's value is the arm's own, not shrunk, in the reward's unit per 1000 tokens written
    and trained on.

    Args:
        passages: The passages of the round.
        asked: Candidates that were asked of each arm, over all passages.
        shares: The shares of the round.
        next_shares: Those of the next.

    Raises:
        ValueError: As the function `next_shares`, or it has no share for an arm.
    """
    _check_shares(shares)
    if missing := [arm for arm in shares if arm not in next_shares]:
        raise ValueError(f"no next share for {missing}")
    reports = {}
    for arm, tally in _tallies(passages, asked, shares).items():
        numbers = [one.improvement for one in tally.tried if one.improvement is not None]
        reports[arm] = ArmReport(
            share=shares[arm],
            asked=tally.asked,
            tried=len(tally.tried),
            rewarded=sum(one.rewarded for one in tally.tried),
            improvement=fmean(numbers) if numbers else None,
            tokens=fmean(one.edit.tokens for one in tally.written) if tally.written else 0.0,
            value=1000 * tally.value,
            next_share=next_shares[arm],
        )
    return reports


@dataclass(frozen=True, slots=True)
class _Tally:
    """An arm's candidates in a round.

    Attributes:
        asked: Candidates asked for.
        written: Those that came to a trial, whether or not it failed.
        tried: Of these, those with an improvement.
    """

    asked: int
    written: tuple[Tried, ...]
    tried: tuple[Tried, ...]

    @property
    def counted(self) -> int:
        """Candidates that the value is over: all but those whose trials all failed."""
        return self.asked - len(self.written) + len(self.tried)

    @property
    def value(self) -> float:
        """Gain over tokens of the candidates that count; 0 without a gain."""
        gain = math.fsum(max(0.0, one.improvement or 0.0) for one in self.tried)
        if gain == 0:
            return 0.0
        written = fmean(one.edit.tokens for one in self.tried) * self.counted
        trained = sum(one.train_tokens for one in self.tried)
        return gain / max(written + trained, self.counted)  # at least a token each


def _tallies(
    passages: Sequence[TriedPassage], asked: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, _Tally]:
    """The candidates of each arm, in the order of `shares`."""
    of_arm: dict[str, list[Tried]] = {arm: [] for arm in shares}
    for passage in passages:
        for one in passage.candidates:
            if one.edit.strategy not in of_arm:
                raise ValueError(f"a candidate of {one.edit.strategy!r}, which is no arm")
            of_arm[one.edit.strategy].append(one)
    tallies = {}
    for arm, written in of_arm.items():
        if len(written) > asked.get(arm, 0):
            raise ValueError(f"{len(written)} candidates of {arm}, {asked.get(arm, 0)} asked for")
        tried = tuple(one for one in written if one.improvement is not None)
        tallies[arm] = _Tally(asked.get(arm, 0), tuple(written), tried)
    return tallies


def _shrunk(tallies: Mapping[str, _Tally]) -> dict[str, float]:
    """Values with `PSEUDO_CANDIDATES` of average value added to each arm."""
    values = {arm: (tally.counted, tally.value) for arm, tally in tallies.items()}
    counted = sum(n for n, _ in values.values())
    average = math.fsum(n * value for n, value in values.values()) / max(1, counted)
    return {
        arm: (n * value + PSEUDO_CANDIDATES * average) / (n + PSEUDO_CANDIDATES)
        for arm, (n, value) in values.items()
    }


def _largest_remainder(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total` and follow the shares; ties go to the earlier arm."""
    whole = math.fsum(shares.values())
    quotas = {arm: total * share / whole for arm, share in shares.items()}
    counts = {arm: math.floor(quota) for arm, quota in quotas.items()}
    by_remainder = sorted(shares, key=lambda arm: counts[arm] - round(quotas[arm], 9))
    for arm in by_remainder[: total - sum(counts.values())]:
        counts[arm] += 1
    return counts


def _check_shares(shares: Mapping[str, float]) -> None:
    if not all(share >= 0 for share in shares.values()) or not math.isclose(
        math.fsum(shares.values()), 1, abs_tol=_ROUNDING
    ):
        raise ValueError(f"shares must be 0 or more and sum to 1: {dict(shares)}")
