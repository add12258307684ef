"""Cards of experts as tests want them: with other values, or with values that are no good."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aios.storage.expert_records import CARD_FILE, known_fields
from aios.storage.experts import FileExpertStore


def write_card(store: FileExpertStore, expert_id: str, extra: Mapping[str, object]) -> None:
    """Puts values into an expert's card, over those that it has and those of the registry."""
    expert = store.get(expert_id)
    known = {"expert_id": expert_id} if expert is None else known_fields(expert)
    card = {**store.read_card(expert_id), **known, "base_model": store.base_model, **extra}
    (store.folder(expert_id) / CARD_FILE).write_text(json.dumps(card))
