"""Primitives for text that a model wrote: cleaning, list markers, ends of sentences.

Takes raw completions or pieces of them; gives cleaned text. Every function is pure and accepts
any text at all. The parsers are in `aios.core.seal.parsing`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from aios.core.types import FinishReason

_TURN_END = re.compile(r"<\|(?:im_end|endoftext|eot_id|end|end_of_text)\|>|</s>|<eos>")
_SPECIAL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|</?think>|<start_of_turn>"
    r"|<end_of_turn>"
)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_TURN_HEADER = re.compile(
    r"\A(?:<\|im_start\|>|<\|start_header_id\|>)?\s*assistant[ \t]*:?[ \t]*\n"
)
_CODE_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+)(?<=\S)\*(?![\w*])")
_UNDERLINED = re.compile(r"(?<![\w])__(?=[^\s_])([^_\n]+)(?<=[^\s_])__(?![\w])")
_CODE = re.compile(r"`([^`\n]+)`")

LIST_MARKER = re.compile(
    r"""(?:
        \(?\d{1,3}[.)\]:](?:\s+|(?=[^\d\s]))             # 1.  2)  (3)  4:
      | \d{1,3}\s+[-\u2013\u2014]\s+(?=[^\d\s])           # 5 -
      | \(?(?:[a-z]|[ivx]{1,4})\)\s+                      # a)  (b)  iv)
      | [-*+\u2013\u2014]\s+ | [•●▪◦‣·∙➢✓→]\s*           # bullets
      | (?:implication|point|fact|statement)\s*\#?\d+\s*[:.)-]\s*
      | (?:the\s+)?(?:\w+\s+)?implications?\s*:\s*
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_STRAY_MARKS = re.compile(r"\A(?:\*+(?=\w))+|(?<=[\w.!?])\*+\Z")
_ELLIPSIS = re.compile(r"(?:\.{2,}|…)\s*$")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"'”\u2019»)\]]*(?=\s|$)|[\u3002\uff01\uff1f]")


@lru_cache(maxsize=32)  # an item is asked for by one signal after the other
def normalise(text: str) -> str:
    """Words in lower case with single spaces and no punctuation, for comparison."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*|_{2,}", folded))


def clean_completion(text: str) -> str:
    """Removes what is not the answer: later turns, special tokens, thoughts, fences, markup."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    text = _THOUGHT.sub("", _TURN_HEADER.sub("", text.lstrip()))
    turns = [turn for turn in _TURN_END.split(text) if turn.strip()]
    text = turns[0] if turns else ""
    text = strip_special_tokens(text)
    text = _CODE_FENCE.sub("", text)
    return strip_markup(text).strip()


def strip_special_tokens(text: str) -> str:
    """Removes tokenizer control tokens, also those that removing another one brings about."""
    while (shorter := _SPECIAL_TOKEN.sub("", text)) != text:
        text = shorter
    return text


def strip_markup(text: str) -> str:
    """Removes markdown's bold, italic and code marks; blanks such as ``____`` stay."""
    text = re.sub(r"\*{2,}", "", text)
    text = _UNDERLINED.sub(r"\1", text)
    return _CODE.sub(r"\1", _ITALIC.sub(r"\1", text))


def clean_item(text: str) -> str:
    """One line with single spaces, without list markers, stray marks or quotes around it all."""
    text = _STRAY_MARKS.sub("", " ".join(text.split()))
    while (marker := LIST_MARKER.match(text)) and marker.end() < len(text):
        text = text[marker.end() :]
    for opening, closing in (('"', '"'), ("“", "”"), ("«", "»")):
        inner = text[1:-1]
        if len(text) > 2 and text[0] == opening and text[-1] == closing and opening not in inner:
            text = inner
    if text.count('"') == 1:
        text = text.strip('"')
    return text.strip()


def is_finished(text: str) -> bool:
    """Whether a text ends like a sentence; an ellipsis does not count."""
    text = text.rstrip().rstrip("\"'”\u2019»)]")
    return bool(text) and text[-1] in ".!?\u3002\uff01\uff1f" and not _ELLIPSIS.search(text)


def drop_unfinished_tail(
    items: list[str], finish_reason: FinishReason | None, text_of: Callable[[str], str] = str
) -> list[str]:
    """Leaves out the last item where it was cut off, unless it is the only one.

    Args:
        items: The items, in order.
        finish_reason: Why the completion ended. ``stop``: nothing was cut. Any other reason:
            the last item was, unless it ends like a sentence. None (not known): as if cut,
            where most of the other items end like sentences.
        text_of: The part of an item that is looked at.
    """
    if len(items) < 2 or finish_reason == "stop" or is_finished(text_of(items[-1])):
        return items
    others = [is_finished(text_of(item)) for item in items[:-1]]
    cut = finish_reason is not None or sum(others) * 2 > len(others)
    return items[:-1] if cut else items


def trim_to_sentence(text: str) -> str:
    """Cuts off an unfinished last sentence, where a whole one stands before it."""
    if is_finished(text):
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else text
