"""Many LoRA adapters over one frozen base model, in one forward and backward pass.

A *bank* holds G adapters of one shape (*slots*) for all linear layers of a model but the output
layer. Tokens come sorted by slot (`grouped_tokens`); a linear layer gives, for all slots at once,

    Y = X Wᵀ,   Y_g += (α / r) · (X_g A_g) B_g        A: [G, in, r],  B: [G, r, out]

(LoRA: Hu et al. 2021, arXiv 2106.09685, section 4.1; stacked adapters: Wang et al. 2023, ASPEN,
arXiv 2312.02515.) A slot's output, loss and gradient depend on its own tokens and weights alone,
which is why training many at once equals training them one by one; the sums of the shared product
are the only place where rounding may differ.

All weights of an adapter are one row of a matrix ``[G, P]``, in the base model's dtype; they are
copied there from masters in fp32 for each pass, so any adapters can meet in one. Gradients go
straight into a matrix of the same shape, not through autograd, whose graph then holds nothing but
activations. The base model's weights are never written: its linear layers are given another
`forward` for the time of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.packed_attention import packed_attention, unsupported


@dataclass(frozen=True, slots=True)
class Site:
    """A linear layer with adapters.

    Attributes:
        name: Its name in the base model.
        module: The layer.
        inputs: in.
        outputs: out.
        start: Where A begins in a slot's row of weights; B follows it.
    """

    name: str
    module: torch.nn.Linear
    inputs: int
    outputs: int
    start: int


def find_sites(model: Any, rank: int, trunk_layers: int = 0) -> tuple[Site, ...]:
    """The linear layers that PEFT's ``all-linear`` chooses, in the model's order.

    Args:
        model: A transformers causal language model; layers that PEFT has wrapped are found inside.
        rank: r.
        trunk_layers: Lowest decoder layers that get no adapter.

    Raises:
        ModelError: The model has no linear layer, or keeps weights in other layers.
    """
    head = model.get_output_embeddings()
    without = {
        id(m) for layer in model.get_decoder().layers[:trunk_layers] for m in layer.modules()
    }
    sites: list[Site] = []
    start = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module is head or ".lora_" in name:
            continue
        if id(module) in without:
            continue
        outputs, inputs = module.weight.shape
        sites.append(Site(name.removesuffix(".base_layer"), module, inputs, outputs, start))
        start += rank * (inputs + outputs)
    if not sites:
        raise unsupported(model, "they have no linear layers")
    return tuple(sites)


def row_length(sites: tuple[Site, ...], rank: int) -> int:
    """P: weights of one adapter."""
    return sum(rank * (site.inputs + site.outputs) for site in sites)


class LoraBank:
    """The adapters that take part in a pass, in slots 0 … G − 1, over a base model.

    Args:
        model: The base model; never changed.
        rank: r of all of them.
        alpha: α of all of them.
        trunk_layers: Lowest decoder layers that get no adapter.

    Attributes:
        sites: Where the adapters are.
        length: P, weights of one adapter.
        weights: ``[·, P]``, in the base model's dtype; set by `load`.
        gradient: ``[·, P]``, float32 at least; set by backward passes.
    """

    def __init__(self, model: Any, rank: int, alpha: int, *, trunk_layers: int = 0) -> None:
        self.model = model
        self.rank, self.alpha, self.trunk_layers = rank, alpha, trunk_layers
        self.scale = alpha / rank
        self.sites = find_sites(model, rank, trunk_layers)
        self.length = row_length(self.sites, rank)
        weight = self.sites[0].module.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.exact = torch.promote_types(self.dtype, torch.float32)
        self.weights = torch.empty(0, self.length, dtype=self.dtype, device=self.device)
        self.gradient = torch.empty(0, self.length, dtype=self.exact, device=self.device)
        self._ticket = torch.zeros((), device=self.device, requires_grad=True)
        self._pass: _Pass | None = None
        self._unset: set[int] = set()

    def load(self, rows: Sequence[Tensor]) -> None:
        """Puts adapters into the slots, one a row of weights ``[P]``."""
        if len(rows) > len(self.weights):
            self.reserve(len(rows))
        for slot, row in enumerate(rows):
            self.weights[slot] = row

    def collect(self, slots: int) -> Tensor:
        """The gradient of the next backward passes, ``[slots, P]``: the first sets it."""
        if slots > len(self.gradient):
            self.reserve(slots)
        self._unset = {site.start for site in self.sites}
        return self.gradient[:slots]

    def reserve(self, slots: int) -> None:
        """Makes room for so many slots, or gives back what is beyond."""
        self.weights = self.weights.new_empty(slots, self.length)
        self.gradient = self.gradient.new_empty(slots, self.length)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The base model with the bank on it for the time of a block; must not be nested.

        Inside, `hidden_states` gives the bank's adapters' outputs.
        """
        for site in self.sites:
            site.module.forward = _Forward(self, site)  # type: ignore[method-assign, assignment]
        try:
            with packed_attention(self.model):
                yield
        finally:
            for site in self.sites:
                del site.module.forward  # the class's own is found again

    def hidden_states(
        self, tokens: GroupedTokens, *, states: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Last hidden states of grouped tokens, ``[N, d]``; needs `installed`.

        Args:
            tokens: Those of group g are multiplied with the adapter in slot g.
            states: What enters the first layer, ``[1, N, d]``, in place of the embeddings.
            more: What else the model's attention is told.
        """
        self._pass = where = _Pass(tokens)
        given = {"input_ids": tokens.ids} if states is None else {"inputs_embeds": states}
        out = self.model.get_decoder()(
            **given, position_ids=tokens.positions, use_cache=False, packed=tokens, **more
        )
        where.forget()  # the graph must not hold itself
        self._pass = None
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def add_gradient(self, site: Site, a: Tensor, b: Tensor) -> None:
        """Adds to a site's gradient; or sets it, the first time after `collect`."""
        for total, part in zip(self.views(self.gradient, site, len(a)), (a, b), strict=True):
            if site.start in self._unset:
                total.copy_(part)
            else:
                total.add_(part)
        self._unset.discard(site.start)

    def views(self, matrix: Tensor, site: Site, slots: int) -> tuple[Tensor, Tensor]:
        """A ``[G, in, r]`` and B ``[G, r, out]`` of a site in the rows of a matrix ``[·, P]``."""
        middle = site.start + site.inputs * self.rank
        end = middle + site.outputs * self.rank
        a = matrix[:slots, site.start : middle].unflatten(1, (site.inputs, self.rank))
        b = matrix[:slots, middle:end].unflatten(1, (self.rank, site.outputs))
        return a, b


@dataclass(slots=True)
class _Pass:
    """A forward pass over grouped tokens; remembers the last grid, which several layers share."""

    tokens: GroupedTokens
    _last: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """Lets go of the last grid."""
        self._last = None

    def inputs(self, x: Tensor) -> Tensor:
        """A layer's input ``[1, N, ·]`` by group, ``[G, n, ·]``; padding is a token of its own."""
        if self._last is None or self._last[0] is not x:
            self._last = x, self._grid(x.flatten(0, -2))
        return self._last[1]

    def gradients(self, x: Tensor) -> Tensor:
        """Rows ``[N, ·]`` by group, with zeros in padding."""
        grid = self._grid(x)
        if self.tokens.grid is not None:
            grid.flatten(0, 1).index_fill_(0, self.tokens.grid.padding, 0)
        return grid

    def add(self, y: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        """``y_g += scale · a_g b_g`` for y ``[N, ·]`` and products ``[G, n, ·]``."""
        view = self.tokens.grid
        if view is None:
            y.unflatten(0, (self.tokens.groups, -1)).baddbmm_(a, b, alpha=scale)
        else:
            y.add_(torch.bmm(a, b).flatten(0, 1).index_select(0, view.inverse), alpha=scale)

    def _grid(self, rows: Tensor) -> Tensor:
        view = self.tokens.grid
        taken = rows if view is None else rows.index_select(0, view.index)
        grid: Tensor = taken.unflatten(0, (self.tokens.groups, -1))
        return grid


class _Forward:
    """The `forward` of a linear layer with the bank on it."""

    def __init__(self, bank: LoraBank, site: Site) -> None:
        self._bank, self._site = bank, site

    def __call__(self, x: Tensor) -> Tensor:
        bank = self._bank
        assert bank._pass is not None
        y: Tensor = _BankedLinear.apply(x, bank._ticket, bank, self._site, bank._pass)
        return y


class _BankedLinear(torch.autograd.Function):
    """One linear layer with the adapters of a pass; see the module's head.

    Backward, with δ the gradient of Y:  ∂B_g = s (X_g A_g)ᵀ δ_g,  ∂A_g = s X_gᵀ (δ_g B_gᵀ),
    ∂X = δ W,  ∂X_g += s (δ_g B_gᵀ) A_gᵀ.  The ticket is there so that autograd asks for it even
    where X needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ticket: Tensor, bank: LoraBank, site: Site, where: _Pass
    ) -> Tensor:
        a, b = bank.views(bank.weights, site, where.tokens.groups)
        y = torch.nn.functional.linear(x.flatten(0, -2), site.module.weight, site.module.bias)
        by_group = where.inputs(x)
        down = torch.bmm(by_group, a)
        where.add(y, down, b, bank.scale)
        ctx.save_for_backward(by_group, down)
        ctx.bank, ctx.site, ctx.where, ctx.shape = bank, site, where, x.shape
        return y.view(*x.shape[:-1], site.outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        bank, site, where = ctx.bank, ctx.site, ctx.where
        inputs, down = ctx.saved_tensors
        a, b = bank.views(bank.weights, site, where.tokens.groups)
        delta = upstream[0].flatten(0, -2)
        by_group = where.gradients(delta)
        up = torch.bmm(by_group, b.transpose(1, 2)).mul_(bank.scale)
        grad_a = torch.bmm(inputs.transpose(1, 2), up)
        grad_b = torch.bmm((down * bank.scale).transpose(1, 2), by_group)
        bank.add_gradient(site, grad_a, grad_b)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        dx = delta @ site.module.weight
        where.add(dx, up, a.transpose(1, 2), 1.0)
        return dx.view(ctx.shape), None, None, None, None
