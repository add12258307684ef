"""The quality filter: which self-edits are worth training on, and why the others are not.

Takes a passage and its candidates; gives the candidates without the items that failed a check,
and a list of everything that was left out, each with a reason and the measured value. It works on
items (implications, rewrites, question-answer pairs) and then on each edit as a whole.

Deviation: SEAL (arXiv 2506.10943) trains on whatever the model wrote and leaves the judgement to
the reward. A small model's text needs a filter first: repetition and false facts do harm. The
limits below are ours; texts of the release's 7B model pass them almost always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from aios.core.seal import quality_signals as signals
from aios.core.seal.completion_text import normalise
from aios.core.types import Drop, Passage, SelfEdit

Reason = Literal[
    "no_items",
    "empty_item",
    "empty_question",
    "empty_answer",
    "answer_in_question",
    "gibberish",
    "too_close_to_source",
    "off_topic",
    "ungrounded",
    "duplicate",
    "near_duplicate",
    "too_short",
    "too_long",
]

MIN_WORDS_FOR_REPETITION = 20
MAX_REPEATED_SHARE = 0.35
MAX_LOOP = 4
MIN_CHARACTERS_FOR_ENTROPY = 40
MIN_ENTROPY_BITS = 2.8
MIN_WORDS_FOR_NON_WORDS = 5
MAX_NON_WORD_SHARE = 0.4
MIN_GROUNDED_SHARE = 0.8
MIN_TOPIC_OVERLAP = 0.15
# An item that has at least this share of the passage's words is compared with the passage.
RESTATEMENT_LENGTH = 0.5


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """What the filter checks.

    Attributes:
        min_length: Fewest tokens of an edit.
        max_length: Most tokens of an edit.
        enable_deduplication: Drop exact and near duplicates.
        similarity_threshold: Jaccard similarity of word shingles, in (0, 1], from which two
            texts are near duplicates, or a rewrite is too close to its source.
        enable_quality_filter: Check length, repetition, closeness, questions and grounding. Off:
            only duplicates and empty items are dropped.
        enable_grounding: Check names, numbers and topic against the passage (part of the
            quality filter).
    """

    min_length: int = 20
    max_length: int = 2048
    enable_deduplication: bool = True
    similarity_threshold: float = 0.9
    enable_quality_filter: bool = True
    enable_grounding: bool = True


class Verdict(NamedTuple):
    """Why a text was left out, and the measured value and limit."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What the filter gave for the candidates of one passage.

    Attributes:
        kept: The edits that are left, with the items that are left and their scores.
        drops: What was left out. An edit that is dropped whole is one drop, with the text of all
            its items; from an edit that is kept, each dropped item is one.
        edits: Candidates seen.
        items: Items seen, over all candidates.
    """

    kept: tuple[SelfEdit, ...]
    drops: tuple[Drop, ...]
    edits: int
    items: int

    @property
    def edit_drop_rate(self) -> float:
        """Share of the candidates that were dropped whole; 0 without any."""
        return 1 - len(self.kept) / self.edits if self.edits else 0.0

    @property
    def item_drop_rate(self) -> float:
        """Share of the items that were left out, with or without their edit; 0 without any."""
        left = sum(len(edit.items) for edit in self.kept)
        return 1 - left / self.items if self.items else 0.0


class QualityFilter:
    """Filters the candidates of a passage.

    Args:
        settings: What is checked.
        count_tokens: Tokens of a text, as the model to be trained counts them.
    """

    def __init__(self, settings: FilterSettings, count_tokens: Callable[[str], int]) -> None:
        self._settings = settings
        self._count_tokens = count_tokens

    def filter(self, passage: Passage, candidates: Sequence[SelfEdit]) -> FilterResult:
        """Leaves out what fails a check, in the order of the candidates.

        The first of two duplicate items of an edit is kept, and the first of two duplicate
        edits. The scores of a kept edit gain ``tokens``, ``items``, ``items_dropped``, and over
        its items the worst ``repetition``, ``entropy``, ``non_words``, ``closeness``, ``overlap``
        and ``grounded``, and ``similarity`` to the nearest earlier edit.
        """
        source = signals.Source.of(passage.title, passage.text)
        kept: list[SelfEdit] = []
        drops: list[Drop] = []
        known = _Known(self._settings.similarity_threshold)
        for edit in candidates:
            left, dropped = self._filter_items(source, edit)
            smaller = replace(edit, items=tuple(item for item, _ in left))
            each = [signals.item_shingles(item) for item in smaller.items]
            shingles = frozenset[tuple[str, ...]]().union(*each)
            similarity = known.nearest(shingles)
            verdict = self._judge_edit(edit, smaller, dropped)
            if verdict is None and self._settings.enable_deduplication:
                verdict = known.judge(smaller.text, shingles)
            if verdict is not None:
                drops.append(_drop(edit, edit.text, verdict))
                continue
            known.add(smaller.text, shingles)
            drops += [_drop(edit, item, why) for item, why in dropped]
            scores = {
                **edit.scores,
                "tokens": float(self._count_tokens(smaller.text)),
                "items": float(len(left)),
                "items_dropped": float(len(dropped)),
                **_worst([measured for _, measured in left]),
                "similarity": similarity,
            }
            kept.append(replace(smaller, scores=scores))
        items = sum(len(edit.items) for edit in candidates)
        return FilterResult(tuple(kept), tuple(drops), len(candidates), items)

    def _filter_items(
        self, source: signals.Source, edit: SelfEdit
    ) -> tuple[list[tuple[str, Measures]], list[tuple[str, Verdict]]]:
        """The items that are left, with their measures, and those that are dropped."""
        left: list[tuple[str, Measures]] = []
        dropped: list[tuple[str, Verdict]] = []
        known = _Known(self._settings.similarity_threshold)
        for item in edit.items:
            shingles = signals.item_shingles(item)
            measured = measure(item, source)
            verdict = judge_item(item, measured, self._settings)
            if verdict is None and self._settings.enable_deduplication:
                verdict = known.judge(item, shingles)
            if verdict is None:
                left.append((item, measured))
                known.add(item, shingles)
            else:
                dropped.append((item, verdict))
        return left, dropped

    def _judge_edit(
        self, edit: SelfEdit, smaller: SelfEdit, dropped: Sequence[tuple[str, Verdict]]
    ) -> Verdict | None:
        """Why an edit is dropped for what is left of it; None where it is kept."""
        if not edit.items:
            return Verdict("no_items", "nothing to train on in the completion")
        if not smaller.items:
            (reason, count), *_ = Counter(why.reason for _, why in dropped).most_common(1)
            first = next(why.detail for _, why in dropped if why.reason == reason)
            return Verdict(reason, f"{count} of {len(dropped)} items, the first: {first}")
        settings = self._settings
        if settings.enable_quality_filter:
            tokens = self._count_tokens(smaller.text)
            if tokens < settings.min_length:
                return Verdict("too_short", f"{tokens} tokens < {settings.min_length}")
            if tokens > settings.max_length:
                return Verdict("too_long", f"{tokens} tokens > {settings.max_length}")
        return None


class _Known:
    """Texts kept so far, to compare the next one with."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: list[tuple[str, str, frozenset[tuple[str, ...]]]] = []

    def add(self, text: str, shingles: frozenset[tuple[str, ...]]) -> None:
        self._texts.append((text, normalise(text), shingles))

    def nearest(self, shingles: frozenset[tuple[str, ...]]) -> float:
        """Similarity to the most similar text; 0 without any."""
        return max((signals.jaccard(shingles, other) for *_, other in self._texts), default=0.0)

    def judge(self, text: str, shingles: frozenset[tuple[str, ...]]) -> Verdict | None:
        plain = normalise(text)
        for other, other_plain, other_shingles in self._texts:
            if other_plain == plain:
                return Verdict("duplicate", f"the same as {other[:60]!r}")
            similarity = signals.jaccard(shingles, other_shingles)
            if similarity >= self._threshold:
                return Verdict("near_duplicate", f"{similarity:.2f} like {other[:60]!r}")
        return None


