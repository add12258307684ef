"""Routers over the experts of a registry: profiles from their folders, signals from the config.

What an expert was trained on is read from ``augmented.jsonl`` in its folder, up to fixed sizes;
an expert without it is known by its goals and description alone. What was read is kept until the
file's content changes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.app.experts.publishing import EXAMPLES_FILE
from aios.app.kept import Stamp, stamp_of
from aios.backends.embeddings import PACKAGE, open_embedder
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, UsageError
from aios.core.events import Notice
from aios.core.experts.routing import Router
from aios.core.experts.routing_signals import (
    EmbeddingSignal,
    ExpertProfile,
    GoalSignal,
    LexicalSignal,
    Loss,
    LossSignal,
    Signal,
)
from aios.core.files import guarded, parse_json
from aios.core.protocols import Emit, ignore
from aios.core.seal.quality_duplicates import Embedder
from aios.core.types import Expert
from aios.storage.activity import FILE, ActivityStore
from aios.storage.experts import FileExpertStore

MAX_PASSAGES = 2_000
MAX_PASSAGE_CHARACTERS = 20_000
_MAX_FILE_BYTES = 64 << 20
_MAX_LINE_BYTES = 1 << 20
_PASSAGE = "passage"  # the source of examples that are passages and no self-edits

Passages = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: Stamp
    digest: bytes
    passages: Passages


class ProfileReader:
    """Makes experts' profiles; what it read is kept in memory. For many threads.

    Args:
        store: The registry, which knows the experts' folders.
        emit: Told once of each file that cannot be read.
    """

    def __init__(self, store: FileExpertStore, emit: Emit = ignore) -> None:
        self._store = store
        self._emit = emit
        self._lock = threading.Lock()
        self._read: dict[str, _Read] = {}
        self._told: set[str] = set()
        self._profiles: dict[str, ExpertProfile] = {}

    def profiles(self, experts: Sequence[Expert]) -> tuple[ExpertProfile, ...]:
        """A profile for each expert; the same object as before where nothing changed."""
        with self._lock:
            made = {expert.expert_id: self._profile(expert) for expert in experts}
            before = self._profiles
            self._profiles = {
                name: before[name] if before.get(name) == profile else profile
                for name, profile in made.items()
            }
            self._read = {name: read for name, read in self._read.items() if name in made}
            return tuple(self._profiles[expert.expert_id] for expert in experts)

    def _profile(self, expert: Expert) -> ExpertProfile:
        return ExpertProfile(
            expert.expert_id,
            expert.name,
            expert.description,
            expert.category,
            expert.goals,
            self._passages(expert.expert_id),
            expert.performance_metrics,
            expert.is_active,
            expert.last_trained,
        )

    def _passages(self, expert_id: str) -> Passages:
        try:
            path = self._store.folder(expert_id) / EXAMPLES_FILE
            with guarded("read", path):
                if not path.is_file():
                    return ()
                stamp = stamp_of(path)
                known = self._read.get(expert_id)
                if known is not None and known.stamp == stamp:
                    return known.passages
                with open(path, "rb") as handle:
                    data = handle.read(_MAX_FILE_BYTES)
        except AIOSError as error:
            self._tell(f"expert {expert_id} is routed by its goals alone: {error.message}")
            return ()
        digest = hashlib.sha256(data).digest()
        same = known is not None and known.digest == digest
        passages = known.passages if known is not None and same else _passages(data)
        if data and not passages:
            self._tell(
                f"expert {expert_id} is routed by its goals alone: {path} holds no training texts"
            )
        self._read[expert_id] = _Read(stamp, digest, passages)
        return passages

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._emit(Notice(text, "warning"))


def open_signals(
    config: Config,
    *,
    loss: Loss | None = None,
    embedder: Embedder | None = None,
    emit: Emit = ignore,
) -> tuple[Signal, ...]:
    """The signals that the config names; one that cannot be had here is left out with a warning.

    Args:
        config: Its section ``routing``.
        loss: Scores texts, for the signal ``loss``.
        embedder: Embeds texts, for the signal ``embeddings``; by default the optional model, where
            it is installed.
        emit: For the warning.

    Raises:
        UsageError: No signal is left.
    """
    signals: list[Signal] = []
    missing: list[str] = []
    for name in dict.fromkeys(config.routing.signals):
        if name == "goals":
            signals.append(GoalSignal())
        elif name == "lexical":
            signals.append(LexicalSignal())
        elif name == "embeddings":
            found = embedder or open_embedder("auto")
            if found is None:
                missing.append(f"embeddings ({PACKAGE.replace('_', '-')} is not installed)")
            else:
                signals.append(EmbeddingSignal(found))
        elif loss is None:
            missing.append("loss (the model that answers cannot score texts under its experts)")
        else:
            signals.append(LossSignal(loss))
    if not signals:
        raise UsageError(
            f"no signal to route by: {', '.join(missing)}",
            "Put goals or lexical into routing.signals.",
        )
    if missing:
        emit(Notice(f"routing goes without {', '.join(missing)}", "warning"))
    return tuple(signals)


def open_router(
    config: Config,
    store: FileExpertStore,
    *,
    loss: Loss | None = None,
    embedder: Embedder | None = None,
    emit: Emit = ignore,
) -> Router:
    """A router over the experts that a registry has now.

    Raises:
        UsageError: No signal can be had.
        StorageError: The registry is corrupt.
    """
    signals = open_signals(config, loss=loss, embedder=embedder, emit=emit)
    return Router(ProfileReader(store, emit).profiles(store.list()), signals, config.routing)


def activity_path(config: Config) -> Path:
    """Where the activity database is."""
    return config.paths.artifacts / "experts" / FILE


def backup_activity(config: Config, target: Path) -> Path:
    """Copies the activity database, while others may go on writing it; whole or not at all.

    Args:
        config: The resolved config.
        target: The copy; an earlier copy there is replaced.

    Returns:
        The copy's path.

    Raises:
        UsageError: There is no database yet, or another kind of file at `target`.
        StorageError: The database is damaged, or the copy cannot be written.
    """
    path = activity_path(config)
    if not path.exists():
        raise UsageError(
            f"there is nothing to back up: no {path}", "It is made when the first answer is given."
        )
    with ActivityStore(path) as store:
        store.backup(target)
    return target


def _passages(data: bytes) -> Passages:
    """The passages among training examples; the self-edits where no passage is among them."""
    found: dict[bool, dict[str, tuple[str, str]]] = {True: {}, False: {}}
    for row in _rows(data):
        text, source, name = row.get("text"), row.get("source"), row.get("passage_id")
        if isinstance(text, str) and text.strip() and isinstance(name, str):
            kind = found[source == _PASSAGE]
            if len(kind) < MAX_PASSAGES:
                text = text[:MAX_PASSAGE_CHARACTERS]
                kind.setdefault(text, (name, text))
    return tuple((found[True] or found[False]).values())


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects among lines; others, and lines that are too long, are left out."""
    for line in data.splitlines():
        if len(line) > _MAX_LINE_BYTES:
            continue
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
