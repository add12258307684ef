"""Linear layers in which each row of a batch has adapters of its own.

Takes, for each row, its mix (`adapters`); gives the model's linear layers a `forward`, for
the time of a block, that adds to each row the updates of its adapters. All rows go through the
base weights in one product. The rows of each adapter are laid side by side, and adapters of equal
rank are multiplied in one batched product (Punica's grouping by adapter, Chen et al. 2023,
arXiv 2310.18547, with padding in place of a kernel of its own).

A row's sums do not depend on the others: an adapter always gets a multiple of `ROWS` rows (see
`decoding`), and a row takes its updates one after the other, by rank and digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aios.backends.decoding import ROWS
from aios.backends.decoding_cache import padded
from aios.backends.serving.adapters import Adapter, Mix
from aios.backends.trials.lora_bank import Site

Update = Callable[[str, Tensor, Tensor], None]


@contextmanager
def adapted(sites: Iterable[Site], update: Update | None) -> Iterator[None]:
    """The layers with an update for the time of a block; must not be nested.

    Args:
        sites: The layers.
        update: Given a layer's name, its inputs ``[…, in]`` and outputs ``[rows, out]``, adds to
            the outputs; None: nothing is changed.
    """
    chosen = [] if update is None else list(sites)
    for site in chosen:
        assert update is not None
        site.module.forward = _forward(site, update)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for site in chosen:
            del site.module.forward  # the class's own is found again


def _forward(site: Site, update: Update) -> Callable[[Tensor], Tensor]:
    ordinary = type(site.module).forward

    def forward(x: Tensor) -> Tensor:
        y: Tensor = ordinary(site.module, x)
        update(site.name, x, y.view(-1, y.shape[-1]))
        return y

    return forward


def one_mix(mix: Mix) -> Update | None:
    """The update of rows that all have the same mix."""
    if not mix.members:
        return None

    def update(name: str, x: Tensor, y: Tensor) -> None:
        for adapter, weight in mix.members:
            pair = adapter.matrices.get(name)
            if pair is not None:
                y.add_((x.flatten(0, -2) @ pair[0]) @ pair[1], alpha=weight)

    return update


class Stacks:
    """The adapters in use, those of equal rank in one tensor a layer."""

    def __init__(self) -> None:
        self._adapters: frozenset[Adapter] = frozenset()
        self._stacks: list[_Stack] = []
        self._latest: tuple[list[Mix], RowUpdate] | None = None

    def for_rows(self, mixes: Sequence[Mix], device: torch.device) -> RowUpdate | None:
        """The update of a step with these mixes; None where no row has an adapter."""
        if self._latest is not None and self._latest[0] == list(mixes):
            return self._latest[1]  # the same rows as in the step before
        self._latest = None
        used = frozenset(adapter for mix in mixes for adapter, _ in mix.members)
        if not used:
            return None
        if not used <= self._adapters or len(self._adapters) > 2 * len(used):
            self._stacks = []  # the old ones make room before the new ones are made
            self._adapters = frozenset()
            self._stacks, self._adapters = _stacked(used), used
        grids = [_Grid.of(stack, mixes, device) for stack in self._stacks]
        update = RowUpdate([grid for grid in grids if grid is not None])
        self._latest = list(mixes), update
        return update

    def clear(self) -> None:
        """Frees them."""
        self._adapters, self._stacks, self._latest = frozenset(), [], None


@dataclass(slots=True)
class RowUpdate:
    """The update of a step; see `Stacks`."""

    grids: list[_Grid]

    def __call__(self, name: str, x: Tensor, y: Tensor) -> None:
        """Adds to the outputs of a layer."""
        for grid in self.grids:
            pair = grid.stack.matrices.get(name)
            if pair is not None:
                grid.add(x, y, *pair)


@dataclass(eq=False, slots=True)
class _Stack:
    """Adapters of one rank: A ``[G, in, r]`` and s·B ``[G, r, out]`` by layer."""

    adapters: list[Adapter]
    matrices: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def _stacked(adapters: Iterable[Adapter]) -> list[_Stack]:
    by_rank: dict[int, list[Adapter]] = {}
    for adapter in sorted(adapters, key=lambda adapter: (adapter.rank, adapter.key)):
        by_rank.setdefault(adapter.rank, []).append(adapter)
    return [_stack(members) for members in by_rank.values()]


def _stack(members: list[Adapter]) -> _Stack:
    """A layer that only some of them change is changed by zeros in the others."""
    made = _Stack(members)
    for name in dict.fromkeys(name for adapter in members for name in adapter.matrices):
        some = next(a.matrices[name] for a in members if name in a.matrices)
        zeros = torch.zeros_like(some[0]), torch.zeros_like(some[1])
        pairs = [adapter.matrices.get(name, zeros) for adapter in members]
        made.matrices[name] = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    return made


@dataclass(eq=False, slots=True)
class _Grid:
    """Where the rows of a step stand among the adapters of a stack.

    Attributes:
        stack: The adapters, G of them.
        index: ``[G · n]`` the row at each place; any row where there is none.
        weights: ``[G, n, 1]`` what its update is multiplied with; None: all with 1.
        rounds: ``[rows]`` each: a place of each row, G · n where it has none (any more).
        holes: Whether there is such a row.
    """

    stack: _Stack
    index: Tensor
    weights: Tensor | None
    rounds: list[Tensor]
    holes: bool
    _seen: Tensor | None = None
    _laid: Tensor | None = None

    @classmethod
    def of(cls, stack: _Stack, mixes: Sequence[Mix], device: torch.device) -> _Grid | None:
        """The grid of a step; None where no row has an adapter of the stack."""
        number = {adapter: group for group, adapter in enumerate(stack.adapters)}
        groups: list[list[tuple[int, float]]] = [[] for _ in stack.adapters]
        found: list[list[tuple[int, int]]] = [[] for _ in mixes]
        for row, mix in enumerate(mixes):
            for adapter, weight in mix.members:
                if adapter in number:
                    group = number[adapter]
                    found[row].append((group, len(groups[group])))
                    groups[group].append((row, weight))
        width = padded(max(map(len, groups)), ROWS)
        if not width:
            return None
        index = [[row for row, _ in g] + [0] * (width - len(g)) for g in groups]
        factors = [[w for _, w in g] + [1.0] * (width - len(g)) for g in groups]
        none, count = len(groups) * width, padded(len(mixes), ROWS)
        rounds = []
        for turn in range(max(map(len, found))):
            places = [p[turn][0] * width + p[turn][1] if turn < len(p) else none for p in found]
            rounds.append(torch.tensor(places + [none] * (count - len(places)), device=device))
        plain = all(w == 1.0 for g in groups for _, w in g)
        dtype = next(iter(stack.matrices.values()))[0].dtype
        return cls(
            stack=stack,
            index=torch.tensor(index, device=device).flatten(),
            weights=None if plain else torch.tensor(factors, dtype=dtype, device=device)[..., None],
            rounds=rounds,
            holes=any(bool((turn == none).any()) for turn in rounds),
        )

    def add(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> None:
        """``y_row += w (x_row A_g) B_g`` for the adapters g of each row."""
        if self._seen is not x:  # layers that read the same states share what is laid out
            laid = x.flatten(0, -2).index_select(0, self.index)
            self._seen, self._laid = x, laid.view(len(a), -1, x.shape[-1])
        assert self._laid is not None
        down = torch.bmm(self._laid, a)
        if self.weights is not None:
            down.mul_(self.weights)
        products = y.new_empty(len(self.index) + self.holes, y.shape[1])
        torch.bmm(down, b, out=products[: len(self.index)].view(len(a), -1, y.shape[1]))
        if self.holes:
            products[-1] = 0
        for places in self.rounds:
            y.add_(products.index_select(0, places))
