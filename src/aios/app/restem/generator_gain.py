"""Did ReST-EM make the generator better? Its rounds against the untrained one, held-out.

Takes the state of a run; gives the comparisons of each round's generator with the untrained one on
the passages that are never optimised on, one plain sentence, and the document that is saved as
``metrics.json``.

What is compared is a mean over passages: by how much training on a generator's self-edits improves
on the baseline. Both generators have the same passages, so the interval is that of a paired
bootstrap over passages (`aios.core.evaluation.statistics`). A generator is one training: the
interval says what other passages would give, not what another training would.

The best round is chosen by these very passages, so among many rounds its gain is overstated; the
other rounds' rows stand beside it for that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from aios.app.charts.report_page import NO_BREAK
from aios.app.charts.svg import format_signed
from aios.core.evaluation.comparison import CONFIDENCE, Verdict
from aios.core.evaluation.statistics import difference_interval
from aios.core.restem import HeldOut, ReSTEMState, RoundReport

SCHEMA_VERSION = 1
UNTRAINED = "untrained"
METRICS = ("improvement", "accuracy_gain")

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Unit:
    """How an improvement is written.

    Attributes:
        name: After a number; empty if the quantity is not known.
        long: For an axis.
        factor: The number that is shown is the value times this.
        decimals: Of the number that is shown.
        smallest: A change below this is written as nothing, and is no difference.
    """

    name: str
    long: str
    factor: float = 1.0
    decimals: int = 3
    smallest: float = 0.0005

    def signed(self, value: float | None) -> str:
        """``+0.061 nats``; a dash for None."""
        if value is None:
            return "–"
        return self.number(value) + (f"{NO_BREAK}{self.name}" if self.name else "")

    def number(self, value: float) -> str:
        """The same without the unit's name."""
        return format_signed(self.factor * value, self.decimals)

    def size(self, value: float | None) -> str:
        """A number without a sign, for standard deviations and thresholds; a dash for None."""
        if value is None:
            return "–"
        text = f"{self.factor * value:.{self.decimals}f}"
        return text + (f"{NO_BREAK}{self.name}" if self.name else "")


UNITS = {
    "loss": Unit("nats", "nats per answer token"),
    "perplexity": Unit("of perplexity", "perplexity", decimals=2, smallest=0.005),
    "accuracy": Unit("pp", "percentage points", 100.0, 1, 0.0005),
}
UNKNOWN_UNIT = Unit("", "in the reward's unit")
ACCURACY = UNITS["accuracy"]


