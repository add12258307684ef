"""Two generators on the same passages: counts, intervals, the verdict and its document.

Takes what each generator wrote and what its trials said, once a seed; gives the document that is
saved as ``metrics.json``.

Both generators meet the same passages with the same seeds, so what is compared is the difference
of each passage with each seed. Its interval is a bootstrap over passages and seeds
(`core.evaluation.statistics`). A generator is one training: the interval says what other passages
and other draws would give, not what another training would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

from aios.app.restem.generator_gain import (
    ACCURACY,
    METRICS,
    Ends,
    Gain,
    Unit,
    gain_sentence,
    unit_of,
)
from aios.core.evaluation.comparison import CONFIDENCE
from aios.core.evaluation.statistics import difference_interval
from aios.core.restem import Diversity, HeldOut, RoundReport, Tried, TriedPassage
from aios.core.seal.candidate_trials import decide
from aios.core.seal.reliability import Reliability
from aios.core.seal.reward import RewardFunction, Threshold
from aios.core.seal.round_report import Measured, Proposed, held_out_of, round_report
from aios.core.types import Passage

SCHEMA_VERSION = 1
Side = Literal["baseline", "optimized"]
SIDES: tuple[Side, Side] = ("baseline", "optimized")
REWARDED = "rewarded"
OVER = {"passage": "training on the passage alone", "base": "no training"}

Values = Mapping[str, float]  # by passage
_COUNTS = "asked tried filtered failed trials failed_trials tokens train_tokens".split()


@dataclass(frozen=True, slots=True)
class Examined:
    """What a generator's self-edits came to with one seed.

    Attributes:
        report: The counts, as of a round of ReST-EM in which nothing is learned.
        held_out: For each passage, mean improvement and gain in accuracy.
        rewarded: For each passage, the share of its candidates that were rewarded.
    """

    report: RoundReport
    held_out: HeldOut
    rewarded: Values

    def of(self, metric: str) -> Values:
        """A metric by passage."""
        if metric == REWARDED:
            return self.rewarded
        return self.held_out.passages if metric == METRICS[0] else self.held_out.accuracy


def decide_together(
    baseline: Sequence[TriedPassage],
    optimized: Sequence[TriedPassage],
    reward: RewardFunction,
    threshold: Threshold,
) -> tuple[list[TriedPassage], list[TriedPassage], Reliability | None]:
    """Rewards of both generators' candidates by one margin, from the noise of all their trials.

    Args:
        baseline: What the trials of the one said.
        optimized: What those of the other said, of the same passages in the same order.
        reward: As `decide`.
        threshold: As `decide`.

    Returns:
        Both with decided rewards, and how reliable these are.
    """
    joined = [
        replace(ours, candidates=_renumbered((*ours.candidates, *theirs.candidates)))
        for ours, theirs in zip(baseline, optimized, strict=True)
    ]
    judged, reliability = decide(joined, reward, threshold)
    first, second = [], []
    for ours, theirs, both in zip(baseline, optimized, judged, strict=True):
        border = len(ours.candidates)
        first.append(_with_rewards(ours, both.candidates[:border]))
        second.append(_with_rewards(theirs, both.candidates[border:]))
    return first, second, reliability


def _renumbered(candidates: Sequence[Tried]) -> tuple[Tried, ...]:
    return tuple(
        replace(one, edit=replace(one.edit, index=index)) for index, one in enumerate(candidates)
    )


def _with_rewards(passage: TriedPassage, judged: Sequence[Tried]) -> TriedPassage:
    pairs = zip(passage.candidates, judged, strict=True)
    return replace(
        passage, candidates=tuple(replace(one, reward=other.reward) for one, other in pairs)
    )


def examined(
    proposed: Proposed,
    tried: Sequence[TriedPassage],
    reliability: Reliability | None,
    passages: Mapping[str, Passage],
    shares: Mapping[str, float],
) -> Examined:
    """Counts what a generator's self-edits came to.

    Args:
        proposed: What it wrote.
        tried: What the trials of that said, decided.
        reliability: How reliable these rewards are.
        passages: The passages by id.
        shares: Each strategy's share of the candidates.
    """
    held_out = held_out_of(tried)
    seconds = {"propose": sum(result.seconds for result in proposed.results)}
    report = round_report(
        Measured(0, proposed, tried, reliability, None, held_out, shares, shares, passages, seconds)
    )
    alone = {passage.passage_id: held_out_of([passage]) for passage in tried}
    rewarded = {passage: alone[passage].rewarded for passage in held_out.passages}
    return Examined(report, held_out, rewarded)


def comparison_document(
    found: Mapping[Side, Sequence[Examined]],
    labels: Mapping[Side, str],
    overlap: Mapping[Side, frozenset[str]],
    info: Mapping[str, Any],
    *,
    samples: int = 10_000,
) -> dict[str, Any]:
    """All numbers of a comparison as a JSON object: the content of ``metrics.json``.

    Args:
        found: By generator, what its self-edits came to with each seed.
        labels: What the generators are called in the verdict.
        overlap: The passages that each was optimised on.
        info: The set-up, saved under ``info`` (JSON values). Its ``reward`` says in what unit
            improvements are written, its ``baseline`` what they are over.
        samples: Bootstrap samples.

    Returns:
        ``verdict`` (the sentence), ``comparison`` (that of the improvement, or None),
        ``comparisons``, ``generators`` (figures of each, over its seeds), ``passages``
        (improvements by generator, a number a seed, and who was optimised on it) and ``info``.
    """
    unit = unit_of(info.get("reward"))
    units = {METRICS[0]: unit, METRICS[1]: ACCURACY, REWARDED: ACCURACY}
    compared = [
        gain
        for metric, of_metric in units.items()
        if (gain := _gain(metric, found, of_metric, samples)) is not None
    ]
    main = next((gain for gain in compared if gain.metric == METRICS[0]), None)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "restem-compare",
        "verdict": _verdict_sentence(main, unit, labels, str(info.get("baseline"))),
        "comparison": main.to_dict() if main else None,
        "comparisons": [gain.to_dict() for gain in compared],
        "generators": {side: _figures(found[side], labels[side]) for side in SIDES},
        "passages": _by_passage(found, overlap),
        "info": dict(info),
    }


def _gain(
    metric: str, found: Mapping[Side, Sequence[Examined]], unit: Unit, samples: int
) -> Gain | None:
    """A metric's difference over the passages that have a number on both sides with each seed."""
    ours, theirs = ([one.of(metric) for one in found[side]] for side in reversed(SIDES))
    shared = [
        passage for passage in ours[0] if all(passage in values for values in (*ours, *theirs))
    ]
    if not shared:
        return None
    treatment, control = (
        [[values[passage] for passage in shared] for values in one] for one in (ours, theirs)
    )
    after, before = (fmean(fmean(row) for row in grid) for grid in (treatment, control))
    ends = _interval(treatment, control, shared, samples)
    optimized, baseline = reversed(SIDES)
    return Gain.between(
        (optimized, baseline), metric, (after, before), ends, unit, n=len(shared), seeds=len(ours)
    )


