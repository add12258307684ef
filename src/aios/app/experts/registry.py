"""The registry as the config names it, and what it has to say of an expert.

Takes a `Config`; gives the stores below ``<artifacts>/experts``, and an expert with all that its
folder tells about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aios.core.config.schemas import Config
from aios.core.errors import StorageError, UsageError
from aios.core.experts.provenance import DOCUMENTS_FILE, Documents, decode_documents
from aios.core.experts.registry import ExpertFilter
from aios.core.files import guarded
from aios.core.types import Expert
from aios.storage.expert_goals import GoalStore
from aios.storage.expert_trash import ExpertTrash
from aios.storage.expert_versions import ExpertVersions, Version
from aios.storage.experts import FileExpertStore

_MAX_LINE_BYTES = 16 << 20
_SHOWN = (  # of the card: where the expert comes from
    "base_model base_digest adapter_digest recipe recipe_source strategy strategy_source generator "
    "seed dataset dataset_sha256 validation edits drops best_step restem created_from"
).split()


@dataclass(frozen=True, slots=True)
class ExpertView:
    """An expert and what its folder tells.

    Attributes:
        expert: As registered.
        folder: Its folder.
        version: The current version; None where the folder is gone.
        older_versions: How many are kept.
        provenance: What made it, as its card says.
        documents: The passages that it was trained on.
        bytes: What its folder takes on disk.
    """

    expert: Expert
    folder: Path
    version: Version | None
    older_versions: int
    provenance: Mapping[str, Any]
    documents: Documents
    bytes: int


def open_store(config: Config) -> FileExpertStore:
    """The registry of experts that the config names."""
    return FileExpertStore(config.paths.artifacts / "experts", config.model.name)


def open_goals(config: Config) -> GoalStore:
    """The goals of these experts."""
    return GoalStore(open_store(config))


def open_versions(config: Config) -> ExpertVersions:
    """The versions of these experts."""
    return ExpertVersions(open_store(config))


def open_trash(config: Config) -> ExpertTrash:
    """The experts that were deleted."""
    return ExpertTrash(open_store(config))


def list_experts(config: Config, wanted: ExpertFilter | None = None) -> tuple[Expert, ...]:
    """The experts, or those that are asked for; a goal may be given by its id.

    Args:
        config: The resolved config.
        wanted: Which are asked for; all by default.

    Returns:
        Their entries in the registry, by id.

    Raises:
        StorageError: The registry or the goals are corrupt.
    """
    wanted = wanted or ExpertFilter()
    store = open_store(config)
    if wanted.goal is not None:
        goals = {goal.id: goal.text for goal in GoalStore(store).list()}
        wanted = replace(wanted, goal=goals.get(wanted.goal, wanted.goal))
    return tuple(expert for expert in store.list() if wanted.matches(expert))


def show_expert(
    config: Config, expert_id: str, read: Callable[[Path], Documents] | None = None
) -> ExpertView:
    """All that is known of an expert.

    Args:
        config: The resolved config.
        expert_id: The expert.
        read: Gives the documents of a folder; `read_documents` by default.

    Raises:
        UnknownExpertError: There is no such expert.
        StorageError: The registry, its card or its documents are corrupt.
    """
    store = open_store(config)
    expert = store.require(expert_id)
    versions = ExpertVersions(store).list(expert_id)
    folder = store.folder(expert_id)
    card = store.read_card(expert_id)
    current = next((one for one in versions if one.current), None)
    return ExpertView(
        expert=expert,
        folder=folder,
        version=current,
        older_versions=sum(not one.current for one in versions),
        provenance={key: card[key] for key in _SHOWN if card.get(key) is not None},
        documents=(read or read_documents)(folder),
        bytes=sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def read_documents(folder: Path) -> Documents:
    """What an expert was made from, of the file in its folder; not known where there is none.

    Raises:
        StorageError: The file is damaged.
    """
    path = folder / DOCUMENTS_FILE
    with guarded("read", path):
        if not path.is_file():
            return Documents(known=False)
    try:
        return decode_documents(_lines(path))
    except ValueError as error:
        raise StorageError(
            f"{path} is damaged: {error}", "restore it from a copy, or train the expert again"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    with guarded("read", path), path.open("rb") as stream:
        while line := stream.readline(_MAX_LINE_BYTES + 1):
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError("a line is too long")
            yield line


def require_dataset(path: Path, expert_id: str) -> Path:
    """The file that an expert was trained on.

    Raises:
        UsageError: It is not there any more.
    """
    if not path.is_file():
        raise UsageError(
            f"expert {expert_id!r} was trained on {path}, which is not there any more",
            "put the file back, or name where it is now with --dataset",
        )
    return path
