"""Versions of experts: what a training or a roll-back replaces is kept, and can be brought back.

The current version of an expert is its folder ``<experts>/<id>``, which PEFT loads as it is; its
number stands in ``expert.json``. Those of before are in ``<experts>/.versions/<id>/<n>``, each
whole, with ``version.json`` beside its files (the registry's entry of that time). A roll-back
makes a new version of an old one, so nothing is lost.

A version is complete under its number before the folder is replaced, so a kill at any moment
leaves the current version in place. Weights are linked and not copied where the disk can do that:
no file of an expert is ever written to in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError, UsageError
from aios.core.experts.registry import refuse_frozen
from aios.core.files import atomic_write_json, confined, guarded, read_json
from aios.core.folders import atomic_folder, recover
from aios.core.types import Expert
from aios.storage.expert_records import CARD_FILE, expert_of, known_fields, read_card
from aios.storage.experts import FileExpertStore

VERSIONS_FOLDER = ".versions"
_RECORD = "version.json"
_KEY = "version"  # of the current version's number in expert.json
_ROLLED = "rolled_back_to"
_WEIGHTS = "adapter_model.safetensors"
_TRAINED = (  # fields that belong to a version and not to the expert's place in the registry
    "last_trained",
    "training_datasets",
    "performance_metrics",
    "model_architecture",
    "training_config",
)

Fill = Callable[[Path], None]
Make = Callable[[Expert | None], Expert]


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an expert.

    Attributes:
        number: From 1.
        folder: Where it is.
        current: Whether it is the one in use.
        trained: When it was trained, ISO 8601; empty if not known.
        adapter_digest: SHA-256 of its weights, as its card says; empty if not known.
        metrics: Its validation losses and the like.
        rolled_back_to: Number of the version that it was made of; None for a training.
        kept_at: When it was replaced, ISO 8601; empty for the current one.
    """

    number: int
    folder: Path
    current: bool
    trained: str
    adapter_digest: str
    metrics: Mapping[str, float]
    rolled_back_to: int | None = None
    kept_at: str = ""


