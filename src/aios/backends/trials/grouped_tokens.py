"""How the sequences of several adapters share one row of tokens.

Tokens of all sequences stand in one row ``[1, N]`` without padding, sorted by group (one group an
adapter), each sequence with positions from 0. Two parts of a forward pass need another view of
the row, and each has an index for it:

* the adapters' products want all tokens of a group as one matrix: a *grid* ``[G, n, ·]``, n the
  tokens of the largest group;
* attention wants the tokens of a sequence: *buckets* ``[S, T, ·]`` of sequences of similar
  lengths. Padding stands at the right, where causal attention keeps real tokens from seeing it.

Padding of either sort carries no loss, and is in no other product. It repeats a token of its own
group, so that a group whose numbers have become NaN spoils no other (0 × NaN is NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aios.backends.encoding import IGNORED, Encoded

_SLACK = 1.5  # a sequence shares a bucket with those up to so many times as long


@dataclass(frozen=True, slots=True)
class Padded:
    """A padded view of a row of N tokens, with M ≥ N places.

    Attributes:
        index: ``[M]`` the token in each place; in padding, one of the same line.
        inverse: ``[N]`` the place of each token.
        padding: ``[M - N]`` places that are padding.
    """

    index: Tensor
    inverse: Tensor
    padding: Tensor

    @classmethod
    def of(cls, places: Sequence[int], tokens: int, device: torch.device) -> Padded | None:
        """The view with these tokens in these places; None if it is the row itself.

        Padding with token i is written ~i.
        """
        if list(places) == list(range(tokens)):
            return None
        given = torch.tensor(places)
        real = given >= 0
        index = torch.where(real, given, ~given)
        inverse = torch.empty(tokens, dtype=torch.long)
        inverse[index[real]] = torch.nonzero(real).squeeze(1)
        padding = torch.nonzero(~real).squeeze(1)
        return cls(index.to(device), inverse.to(device), padding.to(device))


@dataclass(frozen=True, slots=True)
class GroupedTokens:
    """Sequences of G groups as one row of N tokens, L of which are to be predicted.

    Attributes:
        ids: ``[1, N]``.
        positions: ``[1, N]``, from 0 in each sequence.
        predicting: ``[L]`` indices of the tokens whose successor carries a label.
        targets: ``[L]`` those successors.
        owner: ``[L]`` which sequence (in the order given) each of them belongs to.
        groups: G.
        grid: The view ``[G, n]`` of the adapters; None where all groups have n tokens.
        buckets: Shapes ``(S, T)`` of attention's buckets, one after the other.
        unpacked: The view of the buckets; None where it is the row itself.
    """

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    owner: Tensor
    groups: int
    grid: Padded | None
    buckets: tuple[tuple[int, int], ...]
    unpacked: Padded | None

    @classmethod
    def of(
        cls,
        groups: Sequence[Sequence[Encoded]],
        device: torch.device,
        *,
        slack: float = _SLACK,
    ) -> GroupedTokens:
        """Lays out the sequences of each group.

        Args:
            groups: For each group its sequences; none may be empty.
            device: Where the tensors go.
            slack: How much longer than another a sequence in its bucket may be, at most.
        """
        sequences = [sequence for group in groups for sequence in group]
        lengths = [len(sequence.ids) for sequence in sequences]
        tokens = sum(lengths)
        labels = torch.tensor([label for s in sequences for label in s.labels])
        carries = torch.nonzero(labels != IGNORED).squeeze(1)
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        buckets, places = _buckets(lengths, starts, slack)
        return cls(
            ids=torch.tensor([[i for s in sequences for i in s.ids]], device=device),
            positions=torch.cat([torch.arange(n) for n in lengths])[None].to(device),
            predicting=(carries - 1).to(device),
            targets=labels[carries].to(device),
            owner=owner[carries].to(device),
            groups=len(groups),
            grid=Padded.of(_grid([sum(len(s.ids) for s in g) for g in groups]), tokens, device),
            buckets=buckets,
            unpacked=Padded.of(places, tokens, device),
        )

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.ids.shape[1])


def _grid(sizes: Sequence[int]) -> list[int]:
    """Places of a grid with one row a group, as long as the largest."""
    places: list[int] = []
    start = 0
    for size in sizes:
        places += [*range(start, start + size), *[~start] * (max(sizes) - size)]
        start += size
    return places


def _buckets(
    lengths: Sequence[int], starts: Sequence[int], slack: float
) -> tuple[tuple[tuple[int, int], ...], list[int]]:
    """Shapes of the buckets, longest first, and the token in each of their places.

    Sequences keep their order where all of them fit one bucket, so that nothing has to be moved.
    """
    order: Sequence[int] = range(len(lengths))
    if max(lengths) > slack * min(lengths):
        order = sorted(order, key=lambda i: -lengths[i])
    shapes: list[tuple[int, int]] = []
    places: list[int] = []
    first = 0
    while first < len(order):
        longest = max(lengths[order[first]], 0 if first else max(lengths))
        last = first
        while last < len(order) and lengths[order[last]] * slack >= longest:
            i = order[last]
            places += range(starts[i], starts[i] + lengths[i])
            places += [~starts[i]] * (longest - lengths[i])
            last += 1
        shapes.append((last - first, longest))
        first = last
    return tuple(shapes), places
