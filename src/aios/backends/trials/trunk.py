"""Trunk caching: the lowest layers, which have no adapter, are computed once for each text.

With adapters on the upper layers only, what enters the first of them does not change during a
training, so it is kept and the layers below are left out of every later pass. This is another
method than the paper's, which adapts all layers; it is switched on by `TrialJob.trunk_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from aios.backends.encoding import Encoded
from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.packed_attention import packed_attention, unsupported
from aios.core.errors import UsageError


class TrunkCache:
    """States that enter layer `layers` of a model, by text.

    Args:
        model: A transformers causal language model.
        layers: Layers of the trunk; at least 1 and fewer than the model has.
        limit_bytes: States kept at a time; what is beyond is computed anew.

    Raises:
        UsageError: The model has not so many layers.
        ModelError: The model is of a kind that this does not work for.
    """

    def __init__(self, model: Any, layers: int, limit_bytes: int) -> None:
        decoder = model.get_decoder()
        if not hasattr(decoder, "norm"):
            raise unsupported(model, "their lower layers cannot be left out")
        if not 0 < layers < len(decoder.layers):
            raise UsageError(
                f"trunk_layers is {layers}, but the model has {len(decoder.layers)} layers",
                "leave at least one layer for the adapters",
            )
        self._model, self._decoder = model, decoder
        self._below, self._above = decoder.layers[:layers], decoder.layers[layers:]
        self._limit, self._bytes = limit_bytes, 0
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def states(self, groups: Sequence[Sequence[Encoded]]) -> Tensor:
        """What enters the first layer with adapters, ``[1, N, d]``, for the sequences in order."""
        sequences = [sequence for group in groups for sequence in group]
        missing = {s.ids: s for s in sequences if s.ids not in self._kept}
        computed = dict(zip(missing, self._compute(list(missing.values())), strict=True))
        found = [self._kept[s.ids] if s.ids in self._kept else computed[s.ids] for s in sequences]
        for ids, states in computed.items():
            size = states.numel() * states.element_size()
            if self._bytes + size <= self._limit:
                self._kept[ids] = states
                self._bytes += size
        return torch.cat(found)[None]

    def clear(self) -> None:
        """Forgets all states."""
        self._kept.clear()
        self._bytes = 0

    @contextmanager
    def without_trunk(self) -> Iterator[None]:
        """The model with the layers above the trunk only, for the time of a block."""
        with self._with(self._above, self._decoder.norm):
            yield

    def check(self) -> None:
        """Compares trunk and rest with the whole model on a few tokens.

        Raises:
            ModelError: The model is more than its layers one after the other.
        """
        ids = tuple(17 * i % self._model.config.get_text_config().vocab_size for i in range(1, 9))
        probe = Encoded(ids, ids)
        tokens = GroupedTokens.of([[probe]], self._model.device)
        asked = {"position_ids": tokens.positions, "use_cache": False, "packed": tokens}
        with torch.no_grad(), packed_attention(self._model):
            whole = self._decoder(input_ids=tokens.ids, **asked).last_hidden_state
        states = self.states([[probe]])
        with torch.no_grad(), packed_attention(self._model), self.without_trunk():
            split = self._decoder(inputs_embeds=states, **asked).last_hidden_state
        if not torch.equal(whole, split):
            raise unsupported(self._model, "their lower layers cannot be left out")

    def _compute(self, sequences: Sequence[Encoded]) -> list[Tensor]:
        """What leaves the trunk for each sequence, ``[T, d]``."""
        if not sequences:
            return []
        tokens = GroupedTokens.of([sequences], self._model.device)
        trunk = self._with(self._below, torch.nn.Identity())
        with torch.no_grad(), packed_attention(self._model), trunk:
            out = self._decoder(
                input_ids=tokens.ids,
                position_ids=tokens.positions,
                use_cache=False,
                packed=tokens,
            )
        parts = out.last_hidden_state[0].split([len(s.ids) for s in sequences])
        return [part.clone() for part in parts]

    @contextmanager
    def _with(self, layers: Any, norm: Any) -> Iterator[None]:
        whole, last = self._decoder.layers, self._decoder.norm
        self._decoder.layers, self._decoder.norm = layers, norm
        try:
            yield
        finally:
            self._decoder.layers, self._decoder.norm = whole, last
