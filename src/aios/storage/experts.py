"""The registry of experts: ``registry.json`` in the folder of experts, one folder an expert.

Takes and gives `core.types.Expert` records. The file has the fields that the AI-OS registry
format fixes; keys that we do not know, at the top or in an expert, survive a rewrite. Every
change reads, changes and replaces the file under a lock, so that two processes lose nothing, and
keeps the last good version as ``registry.json.bak``. Reading takes no lock.

Beside the folders of experts there may be ``goals.json`` (`storage.expert_goals`), ``.versions``
(`storage.expert_versions`) and ``.trash`` (`storage.expert_trash`). Whatever moves an expert's
folder holds `FileExpertStore.moving` meanwhile; the registry's own lock is taken within it, never
the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError, UsageError
from aios.core.experts import lineage
from aios.core.experts.registry import unknown_expert, with_counters
from aios.core.files import (
    MAX_JSON_BYTES,
    atomic_write_bytes,
    confined,
    encode_json,
    locked,
    parse_json,
    read_bytes_if_there,
    require_id,
)
from aios.core.types import AdapterRef, Expert
from aios.storage.expert_records import (
    CARD_FILE,
    OpenRegistry,
    expert_of,
    read_card,
)

VERSION = "1.0"
_FILE = "registry.json"
_TAKEN = (_FILE, "goals.json")


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

    def require(self, expert_id: str) -> Expert:
        """The expert.

        Raises:
            UnknownExpertError: There is none of that id; the remedy names the closest ones.
            StorageError: The registry is corrupt.
        """
        experts = {expert.expert_id: expert for expert in self.list()}
        if expert_id not in experts:
            raise unknown_expert(expert_id, experts)
        return experts[expert_id]

    def save(self, expert: Expert) -> None:
        """Adds or replaces an expert, atomically; keys that we do not know survive.

        Raises:
            UsageError: The id is not valid.
            StorageError: The registry is corrupt, locked for long, or cannot be written.
        """
        self.put(expert.expert_id, lambda before: expert)

    def put(self, expert_id: str, make: Callable[[Expert | None], Expert]) -> Expert:
        """Adds or replaces an expert by what is made of the one of before, under the lock.

        Args:
            expert_id: Its id.
            make: Gets the expert as registered, or None; gives it as it is from now on.

        Raises:
            UsageError: As `save`, or the expert made has another id.
            StorageError: As `save`.
        """
        self._require(expert_id)
        with self.change() as open_registry:
            expert = make(open_registry.experts.get(expert_id))
            if expert.expert_id != expert_id:
                raise UsageError(f"expert {expert_id!r} cannot become {expert.expert_id!r}")
            open_registry.put(expert)
        return expert

    def update(self, expert_id: str, change: Callable[[Expert], Expert]) -> Expert:
        """Changes an expert that is there, under the lock; gives it as it is from now on.

        Raises:
            UnknownExpertError: There is none of that id.
            UsageError: As `put`.
            StorageError: As `put`.
        """
        self._require(expert_id)
        with self.change() as open_registry:
            expert = change(open_registry.require(expert_id))
            if expert.expert_id != expert_id:
                raise UsageError(f"expert {expert_id!r} cannot become {expert.expert_id!r}")
            open_registry.put(expert)
        return expert

    @contextmanager
    def change(self) -> Iterator[OpenRegistry]:
        """The registry, locked, to be changed in a block; written once, at the block's end.

        Nothing is written if the block raises, or changes nothing.

        Raises:
            StorageError: The registry is corrupt, locked for long, or cannot be written.
        """
        with locked(self.root / f".{_FILE}.lock"):
            before, registry = self._load()
            open_registry = OpenRegistry(registry, self._experts(registry))
            yield open_registry
            if not open_registry.changed:
                return
            data = encode_json(registry, indent=2) + b"\n"
            if before is not None:
                atomic_write_bytes(self.root / f"{_FILE}.bak", before)
            atomic_write_bytes(self.path, data)

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Held while folders of experts are put in place, moved to the trash or brought back.

        Raises:
            StorageError: Another process holds it for long.
        """
        with locked(self.root / ".moving.lock"):
            yield

    def set_parent(self, expert_id: str, parent_id: str) -> Expert:
        """Puts an expert below another; both sides of the link are written at once.

        Raises:
            UnknownExpertError: One of them is not known.
            FrozenExpertError: The expert is frozen.
            UsageError: It would be its own ancestor.
            StorageError: As `save`.
        """
        return self._link(expert_id, parent_id)

    def clear_parent(self, expert_id: str) -> Expert:
        """Makes an expert a root. Errors as `set_parent`."""
        return self._link(expert_id, None)

    def _link(self, expert_id: str, parent_id: str | None) -> Expert:
        with self.change() as open_registry:
            for expert in lineage.with_parent(open_registry.experts, expert_id, parent_id):
                open_registry.put(expert)
            return open_registry.require(expert_id)

    def set_active(self, expert_id: str, active: bool) -> Expert:
        """Lets an expert answer messages, or not. Errors as `update`."""
        return self.update(expert_id, lambda expert: replace(expert, is_active=active))

    def set_frozen(self, expert_id: str, frozen: bool) -> Expert:
        """Freezes an expert as it is, or not any more. Errors as `update`.

        A frozen expert is not trained, deleted, rolled back or given another parent.
        """
        return self.update(expert_id, lambda expert: replace(expert, is_frozen=frozen))

    def folder(self, expert_id: str) -> Path:
        """The expert's folder (which may not exist yet), always inside the store.

        Raises:
            UsageError: The id is not valid, or a symlink leads out of the store.
        """
        self._require(expert_id)
        return confined(self.root, expert_id)

    def read_card(self, expert_id: str) -> dict[str, Any]:
        """The content of an expert's ``expert.json``; empty where there is none.

        Where it repeats fields of the registry, these are of the time that it was written.

        Raises:
            UsageError: The id is not valid.
            StorageError: The card is corrupt.
        """
        return read_card(self.folder(expert_id))

    def adapter(self, expert_id: str) -> AdapterRef:
        """An expert's adapter, as its card describes it.

        Raises:
            UnknownExpertError: There is no such expert.
            StorageError: It has no adapter, or its card does not name adapter and base model.
        """
        self.require(expert_id)
        folder = self.folder(expert_id)
        card = self.read_card(expert_id)
        digest, base_digest = card.get("adapter_digest"), card.get("base_digest")
        if not isinstance(digest, str) or not isinstance(base_digest, str):
            raise StorageError(
                f"{folder / CARD_FILE} does not say which adapter and base model it is of",
                "restore that file from a copy, or train the expert again",
            )
        if not (folder / "adapter_model.safetensors").is_file():
            raise StorageError(
                f"expert {expert_id!r} has no adapter in {folder}",
                "restore the folder from a copy, or delete the expert",
            )
        return AdapterRef(folder, digest, base_digest)

    def _require(self, expert_id: str) -> None:
        require_id(expert_id, "expert id")
        if expert_id.lower().startswith(_TAKEN):
            raise UsageError(
                f"{expert_id!r} is not a valid expert id", f"{' and '.join(_TAKEN)} are taken."
            )

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
                expert = expert_of(record)
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


def fold_counters(
    store: FileExpertStore, counters: Mapping[str, tuple[int, float]]
) -> tuple[str, ...]:
    """Takes the counters of the database of answers into the registry, in one write.

    They are totals and replace those of the registry, so folding twice is as good as once; an
    expert that is not among them keeps its own. Frozen experts count, too.

    Args:
        store: The registry.
        counters: Activations and mean routing weight by expert id.

    Returns:
        Ids that the registry does not have: experts that were deleted meanwhile.

    Raises:
        ValueError: A counter is negative or not a finite number; nothing is written.
        StorageError: The registry is corrupt, locked for long, or cannot be written.
    """
    with store.change() as open_registry:
        gone = tuple(one for one in counters if one not in open_registry.experts)
        for expert_id, (activations, weight) in counters.items():
            if expert_id not in gone:
                expert = open_registry.experts[expert_id]
                open_registry.put(with_counters(expert, activations, weight))
    return gone
