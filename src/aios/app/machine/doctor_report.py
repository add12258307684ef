"""The doctor for pages: runs beside them, and keeps what it found.

The checks take seconds (torch is imported in a child process), so a page asks for them and shows
the result when it is there. The last result is a file below the artifacts: it is still there after
a restart. One examination runs at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.app.machine.doctor import Check, Status, examine
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, StorageError
from aios.core.files import atomic_write_json, read_json

FILE = "doctor.json"
_VERSION = 1
_URGENCY: tuple[Status, ...] = ("error", "warning", "missing", "ok")


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What the doctor found.

    Attributes:
        time: When the examination ended.
        seconds: How long it took.
        checks: What was looked at.
    """

    time: datetime
    seconds: float
    checks: tuple[Check, ...]

    def count(self, *states: Status) -> int:
        """How many checks ended so."""
        return sum(check.status in states for check in self.checks)

    @property
    def by_urgency(self) -> tuple[Check, ...]:
        """The checks, those first that something must be done about."""
        return tuple(sorted(self.checks, key=lambda check: _URGENCY.index(check.status)))


class Doctor:
    """Examines this machine in the background.

    Args:
        folder: Where the last result is kept.
        look: Runs all checks on the settings that a function loads.
    """

    def __init__(
        self,
        folder: Path,
        look: Callable[[Callable[[], Config]], tuple[list[Check], Any]] = examine,
    ) -> None:
        self._file = folder / FILE
        self._look = look
        self._guard = threading.Lock()
        self._begun: datetime | None = None
        self._failed: AIOSError | None = None

    @property
    def begun(self) -> datetime | None:
        """When the examination that goes on began; None where none does."""
        return self._begun

    @property
    def failed(self) -> AIOSError | None:
        """Why the last examination gave no result; None where it did."""
        return self._failed

    def begin(self, load: Callable[[], Config]) -> bool:
        """Begins an examination; false where one goes on already.

        Args:
            load: Gives the config; a `ConfigError` that it raises becomes a failed check.
        """
        with self._guard:
            if self._begun is not None:
                return False
            self._begun, self._failed = datetime.now(timezone.utc), None
        threading.Thread(target=self._run, args=(load,), name="doctor", daemon=True).start()
        return True

    def last(self) -> DoctorReport | None:
        """The last result; None where there is none that can be read."""
        try:
            return _from_document(read_json(self._file, default=None))
        except (KeyError, StorageError, TypeError, ValueError):
            return None

    def _run(self, load: Callable[[], Config]) -> None:
        begun = self._begun or datetime.now(timezone.utc)
        try:
            checks, _ = self._look(load)
            now = datetime.now(timezone.utc)
            report = DoctorReport(now, (now - begun).total_seconds(), tuple(checks))
            atomic_write_json(self._file, _to_document(report))
        except AIOSError as error:
            self._failed = error
        finally:
            self._begun = None


def _to_document(report: DoctorReport) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "time": report.time.isoformat(timespec="seconds"),
        "seconds": report.seconds,
        "checks": [asdict(check) for check in report.checks],
    }


def _from_document(found: object) -> DoctorReport | None:
    if not isinstance(found, Mapping) or found.get("version") != _VERSION:
        return None
    checks = tuple(_check(item) for item in found["checks"])
    return DoctorReport(datetime.fromisoformat(found["time"]), float(found["seconds"]), checks)


def _check(found: Mapping[str, Any]) -> Check:
    status: Status = found["status"]
    if status not in _URGENCY:
        raise ValueError(status)
    return Check(str(found["name"]), status, str(found["detail"]), str(found["remedy"]))
