"""What a ReST-EM round came to, counted: pure bookkeeping over its candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from aios.core.events import CandidateTried, Notice
from aios.core.restem import Diversity, HeldOut, RoundReport, Tried, TriedPassage
from aios.core.seal.diversity import measure_diversity
from aios.core.seal.format_choice import arm_reports
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.reliability import Reliability
from aios.core.seal.trial_batch import Work
from aios.core.trainings import TrainingResult
from aios.core.types import Passage


@dataclass(frozen=True, slots=True)
class Proposed:
    """What the generator wrote in a round.

    Attributes:
        results: For each passage, in order.
        plan: For each passage how many candidates each strategy was asked for.
    """

    results: tuple[PassageEdits, ...]
    plan: Mapping[str, Mapping[str, int]]

    @property
    def asked(self) -> Mapping[str, int]:
        """Candidates asked for, by strategy."""
        total: Counter[str] = Counter()
        for parts in self.plan.values():
            total.update(parts)
        return total

    def asked_of(self, passage_id: str) -> int:
        """Candidates asked for of a passage."""
        return sum(self.plan[passage_id].values())

    def unwritten(self, result: PassageEdits) -> int:
        """Candidates of a passage that could not be written, or not be read."""
        if result.failure is None:
            return 0
        there = {edit.index for edit in result.kept} | {drop.index for drop in result.drops}
        return self.asked_of(result.passage.id) - len(there)

    def works(self) -> list[Work]:
        """What is to be tried: the passages, each with those of its self-edits that hold text."""
        return [
            Work(
                result.passage,
                tuple(edit for edit in result.kept if edit.text.strip()),
                self.asked_of(result.passage.id),
                self.unwritten(result),
            )
            for result in self.results
        ]


_FEW = 0.25  # of the candidates that were asked for
_LOW_TEMPERATURE = 0.5


def few_left(works: Sequence[Work], temperature: float) -> Notice | None:
    """What to say where the quality filter left little of what was written; None where it did not.

    Args:
        works: What is to be tried.
        temperature: At which it was written.
    """
    asked, left = sum(w.asked for w in works), sum(len(w.edits) for w in works)
    if left >= _FEW * asked:
        return None
    text = f"only {left} of {asked} self-edits were left by the quality filter"
    advice = (
        f"; at a lower temperature (seal.temperature, now {temperature:g}) more are"
        if temperature > _LOW_TEMPERATURE
        else ""
    )
    return Notice(text + advice, "warning")


@dataclass(frozen=True, slots=True)
class Measured:
    """The parts of a round, as `round_report` counts them."""

    number: int
    proposed: Proposed
    tried: Sequence[TriedPassage]
    reliability: Reliability | None
    fitted: TrainingResult | None
    held_out: HeldOut | None
    shares: Mapping[str, float]
    next_shares: Mapping[str, float]
    passages: Mapping[str, Passage]
    seconds: Mapping[str, float] = field(default_factory=dict)


def round_report(measured: Measured) -> RoundReport:
    """Counts a round; the generator's place is filled in when it is published."""
    candidates = [one for passage in measured.tried for one in passage.candidates]
    able = [one for one in candidates if one.reward is not None]
    results = measured.proposed.results
    unwritten = sum(passage.unwritten for passage in measured.tried)
    asked = sum(measured.proposed.asked.values())
    reliability = measured.reliability
    return RoundReport(
        number=measured.number,
        passages=len(measured.tried),
        asked=asked,
        tried=len(able),
        filtered=max(0, asked - unwritten - len(candidates)),
        failed=unwritten + len(candidates) - len(able),
        trials=sum(passage.trials for passage in measured.tried),
        failed_trials=sum(passage.failed_trials for passage in measured.tried),
        rewarded=sum(one.rewarded for one in able),
        kept=sum(one.kept for one in able),
        threshold=_threshold(able),
        improvement=_mean([one.improvement for one in able]),
        accuracy_gain=_mean([one.accuracy_gain for one in able]),
        improvements=tuple(one.improvement for one in able if one.improvement is not None),
        reliability=reliability.describe() if reliability else "",
        icc=reliability.within.icc if reliability else None,
        noise=reliability.noise.sd if reliability and reliability.noise else None,
        arms=arm_reports(
            measured.tried, measured.proposed.asked, measured.shares, measured.next_shares
        ),
        diversity=_diversity(candidates, measured.passages),
        sft=_sft(measured.fitted, sum(one.kept for one in able)),
        held_out=measured.held_out,
        seconds=dict(measured.seconds),
        tokens=sum(result.tokens for result in results),
        train_tokens=sum(one.train_tokens * len(one.improvements) for one in able),
    )


def held_out_of(tried: Sequence[TriedPassage]) -> HeldOut:
    """What self-edits are worth on held-out passages, from their decided trials.

    A candidate that was asked for and of which nothing was left to try counts as the baseline,
    an improvement of 0; one that could not be written, or whose trials failed, is left out.
    """
    improvements: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    rewarded = counted = 0
    for passage in tried:
        able = [one for one in passage.candidates if one.reward is not None]
        failed = len(passage.candidates) - len(able)
        number = passage.asked - passage.unwritten - failed
        counted += number
        rewarded += sum(one.rewarded for one in able)
        if number <= 0:  # nothing but failures: the passage has no number
            continue
        improvements[passage.passage_id] = sum(one.improvement or 0.0 for one in able) / number
        accuracies[passage.passage_id] = sum(one.accuracy_gain or 0.0 for one in able) / number
    return HeldOut(improvements, accuracies, rewarded / counted if counted else 0.0)


def describe_round(report: RoundReport) -> str:
    """A round in one line."""
    held_out = "" if report.held_out is None else f"held-out {report.held_out.mean:+.3f}"
    if report.number == 0:
        return held_out or "not examined: no passage is held out"
    parts = [f"{report.rewarded} of {report.tried} self-edits rewarded, {report.kept} kept"]
    if report.improvement is not None:
        parts.append(f"mean improvement {report.improvement:+.3f}")
    return "; ".join([*parts, *filter(None, [held_out])])


def candidate_event(
    number: int, held_out: bool, passage: TriedPassage, one: Tried
) -> CandidateTried:
    """What is told of a candidate that has had its trials."""
    return CandidateTried(
        number,
        held_out,
        passage.passage_id,
        one.edit.strategy,
        one.edit.index,
        len(one.improvements),
        one.improvement,
    )


def _threshold(able: Sequence[Tried]) -> float | None:
    """The margin that decided; with `auto` that of a single trial, the largest."""
    limits = [one.reward.threshold for one in able if one.reward is not None]
    known = [limit for limit in limits if limit is not None]
    return max(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _diversity(candidates: Sequence[Tried], passages: Mapping[str, Passage]) -> Diversity | None:
    edits = [one.edit for one in candidates]
    return measure_diversity(edits, passages) if edits else None


def _sft(fitted: TrainingResult | None, examples: int) -> dict[str, float]:
    if fitted is None:
        return {}
    losses = [point.train_loss for point in fitted.curve if point.train_loss is not None]
    figures = {
        "examples": float(examples),
        "tokens": float(fitted.tokens),
        "steps": float(fitted.steps),
        "seconds": fitted.seconds,
    }
    if losses:
        figures.update(loss_first=losses[0], loss_last=losses[-1])
    return figures
