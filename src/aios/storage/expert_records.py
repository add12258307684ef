"""Experts as JSON: the entries of the registry, and the card in an expert's folder.

Takes JSON objects that any program may have written; gives checked `Expert` records, and changes
entries without losing the keys that we do not know. `storage.experts` keeps the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError
from aios.core.experts.registry import unknown_expert
from aios.core.files import encode_json, parse_json, read_json
from aios.core.types import Expert

CARD_FILE = "expert.json"
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


class OpenRegistry:
    """The registry while it is changed; see `FileExpertStore.change`.

    Attributes:
        experts: The experts by id, as they are at the moment.
        changed: Whether anything is different from the file.
    """

    def __init__(self, registry: dict[str, Any], experts: Iterable[Expert]) -> None:
        self._records: list[dict[str, Any]] = registry["experts"]
        self.experts = {expert.expert_id: expert for expert in experts}
        self.changed = False

    def require(self, expert_id: str) -> Expert:
        """The expert; `UnknownExpertError` where there is none."""
        if expert_id not in self.experts:
            raise unknown_expert(expert_id, self.experts)
        return self.experts[expert_id]

    def record(self, expert_id: str) -> dict[str, Any]:
        """The expert as it stands in the file, keys included that we do not know."""
        self.require(expert_id)
        return next(one for one in self._records if one["expert_id"] == expert_id)

    def put(self, expert: Expert, record: Mapping[str, Any] | None = None) -> None:
        """Adds or replaces an expert.

        Args:
            expert: It.
            record: Its entry of before, for one that comes back; its unknown keys are kept.
        """
        if self.experts.get(expert.expert_id) == expert:
            return
        if expert.expert_id in self.experts:
            self.record(expert.expert_id).update(known_fields(expert))
        else:
            self._records.append({**(record or {}), **known_fields(expert)})
        self.experts[expert.expert_id] = expert
        self.changed = True

    def remove(self, expert_id: str) -> None:
        """Takes an expert out; the links of others to it are not looked at."""
        self._records.remove(self.record(expert_id))
        del self.experts[expert_id]
        self.changed = True


def read_card(folder: Path) -> dict[str, Any]:
    """The content of ``expert.json`` in an expert's folder, or a version's; empty without one.

    Raises:
        StorageError: It is corrupt.
    """
    path = folder / CARD_FILE
    card = read_json(path, default={})
    if not isinstance(card, dict):
        raise StorageError(f"{path} is corrupt: not a JSON object", "Move that file away.")
    return card


def known_fields(expert: Expert) -> dict[str, Any]:
    """The expert as a JSON object with the registry's fields."""
    record: dict[str, Any] = parse_json(encode_json(asdict(expert)))
    return record


def expert_of(record: object) -> Expert:
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
