"""Changes of experts that are more than one call of a store: of several at once, or of their texts.

Takes ids that people chose; gives what was changed, and what was left and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aios.app.experts.registry import open_store, open_trash
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, UsageError
from aios.core.experts.registry import refuse_frozen
from aios.core.types import Expert
from aios.storage.expert_trash import Trashed

_MOST_CHARACTERS = {"name": 200, "description": 2000, "category": 100}


@dataclass(frozen=True, slots=True)
class DeletedExperts:
    """What a deletion of several came to.

    Attributes:
        trashed: The entries of the trash.
        problems: Why others are still there.
    """

    trashed: tuple[Trashed, ...]
    problems: tuple[AIOSError, ...]


def set_active(config: Config, expert_ids: Sequence[str], active: bool) -> tuple[Expert, ...]:
    """Lets experts answer messages, or not; all of them or, if one is not known, none.

    Raises:
        UnknownExpertError: One of them is not known.
        StorageError: The registry is corrupt, locked for long, or cannot be written.
    """
    with open_store(config).change() as registry:
        changed = [
            replace(registry.require(one), is_active=active) for one in dict.fromkeys(expert_ids)
        ]
        for expert in changed:
            registry.put(expert)
    return tuple(changed)


def delete_experts(config: Config, expert_ids: Sequence[str]) -> DeletedExperts:
    """Moves experts to the trash, each by itself: what cannot be moved stays.

    Raises:
        StorageError: The registry cannot be read or written; others may be in the trash already.
    """
    trash = open_trash(config)
    trashed: list[Trashed] = []
    problems: list[AIOSError] = []
    for one in dict.fromkeys(expert_ids):
        try:
            trashed.append(trash.delete(one))
        except UsageError as error:  # unknown or frozen, and no fault of the disk
            problems.append(error)
    return DeletedExperts(tuple(trashed), tuple(problems))


def restore_experts(config: Config, entries: Sequence[str]) -> tuple[Expert, ...]:
    """Brings deleted experts back, in the order given.

    Raises:
        UnknownExpertError: Nothing of that name is in the trash; those before it are back.
        ExpertExistsError: An id is taken by now; those before it are back.
        StorageError: One cannot be moved back.
    """
    trash = open_trash(config)
    return tuple(trash.restore(one) for one in entries)


def describe_expert(
    config: Config,
    expert_id: str,
    *,
    name: str | None = None,
    description: str | None = None,
    category: str | None = None,
) -> Expert:
    """Changes what people read of an expert; what is None stays as it is.

    Args:
        config: The resolved config.
        expert_id: The expert.
        name: Name for people; the id if empty.
        description: What it knows.
        category: A word to group experts by.

    Raises:
        UnknownExpertError: There is no such expert.
        FrozenExpertError: It is frozen.
        UsageError: A text is too long, or a name or category is not one line.
        StorageError: The registry is corrupt, locked for long, or cannot be written.
    """
    texts: dict[str, str] = {}
    if name is not None:
        texts["name"] = name.strip() or expert_id
    if description is not None:
        texts["description"] = description.replace("\r\n", "\n").strip()
    if category is not None:
        texts["category"] = category.strip()
    for key, text in texts.items():
        if len(text) > _MOST_CHARACTERS[key]:
            raise UsageError(
                f"the {key} is too long", f"write at most {_MOST_CHARACTERS[key]:,} characters"
            )
        if key != "description" and not text.isprintable():
            raise UsageError(f"the {key} cannot be used", "write one line of plain text")

    def described(expert: Expert) -> Expert:
        refuse_frozen(expert, "changed")
        return replace(
            expert,
            name=texts.get("name", expert.name),
            description=texts.get("description", expert.description),
            category=texts.get("category", expert.category),
        )

    return open_store(config).update(expert_id, described)
