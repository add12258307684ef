"""The lines of a file that another process is writing: each once, and only when it is whole.

Takes a path; gives what has been added since the last look. Memory is bounded by a chunk and the
longest line allowed, however large the file. A last line without its end waits for the next look;
a line that is too long is counted and passed over; a file that was replaced or cut is read anew.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from aios.core.errors import StorageError
from aios.core.files import guarded

MAX_LINE_BYTES = 2**20
_CHUNK = 2**20


class NewLines:
    """The lines of a growing file, each given once, whatever is written meanwhile.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode
        self._position = 0  # after the last whole line
        self._skipping = False  # within a line that is too long
        self.too_long = 0

    @property
    def position(self) -> int:
        """Where the line that was given last ends, with its end, in bytes."""
        return self._position

    def replaced(self) -> bool:
        """Whether the file is another one than before or was cut; then it is read anew."""
        try:
            now = os.stat(self._path)
        except OSError:
            return False
        same = self._file in (None, (now.st_dev, now.st_ino)) and now.st_size >= self._position
        if not same:
            self._file, self._position, self._skipping, self.too_long = None, 0, False, 0
        return not same

    def __iter__(self) -> Iterator[bytes]:
        """The whole lines that have been added since; a last one without its end waits.

        Raises:
            StorageError: The file cannot be read, or is not a regular one.
        """
        with guarded("read", self._path):
            try:
                mode = os.stat(self._path).st_mode
                if not stat.S_ISREG(mode):
                    raise StorageError(f"cannot read {self._path}: not a regular file")
                with open(self._path, "rb") as handle:
                    found = os.fstat(handle.fileno())
                    self._file = (found.st_dev, found.st_ino)
                    handle.seek(self._position)
                    rest = b""
                    while block := handle.read(_CHUNK):
                        *whole, rest = (rest + block).split(b"\n")
                        yield from self._take(whole)
                        if len(rest) > MAX_LINE_BYTES:
                            self._skip(rest)
                            rest = b""
            except FileNotFoundError:
                return

    def _take(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            self._position += len(line) + 1
            if self._skipping:  # its end has come
                self._skipping = False
            elif len(line) > MAX_LINE_BYTES:
                self.too_long += 1
            else:
                yield line

    def _skip(self, rest: bytes) -> None:
        self._position += len(rest)
        self.too_long += not self._skipping
        self._skipping = True
