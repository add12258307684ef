"""The forward pass over a packed row, and the check that a model can be used that way.

Training and scoring call a model's decoder and multiply by its output layer themselves, so that
no more logits are made than are needed. Examples that share a row are kept apart by transformers,
which reads from the positions (each example counts from 0) where one begins. Both hold for most
causal models, but not for all: some scale or cap their logits afterwards, some carry a state from
one example into the next. `examine` finds out on a few tokens, so that no number is silently
wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aios.backends.encoding import Encoded, Row, pack
from aios.core.errors import ModelError

_EXACT = 1e-3  # largest difference relative to the largest value, in float32
_COARSE = 5e-2  # the same in half precision


def last_hidden_states(model: Any, row: Row) -> Tensor:
    """Last hidden states of a packed row, ``[T, d]``.

    Args:
        model: A transformers causal language model.
        row: The examples.
    """
    out = model.get_decoder()(input_ids=row.ids, position_ids=row.positions, use_cache=False)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def output_head(model: Any) -> Tensor:
    """The output layer's weight, ``[V, d]``."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def examine(model: Any) -> bool:
    """Compares the packed forward pass with the model's own on a few tokens.

    A model whose logits are not finite passes: who asks it for a number is told.

    Returns:
        Whether examples may share a row; if not, each needs a row of its own.

    Raises:
        ModelError: The model's logits are not its last hidden states times its output layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        raise _unsupported(model, "its output layer is not a plain matrix")
    vocabulary = head.weight.shape[0]
    before = Encoded(tuple(17 * i % vocabulary for i in range(1, 6)), (0,) * 5)
    probe = Encoded(tuple(31 * i % vocabulary for i in range(3, 10)), (0,) * 7)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = head.register_forward_hook(lambda _, given, gave: seen.append((given[0], gave)))
    with torch.inference_mode():
        alone = pack([probe], head.weight.device)
        try:
            logits = model(input_ids=alone.ids, use_cache=False).logits
        finally:
            hook.remove()
        if not bool(torch.isfinite(logits).all()):
            return True
        if len(seen) != 1 or not torch.equal(seen[0][1], logits.to(seen[0][1].dtype)):
            raise _unsupported(model, "it changes its logits after its output layer")
        expected = seen[0][0][0]
        if not _close(last_hidden_states(model, alone), expected):
            raise _unsupported(model, "its output layer does not read its decoder's states")
        packed = last_hidden_states(model, pack([before, probe], head.weight.device))
        return _close(packed[len(before.ids) :], expected)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    tolerance = _EXACT if expected.dtype == torch.float32 else _COARSE
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= tolerance * expected.float().abs().max())


def _unsupported(model: Any, reason: str) -> ModelError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return ModelError(
        f"models of type {kind!r} cannot be scored or trained here: {reason}",
        "use a model of another type, such as Llama, Qwen, Mistral or SmolLM",
    )