def _interval(
    treatment: Sequence[Sequence[float]],
    control: Sequence[Sequence[float]],
    passages: Sequence[str],
    samples: int,
) -> Ends | None:
    """Interval of the mean difference; seeds are paired as passages are, so both are drawn once.

    Args:
        treatment: ``[S, P]``.
        control: ``[S, P]``.
        passages: Ids, ``[P]``.
        samples: Bootstrap samples.
    """
    if len(passages) < 2:
        return None
    differences = [
        [after - before for after, before in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(treatment, control, strict=True)
    ]
    nothing = [[0.0] * len(passages)]
    found = difference_interval(
        differences, nothing, passages, samples=samples, confidence=CONFIDENCE
    )
    return found.low, found.high


def _verdict_sentence(
    gain: Gain | None, unit: Unit, labels: Mapping[Side, str], baseline: str
) -> str:
    if gain is None:
        return "Not known which generator is better: no passage has a number for both."
    return gain_sentence(
        gain,
        unit,
        passages="passage",
        treatment=labels["optimized"],
        control=labels["baseline"],
        over=OVER.get(baseline, "the baseline of trials"),
    )


def _figures(seeds: Sequence[Examined], label: str) -> dict[str, Any]:
    """A generator's figures over its seeds: sums of counts, means of everything else."""
    reports = [one.report for one in seeds]
    means = [one.held_out.mean for one in seeds]
    accuracies = [fmean(one.held_out.accuracy.values()) for one in seeds if one.held_out.accuracy]
    return {
        "name": label,
        "improvement": fmean(means),
        "improvement_by_seed": means,
        "accuracy_gain": fmean(accuracies) if accuracies else None,
        REWARDED: fmean(one.held_out.rewarded for one in seeds),
        **{name: sum(getattr(report, name) for report in reports) for name in _COUNTS},
        "seconds": sum(report.seconds["propose"] for report in reports),
        "diversity": _mean_diversity([report.diversity for report in reports]),
        "arms": [{name: asdict(arm) for name, arm in report.arms.items()} for report in reports],
    }


def _mean_diversity(found: Sequence[Diversity | None]) -> dict[str, float] | None:
    known = [asdict(one) for one in found if one is not None]
    return {name: fmean(one[name] for one in known) for name in known[0]} if known else None


def _by_passage(
    found: Mapping[Side, Sequence[Examined]], overlap: Mapping[Side, frozenset[str]]
) -> dict[str, dict[str, Any]]:
    ids = dict.fromkeys(
        passage for side in SIDES for one in found[side] for passage in one.held_out.passages
    )
    return {
        passage: {
            **{side: [one.held_out.passages.get(passage) for one in found[side]] for side in SIDES},
            "optimised_on": [side for side in SIDES if passage in overlap[side]],
        }
        for passage in ids
    }
