"""Experts of the scripted model in a registry, and a router that goes by words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_adapter import adapter_bytes, write_adapter
from aios.core.experts.routing import Routing
from aios.core.types import Expert, LoraRecipe
from aios.storage.experts import FileExpertStore
from tests.expert_cards import write_card


def add_expert(
    store: FileExpertStore,
    expert_id: str,
    *learnt: str,
    base_digest: str | None = None,
    **fields: Any,
) -> Expert:
    """An expert that has seen these texts; its weights mean nothing."""
    model = ScriptedModel()
    data = adapter_bytes(dict.fromkeys(learnt, 5), LoraRecipe(rank=2), seed=0)
    adapter = write_adapter(store.folder(expert_id), model, data, LoraRecipe(rank=2))
    expert = Expert(expert_id, fields.pop("name", expert_id), **fields)
    store.save(expert)
    digests = {"adapter_digest": adapter.digest, "base_digest": base_digest or model.digest}
    write_card(store, expert_id, digests)
    return expert


def store_in(artifacts: Path) -> FileExpertStore:
    return FileExpertStore(artifacts / "experts", "scripted")


class WordRouter:
    """Chooses the experts whose ids stand in the message, in equal parts."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        self.ids = [expert.expert_id for expert in experts]
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def route(self, message: str, history: Sequence[str] = ()) -> Routing:
        self.asked.append((message, tuple(history)))
        named = [name for name in self.ids if name in message]
        weight = 1 / max(1, len(named))
        return Routing(tuple((name, weight) for name in named), {}, f"named: {len(named)}")
