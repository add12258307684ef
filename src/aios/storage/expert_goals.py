"""Goals that experts serve: ``goals.json`` beside the registry.

``{"version", "goals": [{"id", "text", "created"}]}``; keys that we do not know survive. An expert
that serves a goal has the goal's *text* in its `goals`, so that every reader of the registry sees
what it is for without this file; a goal that was written there by a training or by another program
need not be in this file at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError, UsageError
from aios.core.experts.registry import Goal, goal_text, unknown
from aios.core.files import atomic_write_json, locked, read_json, require_id, valid_id
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore

_FILE = "goals.json"
_VERSION = "1.0"
_LONGEST_ID = 40


class GoalStore:
    """The goals of a store of experts."""

    def __init__(self, store: FileExpertStore) -> None:
        self.store = store
        self.path: Path = store.root / _FILE

    def list(self) -> tuple[Goal, ...]:
        """All goals, in the order they were added.

        Raises:
            StorageError: The file is corrupt.
        """
        return self._goals(self._load())

    def get(self, goal: str) -> Goal:
        """A goal by its id, or by its text in any case of letters.

        Raises:
            UsageError: It is not known; the remedy names the closest ones.
            StorageError: The file is corrupt.
        """
        return _find(self.list(), goal)

    def add(self, text: str, goal_id: str | None = None) -> Goal:
        """Adds a goal.

        Args:
            text: What it says; white space is made single spaces.
            goal_id: Its id; by default it is made of the first words.

        Raises:
            UsageError: The text or the id cannot be used, or is there already.
            StorageError: The file is corrupt or cannot be written.
        """
        text = goal_text(text)
        if goal_id is not None:
            require_id(goal_id, "goal id")
        with self._change() as document:
            goals = self._goals(document)
            for one in goals:
                if one.text.casefold() == text.casefold() or one.id == goal_id:
                    raise UsageError(
                        f"there is a goal {one.id!r} already: {one.text}", "use that one"
                    )
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            goal = Goal(goal_id or _new_id(text, {one.id for one in goals}), text, now)
            document["goals"].append({"id": goal.id, "text": goal.text, "created": goal.created})
        return goal

    def remove(self, goal: str) -> tuple[Goal, tuple[str, ...]]:
        """Removes a goal, from the experts that serve it too.

        Returns:
            The goal, and the ids of the experts that served it.

        Raises:
            UsageError: It is not known.
            StorageError: A file is corrupt or cannot be written.
        """
        with self._change() as document:
            found = _find(self._goals(document), goal)
            served = tuple(e.expert_id for e in self.store.list() if _serves(e, found))
            with self.store.change() as open_registry:
                for expert in tuple(open_registry.experts.values()):
                    open_registry.put(_without(expert, found))
            document["goals"] = [one for one in document["goals"] if one["id"] != found.id]
        return found, served

    def link(self, goal: str, expert_id: str) -> Expert:
        """Lets an expert serve a goal; a no-op where it does.

        Raises:
            UsageError: The goal is not known.
            UnknownExpertError: The expert is not known.
            StorageError: A file is corrupt or cannot be written.
        """
        found = self.get(goal)

        def linked(expert: Expert) -> Expert:
            if _serves(expert, found):
                return expert
            return replace(expert, goals=(*expert.goals, found.text))

        return self.store.update(expert_id, linked)

    def unlink(self, goal: str, expert_id: str) -> Expert:
        """Lets an expert serve a goal no more.

        Args:
            goal: A goal's id or text; it may be one that only the expert has.
            expert_id: The expert.

        Raises:
            UsageError: The expert does not serve it.
            UnknownExpertError: The expert is not known.
            StorageError: A file is corrupt or cannot be written.
        """
        known = next((one for one in self.list() if goal in (one.id, one.text)), Goal("", goal))

        def unlinked(expert: Expert) -> Expert:
            if not _serves(expert, known):
                raise UsageError(
                    f"expert {expert_id!r} does not serve the goal {goal!r}",
                    f"`aios goals list-for-expert {expert_id}` lists those that it serves",
                )
            return _without(expert, known)

        return self.store.update(expert_id, unlinked)

    def of_expert(self, expert_id: str) -> tuple[Goal, ...]:
        """The goals that an expert serves; those that are not in the file have no id.

        Raises:
            UnknownExpertError: The expert is not known.
            StorageError: A file is corrupt.
        """
        known = {goal.text.casefold(): goal for goal in self.list()}
        texts = self.store.require(expert_id).goals
        return tuple(known.get(text.casefold(), Goal("", text)) for text in texts)

    @contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        """The file's content, locked, written at the end of the block; not if it raises."""
        with locked(self.store.root / f".{_FILE}.lock"):
            document = self._load()
            yield document
            atomic_write_json(self.path, document)

    def _load(self) -> dict[str, Any]:
        document = read_json(self.path, default={"version": _VERSION, "goals": []})
        if not isinstance(document, dict) or not isinstance(document.get("goals"), list):
            raise self._corrupt("no list of goals in it")
        return document

    def _goals(self, document: dict[str, Any]) -> tuple[Goal, ...]:
        goals: dict[str, Goal] = {}
        for index, entry in enumerate(document["goals"]):
            record = entry if isinstance(entry, dict) else {}
            goal_id, text, created = (record.get(key) for key in ("id", "text", "created"))
            if not (isinstance(goal_id, str) and goal_id and isinstance(text, str) and text):
                raise self._corrupt(f"goals[{index}] has no id or text")
            if goal_id in goals:
                raise self._corrupt(f"goal {goal_id!r} is listed twice")
            goals[goal_id] = Goal(goal_id, text, created if isinstance(created, str) else "")
        return tuple(goals.values())

    def _corrupt(self, reason: str) -> StorageError:
        return StorageError(
            f"{self.path} is corrupt: {reason}", "Correct it by hand, or move it away."
        )


def _find(goals: tuple[Goal, ...], wanted: str) -> Goal:
    line = " ".join(wanted.split()).casefold()
    for goal in goals:
        if goal.id == wanted or goal.text.casefold() == line:
            return goal
    raise UsageError(*unknown("goal", wanted, [goal.id for goal in goals], "aios goals list"))


def _serves(expert: Expert, goal: Goal) -> bool:
    return any(text.casefold() == goal.text.casefold() for text in expert.goals)


def _without(expert: Expert, goal: Goal) -> Expert:
    left = tuple(text for text in expert.goals if text.casefold() != goal.text.casefold())
    return replace(expert, goals=left) if left != expert.goals else expert


def _new_id(text: str, taken: set[str]) -> str:
    """An id made of a goal's first words, with a number where that is taken."""
    stem = ""
    for word in re.findall(r"[a-z0-9]+", text.casefold()):
        longer = f"{stem}-{word}" if stem else word
        if len(longer) > _LONGEST_ID:
            break
        stem = longer
    stem = stem if valid_id(stem) else "goal"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
