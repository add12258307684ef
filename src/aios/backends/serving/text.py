"""From tokens to text as they come: whole characters, and nothing that may be a stop text.

Takes a completion's tokens one by one and gives the text that is certain by then. A token may
hold a part of a character, and its text may depend on the token before it (leading spaces), so
the newest tokens are decoded together with those of the last certain text, and the difference is
new. All that is given, put together, is the text of all tokens decoded at once, cut at the first
stop text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_PARTIAL = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class TextStream:
    """The text of one completion.

    Args:
        tokenizer: The model's tokenizer.
        stop: Texts at which it ends; they are cut off.

    Attributes:
        stopped: Whether a stop text has been found.
        known: Characters of the text so far, what is held back included.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._tokens: list[int] = []
        self._from = 0  # the tokens from here are decoded together
        self._certain = 0  # the text of those up to here has been taken
        self._held = ""  # text that may be the beginning of a stop text
        self.stopped = False
        self.known = 0

    def add(self, token: int) -> str:
        """Adds a token; gives the text that has become certain."""
        self._tokens.append(token)
        new = self._new_text()
        if not new or new.endswith(_PARTIAL):
            return ""
        self._from, self._certain = self._certain, len(self._tokens)
        return self._take(new)

    def finish(self) -> str:
        """There are no more tokens; gives the rest."""
        if self.stopped:
            return ""
        text = self._take(self._new_text())
        if not self.stopped:
            text, self._held = text + self._held, ""
        self._from = self._certain = len(self._tokens)
        return text

    def _new_text(self) -> str:
        before = self._decode(self._tokens[self._from : self._certain])
        return self._decode(self._tokens[self._from :])[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _take(self, new: str) -> str:
        """What of the held text and the new is certain; ends at a stop text."""
        self.known += len(new)
        text = self._held + new
        cuts = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            self.known -= len(text) - min(cuts)
            self._held = ""
            return text[: min(cuts)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop text begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class TokenBytes:
    """The bytes of single tokens.

    Args:
        tokenizer: A fast transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._added = frozenset(tokenizer.get_added_vocab().values())

    def __call__(self, token: int) -> bytes:
        """A token's bytes; those of a special token are its name's."""
        name: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""  # the model has more logits than the tokenizer has tokens
        if token in self._special or token in self._added:
            return name.encode()
        if self._byte_level:
            return b"".join(_BYTES.get(c, c.encode()) for c in name)
        if found := _BYTE.fullmatch(name):
            return bytes([int(found[1], 16)])
        if _SPACE in name:
            return name.replace(_SPACE, " ").encode()
        text: str = self._tokenizer.decode([token])
        return text.encode()

    @cached_property
    def _byte_level(self) -> bool:
        """Whether the tokenizer writes bytes as letters (GPT-2's way)."""
        decoder = json.loads(self._tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
        return '"ByteLevel"' in json.dumps(decoder)


def _letters_of_bytes() -> dict[str, bytes]:
    """Byte-level tokenizers' letters: printable Latin-1 stands for itself, the rest from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): bytes([byte]) for byte in plain}
    return letters | {chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTES = _letters_of_bytes()
