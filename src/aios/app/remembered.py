"""What was read from files, kept until the files change: for pages that are asked for often.

Takes a function that reads a file; gives what it gave, and reads again only when the file is
another one. A bounded number of results is kept, those that were asked for last.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
Stamp: TypeAlias = tuple[int, int, int, int] | None


def stamp_of(path: Path) -> Stamp:
    """Device, inode, size and time of a file; None where it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Remembered(Generic[T]):
    """What a function reads from files; safe to be asked by several threads.

    Args:
        read: Reads a file; what it raises is passed on, and not kept.
        most: How many results are kept.
    """

    def __init__(self, read: Callable[[Path], T], most: int = 4) -> None:
        self._read = read
        self._most = most
        self._kept: OrderedDict[Path, tuple[Stamp, T]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, path: Path) -> T:
        """What the file holds now; raises what reading it raises."""
        stamp = stamp_of(path)
        with self._guard:
            found = self._kept.get(path)
            if found is not None and found[0] == stamp:
                self._kept.move_to_end(path)
                return found[1]
        value = self._read(path)  # the stamp is older: a change meanwhile is seen the next time
        with self._guard:
            self._kept[path] = (stamp, value)
            self._kept.move_to_end(path)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value
