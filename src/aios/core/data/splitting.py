"""Sentences of a text, and passages cut to a token budget.

Rules, no model: a sentence ends at ``. ! ? …`` (and their counterparts in other scripts) before
white space, at ``。！？`` anywhere, at a blank line and before a list item. A full stop after an
abbreviation, an initial or an acronym ends it only before a word that commonly starts sentences.
Every character that is not white space appears in exactly one sentence, in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Span = tuple[int, int]
"""Start and end of a part of a text, in characters, half open."""

_MARKS = ".!?…؟۔।॥։።"
_CLOSERS = "\"'”’»)]"
_REFERENCE = r"\[[^\]\n]{1,20}\]|:\d{1,4}(?:(?:, |[–-])\d{1,4}){0,5}"
"""What encyclopedias put after a full stop: ``[4]``, ``[note 4]``, ``:218–228``."""
_BOUNDARY = re.compile(
    rf"(?<![{_MARKS}])[{_MARKS}]+[{re.escape(_CLOSERS)}]*(?:{_REFERENCE})*(?=\s|$)"
    r"|(?<![。！？｡])[。！？｡]+[」』”’）】》\"']*"
    r"|\n[^\S\n]*\n"
    r"|\n(?=[^\S\n]*(?:[-*•–]|\d{1,3}[.)])[^\S\n])"
)
_WIDE_MARKS = "。！？｡"
_QUOTE_GOES_ON = "とっ、，"
_NEXT = re.compile(r"\s*[\"'“‘«(\[¿¡]*([^\W_]+)?(\.?)")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘«]*$")
_ACRONYM = re.compile(r"(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")
_LONGEST_ABBREVIATION = 32


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "adm brig capt cf cmdr col cpl dr e.g eg gen gov hon i.e ie lt maj messrs mlle mme mr mrs ms "
    "mt pres prof rep rev sen sgt supt viz vs"
)
"""Abbreviations that do not end a sentence."""
_BEFORE_NUMBER = _words(
    "apr art aug c ca ch chap circa dec eq feb fig figs jan jul jun mar no nos nov oct op p para "
    "pp sec sect sep sept tab vol vols"
)
"""Abbreviations only before a number; else words ("no.", "art.")."""
_MAYBE_LAST = _words(
    "al approx assn ave blvd bros co corp dept ed eds est etc ft inc jr llc ltd mfg rd sr st univ"
)
"""Abbreviations that end a sentence only before a common first word."""
_FIRST_WORDS = _words(
    "a after all although an and another as at because before but by despite during each every "
    "for from he her here his how however i if in instead it its later many meanwhile most my no "
    "not of on one other our over several she since so some such that the their then there these "
    "they this those though thus to today under until we what when where whether which while who "
    "why with without you your"
)


def sentence_spans(text: str) -> list[Span]:
    """Where the sentences of a text stand, without the white space around them."""
    spans: list[Span] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        if _ends_sentence(text, start, match):
            _add(spans, text, _stripped(text, start, match.end()))
            start = match.end()
    _add(spans, text, _stripped(text, start, len(text)))
    return spans


def _add(spans: list[Span], text: str, found: list[Span]) -> None:
    """Adds a sentence; marks that stand alone go to the sentence before."""
    for start, end in found:
        if spans and not text[start:end].strip(_MARKS + _WIDE_MARKS + _CLOSERS):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line (white space inside becomes one space)."""
    return [" ".join(text[start:end].split()) for start, end in sentence_spans(text)]


def _stripped(text: str, start: int, end: int) -> list[Span]:
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    end -= len(part) - len(part.rstrip())
    return [(start, end)] if start < end else []


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    mark = match.group()
    if mark[0] == "\n":
        return True
    if mark[0] in _WIDE_MARKS:  # 「行く。」と言った is one sentence
        quoted = mark[-1] not in _WIDE_MARKS
        return not (quoted and text[match.end() : match.end() + 1] in tuple(_QUOTE_GOES_ON))
    following = _NEXT.match(text, match.end())
    word, stop = following.groups() if following else (None, "")
    if word is not None and word.islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    return not _is_abbreviation(text, start, match.start(), word or "", bool(stop))


