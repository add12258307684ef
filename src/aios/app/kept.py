"""What was made from files, kept in memory until one of the files changes.

Takes a key, a stamp of what the value is made from, and what makes it; gives the value. A bounded
number is kept, those that were asked for last. Of several threads that ask for the same value, one
makes it and the others wait. What making it raises is passed on, and not kept.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
Stamp: TypeAlias = "tuple[tuple[int, int, int, int] | None, ...]"


def stamp_of(*files: Path) -> Stamp:
    """Device, inode, size and time of each file; None for one that cannot be looked at.

    Take it before the files are read: what changes meanwhile is seen the next time.
    """
    found: list[tuple[int, int, int, int] | None] = []
    for file in files:
        try:
            now = os.stat(file)
        except OSError:
            found.append(None)
        else:
            found.append((now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)


class KeptByStamp(Generic[T]):
    """Values that are made again when a stamp of theirs has changed.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[Hashable, T]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, key: Hashable, stamp: Hashable, make: Callable[[], T]) -> T:
        """The value of a key as of a stamp."""
        with self._guard:
            making = self._making.setdefault(key, threading.Lock())
        with making:
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
                    gone, _ = self._kept.popitem(last=False)
                    self._making.pop(gone, None)
        return value

    def of_file(self, file: Path, read: Callable[[Path], T]) -> T:
        """What a function reads from a file, read again when the file is another one."""
        return self.get(file, stamp_of(file), lambda: read(file))
