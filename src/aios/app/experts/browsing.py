"""Looking through many experts: what is asked for, a page of a list at a time, or as a tree.

Takes the registry, which is read again only when it has changed; gives pages of experts that
match, in the order asked for, and how many there are of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.app.experts.registry import open_goals, open_store
from aios.app.kept import KeptByStamp, Stamp, stamp_of
from aios.core.config.schemas import Config
from aios.core.experts.registry import ExpertFilter, Goal
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore

STATUSES = ("active", "inactive", "frozen")
_ORDERS: Mapping[str, Callable[[Expert], Any]] = {
    "name": lambda one: one.name.casefold(),
    "category": lambda one: one.category.casefold(),
    "status": lambda one: (not one.is_active, one.is_frozen),
    "activations": lambda one: one.total_activations,
    "weight": lambda one: one.avg_routing_weight,
    "goals": lambda one: len(one.goals),
    "children": lambda one: len(one.child_expert_ids),
    "trained": lambda one: one.last_trained,
}
ORDERS = tuple(_ORDERS)
_MOST_BRANCHES = 400  # shown on a page of the tree
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class ExpertQuery:
    """Which experts are asked for, and in which order; what is empty does not matter.

    Attributes:
        text: Words that all stand in an expert's id, name, description, category or goals.
        status: One of `STATUSES`.
        category: Their category, in any case of letters.
        goal: Id or text of a goal that they serve.
        order: One of `ORDERS`.
        down: Whether the largest comes first.
    """

    text: str = ""
    status: str = ""
    category: str = ""
    goal: str = ""
    order: str = "name"
    down: bool = False

    @property
    def asks(self) -> bool:
        """Whether any experts are left out."""
        return bool(self.text or self.status or self.category or self.goal)


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """How many experts there are, and in how many answers they had a part."""

    total: int
    active: int
    frozen: int
    activations: int


@dataclass(frozen=True, slots=True)
class ExpertPage:
    """A page of the experts that match.

    Attributes:
        experts: Those on it.
        found: How many match.
        page: Its number, from 1.
        pages: How many pages there are, at least 1.
    """

    experts: tuple[Expert, ...]
    found: int
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Branch:
    """An expert in the tree, with those below it.

    Attributes:
        expert: The expert.
        children: Those right below it that are shown.
        below: How many are below it, at any depth, of those that are asked for.
        left_out: How many right below it are not shown, because there are too many.
    """

    expert: Expert
    children: tuple[Branch, ...]
    below: int
    left_out: int


@dataclass(frozen=True, slots=True)
class TreePage:
    """A page of roots with what is below them; attributes as `ExpertPage`."""

    roots: tuple[Branch, ...]
    found: int
    page: int
    pages: int


class ExpertBrowser:
    """Answers questions about registries without reading them each time."""

    def __init__(self) -> None:
        self._registries: KeptByStamp[tuple[Expert, ...]] = KeptByStamp(4)

    def experts(self, config: Config) -> tuple[Expert, ...]:
        """All experts, in the order they were added.

        Raises:
            StorageError: The registry is corrupt.
        """
        return self._registries.of_file(open_store(config).path, _read_registry)

    def revision(self, config: Config) -> Stamp:
        """Changes when the registry or the goals do."""
        return stamp_of(open_store(config).path, open_goals(config).path)

    def counts(self, config: Config) -> ExpertCounts:
        """How many experts there are. Raises what `experts` does."""
        found = self.experts(config)
        return ExpertCounts(
            total=len(found),
            active=sum(one.is_active for one in found),
            frozen=sum(one.is_frozen for one in found),
            activations=sum(one.total_activations for one in found),
        )

    def categories(self, config: Config) -> tuple[str, ...]:
        """The categories that experts have, each in one way of writing."""
        found = {one.category.casefold(): one.category for one in self.experts(config)}
        return tuple(found[key] for key in sorted(found) if key)

    def page(self, config: Config, query: ExpertQuery, page: int, size: int) -> ExpertPage:
        """A page of the experts that match; a page too far is the last one.

        Raises:
            StorageError: The registry or the goals are corrupt.
        """
        found = self._matching(config, query)
        found.sort(key=lambda one: (one.name.casefold(), one.expert_id))
        found.sort(key=_ORDERS.get(query.order, _ORDERS["name"]), reverse=query.down)
        page, pages = _clamped(page, len(found), size)
        return ExpertPage(tuple(found[(page - 1) * size : page * size]), len(found), page, pages)

    def tree(self, config: Config, query: ExpertQuery, page: int, size: int) -> TreePage:
        """A page of the roots of trees that hold an expert that matches, by name.

        Raises:
            StorageError: The registry or the goals are corrupt.
        """
        experts = {one.expert_id: one for one in self.experts(config)}
        matching = self._matching(config, query)
        forest = _Forest(experts, {one.expert_id for one in matching})
        page, pages = _clamped(page, len(forest.roots), size)
        shown = forest.roots[(page - 1) * size : page * size]
        return TreePage(forest.grow(shown), len(matching), page, pages)

    def choices(self, config: Config, text: str = "", most: int = 300) -> tuple[Expert, ...]:
        """Experts to choose from, by name; the first of them."""
        return self.page(config, ExpertQuery(text), 1, most).experts

    def _matching(self, config: Config, query: ExpertQuery) -> list[Expert]:
        if not query.asks:
            return [*self.experts(config)]
        goal = query.goal or None
        if goal is not None:
            goals = {one.id: one.text for one in open_goals(config).list()}
            goal = goals.get(goal, goal)
        active = {"active": True, "inactive": False}.get(query.status)
        wanted = ExpertFilter(active=active, category=query.category or None, goal=goal)
        words = query.text.casefold().split()
        return [
            one
            for one in self.experts(config)
            if wanted.matches(one)
            and (query.status != "frozen" or one.is_frozen)
            and (not words or _holds(one, words))
        ]


def goals_with_experts(
    config: Config, experts: Sequence[Expert] | None = None
) -> tuple[tuple[Goal, tuple[Expert, ...]], ...]:
    """Each goal with the experts that serve it.

    Args:
        config: The resolved config.
        experts: All experts, where they were read already.

    Raises:
        StorageError: The registry or the goals are corrupt.
    """
    served: dict[str, list[Expert]] = {}
    for one in open_store(config).list() if experts is None else experts:
        for text in {goal.casefold() for goal in one.goals}:
            served.setdefault(text, []).append(one)
    known = open_goals(config).list()
    return tuple((goal, tuple(served.get(goal.text.casefold(), ()))) for goal in known)


class _Forest:
    """All experts as trees, as far as they match or lead to one that does.

    Links are taken from the children's side. An id that is not in the registry is no parent; a
    circle, which another program may have written, begins at the expert that was added first.
    """

    def __init__(self, experts: Mapping[str, Expert], matching: set[str]) -> None:
        parents = {
            key: one.parent_expert_id if one.parent_expert_id in experts else None
            for key, one in experts.items()
        }
        below: dict[str, list[str]] = {}
        for key, parent in parents.items():
            if parent is not None and parent != key:
                below.setdefault(parent, []).append(key)
        order: dict[str, str | None] = {}  # each after its parent
        roots = [key for key, parent in parents.items() if parent is None]
        for start in (roots, list(experts)):
            for root in start:
                if root not in order:
                    _walk(root, below, order)
        self._counts = dict.fromkeys(order, 0)
        kept: set[str] = set()
        for key in reversed(order):
            if key in matching or key in kept:
                kept.add(key)
                parent = order[key]
                if parent is not None:
                    kept.add(parent)
                    self._counts[parent] += self._counts[key] + (key in matching)
        self._children: dict[str, list[str]] = {}
        names = [key for key in order if key in kept]
        names.sort(key=lambda key: (experts[key].name.casefold(), key))
        for key in names:
            parent = order[key]
            if parent is not None:
                self._children.setdefault(parent, []).append(key)
        self.roots = [key for key in names if order[key] is None]
        self._experts = experts
        self._left = 0

    def grow(self, roots: Sequence[str]) -> tuple[Branch, ...]:
        """The trees of these roots, within the bounds of a page."""
        self._left = _MOST_BRANCHES
        return tuple(self._branch(key, 1) for key in roots)

    def _branch(self, key: str, depth: int) -> Branch:
        children = self._children.get(key, [])
        shown = children[: max(0, self._left)] if depth < _DEEPEST else []
        self._left -= len(shown)
        return Branch(
            expert=self._experts[key],
            children=tuple(self._branch(one, depth + 1) for one in shown),
            below=self._counts[key],
            left_out=len(children) - len(shown),
        )


def _walk(root: str, below: Mapping[str, Sequence[str]], order: dict[str, str | None]) -> None:
    order[root] = None
    waiting = [root]
    for one in waiting:
        for child in below.get(one, ()):
            if child not in order:
                order[child] = one
                waiting.append(child)


def _holds(expert: Expert, words: Sequence[str]) -> bool:
    parts = (expert.expert_id, expert.name, expert.description, expert.category, *expert.goals)
    text = "\n".join(parts).casefold()
    return all(word in text for word in words)


def _clamped(page: int, found: int, size: int) -> tuple[int, int]:
    pages = max(1, -(-found // size))
    return min(max(page, 1), pages), pages


def _read_registry(path: Path) -> tuple[Expert, ...]:
    return FileExpertStore(path.parent, "").list()
