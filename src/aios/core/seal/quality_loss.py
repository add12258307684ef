"""How improbable an item was to the model that wrote it: its loss, from the losses of its lines.

Takes an item, the completion that it was parsed from, and the mean loss of each line of that
completion (`aios.core.types.Completion.line_losses`); gives the mean loss of the lines that the
item came from, in nats a token. These losses were computed while the completion was sampled, so
this signal costs no pass of the model.

A parser joins lines, cuts labels off and leaves lines out, so an item does not say where it came
from; it is found again by its words. Where that fails, or no losses are known (a cached answer of
an older version, an endpoint that gives none, text that no model wrote), there is no loss and the
item is not judged by it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from aios.core.seal.completion_text import normalise
from aios.core.seal.quality_signals import containment, qa_parts, shingles

# Where an item's words are not found in a row, a line counts as its source if this share of the
# word triples of one is found in the other.
_SHARED_SHINGLES = 0.5


def lines_of_item(item: str, completion: str) -> tuple[int, ...]:
    r"""Numbers of the lines of a completion that an item came from.

    Args:
        item: A training text, as a parser gave it.
        completion: What the model wrote.

    Returns:
        Ascending indices into ``completion.split("\n")``; none where it is not found.
    """
    lines = [normalise(line) for line in completion.split("\n")]
    pair = qa_parts(item)
    parts = [item] if pair is None else [pair.question, pair.answer]
    found: set[int] = set()
    start = 0
    for part in parts:
        where, end = _lines_in_a_row(normalise(part), lines, start)
        if where:
            start = end  # an answer is looked for behind its question
        else:
            where, _ = _lines_in_a_row(normalise(part), lines, 0)
        found.update(where or _similar_lines(part, lines))
    return tuple(sorted(found))


def item_loss(item: str, completion: str, line_losses: Sequence[float]) -> float | None:
    """Mean loss of the lines that an item came from, in nats a token; None where not known.

    Args:
        item: A training text, as a parser gave it.
        completion: What the model wrote.
        line_losses: Mean loss of each line of the completion; 0 or NaN for a line in which no
            token begins.

    Returns:
        The mean, each line weighted by its length in characters.
    """
    lines = completion.split("\n")
    if len(line_losses) != len(lines):
        return None
    known = [
        (line_losses[number], len(lines[number].strip()))
        for number in lines_of_item(item, completion)
        if math.isfinite(line_losses[number]) and line_losses[number] > 0
    ]
    weight = sum(length for _, length in known)
    return sum(loss * length for loss, length in known) / weight if weight else None


def _lines_in_a_row(part: str, lines: Sequence[str], start: int) -> tuple[list[int], int]:
    """Lines that hold a text word for word, maybe across several, and where it ends.

    Args:
        part: Normalised text.
        lines: Normalised lines.
        start: Where to begin, in characters of the lines joined by spaces.
    """
    starts, length = [], 1
    for line in lines:
        starts.append(length)
        length += len(line) + 1 if line else 0
    joined = f" {' '.join(line for line in lines if line)} "
    begin = joined.find(f" {part} ", max(0, start - 1)) + 1 if part else 0
    if not begin:
        return [], start
    end = begin + len(part)
    first, last = bisect_right(starts, begin) - 1, bisect_right(starts, end - 1) - 1
    return [number for number in range(first, last + 1) if lines[number]], end


def _similar_lines(part: str, lines: Sequence[str]) -> list[int]:
    wanted = shingles(part)
    similar = []
    for number, line in enumerate(lines):
        found = shingles(line)
        share = max(containment(found, wanted), containment(wanted, found))
        if share >= _SHARED_SHINGLES:
            similar.append(number)
    return similar
