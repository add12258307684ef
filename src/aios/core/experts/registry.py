"""What is known of experts and goals, apart from where it is kept.

Takes `Expert` records; gives filters, the rules for frozen experts, the error for an unknown id,
and what the counters of a registry become when answers were counted elsewhere.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from aios.core.errors import FrozenExpertError, UnknownExpertError, UsageError
from aios.core.types import Expert

MAX_GOAL_CHARACTERS = 2000
RESERVED_IDS = ("auto", "base")  # what a conversation calls "any that fits" and "none"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Goal:
    """Something that experts are for.

    Attributes:
        id: Its key; unique.
        text: What it says, on one line; unique. Experts that serve it have this text in `goals`.
        created: ISO 8601 time in UTC.
    """

    id: str
    text: str
    created: str = ""


@dataclass(frozen=True, slots=True)
class ExpertFilter:
    """Which experts are asked for; what is None does not matter.

    Attributes:
        active: Whether they answer messages.
        category: Their category, in any case of letters.
        goal: Text of a goal that they serve.
        base_model: Name of the base model.
        parent: Id of their parent.
    """

    active: bool | None = None
    category: str | None = None
    goal: str | None = None
    base_model: str | None = None
    parent: str | None = None

    def matches(self, expert: Expert) -> bool:
        """Whether an expert is asked for."""
        return (
            (self.active is None or expert.is_active == self.active)
            and (self.category is None or _same(expert.category, self.category))
            and (self.goal is None or any(_same(goal, self.goal) for goal in expert.goals))
            and (self.base_model is None or _same(expert.model_architecture, self.base_model))
            and (self.parent is None or expert.parent_expert_id == self.parent)
        )


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def unknown(what: str, key: str, known: Iterable[str], command: str) -> tuple[str, str]:
    """Message and remedy for a key that is not known, with the closest known ones.

    Args:
        what: What the key names, e.g. ``expert``.
        key: The key.
        known: The known keys.
        command: The command that lists them.
    """
    names = list(known)
    near = difflib.get_close_matches(key, names, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"`{command}` lists them"
    if not near and 0 < len(names) <= _SHOWN:
        remedy = f"known: {', '.join(names)}"
    return f"there is no {what} {key!r}", remedy


def unknown_expert(expert_id: str, known: Iterable[str]) -> UnknownExpertError:
    """The error for an expert id that is not in the registry, with the closest ones."""
    return UnknownExpertError(*unknown("expert", expert_id, known, "aios experts list"))


def refuse_reserved(expert_id: str) -> None:
    """Keeps the names that mean something else in a conversation from new experts.

    Raises:
        UsageError: It is one of them.
    """
    if expert_id.casefold() in RESERVED_IDS:
        raise UsageError(
            f"{expert_id!r} is not a valid expert id: it has a meaning of its own in a chat",
            "choose another id",
        )


def refuse_frozen(expert: Expert, doing: str) -> None:
    """Keeps a frozen expert as it is.

    Args:
        expert: The expert.
        doing: What is not done then, e.g. ``trained``.

    Raises:
        FrozenExpertError: It is frozen.
    """
    if expert.is_frozen:
        raise FrozenExpertError(
            f"expert {expert.expert_id!r} is frozen and cannot be {doing}",
            f"unfreeze it first: aios experts unfreeze {expert.expert_id}",
        )


def goal_text(text: str) -> str:
    """A goal's text on one line.

    Raises:
        UsageError: It is empty, too long, or holds control characters.
    """
    line = " ".join(text.split())
    if not line or len(line) > MAX_GOAL_CHARACTERS or not line.isprintable():
        raise UsageError(
            f"{line[:40]!r} cannot be a goal",
            f"write one line of text, at most {MAX_GOAL_CHARACTERS:,} characters",
        )
    return line


def with_counters(expert: Expert, activations: int, weight: float) -> Expert:
    """An expert with the counters that the database of answers has for it.

    They are totals and no increments, so that taking them twice changes nothing.

    Args:
        expert: The expert.
        activations: Answers that it had a part in, at least 0.
        weight: Its mean weight in them.

    Raises:
        ValueError: A counter is not one.
    """
    if activations < 0 or not math.isfinite(weight):
        raise ValueError(f"{activations!r} activations of mean weight {weight!r} are no counters")
    return replace(expert, total_activations=activations, avg_routing_weight=float(weight))
