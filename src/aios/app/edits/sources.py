"""Where self-edits are on disk: files of generations, and what runs and experts were made from.

Takes the folder of artifacts; gives the sources of self-edits below it, each with an id:

- ``<id>``: ``edits/<id>/edits.jsonl`` with its list of drops, or, until that is complete, the
  journal beside it;
- ``runs~<run>~edits``: ``runs/<run>/edits.journal``, of an expert's training;
- ``runs~<run>~<round>~candidates`` (or ``~held_out``): of a round of ReST-EM;
- ``seal_experiments~<run>~edits``: of an A/B test.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from aios.app.edits.index import EditIndex
from aios.app.edits.records import Kind
from aios.app.jobs.records import Job
from aios.app.kept import Stamp, stamp_of
from aios.app.runs.growing_lines import NewLines
from aios.core.data.edit_files import DROPPED_ENDING
from aios.core.errors import UsageError
from aios.core.files import confined, guarded, parse_json, require_id, valid_id

Origin: TypeAlias = Literal["generate", "train-expert", "restem", "ab-test"]

EDITS = "edits.jsonl"
JOURNAL = f".{EDITS}.journal"
RUN_JOURNAL = "edits.journal"
STAGES = ("candidates", "held_out")

_MOST_FOLDERS = 10_000
_MOST_ROUNDS = 100
_SEPARATOR = "~"


@dataclass(frozen=True)
class EditSource:
    """Self-edits on disk.

    Attributes:
        id: What it is asked for by.
        title: For people.
        origin: What made it.
        files: What to read: edits before drops.
        complete: False while it is being written, or where that was interrupted.
        modified: When it was written to last, Unix seconds.
        bytes: Size of the files together.
        folder: The folder of the generation, or of the run.
        job: The job that wrote it, if it was one and is still listed.
    """

    id: str
    title: str
    origin: Origin
    files: tuple[tuple[Path, Kind], ...]
    complete: bool
    modified: float
    bytes: int
    folder: Path
    job: Job | None = field(default=None, compare=False)

    @property
    def input(self) -> Path | None:
        """The file that the passages came from, where that is known."""
        return None if self.job is None else self.job.request.input

    @property
    def being_written(self) -> bool:
        """Whether a job is writing it now."""
        return self.job is not None and self.job.live

    @property
    def stamp(self) -> Stamp:
        """Changes when a file does."""
        return stamp_of(*(path for path, _ in self.files))

    def index(self) -> EditIndex:
        """An index of it, which reads nothing before it is asked."""
        return EditIndex(*self.files)


def list_sources(artifacts: Path, jobs: Iterable[Job] = ()) -> list[EditSource]:
    """All sources, the one that was written to last first.

    Args:
        artifacts: The folder.
        jobs: Jobs, to tell which of them wrote what.

    Raises:
        StorageError: A folder cannot be read.
    """
    written = _by_folder(artifacts, jobs)
    found = [
        source for id in _ids(artifacts) if (source := _source(artifacts, id, written)) is not None
    ]
    return sorted(found, key=lambda source: (-source.modified, source.id))


def find_source(artifacts: Path, source_id: str, jobs: Iterable[Job] = ()) -> EditSource:
    """The source of an id.

    Raises:
        UsageError: There is none.
    """
    source = _source(artifacts, source_id, _by_folder(artifacts, jobs))
    if source is None:
        raise UsageError(
            f"there is no file of self-edits {source_id}",
            "It may have been deleted, or nothing was written yet.",
        )
    return source


def written_strategies(source: EditSource) -> str:
    """What a journal that is not complete says of the strategies that it was begun with."""
    for path, kind in source.files:
        if kind == "journal":
            for line in NewLines(path):
                try:
                    return str(parse_json(line)["fingerprint"]["strategy"])[:200]
                except (ValueError, KeyError, TypeError):
                    break
    return ""


def _by_folder(artifacts: Path, jobs: Iterable[Job]) -> dict[Path, Job]:
    """Jobs by the folder of what they write; of several, the newest."""
    found = {}
    for job in sorted(jobs, key=lambda job: job.created):
        request = job.request
        if request.kind == "train-expert":
            folder = artifacts / "runs" / f"train-expert-{request.output.name}"
        else:
            folder = request.run or request.output.parent
        found[folder] = job
    return found


def _ids(artifacts: Path) -> Iterator[str]:
    yield from _folders(artifacts / "edits")
    for run in _folders(artifacts / "seal_experiments"):
        yield _SEPARATOR.join(("seal_experiments", run, "edits"))
    for run in _folders(artifacts / "runs"):
        yield _SEPARATOR.join(("runs", run, "edits"))
        for number in _folders(artifacts / "runs" / run / "rounds")[:_MOST_ROUNDS]:
            for stage in STAGES:
                yield _SEPARATOR.join(("runs", run, number, stage))


def _folders(folder: Path) -> list[str]:
    with guarded("read", folder):
        try:
            with os.scandir(folder) as entries:
                names = [e.name for e in entries if valid_id(e.name) and e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(names)[:_MOST_FOLDERS]


def _source(artifacts: Path, source_id: str, jobs: Mapping[Path, Job]) -> EditSource | None:
    """The source of an id; None where nothing is written under it.

    Raises:
        UsageError: It is no id of a source.
    """
    parts = source_id.split(_SEPARATOR)
    if len(parts) == 1:
        return _generation(confined(artifacts / "edits", require_id(source_id)), source_id, jobs)
    root, run, *rest = parts
    stage = rest[-1] if rest else ""
    of_round = root == "runs" and len(rest) == 2 and stage in STAGES and rest[0].isdecimal()
    of_run = root in ("runs", "seal_experiments") and rest == ["edits"]
    if not (of_round or of_run):
        raise UsageError(f"there is no file of self-edits {source_id}")
    folder = confined(artifacts / root, require_id(run, "run id"))
    if of_run:
        origin: Origin = "ab-test" if root == "seal_experiments" else "train-expert"
        return _journal(folder / RUN_JOURNAL, source_id, run, origin, folder, jobs)
    path = confined(folder, f"rounds/{require_id(rest[0])}/{stage}.edits.journal")
    what = "held-out passages" if stage == "held_out" else "candidates"
    return _journal(path, source_id, f"{run}, round {rest[0]}: {what}", "restem", folder, jobs)


def _generation(folder: Path, source_id: str, jobs: Mapping[Path, Job]) -> EditSource | None:
    job = jobs.get(folder)
    title = source_id if job is None else job.request.title
    edits, journal = folder / EDITS, folder / JOURNAL
    if not edits.is_file():
        return _journal(journal, source_id, title, "generate", folder, jobs)
    dropped = edits.with_name(edits.stem + DROPPED_ENDING)
    return _made(source_id, title, "generate", ((edits, "edits"), (dropped, "drops")), folder, job)


def _journal(
    path: Path, source_id: str, title: str, origin: Origin, folder: Path, jobs: Mapping[Path, Job]
) -> EditSource | None:
    if not path.is_file():
        return None
    return _made(source_id, title, origin, ((path, "journal"),), folder, jobs.get(folder))


def _made(
    source_id: str,
    title: str,
    origin: Origin,
    files: tuple[tuple[Path, Kind], ...],
    folder: Path,
    job: Job | None,
) -> EditSource | None:
    stats = []
    for path, _ in files:
        try:
            stats.append(os.stat(path))
        except OSError:
            continue
    if not stats:
        return None
    complete = files[0][1] == "edits" or (origin != "generate" and not (job and job.live))
    return EditSource(
        id=source_id,
        title=title,
        origin=origin,
        files=files,
        complete=complete,
        modified=max(stat.st_mtime for stat in stats),
        bytes=sum(stat.st_size for stat in stats),
        folder=folder,
        job=job,
    )
