"""Drawing the next tokens of a batch: temperature and nucleus, each row with its own randomness.

Takes logits and gives tokens with their log-probabilities. A token is drawn from the whole
distribution by inverting its cumulative sum and taken if it lies in the nucleus (Holtzman et al.
2020, arXiv 1904.09751), else drawn again. That is the nucleus' own distribution exactly, without
sorting the vocabulary: at top-p 0.95 one draw in twenty is thrown away.

Sums run over blocks of `_BLOCK` tokens, each row by itself, so a row's token does not depend on
the others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aios.core.errors import NonFiniteError
from aios.core.types import SamplingParams

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """A token, and its natural-log probability at temperature 1 without top-p."""

    token: int
    logprob: float


@dataclass(eq=False, slots=True)
class Dice:
    """The randomness of one completion: the same seed draws the same numbers everywhere."""

    sampling: SamplingParams
    random: random.Random

    @classmethod
    def of(cls, seed: int, sampling: SamplingParams) -> Dice:
        """The dice of a seed."""
        return cls(sampling, random.Random(seed))


class Sampler:
    """Draws tokens; its work space, 12 bytes for each logit, is kept from call to call.

    A batch's logits are large enough for the system to fetch and give back their memory each
    time, which takes longer than all arithmetic on them.
    """

    def __init__(self) -> None:
        self._space: tuple[Tensor, Tensor, Tensor] | None = None

    def draw(self, logits: Tensor, dice: Sequence[Dice]) -> list[Draw]:
        """One token for each of the first ``len(dice)`` rows.

        Args:
            logits: ``[rows, V]``, any float type; further rows are not looked at.
            dice: The rows' randomness and settings.

        Raises:
            NonFiniteError: A row's logits are not finite.
        """
        count = len(dice)
        top = logits.amax(dim=-1, keepdim=True)
        if not bool(torch.isfinite(top[:count]).all()):
            raise NonFiniteError("the model's logits are not finite", "try model.dtype: float32")
        centred, weights, scratch = self._spaces(logits)
        size = logits.shape[1]
        centred[:, :size].copy_(logits).sub_(top.float())
        totals = _block_sums(torch.exp(centred, out=weights))[:, -1].log().float()
        chosen = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        for temperature in sorted({d.sampling.temperature for d in dice}):
            rows = [i for i, d in enumerate(dice) if d.sampling.temperature == temperature]
            if temperature == 0.0:
                chosen[rows] = logits[rows].argmax(dim=-1)
                continue
            torch.exp(torch.div(centred, temperature, out=scratch), out=weights)
            _draw_rows(weights, scratch, rows, dice, chosen)
        logprobs = (centred.gather(1, chosen[:, None])[:, 0] - totals)[:count].tolist()
        return [Draw(t, p) for t, p in zip(chosen[:count].tolist(), logprobs, strict=True)]

    def _spaces(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centred logits, weights and scratch, ``[rows, V + padding]`` float32.

        The padding of the centred logits is −∞.
        """
        rows, size = logits.shape
        wide = size + -size % _BLOCK
        space = self._space
        if space is None or len(space[0]) < rows or space[0].shape[1] != wide:
            empty = logits.new_full((rows, wide), -torch.inf, dtype=torch.float32)
            space = self._space = empty, torch.empty_like(empty), torch.empty_like(empty)
        return space[0][:rows], space[1][:rows], space[2][:rows]


def _block_sums(weights: Tensor) -> Tensor:
    """Cumulative sums over the blocks of each row, ``[rows, blocks]`` float64."""
    blocks = weights.view(len(weights), -1, _BLOCK).sum(dim=-1)
    return blocks.double().cumsum(dim=-1)


def _draw_rows(
    weights: Tensor, scratch: Tensor, rows: Sequence[int], dice: Sequence[Dice], chosen: Tensor
) -> None:
    """Draws a token for each of some rows (of equal temperature), into `chosen`."""
    sums = _block_sums(weights)
    device = weights.device
    waiting = list(rows)
    while waiting:
        at = torch.tensor(waiting, device=device)
        draws = [dice[row].random.random() for row in waiting]
        points = torch.tensor(draws, dtype=torch.float64, device=device)
        tokens = _at_points(weights, sums, at, points)
        chosen[at] = tokens
        above = _mass_above(weights, scratch, at, tokens)
        limits = [dice[row].sampling.top_p for row in waiting]
        allowed = torch.tensor(limits, dtype=torch.float64, device=device) * sums[at, -1]
        again = (above >= allowed).tolist()
        waiting = [row for row, outside in zip(waiting, again, strict=True) if outside]


def _at_points(weights: Tensor, sums: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """The tokens at which the cumulative sums of rows reach shares of their totals."""
    sums = sums[rows]
    target = points * sums[:, -1]
    block = torch.searchsorted(sums, target[:, None], right=True)[:, 0]
    block = block.clamp(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = weights.view(len(weights), -1, _BLOCK)[rows, block].double()
    within = torch.searchsorted(inside.cumsum(-1), (target - before)[:, None], right=True)[:, 0]
    # Rounding may point past a block's last weight: then the last that has any is meant.
    last = _BLOCK - 1 - (inside.flip(-1) > 0).int().argmax(dim=-1)
    return block * _BLOCK + torch.minimum(within, last)


def _mass_above(weights: Tensor, scratch: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Weight of the tokens that are likelier than a row's own, float64."""
    if 2 * len(rows) < len(weights):
        some = weights[rows]
        above = some.where(some > some.gather(1, tokens[:, None]), 0.0)
        return _block_sums(above)[:, -1]
    own = weights.new_full((len(weights), 1), torch.inf)
    own[rows, 0] = weights[rows, tokens]
    above = torch.where(weights > own, weights, weights.new_zeros(()), out=scratch)
    return _block_sums(above)[rows, -1]
