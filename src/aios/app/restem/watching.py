"""ReST-EM runs for viewers that ask often: what was read is kept, what is new is read.

Takes run directories; gives how a run stands, what it has come to, and rows for a list of runs.
Any number of threads may ask. What is kept is bounded in number: the runs asked for last.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from aios.app.kept import KeptByStamp
from aios.app.restem.folders import newest_runs
from aios.app.restem.run_results import (
    SOME_BYTES,
    RunResults,
    read_results,
    results_stamp,
)
from aios.app.restem.run_rows import RunFacts, read_facts, row_stamp
from aios.app.restem.status import RunFollower, RunStatus

_FOLLOWED, _RESULTS, _FACTS = 16, 8, 1024
_SETTLED_SECONDS = 10.0  # a folder changed longer ago than this has no run in the making


@dataclass(frozen=True, slots=True)
class Followed:
    """How a run stands, and its memory in the course of it: Unix seconds and bytes."""

    status: RunStatus
    memory: tuple[tuple[float, float], ...]


class RunWatch:
    """Looks at runs of ReST-EM again and again."""

    def __init__(self) -> None:
        self._followers: OrderedDict[
            Path, tuple[tuple[int, int] | None, RunFollower, threading.Lock]
        ] = OrderedDict()
        self._guard = threading.Lock()
        self._results: KeptByStamp[RunResults] = KeptByStamp(_RESULTS)
        self._facts: KeptByStamp[RunFacts] = KeptByStamp(_FACTS)
        self._folders: KeptByStamp[tuple[Path, ...]] = KeptByStamp(4)

    def follow(self, path: Path) -> Followed:
        """How a run stands now; of its record only what is new is read.

        Raises:
            UsageError: There is no run, or it is of another kind.
            StorageError: One of its files is corrupt or cannot be read.
        """
        follower, lock = self._follower(path)
        with lock:
            return Followed(follower.status(), follower.memory())

    def results(self, path: Path, most_bytes: int | None = SOME_BYTES) -> RunResults:
        """What a run has come to so far.

        Args:
            path: Its directory.
            most_bytes: As `read_results` takes it.

        Raises:
            StorageError: The state or the candidates are corrupt or cannot be read.
        """
        return self._results.get(
            (path, most_bytes), results_stamp(path), lambda: read_results(path, most_bytes)
        )

    def facts(self, path: Path) -> RunFacts:
        """What a list says of a run.

        Raises:
            UsageError: There is no run, or it is of another kind.
            StorageError: One of its files is corrupt or cannot be read.
        """
        return self._facts.get(path, row_stamp(path), lambda: read_facts(path))

    def runs(self, root: Path) -> tuple[Path, ...]:
        """The ReST-EM runs in a folder of runs, those that began last first.

        Raises:
            StorageError: The folder cannot be read.
        """
        stamp: Hashable = None
        try:
            found = os.stat(root)
        except OSError:
            return ()
        if time.time() - found.st_mtime > _SETTLED_SECONDS:
            stamp = (found.st_ino, found.st_mtime_ns)
        else:
            stamp = object()  # a run may be in the making
        return self._folders.get(root, stamp, lambda: tuple(newest_runs(root)))

    def _follower(self, path: Path) -> tuple[RunFollower, threading.Lock]:
        identity = _identity(path)
        with self._guard:
            found = self._followers.get(path)
            if found is None or found[0] != identity:
                found = identity, RunFollower(path), threading.Lock()
                self._followers[path] = found
            self._followers.move_to_end(path)
            while len(self._followers) > _FOLLOWED:
                self._followers.popitem(last=False)
        return found[1:]


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a run's directory from another one that took its place."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
