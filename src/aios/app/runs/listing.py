"""All runs below the artifacts: what they are, how they stand, and what they found.

Takes the folder of artifacts and the jobs; gives one `RunEntry` a run, the newest first. A run is
a directory with a ``run.json``, in ``runs`` or ``seal_experiments`` or wherever a job has its own;
a job whose run has not begun is listed as well. Whoever made a run, a page or a command, it is told
from its directory alone.

Cheap: of ``metrics.json`` and ``events.jsonl``, which may be large, only the ends are read, and
again only when they have changed; whether a process works on a run is asked of its lock each time.
A folder that holds something else is left out, and one that is damaged is listed with what is
wrong with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aios.app.charts.report_page import interval_words, percent, points, tone_of
from aios.app.jobs.records import Job
from aios.app.kept import KeptByStamp, stamp_of
from aios.app.restem.folders import is_held, stop_requested
from aios.app.restem.generator_gain import unit_of
from aios.app.runs.checked_values import is_number
from aios.core.data.rejects import one_line
from aios.core.errors import AIOSError, UsageError
from aios.core.files import confined, parse_json, require_id, valid_id
from aios.storage.runs import read_run_info

AB_TEST, RESTEM = "ab-test", "restem"
SORTS = ("created", "change", "state", "kind", "file")
FOLDERS = ("seal_experiments", "runs")
METRICS_FILE, EVENTS_FILE, RUN_FILE = "metrics.json", "events.jsonl", "run.json"

_MOST_RUNS = 10_000  # folders looked at, in each place
_HEAD_BYTES, _TAIL_BYTES = 65_536, 65_536
_BETWEEN = re.compile(r"[\s,:]*")
_INFO = '\n  "info": '
_INPUTS = ("--input", "--dataset")

State: TypeAlias = Literal["waiting", "running", "stopping", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Headline:
    """The main comparison of a run in a few words.

    Attributes:
        change: With its unit, e.g. ``−16.2 %``; empty where there is none.
        interval: Its 95 % interval; empty with too few passages for one.
        verdict: ``better``, ``worse``, ``no difference found``, ….
        tone: ``good``, ``bad`` or ``even``.
        value: The change as a number, to sort by; None where there is none.
    """

    change: str
    interval: str
    verdict: str
    tone: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run in a list.

    Attributes:
        id: The name of its folder.
        path: Its directory; it need not be there yet where its job waits or has failed early.
        kind: ``ab-test``, ``restem``, ``train-expert``, …; empty where it is not known.
        state: ``interrupted``: it was stopped, or its process is gone.
        created: When it began first; None where it is not known.
        input: The file of passages; empty where it is not said.
        sentence: The verdict in a sentence; empty before there is one.
        headline: The main comparison; None before there is one.
        ended: What it said when it ended, e.g. why it failed.
        job: The job that runs it; empty where it was started otherwise.
        problem: What is wrong with its folder; empty for nothing.
        begun: Whether its directory is there.
        finished: Whether its numbers are there.
    """

    id: str
    path: Path
    kind: str
    state: State
    created: datetime | None
    input: str = ""
    sentence: str = ""
    headline: Headline | None = None
    ended: str = ""
    job: str = ""
    problem: str = ""
    begun: bool = True
    finished: bool = False

    @property
    def live(self) -> bool:
        """Whether a process works on it, or will."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def file(self) -> str:
        """The name of the file of passages; empty where it is not said."""
        return re.split(r"[/\\]", self.input)[-1]


_KEPT: KeptByStamp[RunEntry] = KeptByStamp(2 * _MOST_RUNS)


def list_runs(
    artifacts: Path, jobs: Iterable[Job] = (), *, kinds: Collection[str] = ()
) -> list[RunEntry]:
    """All runs, the newest first.

    Args:
        artifacts: The folder of artifacts; it need not be there.
        jobs: The jobs: theirs are listed wherever they are, and those that wait.
        kinds: Only these; all if empty.
    """
    by_path = {job.request.run: job for job in jobs if job.request.run is not None}
    paths = [path for folder in FOLDERS for path in _folders(artifacts / folder)]
    known = set(paths)
    paths += [path for path in by_path if path not in known]
    found = [read_entry(path, by_path.get(path)) for path in paths]
    wanted = [one for one in found if one is not None and (not kinds or one.kind in kinds)]
    earliest = datetime.min.replace(tzinfo=timezone.utc)
    return sorted(wanted, key=lambda one: (one.created or earliest, one.id), reverse=True)


def search_runs(
    runs: Sequence[RunEntry], text: str = "", sort: str = "created", *, down: bool = True
) -> list[RunEntry]:
    """The runs that hold a text, in an order; those without a value for it come last.

    Args:
        runs: What `list_runs` gave.
        text: Looked for in id, file, kind, state and verdict; in any case.
        sort: One of `SORTS`.
        down: Whether the greatest comes first.
    """
    wanted = text.casefold()
    found = [run for run in runs if wanted in _words_of(run)]
    values: dict[str, Callable[[RunEntry], Any]] = {
        "created": lambda run: run.created,
        "change": lambda run: run.headline.value if run.headline else None,
        "state": lambda run: run.state,
        "kind": lambda run: run.kind or None,
        "file": lambda run: run.file.casefold() or None,
    }
    value = values.get(sort, values["created"])
    known = [run for run in found if value(run) is not None]
    return [
        *sorted(known, key=value, reverse=down),
        *(run for run in found if value(run) is None),
    ]


def _words_of(run: RunEntry) -> str:
    verdict = run.headline.verdict if run.headline else ""
    return "\n".join((run.id, run.file, run.kind, run.state, verdict)).casefold()


def find_run(
    artifacts: Path, run_id: str, jobs: Sequence[Job] = (), *, kinds: Collection[str] = ()
) -> RunEntry:
    """A run by the name of its folder, or by the id of its job.

    Raises:
        UsageError: The id is not valid, or there is no such run.
    """
    require_id(run_id, "run id")
    by_path = {job.request.run: job for job in jobs if job.request.run is not None}
    paths = [confined(artifacts, folder, run_id) for folder in FOLDERS]
    paths += [path for path, job in by_path.items() if run_id in (job.id, path.name)]
    for path in dict.fromkeys(paths):
        found = read_entry(path, by_path.get(path))
        if found is not None and (not kinds or found.kind in kinds):
            return found
    raise UsageError(f"there is no run {run_id}", "It may have been deleted or renamed.")


def read_entry(path: Path, job: Job | None = None) -> RunEntry | None:
    """A run by its directory; None where there is neither a run nor a job for it."""
    if not os.path.lexists(path / RUN_FILE):
        return None if job is None else _of_job(path, job)
    files = [path / name for name in (RUN_FILE, METRICS_FILE, EVENTS_FILE)]
    held = _held(path)  # first: what a process writes before its end is seen, then
    entry = _KEPT.get(path, stamp_of(*files), lambda: _read(path))
    state: State = entry.state
    if held:
        state = "stopping" if stop_requested(path) else "running"
    if job is not None and job.live and job.state != "running":
        state = "stopping" if job.state == "stopping" else "waiting"
    ended = "" if state in ("waiting", "running", "stopping") else entry.ended
    source = entry.input
    if not source and job is not None and job.request.input is not None:
        source = str(job.request.input)
    return replace(entry, state=state, ended=ended, input=source, job=job.id if job else "")


def _of_job(path: Path, job: Job) -> RunEntry:
    """A run that has not begun: its job waits, begins, or has ended before it."""
    states: dict[str, State] = {
        "waiting": "waiting", "running": "running", "stopping": "stopping", "failed": "failed"
    }  # fmt: skip
    return RunEntry(
        id=path.name,
        path=path,
        kind=job.request.kind,
        state=states.get(job.state, "interrupted"),
        created=job.created,
        input="" if job.request.input is None else str(job.request.input),
        job=job.id,
        begun=False,
    )


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return [
                root / entry.name
                for entry, _ in zip(entries, range(_MOST_RUNS), strict=False)
                if valid_id(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def _held(path: Path) -> bool:
    try:
        return is_held(path)
    except AIOSError:
        return False


# ------------------------------------------------------------ from the directory alone


def _read(path: Path) -> RunEntry:
    """What a run's files say; `state` is that of a run that no process works on."""
    try:
        info = read_run_info(path)
    except AIOSError as error:
        kind = AB_TEST if path.parent.name == FOLDERS[0] else ""
        return RunEntry(path.name, path, kind, "failed", None, problem=error.message)
    state, ended = _ending(path / EVENTS_FILE)
    head, rest = _ends(path / METRICS_FILE)
    numbers = _leading(head, ("verdict", "comparison"))
    about = _info(rest)
    sentence = numbers.get("verdict")
    return RunEntry(
        id=path.name,
        path=path,
        kind=one_line(info["kind"], 40),
        state=state,
        created=_time(info.get("created")),
        input=_input(about, info.get("argv")),
        sentence=one_line(sentence, 1000) if isinstance(sentence, str) else "",
        headline=headline(numbers.get("comparison"), about.get("reward")),
        ended=ended,
        finished=bool(head),
    )


