"""The quality filter: which self-edits are worth training on, and why the others are not.

Takes a passage and its candidates; gives the candidates without the items that failed a check,
and a list of everything that was left out, each with a reason and the measured value. It works on
items (implications, rewrites, question-answer pairs) and then on each edit as a whole.

Deviation: SEAL (arXiv 2506.10943) trains on whatever the model wrote and leaves the judgement to
the reward. A small model's text needs a filter first: repetition and false facts do harm. The rules
and limits are in `quality_rules`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aios.core.seal import quality_signals as signals
from aios.core.seal.quality_duplicates import CorpusDuplicates, Embedder, KnownTexts
from aios.core.seal.quality_loss import item_loss
from aios.core.seal.quality_rules import (
    FilterSettings,
    Measures,
    Reason,
    Verdict,
    judge_item,
    measure,
    worst,
)
from aios.core.types import Drop, Passage, SelfEdit

__all__ = ["FilterResult", "FilterSettings", "QualityFilter", "Reason", "drop_repeats"]


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


class QualityFilter:
    """Filters the candidates of a passage.

    Args:
        settings: What is checked.
        count_tokens: Tokens of a text, as the model to be trained counts them.
        embedder: Finds duplicates by meaning too; None: by words alone.
    """

    def __init__(
        self,
        settings: FilterSettings,
        count_tokens: Callable[[str], int],
        *,
        embedder: Embedder | None = None,
    ) -> None:
        self._settings = settings
        self._count_tokens = count_tokens
        self._embedder = embedder

    def filter(self, passage: Passage, candidates: Sequence[SelfEdit]) -> FilterResult:
        """Leaves out what fails a check, in the order of the candidates.

        The first of two duplicate items of an edit is kept, and the first of two duplicate
        edits. The scores of a kept edit gain ``tokens``, ``items``, ``items_dropped``, and over
        its items the worst ``repetition``, ``entropy``, ``non_words``, ``loss`` (where known),
        ``closeness``, ``overlap`` and ``grounded``, and ``similarity`` to the nearest earlier
        edit of the passage.
        """
        source = signals.Source.of(passage.title, passage.text)
        kept: list[SelfEdit] = []
        drops: list[Drop] = []
        known = self._known_texts()
        for edit in candidates:
            left, dropped = self._filter_items(source, edit)
            smaller = replace(edit, items=tuple(item for item, _ in left))
            verdict = self._judge_edit(edit, smaller, dropped)
            if verdict is not None:
                drops.append(_drop(edit, edit.text or edit.completion, verdict))
                continue
            similarity, verdict = known.compare(smaller.items)
            if verdict is not None and self._settings.enable_deduplication:
                drops.append(_drop(edit, edit.text, verdict))
                continue
            known.keep()
            drops += [_drop(edit, item, why) for item, why in dropped]
            scores = {
                **edit.scores,
                "tokens": float(self._count_tokens(smaller.text)),
                "items": float(len(left)),
                "items_dropped": float(len(dropped)),
                **worst([measured for _, measured in left]),
                "similarity": similarity,
            }
            kept.append(replace(smaller, scores=scores))
        items = sum(len(edit.items) for edit in candidates)
        return FilterResult(tuple(kept), tuple(drops), len(candidates), items)

    def _known_texts(self) -> KnownTexts:
        settings = self._settings
        embedder = self._embedder if settings.enable_deduplication else None
        return KnownTexts(settings.similarity_threshold, embedder, settings.embedding_threshold)

    def _filter_items(
        self, source: signals.Source, edit: SelfEdit
    ) -> tuple[list[tuple[str, Measures]], list[tuple[str, Verdict]]]:
        """The items that are left, with their measures, and those that are dropped."""
        left: list[tuple[str, Measures]] = []
        dropped: list[tuple[str, Verdict]] = []
        known = self._known_texts()
        for item in edit.items:
            loss = item_loss(item, edit.completion, edit.line_losses) if edit.line_losses else None
            measured = measure(item, source, loss)
            verdict = judge_item(item, measured, source, self._settings)
            if verdict is None and self._settings.enable_deduplication:
                verdict = known.compare((item,)).verdict
                if verdict is None:
                    known.keep()
            if verdict is None:
                left.append((item, measured))
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
            tokens = self._count_tokens(edit.text)  # what is taken out is not held against the rest
            if tokens < settings.min_length:
                return Verdict("too_short", f"{tokens} tokens < {settings.min_length}")
            tokens = self._count_tokens(smaller.text) if dropped else tokens
            if tokens > settings.max_length:
                return Verdict("too_long", f"{tokens} tokens > {settings.max_length}")
        return None


def drop_repeats(
    edits: Sequence[SelfEdit], corpus: CorpusDuplicates
) -> tuple[tuple[SelfEdit, ...], tuple[Drop, ...]]:
    """Leaves out the kept edits of a passage that repeat an earlier one of the file.

    The passages have to come in the order of the file, each once.

    Args:
        edits: What `QualityFilter.filter` kept of a passage.
        corpus: The edits before; takes in what is kept here.

    Returns:
        The edits that are left, and the others with their reasons.
    """
    kept, drops = [], []
    for edit in edits:
        verdict = corpus.judge(edit)
        if verdict is None:
            corpus.add(edit)
            kept.append(edit)
        else:
            drops.append(_drop(edit, edit.text, verdict))
    return tuple(kept), tuple(drops)


def _drop(edit: SelfEdit, text: str, verdict: Verdict) -> Drop:
    return Drop(edit.passage_id, edit.strategy, edit.index, text, verdict.reason, verdict.detail)
