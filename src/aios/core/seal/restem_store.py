"""Where a ReST-EM run keeps what it has done, so that nothing is done twice.

`RoundStore` is the seam; a run directory implements it (`app.restem.rounds`). `UnrecordedRounds`
keeps nothing but the adapters, in a folder: for short programs and tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from aios.core.restem import ReSTEMState, TriedPassage
from aios.core.seal.candidate_trials import Records
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.types import AdapterRef, Passage


class RoundStore(Protocol):
    """Keeps a run's state, and what was made and measured for it."""

    def load(self) -> ReSTEMState | None:
        """The state committed last, or None.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def commit(self, state: ReSTEMState) -> None:
        """Replaces the state, all of it or nothing.

        Raises:
            StorageError: It cannot be written; the state before is intact.
        """
        ...

    def write(
        self, generator: SelfEditGenerator, passages: Sequence[Passage], stage: str
    ) -> Iterable[PassageEdits]:
        """Has self-edits written, in the order of the passages; those of an earlier try are kept.

        Args:
            generator: Writes them.
            passages: From these.
            stage: Names the part of the run, e.g. ``rounds/1/candidates``.
        """
        ...

    def records(self, stage: str) -> AbstractContextManager[Records]:
        """What trials of a part of the run have said so far."""
        ...

    def fit_folder(self, number: int) -> Path:
        """Where the training of a round's generator keeps its checkpoints."""
        ...

    def publish(self, number: int, adapter: AdapterRef, state: ReSTEMState) -> str:
        """Puts a round's adapter in its place.

        Args:
            number: The round.
            adapter: As trained.
            state: The rounds before, and this one.

        Returns:
            Where it is, for `adapter`.
        """
        ...

    def adapter(self, place: str, digest: str, base_digest: str) -> AdapterRef:
        """An adapter that was published."""
        ...

    def keep(self, number: int, part: str, tried: Sequence[TriedPassage]) -> None:
        """Keeps a round's candidates (`part` is ``candidates`` or ``held_out``) for people."""
        ...


class MemoryRecords:
    """`Records` that live as long as the process."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._values.get(key)

    def append(self, key: str, value: object) -> None:
        """Keeps a value."""
        self._values[key] = value


class UnrecordedRounds:
    """A `RoundStore` without a memory: a run that is stopped is lost.

    Args:
        folder: Where adapters go; a temporary folder by default.

    Attributes:
        kept: The candidates of each round and part.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="aios-restem-"))
        self.kept: dict[tuple[int, str], tuple[TriedPassage, ...]] = {}
        self._state: ReSTEMState | None = None
        self._records: dict[str, MemoryRecords] = {}

    def load(self) -> ReSTEMState | None:
        """The state, if this object has seen one."""
        return self._state

    def commit(self, state: ReSTEMState) -> None:
        """Keeps the state in memory."""
        self._state = state

    def write(
        self, generator: SelfEditGenerator, passages: Sequence[Passage], stage: str
    ) -> Iterable[PassageEdits]:
        """Has them written."""
        return generator.generate(passages)

    def records(self, stage: str) -> AbstractContextManager[Records]:
        """Records in memory."""
        return nullcontext(self._records.setdefault(stage, MemoryRecords()))

    def fit_folder(self, number: int) -> Path:
        """A folder for each round."""
        return self.folder / f"generator-{number}"

    def publish(self, number: int, adapter: AdapterRef, state: ReSTEMState) -> str:
        """The adapter stays where it was trained."""
        return str(adapter.path)

    def adapter(self, place: str, digest: str, base_digest: str) -> AdapterRef:
        """The adapter at a path."""
        return AdapterRef(Path(place), digest, base_digest)

    def keep(self, number: int, part: str, tried: Sequence[TriedPassage]) -> None:
        """Keeps them in `kept`."""
        self.kept[number, part] = tuple(tried)