class Measures(NamedTuple):
    """The signals of one item (see `quality_signals`)."""

    repetition: float
    loop: int
    entropy: float
    non_words: float
    closeness: float
    overlap: float
    grounded: signals.Grounding


def measure(item: str, source: signals.Source) -> Measures:
    """Takes all signals of an item."""
    text = signals.content(item)
    return Measures(
        repetition=signals.repeated_share(text),
        loop=signals.longest_loop(text),
        entropy=signals.character_entropy(text),
        non_words=signals.non_word_share(text, source.words),
        closeness=closeness(item, source),
        overlap=signals.topic_overlap(item, source),
        grounded=signals.grounding(item, source),
    )


def closeness(item: str, source: signals.Source) -> float:
    """How much of a restatement of the passage is copied from it, in [0, 1].

    Share of the item's word shingles that the passage holds. 0 for question-answer pairs and for
    items much shorter than the passage: a sentence taken over as it stands does no harm, a
    rewrite that rewrites nothing only repeats the passage.
    """
    is_short = len(item.split()) < RESTATEMENT_LENGTH * source.length
    if is_short or signals.qa_parts(item) is not None:
        return 0.0
    return signals.containment(signals.shingles(item), source.shingles)


def judge_item(item: str, measured: Measures, settings: FilterSettings) -> Verdict | None:
    """Why an item is dropped by itself; None where it is kept."""
    if not normalise(item):
        return Verdict("empty_item", "no word in it")
    pair = signals.qa_parts(item)
    if pair is not None and not normalise(pair.question):
        return Verdict("empty_question", "no word in the question")
    if pair is not None and not normalise(pair.answer):
        return Verdict("empty_answer", "no word in the answer")
    if not settings.enable_quality_filter:
        return None
    if pair is not None and signals.answer_in_question(pair):
        return Verdict("answer_in_question", f"the question holds {pair.answer!r}")
    gibberish = _judge_gibberish(signals.content(item), measured)
    if gibberish is not None:
        return gibberish
    limit = settings.similarity_threshold
    if measured.closeness >= limit:
        return Verdict("too_close_to_source", f"{measured.closeness:.2f} copied, limit {limit}")
    if not settings.enable_grounding:
        return None
    if measured.grounded.share < MIN_GROUNDED_SHARE:
        missing = ", ".join(measured.grounded.missing)
        return Verdict("ungrounded", f"not in the passage: {missing}")
    if measured.overlap < MIN_TOPIC_OVERLAP:
        return Verdict(
            "off_topic", f"{measured.overlap:.2f} shared content words < {MIN_TOPIC_OVERLAP}"
        )
    return None