@dataclass(frozen=True, slots=True)
class Gain:
    """A round's generator against the untrained one in one metric.

    Attributes:
        treatment: ``round <n>``.
        control: ``untrained``.
        metric: ``improvement`` over the baseline, or ``accuracy_gain`` over the untrained model.
        treatment_value: The treatment's mean over the passages.
        control_value: The control's.
        change: ``treatment_value − control_value``.
        relative_change: ``treatment_value / control_value − 1`` where the control is positive.
        scale: ``absolute``: `ci95` is about `change`.
        ci95: Paired bootstrap interval over passages; None with fewer than two.
        n: Passages.
        seeds: Seeds that both generators were examined with.
        verdict: Whether the interval is clear of zero, and on which side.
    """

    treatment: str
    control: str
    metric: str
    treatment_value: float
    control_value: float
    change: float
    relative_change: float | None
    scale: str
    ci95: Ends | None
    n: int
    seeds: int
    verdict: Verdict

    @classmethod
    def between(
        cls,
        pair: tuple[str, str],
        metric: str,
        values: tuple[float, float],
        ends: Ends | None,
        unit: Unit,
        *,
        n: int,
        seeds: int = 1,
    ) -> Gain:
        """The gain of one generator over another.

        Args:
            pair: Treatment and control.
            metric: What is compared.
            values: Its means, the treatment's first.
            ends: Interval of their difference; None with too few passages.
            unit: How the metric is written: a control below its smallest has no ratio to it.
            n: Passages.
            seeds: Seeds that both were examined with.
        """
        after, before = values
        return cls(
            *pair,
            metric=metric,
            treatment_value=after,
            control_value=before,
            change=after - before,
            relative_change=after / before - 1 if before >= unit.smallest else None,
            scale="absolute",
            ci95=ends,
            n=n,
            seeds=seeds,
            verdict=verdict_of(ends, unit),
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return {**asdict(self), "ci95": None if self.ci95 is None else list(self.ci95)}


def unit_of(kind: object) -> Unit:
    """The unit of an improvement by the kind of the reward (``loss``, ``perplexity``, …)."""
    return UNITS.get(kind, UNKNOWN_UNIT) if isinstance(kind, str) else UNKNOWN_UNIT


def generator_name(number: int) -> str:
    """What a round's generator is called."""
    return f"round {number}" if number else UNTRAINED


def mean_interval(held_out: HeldOut) -> Ends | None:
    """95 % interval of the mean improvement over passages; None with fewer than two."""
    values = dict(held_out.passages)
    return paired_interval(values, dict.fromkeys(values, 0.0))


def gains(state: ReSTEMState, unit: Unit) -> list[Gain]:
    """Every round's generator against the untrained one, by round, then metric.

    Only rounds with held-out passages that the untrained generator has too are compared, and only
    on those; normally all rounds have the same.
    """
    untrained = _held_out(state, 0)
    if untrained is None:
        return []
    found = []
    for report in state.rounds[1:]:
        if report.held_out is None:
            continue
        for metric in METRICS:
            gain = _gain(report, metric, untrained, unit if metric == METRICS[0] else ACCURACY)
            found += [gain] if gain else []
    return found


def main_gain(state: ReSTEMState, compared: list[Gain]) -> Gain | None:
    """What the verdict is about: the improvement of the best round, or of the last if none is."""
    rows = [gain for gain in compared if gain.metric == METRICS[0]]
    best = [gain for gain in rows if state.best and gain.treatment == generator_name(state.best)]
    return next(iter(best or rows[::-1]), None)


def verdict_sentence(state: ReSTEMState, gain: Gain | None, unit: Unit) -> str:
    """One plain sentence: what the held-out passages say, with interval and n."""
    if not state.rounds:
        return "Nothing was learned: no round is finished."
    if len(state.rounds) == 1:
        return "Nothing was learned yet: only the untrained generator was examined."
    if gain is None:
        return "Not known whether the generator got better: no passages were held out."
    return gain_sentence(
        gain,
        unit,
        passages="held-out passage",
        treatment=f"the generator of {gain.treatment}",
        control="the untrained one",
    )


def gain_sentence(
    gain: Gain,
    unit: Unit,
    *,
    passages: str,
    treatment: str,
    control: str,
    over: str = "the baseline",
) -> str:
    """A comparison of two generators in one plain sentence, with interval and n.

    Args:
        gain: The comparison.
        unit: How its values are written.
        passages: What it is over, in the singular.
        treatment: The one generator.
        control: The other.
        over: What self-edits are to improve on.
    """
    words = (
        f"on {gain.n} {passages}{'' if gain.n == 1 else 's'}, self-edits by {treatment} improve on "
        f"{over} by {unit.signed(gain.treatment_value)}, those by {control} by "
        f"{unit.signed(gain.control_value)}: a difference of {unit.signed(gain.change)}"
    )
    if gain.ci95 is None:
        return f"Too few passages to tell: {words}."
    interval = f"95 % interval: {unit.number(gain.ci95[0])} to {unit.signed(gain.ci95[1])}"
    if gain.verdict == "no difference found":
        return f"No difference found: {words}, and its interval holds zero ({interval})."
    return f"{gain.verdict.capitalize()}: {words} ({interval})."


def restem_document(state: ReSTEMState, info: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers of a run as a JSON object: the content of ``metrics.json``.

    Args:
        state: The state of the run.
        info: The set-up, saved under ``info`` (JSON values). Its ``reward`` (``loss``,
            ``perplexity`` or ``accuracy``) says in what unit the verdict is written.

    Returns:
        ``verdict`` (the sentence), ``comparison`` (the main one, or None), ``comparisons``,
        ``rounds`` (`RoundReport` each, ``held_out`` with its ``mean`` and ``ci95``), ``best``,
        ``stopped``, ``shares``, ``totals`` (seconds, trials, tokens) and ``info``.
    """
    unit = unit_of(info.get("reward"))
    compared = gains(state, unit)
    main = main_gain(state, compared)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "restem",
        "verdict": verdict_sentence(state, main, unit),
        "comparison": main.to_dict() if main else None,
        "comparisons": [gain.to_dict() for gain in compared],
        "rounds": [_round_document(report) for report in state.rounds],
        "best": state.best,
        "stopped": state.stopped,
        "shares": dict(state.shares),
        "totals": totals(state),
        "info": dict(info),
    }


def totals(state: ReSTEMState) -> dict[str, float]:
    """What the whole run cost: seconds, trials, tokens written, tokens that trials trained on."""
    rounds = state.rounds
    return {
        "seconds": sum(sum(report.seconds.values()) for report in rounds),
        "trials": sum(report.trials for report in rounds),
        "failed_trials": sum(report.failed_trials for report in rounds),
        "tokens": sum(report.tokens for report in rounds),
        "train_tokens": sum(report.train_tokens for report in rounds),
    }


def _round_document(report: RoundReport) -> dict[str, Any]:
    held_out: dict[str, Any] | None = None
    if report.held_out is not None:
        ends = mean_interval(report.held_out)
        held_out = {
            **asdict(report.held_out),
            "mean": report.held_out.mean,
            "ci95": None if ends is None else list(ends),
        }
    return {
        **asdict(report),
        "improvements": list(report.improvements),
        "held_out": held_out,
    }


def _held_out(state: ReSTEMState, number: int) -> HeldOut | None:
    return state.rounds[number].held_out if number < len(state.rounds) else None


def _gain(report: RoundReport, metric: str, untrained: HeldOut, unit: Unit) -> Gain | None:
    assert report.held_out is not None
    ours, theirs = (
        one.passages if metric == METRICS[0] else one.accuracy
        for one in (report.held_out, untrained)
    )
    shared = [passage for passage in ours if passage in theirs]
    if not shared:
        return None
    treatment = {passage: ours[passage] for passage in shared}
    control = {passage: theirs[passage] for passage in shared}
    means = fmean(treatment.values()), fmean(control.values())
    pair = generator_name(report.number), UNTRAINED
    ends = paired_interval(treatment, control)
    return Gain.between(pair, metric, means, ends, unit, n=len(shared))


def paired_interval(treatment: Mapping[str, float], control: Mapping[str, float]) -> Ends | None:
    """95 % interval of the mean difference over the same passages; None with fewer than two."""
    if len(treatment) < 2:
        return None
    keys = list(treatment)
    pairs = [treatment[key] for key in keys], [control[key] for key in keys]
    found = difference_interval(*pairs, keys, confidence=CONFIDENCE)
    return found.low, found.high


def verdict_of(ends: Ends | None, unit: Unit) -> Verdict:
    """Whether an interval of a difference is clear of zero, and on which side."""
    if ends is None:
        return "too few passages to tell"
    low, high = ends
    if low <= 0 <= high or max(abs(low), abs(high)) < unit.smallest:
        return "no difference found"
    return "better" if low > 0 else "worse"
