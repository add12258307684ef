"""Sessions that people have signed out of: their cookies are refused although they are not over.

A cookie is signed and needs no table of sessions; what has to be remembered is only what ended
before its time. It is kept in a file, so that a restart brings no old cookie back, and until the
cookie would have ended by itself. The number is bounded: beyond it all sessions that were begun so
far end, and everybody signs in again.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

from aios.core.errors import StorageError
from aios.core.files import atomic_write_json, parse_json, read_bytes_if_there

MOST_ENDED = 10_000
_MOST_BYTES = 4 * 2**20


class EndedSessions:
    """The sessions that were ended; for many threads.

    Args:
        file: Where they are kept; None: in memory alone.

    Raises:
        StorageError: The file cannot be read.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._guard = threading.Lock()
        self._until: dict[str, int] = {}
        self._all_until = 0
        if file is not None and (found := read_bytes_if_there(file, _MOST_BYTES)) is not None:
            self._read(found, file)

    def holds(self, session: str, until: float = math.inf) -> bool:
        """Whether a session was ended.

        Args:
            session: Its id.
            until: When its cookie ends by itself, in seconds since 1970; without it only those are
                known that were ended one by one.
        """
        with self._guard:
            return session in self._until or until <= self._all_until

    def add(self, session: str, until: int) -> None:
        """Ends a session; `until` is the latest time at which its cookie ends by itself.

        Raises:
            StorageError: It cannot be kept; it has ended all the same until the server stops.
        """
        now = time.time()
        with self._guard:
            self._until = {one: end for one, end in self._until.items() if end > now}
            self._until[session] = until
            if len(self._until) > MOST_ENDED:
                self._until.clear()
                self._all_until = max(self._all_until, until)
            if self._file is not None:
                document = {"sessions": self._until, "all_until": self._all_until}
                atomic_write_json(self._file, document, indent=None)

    def _read(self, data: bytes, file: Path) -> None:
        try:
            document = parse_json(data)
            self._all_until = int(document["all_until"])
            self._until = {str(one): int(end) for one, end in document["sessions"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise StorageError(
                f"{file} is damaged: who has signed out is not known",
                "delete it and the file secret beside it; then everybody signs in again",
            ) from error
