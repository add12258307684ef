"""Signals of how good a training text is, each a small pure function.

Takes a text and, where it needs one, the passage it was written from; gives a number or a set of
words. What is good enough is decided in `aios.core.seal.quality`.

Sources: the repetition shares follow the filters of MassiveText (Rae et al. 2021, arXiv
2112.11446, table A1); word shingles and their Jaccard similarity are Broder's (1997). Grounding,
that is, whether names and numbers of a text occur in its source, is the entity-precision idea of
Nan et al. 2021 (arXiv 2102.09130), done without a tagger: a name is a capitalised word that does
not begin a sentence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import NamedTuple

from aios.core.seal.completion_text import normalise
from aios.core.seal.parsing import QAPair

_QA_ITEM = re.compile(r"Question:[ \t]*(.*?)\s*(?:\nAnswer:[ \t]*(.*))?", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{6,}", re.IGNORECASE)
# Thai, Lao, Burmese, Khmer, Japanese, Chinese, Korean.
_UNSPACED_SCRIPT = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
_STARTS_SENTENCE = re.compile(
    r"(?:\A|[.!?:;\u2026\n\"\u201c(\[\u2013\u2014]|\s-)\s*[\"'\u201c\u2018(\[]*\Z"
)
_TASK = re.compile(
    r"\b(?:(?:this|the|these|given|original|above|following|final|each|short|provided)\s+"
    r"(?:passages?|paragraphs?|sentences?)(?!\s+of\b)|re-?wr(?:it\w+|ote)|re-?word(?:s|ed|ing)"
    r"|re-?phras(?:e|ed|es|ing)|paraphras(?:e|ed|es|ing)|this\s+question|your\s+reply"
    r"|the\s+(?:model|assistant)'s\s+answer|as\s+an\s+ai)\b",
    re.IGNORECASE,
)
_TITLE_BEFORE_COLON = re.compile(r"\A[^.!?:\n]{1,60}:")

_NUMBER_WORDS_IN_ORDER = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
_NUMBER_WORDS = {word: str(n) for n, word in enumerate(_NUMBER_WORDS_IN_ORDER.split())}
_VAGUE_NUMBER_WORDS = ("one", "two")  # mostly a pronoun, and "the two countries"
# Capitalised by habit and never a name by themselves.
_NO_NAME_WORDS = """
a an and as at but by for from he her him his i i'd i'll i'm i've if in is it its my no not of on or
our she so that the their there these they this those to true false was we were what when where
which who whom whose why how with yes you your
"""
_NO_NAMES = frozenset(_NO_NAME_WORDS.split())


class Grounding(NamedTuple):
    """How much of what is specific in a text its source bears out.

    Attributes:
        share: Share of names and numbers that the source holds, in [0, 1]; 1 without any.
        missing: Those that it does not hold, in order.
    """

    share: float
    missing: tuple[str, ...]


class Source(NamedTuple):
    """A passage with its title, prepared for comparison.

    Attributes:
        words: Its words, normalised.
        length: How many words the passage has, without the title.
        numbers: Its numbers, as `grounding` compares them.
        initials: First letters of its capitalised words, in order.
        shingles: Its runs of three words.
    """

    words: frozenset[str]
    length: int
    numbers: frozenset[str]
    initials: str
    shingles: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, title: str, text: str) -> Source:
        """Prepares a passage."""
        whole = f"{title}\n{text}"
        return cls(
            words=frozenset(normalise(whole).split()),
            length=len(text.split()),
            numbers=frozenset(numbers(whole)),
            initials="".join(word[0] for word in _WORD.findall(whole) if word[0].isupper()),
            shingles=shingles(whole),
        )


def qa_parts(item: str) -> QAPair | None:
    """Question and answer of an item in question-answer form; None for any other text."""
    match = _QA_ITEM.fullmatch(item)
    return QAPair(match.group(1).strip(), (match.group(2) or "").strip()) if match else None


def content(item: str) -> str:
    """The text of an item without the labels of a question-answer pair."""
    pair = qa_parts(item)
    return item if pair is None else f"{pair.question}\n{pair.answer}"


def shingles(text: str, size: int = 3) -> frozenset[tuple[str, ...]]:
    """Runs of `size` words (normalised); a shorter text is one run."""
    words = normalise(text).split()
    if not words:
        return frozenset()
    return frozenset(
        tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))
    )


def item_shingles(item: str) -> frozenset[tuple[str, ...]]:
    """Shingles of an item; those of a question carry its answer.

    So pairs with different answers have none in common: blanks in two places of one long
    sentence share nearly all their words, and ask for different things.
    """
    pair = qa_parts(item)
    if pair is None:
        return shingles(item)
    answer = normalise(pair.answer)
    return frozenset((answer, *gram) for gram in shingles(pair.question))


def jaccard(left: AbstractSet[tuple[str, ...]], right: AbstractSet[tuple[str, ...]]) -> float:
    """Size of the intersection over size of the union, in [0, 1]; 0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def containment(part: AbstractSet[tuple[str, ...]], whole: AbstractSet[tuple[str, ...]]) -> float:
    """Share of `part` that `whole` holds, in [0, 1]; 0 for an empty part."""
    return len(part & whole) / len(part) if part else 0.0


