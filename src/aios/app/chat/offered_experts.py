"""Which experts of the registry a loaded base model can answer with, followed as it changes.

Takes the store of experts and the model's digest; gives `Offer`s. The registry is read again when
its file has changed, which is looked at for each request (one ``stat``). An expert is offered if
it is active, was trained on this very base model (by the digest in its card), and its id is none
of the reserved names; a notice says once why another one is not. What is wrong with a damaged one
stands in the notice alone, since it names files of this machine, and whoever asks may be elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from aios.app.kept import Stamp, stamp_of
from aios.core.errors import AIOSError, StorageError, UsageError
from aios.core.events import Notice
from aios.core.experts.registry import unknown_expert
from aios.core.files import valid_id
from aios.core.protocols import Emit
from aios.core.types import AdapterRef, Expert
from aios.storage.expert_records import CARD_FILE
from aios.storage.experts import FileExpertStore

AUTO, BASE = "auto", "base"


@dataclass(frozen=True, slots=True)
class Offer:
    """The experts as of one reading of the registry.

    Attributes:
        experts: Those that answer.
        adapters: Their adapters, by id.
        refused: Why the others do not, by id: message and remedy.
    """

    experts: tuple[Expert, ...] = ()
    adapters: Mapping[str, AdapterRef] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def adapter(self, expert_id: str) -> AdapterRef:
        """The adapter of an expert that answers.

        Raises:
            UnknownExpertError: No expert has this id; the remedy names close ones.
            UsageError: The expert is not active, damaged, or not of this base model.
        """
        found = self.adapters.get(expert_id)
        if found is not None:
            return found
        if expert_id in self.refused:
            raise UsageError(*self.refused[expert_id])
        raise unknown_expert(expert_id[:128], [*self.adapters, AUTO, BASE])

    def answers_like(self, other: Offer) -> bool:
        """Whether nothing is different but how often experts have answered."""
        return (
            self.adapters == other.adapters
            and self.refused == other.refused
            and [*map(_without_counters, self.experts)] == [*map(_without_counters, other.experts)]
        )


def _without_counters(expert: Expert) -> Expert:
    return replace(expert, total_activations=0, avg_routing_weight=0.0)


class _NotOfferedError(UsageError):
    """Why an expert in good order does not answer; names no file."""


class OfferedExperts:
    """The experts that answer, as the registry has them now. For many threads.

    Args:
        store: The registry.
        base_digest: Digest of the loaded base model.
        emit: For the notices.
    """

    def __init__(self, store: FileExpertStore, base_digest: str, emit: Emit) -> None:
        self._store = store
        self._base_digest = base_digest
        self._emit = emit
        self._lock = threading.Lock()
        self._files: tuple[Path, ...] = (store.path,)
        self._stamp: Stamp | None = None
        self._offer = Offer()
        self._told: set[str] = set()

    def now(self) -> Offer:
        """The offer of now; the same object for as long as nothing but counters changes.

        A registry that cannot be read (any more) is a warning, and the last offer stays.

        Raises:
            StorageError: It cannot be read the first time.
        """
        with self._lock:
            stamp = stamp_of(*self._files)
            if stamp != self._stamp:
                try:
                    found = self._store.list()
                except StorageError as error:
                    if self._stamp is None:
                        raise
                    self._tell(f"the experts stay as they were: {error.message}", "warning")
                else:
                    names = (expert.expert_id for expert in found)
                    cards = (
                        self._store.root / name / CARD_FILE for name in names if valid_id(name)
                    )
                    self._files = (self._store.path, *cards)
                    stamp = stamp[:1] + stamp_of(*self._files[1:])  # before they are read
                    offer = self._read(found)
                    if not offer.answers_like(self._offer):
                        self._offer = offer
                self._stamp = stamp
            return self._offer

    def _read(self, found: Sequence[Expert]) -> Offer:
        experts: list[Expert] = []
        adapters: dict[str, AdapterRef] = {}
        refused: dict[str, tuple[str, str]] = {}
        for expert in found:
            name = expert.expert_id
            try:
                adapters[name] = self._adapter(expert)
                experts.append(expert)
            except _NotOfferedError as error:
                refused[name] = (error.message, error.remedy)
                if expert.is_active:
                    self._tell(f"{error.message}, and is not offered")
            except AIOSError as error:
                damaged = damaged_experts([name])
                refused[name] = (damaged.message, damaged.remedy)
                self._tell(f"expert {name} is not offered: {error.message}", "warning")
        return Offer(tuple(experts), adapters, refused)

    def _adapter(self, expert: Expert) -> AdapterRef:
        name = expert.expert_id
        if name in (AUTO, BASE):
            raise _NotOfferedError(f"expert {name} has a reserved name", "give it another id")
        if not expert.is_active:
            raise _NotOfferedError(
                f"expert {name} is not active", f"activate it: aios experts activate {name}"
            )
        adapter = self._store.adapter(name)
        if adapter.base_digest != self._base_digest:
            raise _NotOfferedError(
                f"expert {name} was trained on another base model",
                "choose that model (--model), or train the expert again on this one",
            )
        return adapter

    def _tell(self, text: str, level: str = "info") -> None:
        if text not in self._told:
            self._told.add(text)
            self._emit(Notice(text, level))


def damaged_experts(ids: Iterable[str]) -> UsageError:
    """What is said to whoever asks experts that cannot be read: their ids, and no file's name."""
    return UsageError(
        f"expert {', '.join(ids)} cannot answer: it is damaged, or does not fit the base model",
        "ask another; a warning of the program that answers says what is wrong",
    )


def created_at(expert: Expert) -> int:
    """When an expert was made, as Unix time; 0 where that is not known."""
    try:
        return max(
            0, int(datetime.fromisoformat(expert.created_at.replace("Z", "+00:00")).timestamp())
        )
    except (ValueError, OverflowError, OSError):
        return 0
