"""The files of a run, for whoever looks at it: what may be had, what is shown, its report.

Takes a run's directory, which may come from anywhere; gives files that lie in it and texts of
bounded size. Links that lead out of the directory are not followed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.core.errors import AIOSError, UsageError
from aios.core.files import confined, guarded, read_bytes, read_json

REPORT_FILE = "report.html"
FILES = {
    "metrics.json": "application/json",
    REPORT_FILE: "text/html",
    "events.jsonl": "text/plain",
    "config.yaml": "text/plain",
    "run.json": "application/json",
}

_MOST_REPORT_BYTES = 64 * 2**20
_MOST_CONFIG_BYTES = 262_144
_TAIL_BYTES = 32_768
_FACTS = ("kind", "created", "seed", "machine", "platform", "cpu_count")


@dataclass(frozen=True, slots=True)
class ShownRun:
    """What a run's directory says of itself.

    Attributes:
        facts: From ``run.json``, by name.
        versions: Of the packages that decide its numbers.
        command: The command line that began it.
        config: Its settings, as text.
        events: The end of its record.
        there: Which of `FILES` it has.
    """

    facts: Mapping[str, str]
    versions: Mapping[str, str]
    command: str
    config: str
    events: str
    there: tuple[str, ...]


def run_file(path: Path, name: str) -> Path:
    """A file of a run that may be had.

    Raises:
        UsageError: There is none of that name.
    """
    if name in FILES:
        file = confined(path, name)
        if file.is_file():
            return file
    raise UsageError(f"there is no file {name[:80]} of run {path.name}")


def read_report(path: Path) -> bytes:
    """The report of a run.

    Raises:
        UsageError: It has none.
        StorageError: It cannot be read, or is too large.
    """
    return read_bytes(run_file(path, REPORT_FILE), _MOST_REPORT_BYTES)


def read_shown(path: Path) -> ShownRun:
    """What a run's directory says of itself; what cannot be read is left out."""
    info = _info(path)
    argv = info.get("argv")
    versions = info.get("versions")
    git = info.get("git")
    facts = {name.replace("_", " "): str(info[name])[:200] for name in _FACTS if name in info}
    if isinstance(git, Mapping) and git.get("revision"):
        facts["git revision"] = (
            f"{git['revision']!s:.40}{' and changes' if git.get('dirty') else ''}"
        )
    return ShownRun(
        facts=facts,
        versions={str(k): str(v) for k, v in versions.items() if v is not None}
        if isinstance(versions, Mapping)
        else {},
        command=_command(argv),
        config=_config(path),
        events=tail_text(path, "events.jsonl"),
        there=tuple(name for name in FILES if _is_there(path, name)),
    )


def tail_text(path: Path, name: str) -> str:
    """The end of a file of a run, in whole lines; empty where there is none."""
    try:
        file = run_file(path, name)
        with guarded("read", file), open(file, "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - _TAIL_BYTES))
            data = handle.read(_TAIL_BYTES)
    except AIOSError:
        return ""
    if size > _TAIL_BYTES:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", "replace")


def _is_there(path: Path, name: str) -> bool:
    try:
        return bool(run_file(path, name))
    except UsageError:
        return False


def _info(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path / "run.json", 2**20, default={})
    except AIOSError:
        return {}
    return found if isinstance(found, dict) else {}


def _config(path: Path) -> str:
    try:
        data = read_bytes(run_file(path, "config.yaml"), _MOST_CONFIG_BYTES)
    except AIOSError:
        return ""
    return data.decode("utf-8", "replace")


def _command(argv: object) -> str:
    """The command line without the path of the program."""
    if not isinstance(argv, list) or not argv:
        return ""
    return " ".join(["aios", *map(str, argv[1:])])[:4000]
