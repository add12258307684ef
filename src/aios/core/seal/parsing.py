"""Reads the items out of completions: lists, rewrites, question-answer pairs.

Takes the raw text that a model wrote, and why it ended where known; gives the training texts in
it. Small models answer untidily: a preamble before the list, bold labels, a code fence, a last
line cut in the middle, a question without an answer, the same line over and over. Every function
here is pure and accepts any text at all.

Deviation: SEAL (arXiv 2506.10943) trains on the completion split at its newlines, numbers,
preamble and unfinished last line included. We train on what the lines say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from aios.core.seal.completion_text import (
    LIST_MARKER,
    clean_completion,
    clean_item,
    drop_unfinished_tail,
    is_finished,
    normalise,
    trim_to_sentence,
)
from aios.core.types import FinishReason

_INLINE_NUMBER = re.compile(r"(?<=[.!?;])\s+(?=\(?\d{1,2}[.)]\s+\S)")
_HEADING = re.compile(r"#{1,6}\s*(.*)")
_RULE = re.compile(r"[\W_]*")
_BARE_NUMBER = re.compile(r"\(?\d{1,3}[.)\]:]")
_PLACEHOLDER_TEXT = re.compile(r"\[[^\[\]]*\]|<[^<>]*>|\{[^{}]*\}")

_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|great|here(?:'s|\u2019s| is| are)"
    r"|below (?:is|are)|the following|as an ai|i(?:'ll|\u2019ll| will| have| can|'ve|\u2019ve) )\b",
    re.IGNORECASE,
)
_PREAMBLE_OBJECT = re.compile(
    r"\b(?:implications?|list|passages?|rewrit\w+|versions?|questions?|answers?|text|help|points?"
    r"|paraphras\w+|statements?)\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:i hope (?:this|these|that|it)|(?:please )?let me know|feel free to|would you like"
    r"|is there anything else|(?:please )?note that (?:this|these|the) (?:list|questions?|answers?"
    r"|rewrit|implications?)|you are an ai assistant)",
    re.IGNORECASE,
)

# A completion model may go on with another prompt about a passage that it makes up.
_NEXT_PASSAGE = re.compile(r"(?<=\n)[ \t#]*Passage:[ \t]*(?:\n|\Z)", re.IGNORECASE)
_SECTION_HEADING = re.compile(
    r"""^[ \t#*_\-]*(?:
        (?P<listed>(?:(?:the|final|list\ of|possible|direct|indirect)\s+){0,3}implications?\b
            [^:\n]{0,40}:[ \t*_]*)
      | (?:reasoning|thinking|thoughts?|analysis|chain\ of\ thought)\b[^:\n]{0,40}:
      | (?:let['\u2019]s|let\ us|let\ me)\ think
    )""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_STEP = re.compile(r"(?:\w+\s+)?step\b\s*\#?\d*\s*[:.,-]", re.IGNORECASE)

_REWRITE_LABEL = re.compile(
    r"[(\[]?(?:(?:(?:the|first|second|third|fourth|fifth|possible|alternative)\s+){0,2}"
    r"(?:rewrit\w+|paraphras\w+|versions?|variations?|alternatives?|options?|passages?)"
    r"(?:\s+(?:passages?|versions?|texts?|paragraphs?|of the passage))?)"
    r"\s*\#?\s*(?P<number>\d{1,2}|one|two|three|four|five|[A-E])?[)\]]?\s*(?::|\.(?!\w)|$)\s*",
    re.IGNORECASE,
)

_Q_LABEL = re.compile(
    r"(?:question\s*\#?\s*\d*\s*(?:[:.)]|-\s|$)|q\s*\d*\s*:|q\s*\d+\s*[.)])\s*", re.IGNORECASE
)
_A_LABEL = re.compile(
    r"(?:(?:short |correct |full |possible )?answers?\s*\#?\s*\d*\s*(?:[:)]|-\s|\.(?=\s|$)|$)"
    r"|ans\s*\d*\s*[:.]|a\s*\d*\s*:|a\s*\d+\s*[.)])\s*",
    re.IGNORECASE,
)
_INLINE_LABEL = re.compile(
    r"(?<=\S)[ \t]+(?=(?:Question|QUESTION|Answer|ANSWER)\s*\#?\d*\s*:|[QA]\d{0,2}:\s)"
)
_QUESTION_THEN_ANSWER = re.compile(r"([^?\n]{3,}\?)[\"'”\u2019)]*\s+(\S.*)")


class QAPair(NamedTuple):
    """A question and its answer, either of which may be empty where the model left it out."""

    question: str
    answer: str


def format_qa(question: str, answer: str) -> str:
    """The one form in which question-answer pairs are trained on."""
    return f"Question: {question}\nAnswer: {answer}"


def parse_list(
    completion: str, finish_reason: FinishReason | None = None, *, marked_only: bool = False
) -> list[str]:
    """Items of a list, in order: numbered, with bullets, or bare lines.

    Where most lines carry a marker, a line without one goes on with the item above it if that
    one is not finished, and is a remark otherwise.

    Args:
        completion: What the model wrote.
        finish_reason: Why it ended, where known.
        marked_only: Whether bare lines never count as items.
    """
    items: list[str] = []
    bare: list[str] = []
    is_open = False
    for line in _content_lines(completion):
        if _has_marker(line):
            items.append(clean_item(line))
            is_open = not is_finished(items[-1])
        elif is_open:
            items[-1] = f"{items[-1]} {line}"
            is_open = not is_finished(line)
        else:
            bare.append(line)
    if not marked_only and len(bare) > len(items):
        items = [clean_item(line) for line in _content_lines(completion)]
    items = drop_unfinished_tail([item for item in items if _says_something(item)], finish_reason)
    return _unique(items)


def parse_reasoned_list(completion: str, finish_reason: FinishReason | None = None) -> list[str]:
    """Items of a list that comes after reasoning; the reasoning is left out.

    The items stand under headings such as ``Implications:``, up to the next ``Reasoning:``.
    Without such a heading only marked lines are taken that do not call themselves steps, and
    nothing at all where a heading says that what follows is reasoning.
    """
    text = clean_completion(completion)
    headings = list(_SECTION_HEADING.finditer(text))
    if not headings:
        lines = [line for line in text.split("\n") if not _STEP.match(clean_item(line))]
        return parse_list("\n".join(lines), finish_reason, marked_only=True)
    items: list[str] = []
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        if heading.group("listed"):
            was_cut = end == len(text)
            items += parse_list(text[heading.end() : end], finish_reason if was_cut else "stop")
    return _unique(items)


def parse_rewrites(completion: str, finish_reason: FinishReason | None = None) -> list[str]:
    """Rewrites of a passage, each on one line, in order.

    Each line is one, but where a label (``Rewrite 2:``), a list marker or a rule (``---``)
    begins one: that takes in the lines that follow it.
    """
    groups: list[list[str]] = []
    is_open, through_blanks = False, False
    for line in (line.strip() for line in clean_completion(completion).split("\n")):
        item = clean_item(line)
        label = _REWRITE_LABEL.match(item)
        text = item[label.end() :].strip() if label else item
        is_rule = len(line) >= 3 and _RULE.fullmatch(line) is not None
        if is_rule or (label and label.group("number")) or _has_marker(line):
            groups.append([])
            is_open, through_blanks = True, not _says_something(text)
        elif label or not line or _is_remark(item):
            is_open = is_open and through_blanks and not label
        if not _says_something(text) or _is_remark(text):
            continue
        if not is_open:
            groups.append([])
        groups[-1].append(text)
    rewrites = [clean_item(" ".join(group)) for group in groups]
    rewrites = [rewrite for rewrite in rewrites if len(rewrite.split()) >= 4]
    if rewrites and finish_reason != "stop":
        rewrites[-1] = trim_to_sentence(rewrites[-1])
    return _unique(drop_unfinished_tail(rewrites, finish_reason))


def parse_qa(completion: str, finish_reason: FinishReason | None = None) -> list[QAPair]:
    """Question-answer pairs, in order; a pair may lack one side.

    Pairs are labelled (``Question 1:``, ``Q:``, ``A2.``), or a question is a line that ends in a
    question mark and what follows is its answer.
    """
    pairs: list[QAPair] = []
    question, answer = "", ""
    side = ""  # which part the last line belonged to: "question", "answer" or nothing
    for line, kind in _qa_lines(completion):
        if kind == "question":
            pairs.append(QAPair(question, answer))
            question, answer, side = line, "", "question"
        elif kind == "answer":
            # A second answer to the same question is left out.
            side = "" if answer else "answer"
            answer = answer or line
        elif kind == "break":
            # What stands after a blank line is a remark, but for a list that was announced.
            side = "" if side == "answer" and not answer.endswith((":", ",", ";")) else side
        elif side == "question" and not question.endswith("?"):
            question = f"{question} {line}".strip()
        elif side in ("question", "answer"):
            answer, side = f"{answer} {line}".strip(), "answer"
        else:
            # The prompt may have ended in "Question 1:", so that the first one has no label.
            question = question or line
    pairs.append(QAPair(question, answer))
    tidy = (_tidy_pair(pair) for pair in pairs)
    found = list(dict.fromkeys(pair for pair in tidy if pair.question or pair.answer))
    if len(found) > 1 and not found[-1].answer:
        found = found[:-1]
    finished = drop_unfinished_tail([pair.answer for pair in found], finish_reason)
    return found[: len(finished)]


def _content_lines(completion: str) -> list[str]:
    """Lines that may be items: no blank lines, rules, headings, preambles or closing remarks."""
    lines = []
    for raw in _before_next_passage(clean_completion(completion)).split("\n"):
        for line in _INLINE_NUMBER.split(raw.strip()) if LIST_MARKER.match(raw.strip()) else [raw]:
            text = line.strip()
            heading = _HEADING.fullmatch(text)
            if heading:
                text = heading.group(1).strip()
            if (heading and not is_finished(text)) or _RULE.fullmatch(text) or _is_remark(text):
                continue
            lines.append(text)
    return lines


def _before_next_passage(text: str) -> str:
    return _NEXT_PASSAGE.split(text, maxsplit=1)[0]


def _is_remark(line: str) -> bool:
    """Whether a line speaks about the answer instead of being part of it."""
    if _CLOSING.match(line):
        return True
    if line.endswith(":") and not LIST_MARKER.match(line):
        return True
    preamble = _PREAMBLE.match(line)
    if preamble is None or len(line.split()) > 25:
        return False
    return bool(_PREAMBLE_OBJECT.search(line)) or line[preamble.end() :].strip(" ,.!") == ""


def _says_something(item: str) -> bool:
    """Whether an item has at least two words, and is no placeholder or bare heading."""
    words = re.findall(r"[^\W_]+", item)
    return len(words) >= 2 and not item.endswith(":") and not _PLACEHOLDER_TEXT.fullmatch(item)


def _has_marker(line: str) -> bool:
    marker = LIST_MARKER.match(line)
    return marker is not None and marker.end() < len(line)


def _qa_lines(completion: str) -> Iterable[tuple[str, str]]:
    """Lines with what they are: ``question``, ``answer``, ``text`` (goes on) or ``break``."""
    text = _INLINE_LABEL.sub("\n", _before_next_passage(clean_completion(completion)))
    lines = [_HEADING.sub(r"\1", line.strip()) for line in text.split("\n")]
    labelled = any(_label_of(line)[1] == "question" for line in lines)
    for line in lines:
        content, kind = _label_of(line)
        if kind != "text":
            yield content, kind
            continue
        if not line:
            yield "", "break"
        if _RULE.fullmatch(line) or _BARE_NUMBER.fullmatch(line) or _is_remark(line):
            continue
        item = clean_item(line)
        is_marked = item != " ".join(line.split())
        if item.endswith("?") and (is_marked or not labelled):
            yield item, "question"
        elif not labelled and (both := _QUESTION_THEN_ANSWER.fullmatch(item)):
            yield both.group(1), "question"
            yield both.group(2), "answer"
        else:
            yield item, "text"


def _label_of(line: str) -> tuple[str, str]:
    """A line without its label, and what the label says it is."""
    item = clean_item(line)
    for label, kind in ((_Q_LABEL, "question"), (_A_LABEL, "answer")):
        match = label.match(item)
        if match:
            return clean_item(item[match.end() :]), kind
    return line, "text"


def _tidy_pair(pair: QAPair) -> QAPair:
    """Empties placeholders, and takes repeated questions and answers out of the answer."""
    question, answer = (
        "" if _PLACEHOLDER_TEXT.fullmatch(part) or not normalise(part) else part.strip()
        for part in pair
    )
    if question and answer.startswith(question):
        answer = answer[len(question) :].strip()
    again = _A_LABEL.match(answer)
    if again and again.end() < len(answer):
        answer = answer[again.end() :].strip()
    words = answer.split()
    half = len(words) // 2
    if (
        half
        and len(words) % 2 == 0
        and normalise(" ".join(words[:half])) == normalise(" ".join(words[half:]))
    ):
        answer = " ".join(words[:half])
    return QAPair(question, answer)


def _unique(items: Iterable[str]) -> list[str]:
    """Items without repeats (case and punctuation aside), the first of each kept."""
    first: dict[str, str] = {}
    for item in items:
        first.setdefault(normalise(item), item)
    return list(first.values())
