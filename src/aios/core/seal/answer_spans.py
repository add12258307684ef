"""Spans of a passage that are worth asking for: names, numbers, dates, phrases, clauses.

Takes a sentence; gives the character ranges of its likely answers. Rules only, no model: what is
found stands in the text word for word, so an edit that asks for it is true by construction.
English function words decide where a phrase begins and ends; in other languages names and
numbers are still found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["date", "number", "name", "clause", "phrase"]

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
_DATE = re.compile(
    rf"(?:the )?\b(?:\d{{1,2}} {_MONTH}(?: \d{{3,4}})?|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?"
    rf"(?:, \d{{4}})?|{_MONTH} \d{{4}}|(?:1\d|20)\d\ds?"
    r"|\d{1,2}(?:st|nd|rd|th)(?: and \d{1,2}(?:st|nd|rd|th))? centur(?:y|ies))\b"
)
_SMALL = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred "
    "thousand million billion half twice"
).split()
_NUMBER = re.compile(
    r"[$£€]?\b(?:\d[\d,.]*\d|\d)(?![.,]?\d)"
    r"(?:(?:%|°C|°F)|\b(?: (?:per cent|percent|million|billion|thousand)\b)?(?: [a-z]{2,}\b)?)"
    rf"|\b(?:{'|'.join(_SMALL)})\b(?:[- ](?:{'|'.join(_SMALL)})\b)*(?: [a-z]{{3,}}\b)?",
    re.IGNORECASE,
)
_CAPITAL = "[" + "".join(c for c in map(chr, range(0x2000)) if c.isupper()) + "]"
_NAME = re.compile(
    rf"\b{_CAPITAL}[\w'’.-]*\w"
    rf"(?:(?: (?:of|the|de|la|von|van|and|for)){{0,2}} {_CAPITAL}[\w'’-]*\w)*"
)
_CLAUSE = re.compile(
    r"\b(?:because of|because|due to|owing to|only (?:when|if|at|in|after|on)|unless|whenever|when"
    r"|if|after|before|until|so that|in order to) ([^,;.()]{8,70})(?=[,;.()]|$)"
)
_WORD = re.compile(r"[^\W_]+(?:[-'’.,][^\W_]+)*%?")
_FUNCTION_WORDS = frozenset(
    """a an the this that these those its his her their our your my it he she they we you i who
    whom whose which what where when while if because although though unless until since as than
    then there here and or but nor so yet for of in on at by with from to into onto over under
    between among through during before after about against within without across along around
    near per via is are was were be been being am has have had having do does did done can could
    may might must shall should will would not no only also even both either neither each every
    all any some most more less many much few other another such very too just still ever never
    often always one out up down off again once him them us me itself himself herself themselves
    became become becomes began made make makes called used known said according""".split()
)
_BEFORE_A_NOUN = frozenset(
    "a an the its his her their our of in on at by with from into over under between through "
    "during near against per as for each every one and or".split()
)
_PRIORITY: dict[Kind, int] = {"date": 0, "number": 1, "name": 2, "clause": 3, "phrase": 4}


@dataclass(frozen=True, slots=True, order=True)
class AnswerSpan:
    """A likely answer: ``sentence[start:end]``."""

    start: int
    end: int
    kind: Kind


def find_answer_spans(sentence: str) -> list[AnswerSpan]:
    """Finds the likely answers of a sentence.

    Where two overlap, dates go before numbers, numbers before names, names before the rest;
    clauses may hold other spans, since they answer another question.

    Returns:
        Spans in the order of the text.
    """
    taken: list[AnswerSpan] = []
    for span in sorted(_all_spans(sentence), key=lambda s: (_PRIORITY[s.kind], s.start)):
        rivals = [t for t in taken if (t.kind == "clause") == (span.kind == "clause")]
        new = (span.start, span.end) not in {(t.start, t.end) for t in taken}
        if new and all(span.end <= other.start or span.start >= other.end for other in rivals):
            taken.append(span)
    return sorted(taken)


def _all_spans(sentence: str) -> Iterator[AnswerSpan]:
    for match in _DATE.finditer(sentence):
        yield AnswerSpan(*match.span(), "date")
    for match in _NUMBER.finditer(sentence):
        yield AnswerSpan(match.start(), _without_trailing_function_word(match), "number")
    for match in _NAME.finditer(sentence):
        start, end = match.span()
        first = match.group().split()[0]
        if first.lower() in _FUNCTION_WORDS:  # "The Brellow engine": the article is no name
            start += len(first) + 1
        if start < end and not (match.start() == 0 and " " not in sentence[start:end]):
            yield AnswerSpan(start, end, "name")
    for match in _CLAUSE.finditer(sentence):
        yield AnswerSpan(match.start(1), match.start(1) + len(match.group(1).rstrip()), "clause")
    yield from _phrases(sentence)


def _without_trailing_function_word(match: re.Match[str]) -> int:
    """The end of a number's match, without a unit that is none ("12 in")."""
    text = match.group()
    last = text.split(" ")[-1]
    if " " in text and last.lower() in _FUNCTION_WORDS:
        return match.end() - len(last) - 1
    return match.end()


def _phrases(sentence: str) -> Iterator[AnswerSpan]:
    """Runs of one to four content words that follow an article, preposition or conjunction."""
    words = list(_WORD.finditer(sentence))
    index = 1
    while index < len(words):
        run = index
        while run < len(words) and _continues(sentence, words, run, index):
            run += 1
        before = words[index - 1].group().lower()
        if run > index and run - index <= 4 and before in _BEFORE_A_NOUN:
            yield AnswerSpan(words[index].start(), words[run - 1].end(), "phrase")
        index = max(run, index + 1)


def _continues(sentence: str, words: list[re.Match[str]], at: int, first: int) -> bool:
    word = words[at].group()
    if word.lower() in _FUNCTION_WORDS:
        return False
    gap = sentence[words[at - 1].end() : words[at].start()]
    return at == first or gap == " "
