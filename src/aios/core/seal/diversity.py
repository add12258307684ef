"""Diversity of a round's self-edits: is the generator collapsing onto one text?

Takes self-edits and their passages; gives four shares (`aios.core.restem.Diversity`).

**Distinct n-grams** (distinct-1 and distinct-2 of Li et al. 2016, arXiv 1510.03055). The plain
quotient of different n-grams over all falls as texts grow, so it cannot be compared between
rounds of different size. Here each edit is cut to its first `WORDS` words, so that long edits do
not outweigh the others, and the quotient is that which `SAMPLE` n-grams drawn without replacement
from all of them have on average. The average is exact (rarefaction, Hurlbert 1971, Ecology 52;
for words it is the measure HD-D, McCarthy & Jarvis 2010): nothing is drawn and there is no seed.
A round with fewer n-grams is taken as it is; its figures are somewhat too high beside others'.

**Near duplicates** are compared as the quality filter does it (word 3-shingles, those of a
question with its answer), but from a Jaccard similarity of `SIMILAR` on: the filter has removed
what repeats nearly all. Fewer than one in a hundred of the SEAL release's candidates share 0.35.

**Copied** is the share of an edit's different word 4-grams that stand in its passage or its title.
Edits that consist of the passage's sentences by construction have a high share: a change from
round to round is what tells.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from aios.core.data.near_duplicates import NearDuplicateIndex, words
from aios.core.restem import Diversity
from aios.core.seal.quality_duplicates import edit_hashes
from aios.core.seal.quality_signals import containment, content
from aios.core.types import Passage, SelfEdit

WORDS = 60
"""Words of an edit that distinct n-grams are counted in."""

SAMPLE = 500
"""N-grams among which those that differ are counted, on average over all draws."""

SIMILAR = 0.5
"""Jaccard similarity from which two candidates of a passage nearly repeat each other."""

_COPY = 4  # words that, standing together in the passage, count as copied

Gram = tuple[str, ...]


def measure_diversity(
    edits: Sequence[SelfEdit], passages: Mapping[str, Passage]
) -> Diversity | None:
    """Measures how far self-edits differ from one another and from their passages.

    Args:
        edits: The candidates of a round, in any order.
        passages: Their passages by id.

    Returns:
        Shares in [0, 1]; None without edits, of which nothing can be said.

    Raises:
        KeyError: The passage of an edit is not there.
    """
    if not edits:
        return None
    of_passage: dict[str, list[SelfEdit]] = {}
    for edit in edits:
        of_passage.setdefault(edit.passage_id, []).append(edit)
    repeated = sum(_near_duplicates(together) for together in of_passage.values())
    copied = [
        share
        for passage_id, together in of_passage.items()
        for share in _copied(together, passages[passage_id])
    ]
    return Diversity(
        distinct_1=_distinct(edits, 1),
        distinct_2=_distinct(edits, 2),
        near_duplicates=repeated / len(edits),
        copied=fmean(copied) if copied else 0.0,
    )


def _distinct(edits: Sequence[SelfEdit], size: int) -> float:
    """Mean share of different n-grams among `SAMPLE` of them; 0 where there are none."""
    counts = Counter(gram for edit in edits for gram in _grams(edit, size, WORDS))
    total = sum(counts.values())
    drawn = min(SAMPLE, total)
    if drawn == 0:
        return 0.0
    frequencies = Counter(counts.values())
    seen = math.fsum(
        grams * (1 - _chance_of_none(total, frequency, drawn))
        for frequency, grams in frequencies.items()
    )
    return min(1.0, seen / drawn)


def _chance_of_none(total: int, frequency: int, drawn: int) -> float:
    """Chance that none of `frequency` things is among `drawn` of `total` (hypergeometric)."""
    if total - frequency < drawn:
        return 0.0
    return math.exp(
        math.lgamma(total - frequency + 1)
        - math.lgamma(total - frequency - drawn + 1)
        - math.lgamma(total + 1)
        + math.lgamma(total - drawn + 1)
    )


def _near_duplicates(together: Sequence[SelfEdit]) -> int:
    """How many candidates of a passage nearly repeat another one, an earlier or a later."""
    hashes = [edit_hashes(edit.items) for edit in together]
    found = set()
    for order in (range(len(hashes)), reversed(range(len(hashes)))):
        index = NearDuplicateIndex(SIMILAR)
        for number in order:
            if index.find(hashes[number]) is not None:
                found.add(number)
            index.add(hashes[number])
    return len(found)


def _copied(together: Sequence[SelfEdit], passage: Passage) -> list[float]:
    """Share of each candidate's 4-grams that the passage has; without those that have none."""
    source = {gram for text in (passage.title, passage.text) for gram in _runs(words(text), _COPY)}
    grams = [frozenset(_grams(edit, _COPY)) for edit in together]
    return [containment(mine, source) for mine in grams if mine]


def _grams(edit: SelfEdit, size: int, most_words: int | None = None) -> list[Gram]:
    """Runs of `size` words within each line of an edit; labels of questions are left out."""
    found: list[Gram] = []
    left = most_words
    for item in edit.items:
        for line in content(item).splitlines():
            mine = words(line)[:left]
            found += _runs(mine, size)
            left = None if left is None else left - len(mine)
    return found


def _runs(sequence: Sequence[str], size: int) -> list[Gram]:
    return [tuple(sequence[start : start + size]) for start in range(len(sequence) - size + 1)]
