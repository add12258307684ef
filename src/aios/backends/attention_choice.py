"""A transformers model with another attention function for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attention_named(model: Any, name: str) -> Iterator[None]:
    """Has a model's layers call the attention registered under a name; it gets no mask.

    Args:
        model: A transformers model.
        name: Under which the function is registered with `transformers.AttentionInterface`.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
