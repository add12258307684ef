"""Trees of experts: who is whose parent, kept the same on both sides.

Takes all experts by id and a change; gives the experts that the change makes different. An id that
the registry does not hold (another program may have written one) is left where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aios.core.errors import UsageError
from aios.core.experts.registry import refuse_frozen, unknown_expert
from aios.core.types import Expert

Experts = Mapping[str, Expert]


def ancestors(experts: Experts, expert_id: str) -> tuple[str, ...]:
    """Ids from the parent upwards; ends where a registry of another program goes in a circle."""
    found: list[str] = []
    expert = experts.get(expert_id)
    while expert is not None and expert.parent_expert_id is not None:
        parent = expert.parent_expert_id
        if parent in found or parent == expert_id:
            break
        found.append(parent)
        expert = experts.get(parent)
    return tuple(found)


def descendants(experts: Experts, expert_id: str) -> tuple[str, ...]:
    """Ids of children, their children and so on, nearest first; only those in the registry."""
    found: dict[str, None] = {}
    waiting = [expert_id]
    for one in waiting:
        for child in experts[one].child_expert_ids if one in experts else ():
            if child in experts and child != expert_id and child not in found:
                found[child] = None
                waiting.append(child)
    return tuple(found)


def with_parent(experts: Experts, expert_id: str, parent_id: str | None) -> list[Expert]:
    """Gives an expert another parent, or none.

    Args:
        experts: All experts by id.
        expert_id: The expert.
        parent_id: Its parent from now on; None for a root.

    Returns:
        The experts that are different then: it, its parent of before, its new parent.

    Raises:
        UnknownExpertError: One of them is not known.
        FrozenExpertError: The expert is frozen.
        UsageError: It would be its own ancestor.
    """
    for one in (expert_id, parent_id):
        if one is not None and one not in experts:
            raise unknown_expert(one, experts)
    expert = experts[expert_id]
    refuse_frozen(expert, "given another parent")
    if parent_id == expert_id or (parent_id and expert_id in ancestors(experts, parent_id)):
        raise UsageError(
            f"{parent_id!r} cannot be the parent of {expert_id!r}: it is the same expert, or below "
            "it in the tree",
            "clear the parent of one of them first: aios experts clear-parent ID",
        )
    changed = {expert_id: replace(expert, parent_expert_id=parent_id)}
    for other in experts.values():  # whichever lists it, not only the parent that it names
        if other.expert_id != parent_id and expert_id in other.child_expert_ids:
            _put(changed, _without_child(changed.get(other.expert_id, other), expert_id))
    if parent_id is not None:
        parent = experts[parent_id]
        if expert_id not in parent.child_expert_ids:
            children = (*parent.child_expert_ids, expert_id)
            _put(changed, replace(parent, child_expert_ids=children))
    return [one for key, one in changed.items() if one != experts[key]]


def without(experts: Experts, expert_id: str) -> list[Expert]:
    """The other experts without any link to one that goes; its children become roots.

    Raises:
        FrozenExpertError: A child of it is frozen, and would get another parent.
    """
    changed = []
    for other in experts.values():
        if other.expert_id == expert_id:
            continue
        mended = _without_child(other, expert_id)
        if other.parent_expert_id == expert_id:
            refuse_frozen(other, f"given another parent, and {expert_id!r} is its parent")
            mended = replace(mended, parent_expert_id=None)
        if mended != other:
            changed.append(mended)
    return changed


def brought_back(experts: Experts, expert: Expert) -> tuple[Expert, list[Expert]]:
    """An expert that comes back, with the links that still hold, and its neighbours with theirs.

    A parent that is gone is left out, and so is a child that is gone or has another parent now.

    Args:
        experts: The experts in the registry; it is none of them.
        expert: It, with the links that it had when it went.

    Returns:
        It, and the others that are different then.
    """
    parent = experts.get(expert.parent_expert_id or "")
    children = [
        child
        for child in (experts.get(one) for one in expert.child_expert_ids)
        if child is not None and child.parent_expert_id is None and child != parent
    ]
    above = () if parent is None else (parent.expert_id, *ancestors(experts, parent.expert_id))
    children = [child for child in children if child.expert_id not in above]
    back = replace(
        expert,
        parent_expert_id=parent.expert_id if parent else None,
        child_expert_ids=tuple(child.expert_id for child in children),
    )
    changed = [replace(child, parent_expert_id=expert.expert_id) for child in children]
    if parent is not None and expert.expert_id not in parent.child_expert_ids:
        ids = (*parent.child_expert_ids, expert.expert_id)
        changed.append(replace(parent, child_expert_ids=ids))
    return back, changed


def _without_child(expert: Expert, child_id: str) -> Expert:
    left = tuple(one for one in expert.child_expert_ids if one != child_id)
    return replace(expert, child_expert_ids=left) if left != expert.child_expert_ids else expert


def _put(changed: dict[str, Expert], expert: Expert) -> None:
    changed[expert.expert_id] = expert
