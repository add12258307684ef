"""What a run of ReST-EM costs: seconds, memory and money, before it is started.

Takes what is to be done (`restem_workload.Workload`) and how fast it goes (`Throughput`, measured
by a probe or reckoned from a GPU's data sheet); gives a `RestemEstimate` with a low and a high end
for every figure, and sets it beside what a run really took. Pure arithmetic: nothing is read or
timed here.

Seconds are tokens over tokens a second, added up; stages follow one another. Loading the model and
reading files are not counted.

The low end has the fewest tokens at the highest speeds, the high end the most at the lowest: the
ends of the parts are added up, as if all were off in the same direction. That is wider than an
interval of independent errors, on purpose: the errors of one machine's speeds are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aios.core.restem import RoundReport
from aios.core.restem_workload import ENDS, End, Span, Tokens, Workload

STAGES = ("propose", "try", "fit", "held-out", "expert")


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast a machine works, in tokens a second.

    Attributes:
        write: Writing self-edits.
        train: Training trials, as many at once as are run.
        score: Answering a trial's questions; where it was measured, with setting up the trial.
        fit: The M-step's training.
        read: Reading prompts; None where `write` holds it.
        source: Where the figures come from, for people.
    """

    write: Span
    train: Span
    score: Span
    fit: Span
    read: Span | None
    source: str

    def __post_init__(self) -> None:
        for name in ("write", "train", "score", "fit", "read"):
            speed = getattr(self, name)
            if speed is not None and not (speed.low > 0 and math.isfinite(speed.high)):
                raise ValueError(f"the speed {name} is not above 0 and finite: {speed}")

    def seconds(self, tokens: Tokens, end: End) -> float:
        """Time for these tokens; its low end at the highest speeds."""
        pace = {"low": "high", "middle": "middle", "high": "low"}[end]
        parts = {
            "written": self.write,
            "trained": self.train,
            "scored": self.score,
            "fitted": self.fit,
            "read": self.read,
        }
        return math.fsum(
            getattr(tokens, name) / getattr(speed, pace)
            for name, speed in parts.items()
            if speed is not None
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory at the peak, when trials are trained; in bytes.

    Counted as `backends.trials.bank_memory` does, which says what each part is.

    Attributes:
        model_bytes: The base model's weights.
        trainings: Trainings kept at a time.
        training_bytes: Of each of them: weights and the optimiser's moments.
        pass_bytes: Of a forward and backward pass.
        pass_tokens: Most tokens of it.
        available_bytes: What the device has; 0 if that is not known.
    """

    model_bytes: int
    trainings: int
    training_bytes: int
    pass_bytes: int
    pass_tokens: int
    available_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """All of it."""
        return self.model_bytes + self.trainings * self.training_bytes + self.pass_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the device has as much; None if that is not known."""
        return self.peak_bytes <= self.available_bytes if self.available_bytes else None


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage costs: its tokens (in the middle) and its time in seconds."""

    tokens: Tokens
    seconds: Span


@dataclass(frozen=True, slots=True)
class RestemEstimate:
    """What a run will cost.

    Attributes:
        stages: By stage, in the order of `STAGES`.
        seconds: In all.
        trials: Trials, those of baselines included.
        money: Price of the time, in the currency of the price; None without a price.
        memory: At the peak; None if it is not known.
        workload: What is to be done.
        throughput: How fast it goes.
    """

    stages: Mapping[str, StageCost]
    seconds: Span
    trials: int
    money: Span | None
    memory: Memory | None
    workload: Workload
    throughput: Throughput


def estimate(
    workload: Workload,
    throughput: Throughput,
    *,
    price_per_hour: Span | None = None,
    memory: Memory | None = None,
) -> RestemEstimate:
    """What a run will cost.

    Args:
        workload: What is to be done.
        throughput: How fast it goes.
        price_per_hour: Of the machine.
        memory: What was counted elsewhere, handed on.
    """
    tokens = {end: workload.tokens(end) for end in ENDS}
    stages = {
        stage: StageCost(
            tokens["middle"][stage],
            Span(*(throughput.seconds(tokens[end][stage], end) for end in ENDS)),
        )
        for stage in STAGES
    }
    low, middle, high = (
        math.fsum(getattr(cost.seconds, end) for cost in stages.values()) for end in ENDS
    )
    seconds = Span(low, middle, high)
    money = None if price_per_hour is None else seconds.times(price_per_hour).times(1 / 3600)
    return RestemEstimate(stages, seconds, workload.trials, money, memory, workload, throughput)


# ---------------------------------------------------------------- estimate beside actual


@dataclass(frozen=True, slots=True)
class Compared:
    """An estimated figure beside the actual one.

    Attributes:
        name: A stage, ``all``, or what is counted: ``written``, ``fitted``, ``trials``.
        unit: ``s``, ``tokens`` or ``trials``.
        estimated: The estimate.
        actual: What it came to.
    """

    name: str
    unit: str
    estimated: Span
    actual: float

    @property
    def within(self) -> bool:
        """Whether the range of the estimate holds it."""
        return self.estimated.low <= self.actual <= self.estimated.high


def compare_with_actual(
    estimated: RestemEstimate, reports: Sequence[RoundReport]
) -> tuple[Compared, ...]:
    """The estimate beside what the rounds took; stages without either are left out.

    A run that ended after fewer rounds is compared with the estimate of as many.

    Args:
        estimated: The estimate of the run.
        reports: Its rounds, round 0 among them.

    Returns:
        Time by stage and in all; then tokens and trials of the rounds, held-out passages left out
        as in the reports. The final expert is no part of it.
    """
    rounds = sum(report.number > 0 for report in reports)
    nothing = Span.exactly(0.0)
    done = replace(estimated.workload, rounds=rounds, expert_written=nothing, expert_tokens=nothing)
    again = estimate(done, estimated.throughput)
    took = {
        stage: math.fsum(report.seconds.get(stage, 0.0) for report in reports) for stage in STAGES
    }
    rows = [Compared(name, "s", cost.seconds, took[name]) for name, cost in again.stages.items()]
    rows.append(Compared("all", "s", again.seconds, math.fsum(took.values())))
    written = Span(*(done.tokens(end)["propose"].written for end in ENDS))
    fitted = Span(*(done.tokens(end)["fit"].fitted for end in ENDS))
    rows += [
        Compared("written", "tokens", written, sum(report.tokens for report in reports)),
        Compared("fitted", "tokens", fitted, sum(r.sft.get("tokens", 0.0) for r in reports)),
        Compared(
            "trials",
            "trials",
            Span.exactly(done.trials_in_rounds),
            sum(report.trials for report in reports),
        ),
    ]
    return tuple(row for row in rows if row.estimated.high or row.actual)
