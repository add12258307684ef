"""Makes an expert of an adapter that exists: a folder in PEFT layout, checked and registered.

The folder may come from anywhere, so it is read as hostile (`storage.expert_intake`) and only
configuration and weights are copied. An adapter fits one base model alone: where the folder says
which (an expert of ours does, by digest), that is compared with the config's base model; else it
is taken for one of that model, and the card says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from aios.app.experts.model_card import render_model_card
from aios.app.experts.registry import open_store
from aios.app.models import show_model
from aios.core.config.schemas import Config
from aios.core.errors import AdapterMismatchError, ExpertExistsError, ModelError
from aios.core.experts.registry import goal_text, refuse_reserved
from aios.core.files import atomic_write_json, atomic_write_text, read_json
from aios.core.types import Expert
from aios.storage.expert_intake import (
    CONFIG_NAME,
    AdapterFacts,
    copy_adapter,
    inspect_adapter,
    plain_config,
)
from aios.storage.expert_records import CARD_FILE
from aios.storage.expert_versions import ExpertVersions
from aios.storage.experts import FileExpertStore

_MAX_CARD_BYTES = 64 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CreateReport:
    """What became of an adapter's folder.

    Attributes:
        expert: The expert as registered.
        folder: Its folder.
        rank: LoRA rank.
        modules: How many modules the adapter changes.
        parameters: Numbers in it.
        ignored: Files of the folder that were not copied.
        notes: What a person should know.
    """

    expert: Expert
    folder: Path
    rank: int
    modules: int
    parameters: int
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def create_expert(
    config: Config,
    expert_id: str,
    source: Path,
    *,
    name: str = "",
    description: str = "",
    category: str = "",
    goals: Sequence[str] = (),
    parent: str | None = None,
) -> CreateReport:
    """Registers a folder in PEFT layout as an expert; it is copied into the store.

    Args:
        config: The resolved config; its base model is the one that the adapter is for.
        expert_id: The new expert's id.
        source: A folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: Name for people; the id by default.
        description: What it knows.
        category: A word to group experts by.
        goals: What it is for.
        parent: The expert that it is put below.

    Returns:
        The expert's folder, and what a person should know about it.

    Raises:
        ExpertExistsError: The id is taken.
        UnknownExpertError: There is no such parent.
        UsageError: The id is not valid, or the folder holds no adapter that is taken in.
        AdapterMismatchError: It is for another base model.
        ModelError: The config's base model is not on this machine, or PEFT cannot use the adapter.
        StorageError: The store cannot be written.
    """
    store = open_store(config)
    folder = store.folder(expert_id)
    _refuse_taken(store, expert_id, source)
    if parent is not None:
        store.require(parent)
    facts = inspect_adapter(source)
    digest, said = _base_digest(config, source)
    expert = Expert(
        expert_id,
        name or expert_id,
        description,
        category,
        tuple(dict.fromkeys(map(goal_text, goals))),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model_architecture=config.model.name,
        checkpoint_path=str(folder),
        training_config={"rank": facts.rank, "alpha": facts.alpha},
    )
    card = {
        "adapter_digest": facts.digest,
        "base_digest": digest,
        "base_digest_source": "its card" if said else "the base model in use when it was created",
        "created_from": str(source.resolve()),
    }
    expert = _install(store, expert, card, source, facts)
    if parent is not None:
        expert = store.set_parent(expert_id, parent)
    notes = _notes(config, facts, said=said)
    return CreateReport(
        expert, folder, facts.rank, len(facts.modules), facts.parameters, facts.ignored, notes
    )


def _refuse_taken(store: FileExpertStore, expert_id: str, source: Path) -> None:
    """Refuses an id that is in use; a folder may be made an expert in its place."""
    folder = store.folder(expert_id)
    refuse_reserved(expert_id)
    in_place = source.resolve() == folder.resolve()
    if store.get(expert_id) is not None or (folder.exists() and not in_place):
        raise _taken(expert_id)


def _taken(expert_id: str) -> ExpertExistsError:
    return ExpertExistsError(f"expert {expert_id!r} exists already", "choose another id")


def _base_digest(config: Config, source: Path) -> tuple[str, bool]:
    """Digest of the base model, and whether the folder itself says it.

    Raises:
        AdapterMismatchError: The folder says that it is for another base model.
        ModelError: The config's base model is not on this machine.
    """
    model = show_model(config, config.model.name)
    if not model.installed or not model.digest:
        raise ModelError(
            f"the base model {config.model.name} is not on this machine",
            f"run `aios models pull {config.model.name}` first, or set model.name to another",
        )
    said = ""
    for name in (CARD_FILE, "training.json"):
        record = read_json(source / name, _MAX_CARD_BYTES, default=None)
        found = record.get("base_digest") if isinstance(record, dict) else None
        if isinstance(found, str) and _DIGEST.fullmatch(found):
            said = found
            break
    if said and said != model.digest:
        raise AdapterMismatchError(
            f"the adapter in {source} was trained on another base model ({said[:12]}) than "
            f"{config.model.name} ({model.digest[:12]})",
            "set model.name to the base model that it was trained on",
        )
    return model.digest, bool(said)


def _install(
    store: FileExpertStore,
    expert: Expert,
    card: Mapping[str, object],
    source: Path,
    facts: AdapterFacts,
) -> Expert:
    """Copies the adapter into the expert's folder, and registers the expert; both or neither.

    A folder that was in its place already is kept as an older version, whatever was in it.

    Raises:
        ExpertExistsError: Another process was faster.
        ModelError: PEFT cannot use the adapter.
        StorageError: The store cannot be written.
    """
    base = expert.model_architecture

    def fill(building: Path) -> None:
        from aios.backends.expert_export import check_adapter

        copy_adapter(source, building, facts, base)
        atomic_write_json(building / CONFIG_NAME, facts.config)  # as it came, to be checked
        check_adapter(building)
        atomic_write_json(building / CONFIG_NAME, plain_config(facts.config, base))
        atomic_write_text(building / "README.md", render_model_card(expert, card))

    def register(before: Expert | None) -> Expert:
        if before is not None:
            raise _taken(expert.expert_id)
        return expert

    return ExpertVersions(store).install(expert.expert_id, fill, register, card=card)


def _notes(config: Config, facts: AdapterFacts, *, said: bool) -> tuple[str, ...]:
    notes = []
    if not said:
        notes.append(
            f"nothing in the folder says by digest which base model it is for; it is taken for one "
            f"of {config.model.name}"
        )
        if facts.base_name and _last(facts.base_name) != _last(config.model.name):
            notes.append(f"its configuration names the base model {facts.base_name!r:.200}")
    others = [name for name in facts.ignored if name != "README.md"]  # it gets one of its own
    if others:
        shown = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        notes.append(f"files that were not copied ({len(others):,}): {shown}")
    return tuple(notes)


def _last(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold()
