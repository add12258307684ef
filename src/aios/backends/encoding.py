"""From texts to token rows: which tokens carry loss, and how examples share a row.

Examples are packed: several stand in one row of tokens, each with positions from 0 and seeing
only itself, so that no compute goes to padding and none can carry loss. A token carries loss if
any of its characters lies in a loss span; the first token of an example never does, since
nothing stands before it to predict it from.

No special token is added but the one that the tokenizer puts at the beginning, and that only
where the text (as chat templates do) does not begin with it already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aios.core.errors import BackendError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text.

    Attributes:
        ids: Its tokens.
        labels: For each token itself, or −100 where it carries no loss; same length.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def label_count(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class Row:
    """Packed examples as tensors; T tokens.

    Attributes:
        ids: ``[1, T]``.
        positions: ``[1, T]``, counted from 0 in each example, which keeps them apart.
        predicting: ``[L]`` indices of the tokens whose successor carries loss.
        targets: ``[L]`` those successors.
        owner: ``[L]`` which example of the row each of them belongs to.
    """

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    owner: Tensor


def encode(tokenizer: Any, text: str, loss_spans: Sequence[tuple[int, int]]) -> Encoded:
    """Tokenises a text and marks the tokens that carry loss.

    Args:
        tokenizer: A fast transformers tokenizer (offsets are needed).
        text: The whole text.
        loss_spans: Half-open character ranges.

    Raises:
        BackendError: The text holds characters that cannot be encoded.
    """
    ids, offsets = _tokens(tokenizer, text)
    labels = [IGNORED] * len(ids)
    reached = 0
    for i, (start, end) in enumerate(offsets):
        begin = min(start, reached)  # tokenizers leave white space before a word out of its range
        reached = max(reached, end)
        if i and any(max(begin, first) < min(end, stop) for first, stop in loss_spans):
            labels[i] = ids[i]
    return Encoded(tuple(ids), tuple(labels))


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Tokenises a text that the model is to go on with.

    Raises:
        BackendError: As `encode`.
    """
    return _tokens(tokenizer, text)[0]


def encode_with_room(
    tokenizer: Any, text: str, context_length: int, what: str = "the prompt"
) -> list[int]:
    """Tokenises a text that leaves room for a token after it.

    Args:
        tokenizer: A fast transformers tokenizer.
        text: The whole text.
        context_length: Most tokens of prompt and completion together.
        what: What the text is called in messages.

    Raises:
        BackendError: It is empty or leaves no room in the context, or as `encode`.
    """
    tokens = encode_prompt(tokenizer, text)
    if not tokens:
        raise BackendError(f"{what} is empty", "give the model a text to go on with")
    if len(tokens) >= context_length:
        raise BackendError(
            f"{what} has {len(tokens)} tokens; the context holds {context_length}",
            "split the passage (data.max_passage_tokens) or use a model with a longer context",
        )
    return tokens


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text with their character ranges, the beginning token included."""
    try:
        batch = tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=False, verbose=False
        )
    except (TypeError, UnicodeError) as error:
        raise BackendError(
            f"a text cannot be tokenised: {text[:40]!r}: {error}",
            "remove lone surrogates (half characters) from it",
        ) from error
    ids, offsets = list(batch["input_ids"]), list(batch["offset_mapping"])
    opening = tokenizer("", add_special_tokens=True, verbose=False)["input_ids"][:1]
    if opening and opening[0] == tokenizer.bos_token_id and ids[:1] != opening:
        return [*opening, *ids], [(0, 0), *offsets]
    return ids, offsets


def pack(examples: Sequence[Encoded], device: torch.device) -> Row:
    """Puts examples side by side into one row."""
    lengths = [len(e.ids) for e in examples]
    block = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(lengths))
    labels = torch.tensor([label for e in examples for label in e.labels])
    carries = torch.nonzero(labels != IGNORED).squeeze(1)
    return Row(
        ids=torch.tensor([[i for e in examples for i in e.ids]], device=device),
        positions=torch.cat([torch.arange(n) for n in lengths])[None].to(device),
        predicting=(carries - 1).to(device),
        targets=labels[carries].to(device),
        owner=block[carries].to(device),
    )


def fill_rows(lengths: Iterable[int], row_tokens: int) -> Iterator[list[int]]:
    """Groups consecutive examples into rows of at most `row_tokens` tokens.

    An example longer than that has a row of its own.

    Yields:
        Lists of indices into `lengths`, in order.
    """
    row: list[int] = []
    filled = 0
    for index, length in enumerate(lengths):
        if row and filled + length > row_tokens:
            yield row
            row, filled = [], 0
        row.append(index)
        filled += length
    if row:
        yield row