def headline(comparison: object, reward: object = None) -> Headline | None:
    """The main comparison of a ``metrics.json`` in a few words; None without one.

    Args:
        comparison: What stands there under ``comparison``.
        reward: Kind of the reward, of a run of ReST-EM: its changes are in that unit.
    """
    if not isinstance(comparison, Mapping):
        return None
    scale, metric = comparison.get("scale"), comparison.get("metric")
    number = percent if scale == "relative" else points
    if metric == "improvement":
        number = unit_of(reward).signed
    value = comparison.get("relative_change" if scale == "relative" else "change")
    ends, verdict = comparison.get("ci95"), comparison.get("verdict")
    if not isinstance(verdict, str):
        return None
    known = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
    amount = float(value) if is_number(value) else None  # type: ignore[arg-type]
    return Headline(
        change="" if amount is None else number(amount),
        interval=interval_words(ends, number) if known and isinstance(ends, list) else "",
        verdict=one_line(verdict, 60),
        tone=tone_of({"verdict": verdict}),
        value=amount,
    )


def _ending(events: Path) -> tuple[State, str]:
    """How a run that nobody works on has ended, by the last thing that it has said of that."""
    for line in reversed(_ends(events)[1].split("\n")):
        if '"RunStarted"' not in line and '"RunFinished"' not in line:
            continue
        try:
            record = parse_json(line.encode())
            kind, status = record["type"], record.get("status")
            summary = one_line(record.get("summary", ""), 400)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if kind == "RunStarted":
            break
        if kind == "RunFinished":
            states: dict[object, State] = {"done": "done", "interrupted": "interrupted"}
            return states.get(status, "failed"), summary
    return "interrupted", "its process is gone, and it has not said how it ended"


