"""The nouns of ReST-EM: candidates of a round, what their trials said, reports and state.

A *round* is one E-step (candidates are written and tried) and one M-step (the generator learns
from those that helped). Sources: ReST-EM (Singh et al. 2023, arXiv 2312.06585), SEAL (Zweiger et
al. 2025, arXiv 2506.10943, section 3.1). A run's whole state is one `ReSTEMState`: a JSON record
of the rounds that are done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError
from aios.core.trials import Reward
from aios.core.types import AdapterRef, Failure, SelfEdit

MOST_LOSSES = 48  # points of a trial's training curve that are kept


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate self-edit and what its trials said.

    Attributes:
        edit: The self-edit; `edit.strategy` is its arm.
        reward: Over all of its repeats; None if every trial failed. Its `improvement` is over the
            baseline; its `value` is 1 where it is rewarded, else 0.
        improvements: Improvement over the baseline in each repeat, in the reward's unit.
        accuracy_gain: Share of the questions whose reference answer is the likeliest continuation
            word for word, after less before; None if every trial failed.
        train_tokens: Tokens that a trial of it is trained on.
        failures: Its trials without a number.
        kept: Whether the generator learns from it.
        losses: Training loss (nats per label token) in the course of each of `improvements`'
            trainings, thinned to `MOST_LOSSES` points; empty where it was not recorded.
    """

    edit: SelfEdit
    reward: Reward | None
    improvements: tuple[float, ...] = ()
    accuracy_gain: float | None = None
    train_tokens: int = 0
    failures: tuple[Failure, ...] = ()
    kept: bool = False
    losses: tuple[tuple[float, ...], ...] = ()

    @property
    def rewarded(self) -> bool:
        """Whether it beat the baseline by more than the threshold."""
        return self.reward is not None and self.reward.value > 0

    @property
    def improvement(self) -> float | None:
        """Mean improvement over the baseline; None if every trial failed."""
        return None if self.reward is None else self.reward.improvement


@dataclass(frozen=True, slots=True)
class TriedPassage:
    """The candidates of a passage in a round.

    Attributes:
        passage_id: The passage.
        candidates: Those that were tried, failed ones among them, in the order of their index.
        asked: Candidates that were asked for; those that the quality filter left nothing of, or
            that could not be written, make the difference.
        trials: Trials spent, those of the baseline and failed ones included.
        failed_trials: Of these, those without a number.
        before: The quantity (loss, …) of the untrained model.
        baseline: The quantity of the baseline; that of the untrained model where there is none.
        unwritten: Candidates asked for that could not be written, or not be read.
    """

    passage_id: str
    candidates: tuple[Tried, ...]
    asked: int
    trials: int
    failed_trials: int
    before: float
    baseline: float
    unwritten: int = 0


@dataclass(frozen=True, slots=True)
class ArmReport:
    """A strategy in a round.

    Attributes:
        share: Its share of the candidates that were asked for.
        asked: Candidates asked for.
        tried: Candidates with a reward.
        rewarded: Of these, rewarded.
        improvement: Mean improvement over the baseline; None without a reward.
        tokens: Mean tokens written for a candidate.
        value: Mean of the positive part of the improvement, per 1000 tokens written and
            trained on.
        next_share: Its share in the next round.
    """

    share: float
    asked: int
    tried: int
    rewarded: int
    improvement: float | None
    tokens: float
    value: float
    next_share: float


