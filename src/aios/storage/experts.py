"""The registry of experts: ``registry.json`` in the folder of experts, one folder an expert.

Takes and gives `core.types.Expert` records. The file has the fields that the AI-OS registry
format fixes; keys that we do not know, at the top or in an expert, survive a rewrite. Every
change reads, changes and replaces the file under a lock, so that two processes lose nothing, and
keeps the last good version as ``registry.json.bak``. Reading takes no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError, UsageError
from aios.core.files import (
    MAX_JSON_BYTES,
    atomic_write_bytes,
    atomic_write_json,
    confined,
    encode_json,
    locked,
    parse_json,
    read_bytes_if_there,
    read_json,
    require_id,
)
from aios.core.types import Expert

VERSION = "1.0"
_FILE = "registry.json"
_FIELDS = tuple(field.name for field in fields(Expert))
_LISTS = {"goals", "training_datasets", "child_expert_ids"}
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "total_activations": (lambda v: type(v) is int and v >= 0, "a count"),
    "avg_routing_weight": (lambda v: type(v) in (int, float), "a number"),
    "is_active": (lambda v: type(v) is bool, "true or false"),
    "is_frozen": (lambda v: type(v) is bool, "true or false"),
    "performance_metrics": (lambda v: isinstance(v, dict), "an object"),
    "training_config": (lambda v: isinstance(v, dict), "an object"),
}


class FileExpertStore:
    """An `ExpertStore` over ``<root>/registry.json``."""

    def __init__(self, root: Path, base_model: str) -> None:
        """Names the folder; nothing is made or read before it is needed.

        Args:
            root: The folder of experts.
            base_model: Written into a registry that is made new, and into expert cards.
        """
        self.root = root
        self.base_model = base_model
        self.path = root / _FILE

    def get(self, expert_id: str) -> Expert | None:
        """The expert, or None.

        Raises:
            StorageError: The registry is corrupt.
        """
        return next((e for e in self.list() if e.expert_id == expert_id), None)

    def list(self) -> tuple[Expert, ...]:
        """All experts, in the order they were added; none where there is no registry yet.

        Raises:
            StorageError: The registry is corrupt.
        """
        return self._experts(self._load()[1])

    def save(self, expert: Expert) -> None:
        """Adds or replaces an expert, atomically; keys that we do not know survive.

        Raises:
            UsageError: The id is not valid.
            StorageError: The registry is corrupt, locked for long, or cannot be written.
        """
        self._require(expert.expert_id)
        with locked(self.root / f".{_FILE}.lock"):
            before, registry = self._load()
            self._experts(registry)  # refuses to build on a registry that it cannot read
            record = _known_fields(expert)
            for entry in registry["experts"]:
                if entry["expert_id"] == expert.expert_id:
                    entry.update(record)
                    break
            else:
                registry["experts"].append(record)
            data = encode_json(registry, indent=2) + b"\n"
            if before is not None:
                atomic_write_bytes(self.root / f"{_FILE}.bak", before)
            atomic_write_bytes(self.path, data)

    def folder(self, expert_id: str) -> Path:
        """The expert's folder (which may not exist yet), always inside the store.

        Raises:
            UsageError: The id is not valid, or a symlink leads out of the store.
        """
        self._require(expert_id)
        return confined(self.root, expert_id)

    def write_card(self, expert_id: str, extra: Mapping[str, object]) -> Path:
        """Writes ``expert.json`` into the expert's folder.

        It holds the expert's fields as registered (if it is), the base model, and `extra`; keys
        of an existing card that are in none of these survive.

        Returns:
            The card's path.

        Raises:
            UsageError: The id is not valid.
            StorageError: The registry or an existing card is corrupt, or it cannot be written.
        """
        card = self.folder(expert_id) / "expert.json"
        before = read_json(card, default={})
        if not isinstance(before, dict):
            raise StorageError(f"{card} is corrupt: not a JSON object", "Move that file away.")
        expert = self.get(expert_id)
        known = _known_fields(expert) if expert is not None else {"expert_id": expert_id}
        atomic_write_json(card, {**before, **known, "base_model": self.base_model, **extra})
        return card

    def _require(self, expert_id: str) -> None:
        require_id(expert_id, "expert id")
        if expert_id.lower().startswith(_FILE):
            raise UsageError(f"{expert_id!r} is not a valid expert id", f"{_FILE} is taken.")

    def _load(self) -> tuple[bytes | None, dict[str, Any]]:
        """The registry as bytes (None if there is none yet) and as a JSON object."""
        data = read_bytes_if_there(self.path, MAX_JSON_BYTES)
        if data is None:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            head = {"version": VERSION, "created_at": now, "base_model": self.base_model}
            return None, {**head, "experts": []}
        try:
            registry = parse_json(data)
        except ValueError as error:
            raise self._corrupt(str(error)) from error
        if not isinstance(registry, dict) or not isinstance(registry.get("experts"), list):
            raise self._corrupt("no list of experts in it")
        return data, registry

    def _experts(self, registry: Mapping[str, Any]) -> tuple[Expert, ...]:
        experts: dict[str, Expert] = {}
        for index, record in enumerate(registry["experts"]):
            try:
                expert = _expert(record)
            except ValueError as error:
                raise self._corrupt(f"experts[{index}] {error}") from error
            if expert.expert_id in experts:
                raise self._corrupt(f"expert {expert.expert_id!r} is listed twice")
            experts[expert.expert_id] = expert
        return tuple(experts.values())

    def _corrupt(self, reason: str) -> StorageError:
        backup = self.root / f"{_FILE}.bak"
        remedy = f"Correct that file by hand, or move it away: {self.root} keeps the experts."
        if backup.exists():
            remedy = f"Correct it by hand, or copy {backup} (the last good version) over it."
        return StorageError(f"{self.path} is corrupt: {reason}", remedy)


def _known_fields(expert: Expert) -> dict[str, Any]:
    """The expert as a JSON object with the registry's fields."""
    record: dict[str, Any] = parse_json(encode_json(asdict(expert)))
    return record


def _expert(record: object) -> Expert:
    """An expert of a registry entry; fields that are missing get their defaults.

    Raises:
        ValueError: The entry is not one; the message goes on after ``experts[i]``.
    """
    if not isinstance(record, dict):
        raise ValueError("is not an object")
    if not isinstance(record.get("expert_id"), str) or not record["expert_id"]:
        raise ValueError("has no expert_id")
    values: dict[str, Any] = {"name": record["expert_id"]}
    for name in _FIELDS:
        value = record.get(name)
        if value is None:  # missing, or empty in a registry that another program wrote
            continue
        if name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise ValueError(f"({record['expert_id']}): {name} must be a list of texts")
            value = tuple(value)
        else:
            good, wanted = _CHECKS.get(name, (lambda v: isinstance(v, str), "a text"))
            if not good(value):
                raise ValueError(f"({record['expert_id']}): {name} must be {wanted}")
        values[name] = value
    return Expert(**values)
