"""What to lower so that a run of ReST-EM fits a budget of time or money.

Settings are lowered one after the other, each no further than the budget asks for, in the order
that costs least of what the run is for: to choose good self-edits and to learn from them. What is
known of that order was measured (``experiments/racing.md``, ``experiments/trial_signals.md``); what
was not says so. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aios.core.restem_costs import RestemEstimate, Throughput, estimate
from aios.core.restem_workload import Span, Workload

LEAST_CANDIDATES = 2  # between fewer there is nothing to choose
LEAST_PASSAGES = 8  # of a round; a generator learns little from fewer


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting to lower, on top of the advice before it.

    Attributes:
        setting: The config key, or several.
        before: Its value.
        after: What to set it to.
        why: What that costs, and where it was measured.
        estimate: Of the run with this and all advice before it.
        fits: Whether the middle of that estimate is within the budget.
        surely: Whether its high end is.
    """

    setting: str
    before: object
    after: object
    why: str
    estimate: RestemEstimate
    fits: bool
    surely: bool


_Option = tuple[object, Workload]


@dataclass(frozen=True, slots=True)
class _Step:
    """A setting: its value in a workload, and milder to harsher ways to lower it."""

    setting: str
    why: str
    value: Callable[[Workload], object]
    options: Callable[[Workload, int], Sequence[_Option]]


def advise(
    workload: Workload,
    throughput: Throughput,
    *,
    budget_seconds: float | None = None,
    budget_money: float | None = None,
    price_per_hour: Span | None = None,
    least_repeats: int = 1,
) -> list[Advice]:
    """Which settings to lower for a budget, the cheapest in quality first.

    Args:
        workload: The run as it is planned.
        throughput: How fast the machine is.
        budget_seconds: Most time, if that is bounded.
        budget_money: Most money, if that is bounded; needs a price.
        price_per_hour: Of the machine.
        least_repeats: Fewest trials of a candidate that the run can do with: 2 where its
            threshold comes from the noise, which only repeats show.

    Returns:
        Advice to be followed from the first to the last; empty where the run fits as it is. If
        the last one does not fit, not even the least run does.

    Raises:
        ValueError: There is no budget, or one of money without a price.
    """
    if budget_seconds is None and budget_money is None:
        raise ValueError("there is no budget")
    if budget_money is not None and price_per_hour is None:
        raise ValueError("a budget of money needs a price")

    def fits(found: RestemEstimate, end: str) -> bool:
        costs = (found.seconds, found.money)
        return all(
            budget is None or (cost is not None and getattr(cost, end) <= budget)
            for cost, budget in zip(costs, (budget_seconds, budget_money), strict=True)
        )

    def estimated(work: Workload) -> RestemEstimate:
        return estimate(work, throughput, price_per_hour=price_per_hour)

    advice: list[Advice] = []
    if fits(estimated(workload), "middle"):
        return advice
    for step in _STEPS:
        options = step.options(workload, least_repeats)
        if not options:
            continue
        enough = (option for option in options if fits(estimated(option[1]), "middle"))
        value, lowered = next(enough, options[-1])
        found = estimated(lowered)
        ok, surely = fits(found, "middle"), fits(found, "high")
        before = step.value(workload)
        advice.append(Advice(step.setting, before, value, step.why, found, ok, surely))
        workload = lowered
        if ok:
            break
    return advice


def _racing(work: Workload, _: int) -> list[_Option]:
    return [] if work.racing or work.repeats == 1 else [(True, replace(work, racing=True))]


def _repeats(work: Workload, least_repeats: int) -> list[_Option]:
    return [
        (n, replace(work, repeats=n, baseline_repeats=min(work.baseline_repeats, n)))
        for n in range(work.repeats - 1, least_repeats - 1, -1)
    ]


def _candidates(work: Workload, _: int) -> list[_Option]:
    below = range(work.candidates - 1, LEAST_CANDIDATES - 1, -1)
    return [(n, replace(work, candidates=n)) for n in below]


def _trial_tokens(work: Workload, _: int) -> list[_Option]:
    """Halves, as long as passage and self-edit are trained on once."""
    least = work.passage_tokens + work.edit_tokens.middle
    size = work.trial_size() / 2
    options: list[_Option] = []
    while size >= max(least, 1.0):
        options.append((math.floor(size), replace(work, trial_tokens=float(math.floor(size)))))
        size /= 2
    return options


def _passages(work: Workload, _: int) -> list[_Option]:
    """Halves; held-out passages in proportion."""
    number = work.passages // 2
    options: list[_Option] = []
    while number >= LEAST_PASSAGES:
        held_out = math.ceil(work.held_out * number / work.passages)
        options.append((number, replace(work, passages=number, held_out=held_out)))
        number //= 2
    return options


def _rounds(work: Workload, _: int) -> list[_Option]:
    return [(n, replace(work, rounds=n)) for n in range(work.rounds - 1, 0, -1)]


_STEPS = (
    _Step(
        "restem.racing",
        "chooses as well as even repeats on the release's log (experiments/racing.md)",
        lambda work: work.racing,
        _racing,
    ),
    _Step(
        "restem.repeats",
        "a second trial adds little to the choice (experiments/racing.md); one each chose the "
        "same in 81 % of the cases (experiments/trial_signals.md), but shows no noise",
        lambda work: work.repeats,
        _repeats,
    ),
    _Step(
        "seal.restem_candidates_per_passage",
        "the best of fewer is less good; by how much was not measured",
        lambda work: work.candidates,
        _candidates,
    ),
    _Step(
        "restem.trial_tokens",
        "a quarter of the training ranks self-edits at 0.54 where a whole trial repeats at 0.74 "
        "(experiments/trial_signals.md)",
        lambda work: round(work.trial_size()),
        _trial_tokens,
    ),
    _Step(
        "seal.restem_batch_size, restem.held_out_fraction",
        "fewer examples to learn from and a wider interval on held-out passages; not measured",
        lambda work: work.passages,
        _passages,
    ),
    _Step(
        "seal.restem_iterations",
        "later rounds start from better self-edits; not measured",
        lambda work: work.rounds,
        _rounds,
    ),
)