def _worst(measured: Sequence[Measures]) -> Mapping[str, float]:
    return {
        "repetition": max(item.repetition for item in measured),
        "entropy": min(item.entropy for item in measured),
        "non_words": max(item.non_words for item in measured),
        "closeness": max(item.closeness for item in measured),
        "overlap": min(item.overlap for item in measured),
        "grounded": min(item.grounded.share for item in measured),
    }


def _judge_gibberish(text: str, measured: Measures) -> Verdict | None:
    words = len(text.split())
    if measured.loop >= MAX_LOOP:
        return Verdict("gibberish", f"the same words {measured.loop} times in a row")
    if words >= MIN_WORDS_FOR_REPETITION and measured.repetition > MAX_REPEATED_SHARE:
        return Verdict(
            "gibberish", f"{measured.repetition:.2f} repeated word triples > {MAX_REPEATED_SHARE}"
        )
    if len(text) >= MIN_CHARACTERS_FOR_ENTROPY and measured.entropy < MIN_ENTROPY_BITS:
        return Verdict("gibberish", f"{measured.entropy:.2f} bits a character < {MIN_ENTROPY_BITS}")
    if words >= MIN_WORDS_FOR_NON_WORDS and measured.non_words > MAX_NON_WORD_SHARE:
        return Verdict("gibberish", f"{measured.non_words:.2f} non-words > {MAX_NON_WORD_SHARE}")
    return None


def _drop(edit: SelfEdit, text: str, verdict: Verdict) -> Drop:
    return Drop(edit.passage_id, edit.strategy, edit.index, text, verdict.reason, verdict.detail)