def _ends(file: Path) -> tuple[str, str]:
    """The beginning and the end of a file, whole if it is small; empty where it has none."""
    try:
        with open(file, "rb", opener=_without_waiting) as handle:
            head = handle.read(_HEAD_BYTES)
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - _TAIL_BYTES))
            tail = handle.read(_TAIL_BYTES)
    except OSError:
        return "", ""
    return head.decode("utf-8", "replace"), tail.decode("utf-8", "replace")


def _without_waiting(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NONBLOCK)  # a pipe that is in the way


def _leading(text: str, wanted: Collection[str]) -> dict[str, Any]:
    """Values of keys near the beginning of a JSON object, of which there may be only that much."""
    decoder, found = json.JSONDecoder(), dict[str, Any]()
    place = text.find("{") + 1
    try:
        while place and len(found) < len(wanted):
            key, place = decoder.raw_decode(text, _skip(text, place))
            value, place = decoder.raw_decode(text, _skip(text, place))
            if key in wanted:
                found[key] = value
    except (ValueError, TypeError, RecursionError):  # the end of what there is
        pass
    return found


def _skip(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    return found.end() if found else place


def _info(tail: str) -> Mapping[str, Any]:
    """The set-up, which stands last in ``metrics.json``; a text in it holds no line break."""
    place = tail.rfind(_INFO)
    if place < 0:
        return {}
    try:
        found, _ = json.JSONDecoder().raw_decode(tail, place + len(_INFO))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _input(about: Mapping[str, Any], argv: object) -> str:
    """The file of passages, by the set-up or the command line."""
    for name in ("input", "dataset"):
        if isinstance(about.get(name), str):
            return str(about[name])
    words = argv if isinstance(argv, list) and all(isinstance(w, str) for w in argv) else []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in _INPUTS:
            return str(following)
        for option in _INPUTS:
            if word.startswith(f"{option}="):
                return str(word.removeprefix(f"{option}="))
    return ""


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=timezone.utc)
