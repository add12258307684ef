"""Stops a trial of a tuning that is clearly worse than the best one.

Takes the events of a run while it examines its generator on held-out passages; tells whether it
is worse than an earlier run, on the passages that both have done, by more than chance.

The test is a sign-flip permutation test of the paired differences (Fisher 1935): if the runs were
alike, each difference might as well have the other sign. With trials that are few and noisy, but
paired by passage, it suits better than the median rule, which stops half of all trials whatever
the noise. Optuna's `WilcoxonPruner` is of this kind; it needs SciPy. As there, a run is looked at
several times, so somewhat more than `LEVEL` of the runs that are as good as the best are stopped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from aios.core.events import CandidateTried, Event, StageProgress

LEVEL = 0.1  # chance that a run that is as good as the best is stopped at one look
FEWEST = 4  # passages; with fewer no difference can be that unlikely

_EXACT = 14  # passages up to which all ways to flip the signs are counted


def chance_of_worse(differences: Sequence[float]) -> float:
    """How likely a sum of paired differences is that is as low as this one, by chance alone.

    Args:
        differences: Of a run less another, by passage.

    Returns:
        The one-sided p-value; 1 without differences. Up to 14 of them it is exact, from there a
        normal approximation.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return 1.0
    if len(values) > _EXACT:
        spread = math.sqrt(float(np.sum(values**2)))
        z = float(np.sum(values)) / spread if spread else 0.0
        return 0.5 * math.erfc(-z / math.sqrt(2))
    ways = np.arange(2 ** len(values))[:, None]
    signs = 1.0 - 2.0 * ((ways >> np.arange(len(values))) & 1)
    sums = signs @ values
    return float(np.mean(sums <= sums[0] + 1e-12))


class HeldOutWatch:
    """Follows the held-out passages of a run; call it with the run's events.

    Args:
        order: Ids of the held-out passages in the order in which they are examined.
        asked: Self-edits that are asked for of each.
        rival: For each round from 1 what an earlier run came to, by passage; may be empty.

    Attributes:
        worse: Whether the run was clearly worse at some point.
        course: Mean improvement after so many passages, counted over all rounds.
    """

    def __init__(
        self, order: Sequence[str], asked: int, rival: Sequence[Mapping[str, float]]
    ) -> None:
        self._order, self._asked, self._rival = tuple(order), asked, rival
        self._tried: defaultdict[int, defaultdict[str, list[float | None]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._values: dict[int, dict[str, float]] = {}
        self.worse = False
        self.course: list[tuple[int, float]] = []

    @property
    def rounds(self) -> tuple[Mapping[str, float], ...]:
        """For each round that was followed, in order, the improvement by passage."""
        return tuple(self._values[number] for number in sorted(self._values))

    def __call__(self, event: Event) -> None:
        """Takes note of an event."""
        if isinstance(event, CandidateTried):
            if event.held_out and event.round > 0:
                self._tried[event.round][event.passage_id].append(event.improvement)
        elif isinstance(event, StageProgress):
            words = event.stage.removeprefix("round ").split(": ")
            if words[1:] == ["held-out"] and words[0].isdecimal() and int(words[0]) > 0:
                self._look(int(words[0]), int(event.done))

    def _look(self, number: int, done: int) -> None:
        """Compares the run after `done` passages of a round."""
        found = {}
        for passage in self._order[:done]:
            tried = self._tried[number][passage]
            known = [value for value in tried if value is not None]
            # What the filter took counts 0, and what failed nothing: as `held_out_of` has it, but
            # for what could not be written, of which events do not tell.
            counted = self._asked - (len(tried) - len(known))
            if counted > 0:
                found[passage] = math.fsum(known) / counted
        step = (number - 1) * len(self._order) + done
        if not found or (self.course and self.course[-1][0] >= step):
            return
        self._values[number] = found
        self.course.append((step, fmean(found.values())))
        rival = self._rival[number - 1] if number <= len(self._rival) else {}
        differences = [value - rival[name] for name, value in found.items() if name in rival]
        if len(differences) >= FEWEST and chance_of_worse(differences) < LEVEL:
            self.worse = True
