"""What an endpoint says of itself and a model in its answer to ``/models``.

The kinds of servers tell different things there; what is not said is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aios.core.types import content_hash

_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")
_IDENTITY_KEYS = ("id", "root", "parent", "owned_by", "quantization")
_WEIGHTS_KEYS = ("n_params", "n_vocab", "n_embd", "size", "ftype", "vocab_type")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an endpoint says of a model.

    Attributes:
        server: The kind of server (``vllm``, ``llamacpp``, …), or empty.
        context_length: Most tokens of prompt and completion, where it says so.
        identity: What tells the model from others; empty where it says nothing.
        known: The ids of the models that it has.
        tokenizes: Whether it counts tokens.
    """

    server: str = ""
    context_length: int | None = None
    identity: str = ""
    known: tuple[str, ...] = ()
    tokenizes: bool = False


def read_facts(model: str, listed: object, tokenizes: bool = False) -> Facts:
    """Reads the answer of ``/models``; what it does not say is left out.

    Args:
        model: The id that was asked for.
        listed: The answer.
        tokenizes: Whether the endpoint counts tokens.
    """
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = [e for e in data if isinstance(e, dict)] if isinstance(data, list) else []
    known = tuple(str(e["id"]) for e in entries if e.get("id"))
    wanted = [e for e in entries if e.get("id") in (model, f"{model}:latest")]
    owners = {str(e.get("owned_by", "")) for e in entries}
    server = owners.pop().lower() if len(owners) == 1 else ""
    if not wanted and len(entries) == 1 and server == "llamacpp":  # it has one, whatever its name
        wanted = entries
    entry: Mapping[str, Any] = wanted[0] if wanted else {}
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    lengths = [entry.get(key) for key in _CONTEXT_KEYS] + [meta.get("n_ctx")]
    identity = [[entry.get(k) for k in _IDENTITY_KEYS], [meta.get(k) for k in _WEIGHTS_KEYS]]
    return Facts(
        server=server,
        context_length=next((n for n in lengths if type(n) is int and n > 0), None),
        identity=content_hash("model", identity) if entry else "",
        known=known,
        tokenizes=tokenizes,
    )
