"""What the report of ReST-EM shows of single self-edits: the best, the worst, the failures.

Takes the candidates of the rounds; gives what is shown of them, cut to a readable length. The
texts are a model's: the page escapes them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from aios.app.restem.charts import Candidates
from aios.app.restem.curves import training_curve
from aios.app.restem.generator_gain import Unit
from aios.core.restem import Tried, TriedPassage
from aios.core.types import Failure, Passage

LISTED_EDITS = 3
LISTED_ITEMS = 4
LISTED_FAILURES = 20
LISTED_SUBJECTS = 3


@dataclass(frozen=True, slots=True)
class ShownEdit:
    """A self-edit with its passage and what training on it gave.

    `curve` is the training loss of its trials; None where that was not recorded.
    """

    passage: str
    source: str
    strategy: str
    improvement: str
    trials: int
    rewarded: bool
    kept: bool
    tone: str
    items: tuple[str, ...]
    more: int
    curve: Markup | None = None


@dataclass(frozen=True, slots=True)
class RoundEdits:
    """The best and the worst self-edits of a round, the extreme ones first."""

    number: int
    best: list[ShownEdit]
    worst: list[ShownEdit]
    is_last: bool


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one kind with one message in a round."""

    where: str
    boundary: str
    error: str
    count: int
    subjects: tuple[str, ...]


def edits_by_round(
    candidates: Candidates, passages: Mapping[str, Passage], unit: Unit
) -> list[RoundEdits]:
    """The `LISTED_EDITS` best and worst self-edits of each round; none is shown twice.

    Args:
        candidates: Tried passages by round.
        passages: The passages by id, for their titles and texts.
        unit: How improvements are written.
    """
    found = []
    for number in sorted(candidates):
        ranked = sorted(_ranked(candidates[number]), key=lambda entry: entry[0], reverse=True)
        if not ranked:
            continue
        most = 2 * LISTED_EDITS
        ends = ranked if len(ranked) <= most else [*ranked[:LISTED_EDITS], *ranked[-LISTED_EDITS:]]
        shown = [
            _shown(one, value, passages, unit, f"curve-{number}-{place}")
            for place, (value, one) in enumerate(ends)
        ]
        half = (len(shown) + 1) // 2
        best, worst = shown[:half], shown[half:][::-1]
        found.append(RoundEdits(number, best[:LISTED_EDITS], worst[:LISTED_EDITS], is_last=False))
    return [*found[:-1], *(replace(last, is_last=True) for last in found[-1:])]


def failure_groups(candidates: Candidates, held_out: Candidates) -> list[FailureGroup]:
    """Failed trials by round, kind and message, the most frequent of a round first."""
    groups = []
    sides = ((candidates, ""), (held_out, ", held-out"))
    for number in sorted({*candidates, *held_out}):
        for side, note in sides:
            by_kind: defaultdict[tuple[str, str], list[Failure]] = defaultdict(list)
            for passage in side.get(number, ()):
                for failure in (f for one in passage.candidates for f in one.failures):
                    by_kind[failure.boundary, failure.error].append(failure)
            groups += [
                FailureGroup(
                    where=(f"round {number}" if number else "untrained") + note,
                    boundary=boundary,
                    error=error,
                    count=len(found),
                    subjects=tuple(dict.fromkeys(f.subject for f in found))[:LISTED_SUBJECTS],
                )
                for (boundary, error), found in sorted(
                    by_kind.items(), key=lambda entry: (-len(entry[1]), entry[0])
                )
            ]
    return groups


def _ranked(passages: Sequence[TriedPassage]) -> list[tuple[float, Tried]]:
    return [
        (one.improvement, one)
        for passage in passages
        for one in passage.candidates
        if one.improvement is not None and math.isfinite(one.improvement)
    ]


def _shown(
    one: Tried, value: float, passages: Mapping[str, Passage], unit: Unit, id: str
) -> ShownEdit:
    passage = passages.get(one.edit.passage_id)
    return ShownEdit(
        passage=(passage.title or passage.id) if passage else one.edit.passage_id,
        source=passage.text if passage else "",
        strategy=one.edit.strategy,
        improvement=unit.signed(value),
        trials=max(1, len(one.improvements)),
        rewarded=one.rewarded,
        kept=one.kept,
        tone="good" if value > 0 else "bad" if value < 0 else "even",
        items=one.edit.items[:LISTED_ITEMS],
        more=max(0, len(one.edit.items) - LISTED_ITEMS),
        curve=training_curve(one.losses, id),
    )