@dataclass(frozen=True, slots=True)
class Diversity:
    """How far the self-edits of a round differ; all in [0, 1].

    Attributes:
        distinct_1: Different words over all words.
        distinct_2: Different pairs of words over all pairs, the edits cut to a like number of
            words (Li et al. 2016, arXiv 1510.03055).
        near_duplicates: Share of the candidates that nearly repeat another of the same passage.
        copied: Mean share of a candidate's word 4-grams that stand in its passage.
    """

    distinct_1: float
    distinct_2: float
    near_duplicates: float
    copied: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a generator's self-edits are worth on passages that are not optimised on.

    Attributes:
        passages: For each passage the mean improvement over the baseline of its candidates; a
            passage without a candidate that could be tried counts as 0, the baseline itself.
        accuracy: For each passage the mean gain in accuracy, likewise.
        rewarded: Share of the candidates that were asked for that beat the baseline.
    """

    passages: Mapping[str, float]
    accuracy: Mapping[str, float]
    rewarded: float

    @property
    def mean(self) -> float:
        """Mean over the passages."""
        return sum(self.passages.values()) / len(self.passages) if self.passages else 0.0


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round came to; round 0 is the untrained generator, which is only examined.

    Attributes:
        number: From 0.
        generator: Folder of the adapter that the round gave, relative to the run; empty for the
            base model.
        digest: That adapter's digest; empty for the base model.
        passages: Passages of the round.
        asked: Candidates asked for.
        tried: Candidates with a reward.
        filtered: Candidates of which nothing was left to try.
        failed: Candidates all of whose trials failed, or that could not be written.
        trials: Trials spent, those of the baseline included.
        failed_trials: Trials that failed.
        rewarded: Candidates that beat the baseline by more than the threshold.
        kept: Candidates that the generator learned from.
        threshold: The margin that decided; None in round 0.
        improvement: Mean improvement over the baseline of all candidates tried; None without one.
        accuracy_gain: Mean gain in accuracy over the untrained model; None without a candidate.
        improvements: Improvement of each candidate tried, in no order that matters.
        reliability: How reliable the reward was, in one sentence.
        icc: Intraclass correlation of one trial's reward within passages; None if not known.
        noise: Standard deviation of one trial's reward; None if not known.
        arms: By strategy.
        diversity: Of the candidates; None in round 0.
        sft: Figures of the M-step: examples, tokens, steps, seconds, loss_first, loss_last.
        held_out: The round's generator on held-out passages; None without any.
        seconds: By stage: ``propose``, ``try``, ``fit``, ``held-out``.
        tokens: Tokens written by the generator.
        train_tokens: Tokens that the trials of candidates were trained on.
    """

    number: int
    generator: str = ""
    digest: str = ""
    passages: int = 0
    asked: int = 0
    tried: int = 0
    filtered: int = 0
    failed: int = 0
    trials: int = 0
    failed_trials: int = 0
    rewarded: int = 0
    kept: int = 0
    threshold: float | None = None
    improvement: float | None = None
    accuracy_gain: float | None = None
    improvements: tuple[float, ...] = ()
    reliability: str = ""
    icc: float | None = None
    noise: float | None = None
    arms: Mapping[str, ArmReport] = field(default_factory=dict)
    diversity: Diversity | None = None
    sft: Mapping[str, float] = field(default_factory=dict)
    held_out: HeldOut | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    train_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ReSTEMState:
    """The state of a run: the rounds that are done.

    Attributes:
        rounds: Their reports, round 0 first.
        shares: Each strategy's share of the candidates of the next round.
        best: Number of the round whose generator is best on held-out passages.
        stopped: Why no further round follows; empty while rounds are left.
    """

    rounds: tuple[RoundReport, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    best: int = 0
    stopped: str = ""

    @property
    def next_round(self) -> int:
        """Number of the round that follows."""
        return len(self.rounds)

    def adapter(self, run_dir: Path, base_digest: str, number: int) -> AdapterRef | None:
        """The adapter of a round's generator; None for the base model."""
        report = self.rounds[number]
        if not report.generator:
            return None
        return AdapterRef(run_dir / report.generator, report.digest, base_digest)

    def with_round(self, report: RoundReport, **changes: Any) -> ReSTEMState:
        """The state after one more round."""
        return replace(self, rounds=(*self.rounds, report), **changes)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ReSTEMState:
        """Reads what `to_json` gave.

        Raises:
            StorageError: It is of another form.
        """
        try:
            rounds = tuple(round_from_json(report) for report in record["rounds"])
            best = int(record["best"])
            if [report.number for report in rounds] != list(range(len(rounds))):
                raise ValueError("its rounds are not numbered through from 0")
            if not 0 <= best < max(1, len(rounds)):
                raise ValueError(f"there is no round {best}, which is to be the best")
            shares = dict(record["shares"])
            if shares and not math.isclose(math.fsum(shares.values()), 1, abs_tol=1e-6):
                raise ValueError("its shares do not sum to 1")
            return cls(rounds, shares, best, str(record["stopped"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the run's state is of another form: {error}", "start a new run"
            ) from error


def round_from_json(record: Mapping[str, Any]) -> RoundReport:
    """A round's report from its JSON object; errors are those of plain conversions."""
    values = dict(record)
    values["improvements"] = tuple(values["improvements"])
    values["arms"] = {name: ArmReport(**arm) for name, arm in values["arms"].items()}
    values["diversity"] = values["diversity"] and Diversity(**values["diversity"])
    values["held_out"] = values["held_out"] and HeldOut(**values["held_out"])
    return RoundReport(**values)


def thin_losses(losses: Sequence[float]) -> tuple[float, ...]:
    """A training curve as it is kept: evenly spaced points with the first and the last.

    Args:
        losses: Of each optimiser step.

    Returns:
        At most `MOST_LOSSES`, to four decimals; none of a curve that is not finite.
    """
    if not all(map(math.isfinite, losses)):
        return ()
    last, count = len(losses) - 1, min(len(losses), MOST_LOSSES)
    places = [round(k * last / max(1, count - 1)) for k in range(count)]
    return tuple(round(float(losses[place]), 4) for place in places)


def tried_to_json(passage: TriedPassage) -> dict[str, Any]:
    """A tried passage as a JSON object: a line of ``candidates.jsonl``.

    The losses of a completion's lines are left out, as in all files.
    """
    record = asdict(passage)
    for one in record["candidates"]:
        one["edit"]["line_losses"] = ()
    return record


def tried_from_json(record: Mapping[str, Any]) -> TriedPassage:
    """Reads what `tried_to_json` gave; errors are those of plain conversions."""
    return TriedPassage(
        **{**record, "candidates": tuple(_candidate(one) for one in record["candidates"])}
    )


def _candidate(record: Mapping[str, Any]) -> Tried:
    edit = {**record["edit"], "line_losses": tuple(record["edit"]["line_losses"])}
    return Tried(
        **{
            **record,
            "edit": SelfEdit(**{**edit, "items": tuple(edit["items"])}),
            "reward": record["reward"] and Reward(**record["reward"]),
            "improvements": tuple(record["improvements"]),
            "failures": tuple(Failure(**failure) for failure in record["failures"]),
            "losses": tuple(tuple(curve) for curve in record.get("losses", ())),
        }
    )