def repeated_share(text: str, size: int = 3) -> float:
    """Share of the word n-grams that occurred before in the text, in [0, 1)."""
    words = normalise(text).split()
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_loop(text: str, longest_period: int = 8) -> int:
    """Most times that a word, or a run of up to `longest_period` words, comes in a row."""
    words = normalise(text).split()
    most = 1 if words else 0
    for period in range(1, longest_period + 1):
        run = 0
        for index in range(period, len(words)):
            run = run + 1 if words[index] == words[index - period] else 0
            most = max(most, run // period + 1)
    return most


def character_entropy(text: str) -> float:
    """Shannon entropy of the characters in bits per character; 0 for an empty text."""
    counts = Counter(text.casefold())
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def non_word_share(text: str, known: AbstractSet[str] = frozenset()) -> float:
    """Share of the whitespace-separated tokens that are no words, in [0, 1].

    A token is a word if letters or digits make up half of it or more, it is at most 30 characters
    of Latin script long, and no Latin part of it is an unpronounceable run. Tokens in `known`
    (normalised words of the passage, say) always are. Blanks such as ``____`` do not count.
    """
    tokens = [token for token in text.split() if token.strip("_.,;:?!")]
    if not tokens:
        return 0.0
    return sum(not _is_word(token, known) for token in tokens) / len(tokens)


_normal_word = lru_cache(maxsize=1 << 13)(normalise)  # of words: most come again and again


def _is_word(token: str, known: AbstractSet[str]) -> bool:
    plain = _normal_word(token) if len(token) <= 40 else normalise(token)
    if plain in known:
        return True
    if sum(character.isalnum() for character in token) * 2 < len(token):
        return False
    return all(
        len(run) <= 30 and (run.isupper() or not _CONSONANTS.search(run))
        for run in _LATIN.findall(token)
    )


def is_fragment(text: str) -> bool:
    """Whether a text has fewer than four words: a heading, a name, or the rest of a list."""
    return not _UNSPACED_SCRIPT.search(text) and len(normalise(text).split()) < 4


def speaks_of_task(text: str, source: Source) -> str:
    """What in a text speaks of the task or of the passage as a text; empty without such.

    Such a text (``This passage describes …``, ``I have reworded the sentences``) says nothing
    once it stands alone. Words that the source has too do not count: it may be about books.
    """
    for match in _TASK.finditer(text):
        last = normalise(match.group()).split()[-1].removesuffix("s")
        if source.words.isdisjoint((last, f"{last}s")):
            return match.group()
    return ""


def topic_overlap(item: str, source: Source) -> float:
    """Share of the content words of an item that its source has too (endings aside), in [0, 1].

    Content words have five letters or more, in a script that puts spaces between words. 1 for an
    item with fewer than three of them, of which too little can be said.
    """
    words = [
        word
        for word in normalise(content(item)).split()
        if len(word) >= 5 and not _UNSPACED_SCRIPT.search(word)
    ]
    if len(words) < 3:
        return 1.0
    return sum(_has_word(source, word) for word in words) / len(words)


def grounding(item: str, source: Source) -> Grounding:
    """Checks the names and numbers of an item against its source.

    A word of the source bears out a name that begins like it (``Mongols`` for ``Mongol``), and
    so do the initials of a run of its names. Numbers may be written as words, up to twenty.
    """
    pair = qa_parts(item)
    if pair is None:
        specifics = [*_names(item), *numbers(item, strict=True)]
    else:
        specifics = [*_names(pair.question), *numbers(pair.question, strict=True)]
        specifics += [*_names(pair.answer, is_answer=True), *numbers(pair.answer, strict=True)]
    missing = tuple(word for word in specifics if not _bears_out(source, word))
    return Grounding(1 - len(missing) / len(specifics) if specifics else 1.0, missing)


def _bears_out(source: Source, specific: str) -> bool:
    if specific[0].isdigit():
        return specific in source.numbers
    if 2 <= len(specific) <= 6 and specific.isupper() and specific in source.initials:
        return True
    parts = [part for part in specific.split("-") if part[:1].isupper()]
    return all(_has_word(source, normalise(part)) for part in parts)


def _has_word(source: Source, word: str) -> bool:
    if word in source.words or word in _NO_NAMES:
        return True
    stem = word[: max(4, len(word) - 3)]
    return len(word) >= 4 and any(
        known.startswith(stem) and abs(len(known) - len(word)) <= 4 for known in source.words
    )


def _names(text: str, *, is_answer: bool = False) -> list[str]:
    """Capitalised words that neither begin a sentence nor stand in a heading before a colon.

    The first word of a short answer (up to three words) is a name too: it begins no sentence.
    """
    heading = _TITLE_BEFORE_COLON.match(text)
    start = heading.end() if heading and len(heading.group().split()) <= 6 else 0
    is_fragment = is_answer and len(text.split()) <= 3
    names = []
    for match in _WORD.finditer(text, start):
        word = re.sub(r"['\u2019]s\Z", "", match.group())
        if len(word) < 2 or not word[0].isupper() or word.casefold() in _NO_NAMES:
            continue
        begins = _STARTS_SENTENCE.search(text, max(0, match.start() - 8), match.start())
        if begins and not (is_fragment and match.start() == 0):
            continue
        names.append(word)
    return names


def numbers(text: str, *, strict: bool = False) -> list[str]:
    """Numbers in a text: without thousands separators, and number words up to twenty as digits.

    Number words that are seldom meant as a number do not count with `strict`.
    """
    digits = [_plain_number(found) for found in _NUMBER.findall(text)]
    words = [word for word in normalise(text).split() if word in _NUMBER_WORDS]
    return digits + [
        _NUMBER_WORDS[word] for word in words if not (strict and word in _VAGUE_NUMBER_WORDS)
    ]


def _plain_number(number: str) -> str:
    return re.sub(r",(?=\d{3}(?!\d))", "", number)
