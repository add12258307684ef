"""How ReST-EM's rounds are run, and the small rules of `restem_optimizer`."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from aios.core.errors import DataError
from aios.core.restem import ReSTEMState
from aios.core.seal.candidate_trials import TrialSettings
from aios.core.seal.reward import Threshold
from aios.core.seeds import derive
from aios.core.types import LoraRecipe, Passage

SFT_RECIPE = LoraRecipe(rank=64, alpha=128, learning_rate=3e-4, epochs=2, batch_size=8)


@dataclass(frozen=True, slots=True)
class ReSTEMSettings:
    """How rounds are run.

    Attributes:
        trials: How candidates are tried.
        threshold: What an improvement must exceed: ``auto`` for the measured noise, or a number.
        keep: ``threshold``: rewarded self-edits; ``best_of_k``: the best of each passage.
        kept_per_passage: Most self-edits of a passage that the generator learns from.
        learn_format: Whether strategies' shares follow what they paid.
        floor: Share of the candidates that is divided equally among the strategies.
        init: What a round's generator is trained from: ``base`` or ``previous``.
        recipe: How it is trained.
        held_out_candidates: Self-edits tried for each held-out passage.
        patience: Rounds without gain on held-out passages after which it stops; 0: never.
        seed: Seed of everything.
    """

    trials: TrialSettings = field(default_factory=TrialSettings)
    threshold: Threshold = "auto"
    keep: Literal["threshold", "best_of_k"] = "threshold"
    kept_per_passage: int = 1
    learn_format: bool = True
    floor: float = 0.3
    init: Literal["base", "previous"] = "base"
    recipe: LoraRecipe = SFT_RECIPE
    held_out_candidates: int = 3
    patience: int = 1
    seed: int = 0


def passages_of_round(
    number: int, passages: Sequence[Passage], batch_size: int, seed: int
) -> list[Passage]:
    """The passages of a round: the next in a random order of all, begun anew at its end."""
    order = list(passages)
    random.Random(derive(seed, "passages")).shuffle(order)
    wanted = min(batch_size, len(order))
    first = (number - 1) * wanted
    return [order[(first + i) % len(order)] for i in range(wanted)]


def best_round(state: ReSTEMState) -> int:
    """The round whose generator is best on held-out passages; the last where there are none."""
    means = {
        report.number: report.held_out.mean
        for report in state.rounds
        if report.held_out is not None and report.held_out.passages  # else all of it has failed
    }
    if not means:
        return state.rounds[-1].number
    return max(means, key=lambda number: (means[number], -number))


def why_stop(state: ReSTEMState, best: int, patience: int, rounds: int) -> str:
    """Why no further round follows, or nothing.

    Args:
        state: The rounds that are done.
        best: The round of the best generator.
        patience: Rounds without gain on held-out passages after which it stops; 0: never.
        rounds: Rounds at most.
    """
    report = state.rounds[-1]
    if not report.kept:
        return f"no self-edit of round {report.number} was good enough to learn from"
    if patience and report.held_out is not None and report.number - best >= patience:
        return f"the held-out passages gained nothing more after round {best}"
    if report.number >= rounds:
        return f"all {rounds} rounds are done"
    return ""


def check_passages(passages: Sequence[Passage], held_out: Sequence[Passage]) -> None:
    """Refuses passages that nothing can be rewarded on.

    Raises:
        DataError: There are none, one has no question, or is on both sides.
    """
    if not passages:
        raise DataError("there are no passages to optimise on", "give passages with questions")
    for passage in (*passages, *held_out):
        if not passage.questions:
            raise DataError(
                f"passage {passage.id} has no questions, so nothing can be rewarded",
                "leave it out, or add questions",
            )
    both = {p.id for p in passages} & {p.id for p in held_out}
    if both:
        raise DataError(
            f"passage {min(both)} is optimised on and held out", "give it to one side only"
        )


class Laps:
    """Seconds that each part of a round took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, name: str) -> None:
        """Ends a part; the next begins."""
        now = time.monotonic()
        self.seconds[name], self._began = now - self._began, now