class ExpertVersions:
    """The versions of the experts of a store."""

    def __init__(self, store: FileExpertStore) -> None:
        self.store = store

    def folder(self, expert_id: str) -> Path:
        """Where the older versions of an expert are; there may be none.

        Raises:
            UsageError: The id is not valid, or a symlink leads out of the store.
        """
        self.store.folder(expert_id)  # refuses the id
        return confined(self.store.root, VERSIONS_FOLDER, expert_id)

    def list(self, expert_id: str) -> tuple[Version, ...]:
        """All versions of an expert, oldest first; the current one is last.

        Raises:
            UnknownExpertError: There is no such expert.
            StorageError: A card is corrupt.
        """
        expert = self.store.require(expert_id)
        older = tuple(self._read(expert_id, number) for number in self._numbers(expert_id))
        folder = self.store.folder(expert_id)
        if not folder.is_dir():
            return older
        card = read_card(folder)
        current = Version(
            number=self._current(expert_id),
            folder=folder,
            current=True,
            trained=expert.last_trained,
            adapter_digest=_text(card.get("adapter_digest")),
            metrics=expert.performance_metrics,
            rolled_back_to=_number(card.get(_ROLLED)),
        )
        return (*older, current)

    def install(
        self,
        expert_id: str,
        fill: Fill,
        make: Make,
        *,
        card: Mapping[str, object],
        whole_card: bool = False,
        replaces_equal: bool = False,
    ) -> Expert:
        """Puts a new version in place, whole, then registers it; the one of before is kept.

        Args:
            expert_id: The expert, which may be new.
            fill: Writes the version's files, all but the card, into an empty folder.
            make: Gives the expert to register of the one of before, which may be None; called
                more than once.
            card: What ``expert.json`` says besides the registry's fields.
            whole_card: Whether that is all; else keys of the card of before survive.
            replaces_equal: Replace a version of the same weights and keep none: the same
                training is published again, after a kill.

        Raises:
            UsageError: The id is not valid.
            FrozenExpertError: The expert is frozen.
            StorageError: It cannot be written; what was there before is intact, or kept.
        """
        store = self.store
        folder = store.folder(expert_id)
        with guarded("make", folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        with ExitStack() as held:
            with atomic_folder(folder) as building:
                fill(building)
                held.enter_context(store.moving())
                before = store.get(expert_id)
                if before is not None:
                    refuse_frozen(before, "replaced")
                number = self._current(expert_id)
                if folder.is_dir() and not (replaces_equal and _same_weights(folder, building)):
                    self._keep(expert_id, number, before)
                    number += 1
                fields = known_fields(make(before))
                old = {} if whole_card else read_card(folder)
                old.pop(_ROLLED, None)
                whole = {**old, "base_model": store.base_model, **card, **fields, _KEY: number}
                atomic_write_json(building / CARD_FILE, whole)
            return store.put(expert_id, make)

    def rollback(self, expert_id: str, to: int | None = None) -> Expert:
        """Makes an older version the current one; it becomes a new version.

        Name, goals, place in the tree and counters stay as they are; what the version was
        trained on, and how well it does, come back with it.

        Args:
            expert_id: The expert.
            to: Number of the version; by default the newest of the older ones.

        Raises:
            UnknownExpertError: There is no such expert.
            FrozenExpertError: It is frozen.
            UsageError: There is no such version, or it is the current one.
            StorageError: It cannot be written.
        """
        expert = self.store.require(expert_id)
        refuse_frozen(expert, "rolled back")
        numbers = self._numbers(expert_id)
        number = to if to is not None else max(numbers, default=0)
        if number not in numbers:
            raise UsageError(
                f"expert {expert_id!r} has no older version {number or ''}".rstrip(),
                f"older versions: {', '.join(map(str, numbers)) or 'none'}; see "
                f"`aios experts versions {expert_id}`",
            )
        source = self._path(expert_id, number)
        was = expert_of(self._record(source, expert_id))

        def back(before: Expert | None) -> Expert:
            now = before or was
            return replace(now, **{name: getattr(was, name) for name in _TRAINED})

        return self.install(
            expert_id,
            lambda building: _copy(source, building),
            back,
            card={**read_card(source), _ROLLED: number},
            whole_card=True,
        )

    def drop(self, expert_id: str, numbers: tuple[int, ...]) -> None:
        """Removes older versions for good; numbers that are not there do not matter.

        Raises:
            StorageError: One cannot be removed.
        """
        with self.store.moving():
            for number in numbers:
                path = self._path(expert_id, number)
                with guarded("remove", path):
                    if path.is_dir():
                        shutil.rmtree(path)

    def _keep(self, expert_id: str, number: int, expert: Expert | None) -> None:
        """Copies the current folder under its number."""
        folder, target = self.store.folder(expert_id), self._path(expert_id, number)
        with guarded("make", target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        record = {
            _KEY: number,
            "kept_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "record": None if expert is None else known_fields(expert),
        }
        with atomic_folder(target) as building:
            _copy(folder, building)
            atomic_write_json(building / _RECORD, record)

    def _numbers(self, expert_id: str) -> tuple[int, ...]:
        folder = self.folder(expert_id)
        with guarded("list", folder):
            names = os.listdir(folder) if folder.is_dir() else []
        return tuple(sorted(int(name) for name in names if name.isdecimal() and len(name) < 10))

    def _current(self, expert_id: str) -> int:
        """Number of the current version: its card's, or the next of those that are kept."""
        said = _number(read_card(self.store.folder(expert_id)).get(_KEY)) or 0
        return max(said, max(self._numbers(expert_id), default=0) + 1)

    def _path(self, expert_id: str, number: int) -> Path:
        return self.folder(expert_id) / str(number)

    def _record(self, folder: Path, expert_id: str) -> dict[str, Any]:
        """The registry's entry of a version that was kept, or what its card has of it."""
        kept = read_json(folder / _RECORD, default={})
        record = kept.get("record") if isinstance(kept, dict) else None
        found = record if isinstance(record, dict) else read_card(folder)
        try:
            expert_of({**found, "expert_id": expert_id})
        except ValueError as error:
            raise StorageError(
                f"{folder / _RECORD} is corrupt: it {error}", "roll back to another version"
            ) from error
        return {**found, "expert_id": expert_id}

    def _read(self, expert_id: str, number: int) -> Version:
        folder = self._path(expert_id, number)
        expert = expert_of(self._record(folder, expert_id))
        card = read_card(folder)
        kept = read_json(folder / _RECORD, default={})
        return Version(
            number=number,
            folder=folder,
            current=False,
            trained=expert.last_trained,
            adapter_digest=_text(card.get("adapter_digest")),
            metrics=expert.performance_metrics,
            rolled_back_to=_number(card.get(_ROLLED)),
            kept_at=_text(kept.get("kept_at")) if isinstance(kept, dict) else "",
        )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same adapter, byte for byte."""
    first, second = one / _WEIGHTS, other / _WEIGHTS
    with guarded("read", first):
        if not (first.is_file() and second.is_file()):
            return False
        if first.stat().st_size != second.stat().st_size:
            return False
        with first.open("rb") as a, second.open("rb") as b:
            while block := a.read(1 << 20):
                if block != b.read(1 << 20):
                    return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Copies an expert's files, links and our own records left out; weights are linked."""
    with guarded("copy", source):
        for folder, folders, names in os.walk(source):
            below = target / Path(folder).relative_to(source)
            below.mkdir(parents=True, exist_ok=True)
            folders[:] = [one for one in folders if not os.path.islink(os.path.join(folder, one))]
            for name in names:
                path = Path(folder) / name
                if path.is_symlink() or not path.is_file() or path == source / _RECORD:
                    continue
                if name.endswith(".safetensors") and _linked(path, below / name):
                    continue
                shutil.copy2(path, below / name)


def _linked(path: Path, target: Path) -> bool:
    """Whether the disk could give a file a second name."""
    try:
        os.link(path, target)
    except OSError:  # other disks, and some file systems, have no such names: it is copied
        return False
    return True
