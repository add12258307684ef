"""Operations of a trial, counted from shapes: what the mathematics asks for, whoever does it.

Counted are matrix products, 2 operations for each multiplication and addition. With T tokens in
all, a linear layer of P weights (in × out), an adapter of rank r on it, and a text of L tokens:

* layer, forward: 2·P·T; backward by its input: 2·P·T (its weights are frozen);
* adapter, forward: 2·r·(in + out)·T; backward: twice that (by its weights, and by its input);
* attention of a text, causal: 2·(heads · width)·L·(L + 1) forward, twice that backward;
* output layer of V × d: 2·V·d a token that carries loss, forward, and as much backward.

The query, key and value layers of the lowest layer with adapters get no gradient by their input:
nothing below learns. Layers below it (the trunk) run forward, once a text, however often the text
is trained on. Not counted: norms, activations, softmax, the optimiser, padding, work done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """The matrices of a Llama-like model.

    Attributes:
        layers: Number of layers.
        inner: ``(in, out)`` of the linear layers of each whose input comes from this layer.
        entry: ``(in, out)`` of query, key and value, whose input comes from the layer below.
        attention: heads × width of a head.
        head: V × d, weights of the output layer.
    """

    layers: int
    inner: tuple[tuple[int, int], ...]
    entry: tuple[tuple[int, int], ...]
    attention: int
    head: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape that a transformers configuration describes."""
        hidden, heads = config.hidden_size, config.num_attention_heads
        width = getattr(config, "head_dim", None) or hidden // heads
        mixed, kept = heads * width, config.num_key_value_heads * width
        between = config.intermediate_size
        return cls(
            layers=config.num_hidden_layers,
            inner=((mixed, hidden), (hidden, between), (hidden, between), (between, hidden)),
            entry=((hidden, mixed), (hidden, kept), (hidden, kept)),
            attention=mixed,
            head=config.vocab_size * hidden,
        )


def training_flops(
    shape: Shape,
    lengths: Sequence[int],
    labels: Sequence[int],
    rank: int,
    *,
    passes: int = 1,
    trunk_layers: int = 0,
) -> int:
    """Operations of training an adapter on some texts.

    Args:
        shape: The model's.
        lengths: Tokens of each text.
        labels: Tokens of each text that carry loss.
        rank: The adapter's.
        passes: How often each text is trained on.
        trunk_layers: Lowest layers without adapters, which run once a text.
    """
    tokens = sum(lengths)
    upper = shape.layers - trunk_layers
    forward = _layer(shape, lengths) + _adapters((*shape.inner, *shape.entry), rank) * tokens
    by_adapters = 2 * _adapters((*shape.inner, *shape.entry), rank) * tokens
    backward = 2 * _products((*shape.inner, *shape.entry)) * tokens + by_adapters
    backward += 2 * _attention(shape, lengths)
    unused = 2 * (_products(shape.entry) + sum(rank * i for i, _ in shape.entry)) * tokens
    a_pass = upper * (forward + backward) - unused + 4 * shape.head * sum(labels)
    return passes * a_pass + trunk_layers * _layer(shape, lengths)


def scoring_flops(
    shape: Shape, lengths: Sequence[int], labels: Sequence[int], rank: int = 0
) -> int:
    """Operations of scoring continuations, with an adapter of that rank or (0) none."""
    adapters = _adapters((*shape.inner, *shape.entry), rank) * sum(lengths)
    return shape.layers * (_layer(shape, lengths) + adapters) + 2 * shape.head * sum(labels)


def _layer(shape: Shape, lengths: Sequence[int]) -> int:
    """A layer without adapters, forward."""
    linear = 2 * _products((*shape.inner, *shape.entry)) * sum(lengths)
    return linear + _attention(shape, lengths)


def _products(matrices: Sequence[tuple[int, int]]) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices)


def _adapters(matrices: Sequence[tuple[int, int]], rank: int) -> int:
    """A token through the adapters of some layers, forward."""
    return 2 * rank * sum(inputs + outputs for inputs, outputs in matrices)


def _attention(shape: Shape, lengths: Sequence[int]) -> int:
    return 2 * shape.attention * sum(length * (length + 1) for length in lengths)
