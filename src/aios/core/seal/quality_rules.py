"""The rules of the quality filter: which measured values of an item are good enough.

Takes an item of a self-edit with its signals; gives the reason why it is dropped, or nothing. The
limits were set on one half of a labelled set of the bundled model's completions
(``experiments/labelled_completions.md``) and on the completions of the SEAL release's 7B model,
nearly all of which must pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aios.core.seal import quality_questions as questions
from aios.core.seal import quality_signals as signals
from aios.core.seal.completion_text import normalise
from aios.core.seal.parsing import QAPair

Reason = Literal[
    "no_items",
    "empty_item",
    "empty_question",
    "empty_answer",
    "no_question",
    "answer_in_question",
    "wrong_kind_of_answer",
    "fragment",
    "about_the_task",
    "gibberish",
    "improbable",
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
MAX_LOSS = 2.5
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
        enable_quality_filter: Check length, repetition, loss, closeness, questions and
            grounding. Off: only duplicates and empty items are dropped.
        enable_grounding: Check names, numbers and topic against the passage (part of the
            quality filter).
        max_loss: Highest mean loss of an item, in nats a token, under the model that wrote it;
            None for no limit.
        embedding_threshold: Cosine similarity, in (0, 1], from which two texts with the same
            numbers and answers are near duplicates, where an embedding model is in use.
    """

    min_length: int = 20
    max_length: int = 2048
    enable_deduplication: bool = True
    similarity_threshold: float = 0.9
    enable_quality_filter: bool = True
    enable_grounding: bool = True
    max_loss: float | None = MAX_LOSS
    embedding_threshold: float = 0.97


class Verdict(NamedTuple):
    """Why a text was left out, and the measured value and limit."""

    reason: Reason
    detail: str


class Measures(NamedTuple):
    """The signals of one item (see `quality_signals`); `loss` is None where it is not known."""

    repetition: float
    loop: int
    entropy: float
    non_words: float
    closeness: float
    overlap: float
    grounded: signals.Grounding
    loss: float | None = None


def measure(item: str, source: signals.Source, loss: float | None = None) -> Measures:
    """Takes all signals of an item.

    Args:
        item: The item.
        source: Its passage.
        loss: Its loss in nats a token (`quality_loss.item_loss`), where known.
    """
    text = signals.content(item)
    return Measures(
        repetition=signals.repeated_share(text),
        loop=signals.longest_loop(text),
        entropy=signals.character_entropy(text),
        non_words=signals.non_word_share(text, source.words),
        closeness=closeness(item, source),
        overlap=signals.topic_overlap(item, source),
        grounded=signals.grounding(item, source),
        loss=loss,
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


def judge_item(
    item: str, measured: Measures, source: signals.Source, settings: FilterSettings
) -> Verdict | None:
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
    verdicts = _failed_checks(item, pair, measured, source, settings)
    return next(verdicts, None)


def _failed_checks(
    item: str,
    pair: QAPair | None,
    measured: Measures,
    source: signals.Source,
    settings: FilterSettings,
) -> Iterator[Verdict]:
    """What an item that is not empty fails, the plainest faults first."""
    if pair is not None:
        yield from _judge_pair(pair)
    elif signals.is_fragment(item):
        yield Verdict("fragment", f"{len(normalise(item).split())} words < 4")
    about = signals.speaks_of_task(signals.content(item), source)
    if about:
        yield Verdict("about_the_task", f"speaks of {about!r}")
    yield from _judge_gibberish(signals.content(item), measured)
    loss, limit = measured.loss, settings.max_loss
    if loss is not None and limit is not None and loss > limit:
        yield Verdict("improbable", f"{loss:.2f} nats a token > {limit:g}")
    limit = settings.similarity_threshold
    if measured.closeness >= limit:
        yield Verdict("too_close_to_source", f"{measured.closeness:.2f} copied, limit {limit}")
    if settings.enable_grounding:
        yield from _judge_grounding(measured)


def _judge_pair(pair: QAPair) -> Iterator[Verdict]:
    if not questions.is_question(pair.question):
        yield Verdict("no_question", "it asks nothing: no question mark, question word or blank")
    if questions.asks_for_nothing(pair.question):
        yield Verdict("no_question", "it does not say what it asks for")
    if questions.answer_in_question(pair):
        yield Verdict("answer_in_question", f"the question holds {pair.answer!r}")
    if questions.has_wrong_kind(pair):
        yield Verdict("wrong_kind_of_answer", f"the question does not ask for {pair.answer!r}")


def _judge_gibberish(text: str, measured: Measures) -> Iterator[Verdict]:
    words = len(text.split())
    if measured.loop >= MAX_LOOP:
        yield Verdict("gibberish", f"the same words {measured.loop} times in a row")
    if words >= MIN_WORDS_FOR_REPETITION and measured.repetition > MAX_REPEATED_SHARE:
        yield Verdict(
            "gibberish", f"{measured.repetition:.2f} repeated word triples > {MAX_REPEATED_SHARE}"
        )
    if len(text) >= MIN_CHARACTERS_FOR_ENTROPY and measured.entropy < MIN_ENTROPY_BITS:
        yield Verdict("gibberish", f"{measured.entropy:.2f} bits a character < {MIN_ENTROPY_BITS}")
    if words >= MIN_WORDS_FOR_NON_WORDS and measured.non_words > MAX_NON_WORD_SHARE:
        yield Verdict("gibberish", f"{measured.non_words:.2f} non-words > {MAX_NON_WORD_SHARE}")


def _judge_grounding(measured: Measures) -> Iterator[Verdict]:
    if measured.grounded.share < MIN_GROUNDED_SHARE:
        missing = ", ".join(measured.grounded.missing)
        yield Verdict("ungrounded", f"not in the passage: {missing}")
    if measured.overlap < MIN_TOPIC_OVERLAP:
        yield Verdict(
            "off_topic", f"{measured.overlap:.2f} shared content words < {MIN_TOPIC_OVERLAP}"
        )


def worst(measured: Sequence[Measures]) -> Mapping[str, float]:
    """The worst value of each signal over the items of an edit, at least one."""
    losses = [item.loss for item in measured if item.loss is not None]
    return {
        "repetition": max(item.repetition for item in measured),
        "entropy": min(item.entropy for item in measured),
        "non_words": max(item.non_words for item in measured),
        **({"loss": max(losses)} if losses else {}),
        "closeness": max(item.closeness for item in measured),
        "overlap": min(item.overlap for item in measured),
        "grounded": min(item.grounded.share for item in measured),
    }