def _is_abbreviation(text: str, start: int, end: int, following: str, initial: bool) -> bool:
    """Whether the full stop at `end` belongs to the word before it and ends no sentence.

    Args:
        text: The text.
        start: Where the sentence starts.
        end: Where the full stop is.
        following: The next word, or empty.
        initial: Whether a full stop comes right after that word.
    """
    before = text[max(start, end - _LONGEST_ABBREVIATION) : end]
    if before.strip().isdecimal():
        return True  # the number of a list item
    found = _LAST_WORD.search(before)
    word = found.group().rpartition("-")[2] if found else ""
    key = word.casefold()
    if key in _NEVER_LAST or (key in _BEFORE_NUMBER and following[:1].isdecimal()):
        return True
    single = len(word) == 1 and word.isalpha()
    if not (single or key in _MAYBE_LAST or _ACRONYM.fullmatch(word)):
        return False
    if not following:
        return False
    return following.casefold() not in _FIRST_WORDS or (initial and len(following) == 1)


def split_passage(text: str, budget: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Cuts a text into parts of at most `budget` tokens, at sentence ends where it can.

    Parts are filled in order with as many sentences as fit. A sentence over the budget is cut
    between clauses, a clause between words, a word between characters.

    Args:
        text: Any text.
        budget: Most tokens of a part, at least 1.
        count_tokens: Number of tokens of a text.

    Returns:
        The parts in order, stripped; together they hold every character but white space between
        parts. Empty for blank text. A single character may be over the budget.

    Raises:
        ValueError: `budget` is below 1.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}; it must be at least 1")
    text = text.strip()
    if not text:
        return []
    if count_tokens(text) <= budget:
        return [text]
    packer = _Packer(text, budget, count_tokens)
    return [text[start:end] for start, end in packer.cut((0, len(text)), 0)]


_CLAUSE_END = re.compile(r"[,;:)—–](?=\s)|[、，；：—]")
_BLANK = re.compile(r"\s+")


def _cut_after(pattern: re.Pattern[str], text: str) -> list[Span]:
    spans: list[Span] = []
    start = 0
    for match in pattern.finditer(text):
        spans += _stripped(text, start, match.end())
        start = match.end()
    return spans + _stripped(text, start, len(text))


_UNITS: tuple[Callable[[str], list[Span]], ...] = (
    sentence_spans,
    lambda text: _cut_after(_CLAUSE_END, text),
    lambda text: _cut_after(_BLANK, text),
)
"""Ways to cut, from the largest unit to the smallest; after them, characters."""


class _Packer:
    def __init__(self, text: str, budget: int, count_tokens: Callable[[str], int]) -> None:
        self._text = text
        self._budget = budget
        self._count_tokens = count_tokens

    def _count(self, start: int, end: int) -> int:
        return self._count_tokens(self._text[start:end])

    def cut(self, span: Span, level: int) -> list[Span]:
        """Cuts a span into parts within the budget, with units of a level and those below."""
        if level == len(_UNITS):
            return list(self._characters(span))
        offset = span[0]
        units: list[tuple[Span, int]] = []
        for start, end in _UNITS[level](self._text[slice(*span)]):
            unit = (offset + start, offset + end)
            tokens = self._count(*unit)
            if tokens <= self._budget:
                units.append((unit, tokens))
            else:
                units += [(part, self._count(*part)) for part in self.cut(unit, level + 1)]
        return self._pack(units)

    def _pack(self, units: list[tuple[Span, int]]) -> list[Span]:
        """Joins neighbours while they fit: by the sum of their tokens, then counted for real."""
        packed: list[Span] = []
        first = 0
        while first < len(units):
            (start, _), total = units[first]
            after = first + 1
            while after < len(units) and total + units[after][1] <= self._budget:
                total += units[after][1]
                after += 1
            while after > first + 1 and self._count(start, units[after - 1][0][1]) > self._budget:
                after -= 1
            packed.append((start, units[after - 1][0][1]))
            first = after
        return packed

    def _characters(self, span: Span) -> Iterator[Span]:
        start, end = span
        while start < end:
            size = end - start
            while size > 1 and (tokens := self._count(start, start + size)) > self._budget:
                size = max(1, min(size - 1, size * self._budget // tokens))
            yield start, start + size
            start += size
