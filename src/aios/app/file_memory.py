"""What was made from files, kept until one of them changes.

Takes a key, the files, and what makes the value; gives the value. A file's inode, size and time of
change tell whether it is the same. The number of values is bounded: the one asked for longest ago
is forgotten first. Errors are not kept. It may be asked from several threads.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

Value = TypeVar("Value")
Stamp: TypeAlias = "tuple[tuple[int, int, int] | None, ...]"


def stamp_of(files: Sequence[Path]) -> Stamp:
    """Changes when one of the files does; a file that is not there counts, too."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            now = os.stat(file)
        except OSError:
            found.append(None)
        else:
            found.append((now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)


class FileMemory(Generic[Value]):
    """Values that were made from files.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[Stamp, Value]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: Hashable, files: Sequence[Path], make: Callable[[], Value]) -> Value:
        """The value of a key: the one that is kept if its files are the same, else a new one."""
        stamp = stamp_of(files)  # first: what changes meanwhile is seen the next time
        with self._guard:
            found = self._kept.get(key)
            if found is not None and found[0] == stamp:
                self._kept.move_to_end(key)
                return found[1]
        value = make()
        with self._guard:
            self._kept[key] = (stamp, value)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value
