"""Signals of question-answer pairs: does it ask, what for, does the answer fit its kind?

Takes a pair; gives yes or no. All go by English question words and abstain where
a question has none that they know, so that pairs in other languages and fill-in-the-blank
sentences (``____``) pass. Whether an answer is true is not decided here.
"""

from __future__ import annotations

import re

from aios.core.seal.completion_text import normalise
from aios.core.seal.parsing import QAPair

_BLANK = "__"
_QUESTION_MARK = re.compile(r"[?\uff1f\u061f\u037e]")
# How a question may begin that ends without its mark.
_ASKING_WORDS = """
what which who whom whose when where why how is are was were do does did can could will would
should has have had name list describe explain give state complete identify define
true choose select fill tell
"""
_ASKING = frozenset(_ASKING_WORDS.split())
_INTERROGATIVES = frozenset("what which who whom whose when where why how".split())
# Words that may stand in any question; one that has no other asks for nothing.
_EMPTY_WORDS = """
a an and answer answers are as asked at be been by called can context could did do does done
following for from give given had happen happened has have how in is it its me mean meaning my name
not of on or passage please question questions said say stated tell text that the their them then
there these they thing this those title to us was we were what what's when where which who whom
whose why with would you your
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_MONTHS = """
january february march april may june july august september october november december
"""
_DATE_WORDS = frozenset((*_MONTHS.split(), *"in on the of about around bc ad ce bce".split()))
_YEAR = re.compile(r"1\d{3}|20\d{2}")
_DAY = re.compile(r"\d{1,2}(?:st|nd|rd|th)?")
# What a question has that a date or a year may answer.
_TIME = re.compile(
    r"\b(?:when|how|which|dates?|dated|days?|years?|months?|time|times|century|centuries|decades?"
    r"|season|period|era|age|born|until|since|number|numbers|figure|anniversary|deadline|edition"
    r"|begin\w*|began|start\w*|end(?:ed|s)?|last\w*)\b",
    re.IGNORECASE,
)
_ASKS_FOR_PERSON = re.compile(r"\s*(?:[\w']+\s+)?who(?:m|se)?\b", re.IGNORECASE)


def is_question(question: str) -> bool:
    """Whether a text asks: a question mark, a blank, or a beginning as questions have it."""
    if _QUESTION_MARK.search(question) or _BLANK in question:
        return True
    words = normalise(question).split()
    return bool(words) and (words[0] in _ASKING or not _INTERROGATIVES.isdisjoint(words[:3]))


def asks_for_nothing(question: str) -> bool:
    """Whether a question has no word of its own, as ``What is the answer to this question?``."""
    return _BLANK not in question and set(normalise(question).split()) <= _EMPTY


def answer_in_question(pair: QAPair) -> bool:
    """Whether the question gives the answer away.

    It holds the answer word for word, or, where it offers no choice (``… or …``) and is no blank
    to be filled, all words of the answer but those that any question has.
    """
    question, answer = normalise(pair.question), normalise(pair.answer)
    if not answer:
        return False
    if f" {answer} " in f" {question} ":
        return True
    asked, answered = set(question.split()), set(answer.split()) - _EMPTY
    if _BLANK in pair.question or "or" in asked or not answered:
        return False
    return answered <= asked


def has_wrong_kind(pair: QAPair) -> bool:
    """Whether the answer is a date or a year, and the question asks for a person or for no time."""
    if _BLANK in pair.question or not _is_date(pair.answer):
        return False
    if _ASKS_FOR_PERSON.match(pair.question):
        return True
    words = normalise(pair.question).split()
    return bool(words) and words[0].startswith("what") and not _TIME.search(pair.question)


def _is_date(text: str) -> bool:
    """Whether a text is nothing but a date with a month or a year."""
    words = normalise(text).split()
    dated = [word in _MONTHS.split() or _YEAR.fullmatch(word) is not None for word in words]
    return any(dated) and all(
        is_dated or word in _DATE_WORDS or _DAY.fullmatch(word) is not None
        for word, is_dated in zip(words, dated, strict=True)
    )
