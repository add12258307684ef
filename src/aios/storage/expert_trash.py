"""The trash of experts: a deleted expert can be brought back, with its versions and its place.

``<experts>/.trash/<id>-<time>/`` holds ``deleted.json`` (the registry's entry of the expert, keys
included that we do not know), its folder as ``expert`` and its older versions as ``versions``.
``deleted.json`` also says how far a deletion or a restoration has come: one that was cut short by
a kill is finished by the next one. An expert is deleted in the moment that the registry no longer
lists it, and back in the moment that it does again.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.core.errors import ExpertExistsError, StorageError, UnknownExpertError
from aios.core.experts import lineage
from aios.core.experts.registry import refuse_frozen, unknown
from aios.core.files import atomic_write_json, confined, guarded, read_json, sync_folder, valid_id
from aios.core.folders import recover
from aios.core.types import Expert
from aios.storage.expert_records import expert_of
from aios.storage.expert_versions import ExpertVersions
from aios.storage.experts import FileExpertStore

TRASH_FOLDER = ".trash"
_RECORD = "deleted.json"


@dataclass(frozen=True, slots=True)
class Trashed:
    """A deleted expert.

    Attributes:
        name: The entry's name, ``<id>-<time>``.
        expert: The expert as it was registered.
        deleted_at: When, ISO 8601 in UTC.
        folder: The entry's folder.
        bytes: What it takes on disk.
    """

    name: str
    expert: Expert
    deleted_at: str
    folder: Path
    bytes: int


class ExpertTrash:
    """The deleted experts of a store."""

    def __init__(self, store: FileExpertStore) -> None:
        self.store = store
        self.root = store.root / TRASH_FOLDER

    def list(self) -> tuple[Trashed, ...]:
        """What is in the trash, what was deleted first comes first.

        Raises:
            StorageError: It cannot be read.
        """
        entries = [_Entry.read(path) for path in self._paths()]
        shown = [one.shown() for one in entries if one is not None and one.state == "deleted"]
        return tuple(sorted(shown, key=lambda one: (one.deleted_at, one.name)))

    def delete(self, expert_id: str) -> Trashed:
        """Moves an expert to the trash: its registry entry, its folder and its versions.

        Its children become roots.

        Raises:
            UnknownExpertError: There is no such expert.
            FrozenExpertError: It is frozen, or a child of it is.
            StorageError: It cannot be moved; it is then still there, or in the trash.
        """
        with self.store.moving():
            self._recover()
            refuse_frozen(self.store.require(expert_id), "deleted")
            recover(self.store.folder(expert_id))
            now = datetime.now(timezone.utc)
            entry = self._begin(expert_id, now)
            with self.store.change() as open_registry:
                refuse_frozen(open_registry.require(expert_id), "deleted")
                for other in lineage.without(open_registry.experts, expert_id):
                    open_registry.put(other)
                entry.record["entry"] = dict(open_registry.record(expert_id))
                entry.save("deleting")
                open_registry.remove(expert_id)
            self._move_in(entry)
            return entry.shown()

    def restore(self, name: str) -> Expert:
        """Brings an expert back, with the links that still hold.

        Args:
            name: Its id (what was deleted last of that id), or the name of an entry.

        Raises:
            UnknownExpertError: Nothing of that name is in the trash.
            ExpertExistsError: The id is taken by now.
            StorageError: It cannot be moved back; it is then still in the trash.
        """
        with self.store.moving():
            self._recover()
            entry = self._find(name)[-1]
            expert_id = entry.expert.expert_id
            taken = self.store.get(expert_id) is not None
            if taken or any(target.exists() for target in self._targets(expert_id).values()):
                raise ExpertExistsError(
                    f"{expert_id!r} cannot be restored: an expert or folder of that id is there",
                    "delete that one first, or move its folder away",
                )
            entry.save("restoring")
            return self._move_out(entry)

    def purge(self, name: str | None = None) -> tuple[str, ...]:
        """Removes deleted experts for good.

        Args:
            name: An id (all that was deleted of it) or the name of an entry; None for all.

        Returns:
            The names of the entries that are gone.

        Raises:
            UnknownExpertError: Nothing of that name is in the trash.
            StorageError: One cannot be removed.
        """
        with self.store.moving():
            self._recover()
            if name is None:
                found = tuple(one for one in map(_Entry.read, self._paths()) if one is not None)
            else:
                found = self._find(name)
            for entry in found:
                entry.discard()
        return tuple(entry.path.name for entry in found)

    def _begin(self, expert_id: str, now: datetime) -> _Entry:
        """Makes the folder of a deletion."""
        stem = f"{expert_id}-{now:%Y%m%d-%H%M%S}"
        path, number = confined(self.root, stem), 1
        with guarded("make", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            while path.exists():
                path, number = confined(self.root, f"{stem}-{number}"), number + 1
            path.mkdir()
        deleted_at = now.isoformat(timespec="milliseconds")
        return _Entry(path, {"deleted_at": deleted_at, "entry": {"expert_id": expert_id}})

    def _targets(self, expert_id: str) -> dict[str, Path]:
        """Where the parts of an entry belong, by their names in it."""
        return {
            "expert": self.store.folder(expert_id),
            "versions": ExpertVersions(self.store).folder(expert_id),
        }

    def _move_in(self, entry: _Entry) -> None:
        for name, source in self._targets(entry.expert.expert_id).items():
            if source.is_dir() and not (entry.path / name).exists():
                _rename(source, entry.path / name)
        entry.save("deleted")

    def _move_out(self, entry: _Entry) -> Expert:
        expert = entry.expert
        for name, target in self._targets(expert.expert_id).items():
            if (entry.path / name).is_dir():
                _rename(entry.path / name, target)
        with self.store.change() as open_registry:
            if expert.expert_id not in open_registry.experts:
                back, others = lineage.brought_back(open_registry.experts, expert)
                for other in others:
                    open_registry.put(other)
                open_registry.put(back, entry.record["entry"])
            else:  # it came so far before a kill
                back = open_registry.experts[expert.expert_id]
        entry.discard()
        return back

    def _recover(self) -> None:
        """Finishes what a kill cut short."""
        for entry in map(_Entry.read, self._paths()):
            if entry is None or entry.state == "deleted":
                continue
            expert_id = entry.expert.expert_id
            listed = self.store.get(expert_id) is not None
            if entry.state == "restoring":
                targets = self._targets(expert_id).items()
                if any((entry.path / name).exists() and path.exists() for name, path in targets):
                    entry.save("deleted")  # the id was taken meanwhile
                else:
                    self._move_out(entry)
            elif not listed:
                self._move_in(entry)
            elif entry.is_empty():  # killed before the registry was changed
                entry.discard()
            else:
                entry.save("deleted")

    def _paths(self) -> tuple[Path, ...]:
        with guarded("list", self.root):
            if not self.root.is_dir():
                return ()
            names = sorted(os.listdir(self.root))
            paths = [self.root / name for name in names if valid_id(name)]
            return tuple(p for p in paths if p.is_dir() and not p.is_symlink())

    def _find(self, name: str) -> tuple[_Entry, ...]:
        """The entries of an id, or of that name; the one deleted last is last."""
        entries = [one for one in map(_Entry.read, self._paths()) if one is not None]
        found = [one for one in entries if one.path.name == name]
        found = found or [one for one in entries if one.expert.expert_id == name]
        if not found:
            known = [one.expert.expert_id for one in entries]
            message, remedy = unknown("expert", name, known, "aios experts list --trash")
            raise UnknownExpertError(f"{message} in the trash", remedy)
        found.sort(key=lambda one: (str(one.record.get("deleted_at")), one.path.name))
        return tuple(found)


class _Entry:
    """A folder in the trash.

    Attributes:
        path: It.
        record: The content of ``deleted.json``.
        expert: The expert, as the registry had it.
        state: ``deleting``, ``deleted`` or ``restoring``.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @property
    def expert(self) -> Expert:
        return expert_of(self.record["entry"])

    @property
    def state(self) -> str:
        return str(self.record.get("state", "deleted"))

    @classmethod
    def read(cls, path: Path) -> _Entry | None:
        """The entry in a folder; None where none was begun there, or it is no entry of ours.

        Raises:
            StorageError: Its record is corrupt.
        """
        record = read_json(path / _RECORD, default=None)
        if record is None:
            return None
        try:
            expert_of(record["entry"])
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{path / _RECORD} is corrupt: {error}", "move that folder out of the trash"
            ) from error
        return cls(path, record)

    def shown(self) -> Trashed:
        """What people see of it."""
        deleted_at = str(self.record.get("deleted_at", ""))
        size = _bytes_below(self.path)
        return Trashed(self.path.name, self.expert, deleted_at, self.path, size)

    def save(self, state: str) -> None:
        """Writes down how far it has come."""
        self.record["state"] = state
        atomic_write_json(self.path / _RECORD, self.record)

    def is_empty(self) -> bool:
        """Whether nothing but the record is in it."""
        return not any((self.path / name).exists() for name in ("expert", "versions"))

    def discard(self) -> None:
        """Removes the folder: the record last, so that a kill leaves an entry and no debris."""
        with guarded("remove", self.path):
            for name in ("expert", "versions"):
                if (self.path / name).exists():
                    shutil.rmtree(self.path / name)
            shutil.rmtree(self.path)


def _rename(source: Path, target: Path) -> None:
    with guarded("move", source):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        sync_folder(target.parent)
        sync_folder(source.parent)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(path, name)).st_size for name in names)
    return total
