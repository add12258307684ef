"""What came of a job: its result in a line, or why it failed and what to do.

Takes a job and the end of what its command said; gives words for people. Numbers come from the
files that the job has written.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.app.jobs.child import INTERRUPTED
from aios.app.jobs.records import Job, JobState, Kind
from aios.core.errors import AIOSError
from aios.core.files import read_json
from aios.storage.experts import FileExpertStore

KIND_NAMES: Mapping[Kind, str] = {
    "ab-test": "A/B test",
    "generate": "Self-edits",
    "restem": "ReST-EM",
    "train-expert": "Expert",
    "forget": "Forgetting",
    "compare": "Comparison of generators",
    "pull": "Base model",
}
_MOST_KEPT = 256
_LONGEST = 400
_KILLED = 128 + 9
_ENDED = 128 + 15
_WRITTEN = re.compile(r"^kept\s+([\d,]+)\s*$", re.MULTILINE)
_PASSAGES = re.compile(r"^passages\s+([\d,]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a job did not end well.

    Attributes:
        what: What went wrong.
        remedy: What to do.
    """

    what: str
    remedy: str


class Results:
    """Results in a line; what was read of a job that is done is kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int], str] = OrderedDict()
        self._guard = threading.Lock()

    def line(self, job: Job, log: str) -> str:
        """What a job that is done came to; empty where its files do not tell."""
        if job.state != "done":
            return ""
        key = (job.path, job.attempts)
        with self._guard:
            if key in self._kept:
                return self._kept[key]
        found = result_line(job, log)
        with self._guard:
            self._kept[key] = found
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return found


def result_line(job: Job, log: str) -> str:
    """What a job that is done came to, in a line; empty where its files do not tell."""
    if job.request.kind in ("ab-test", "restem", "compare"):
        return _verdict(job.request.output / "metrics.json")
    if job.request.kind in ("train-expert", "forget"):
        return _expert(job)
    if job.request.kind == "pull":
        return f"{job.request.title} is on this machine."
    kept, passages = _WRITTEN.search(log), _PASSAGES.search(log)
    if kept is None or passages is None:
        return ""
    edits = "self-edit" if kept[1] == "1" else "self-edits"
    about = "passage" if passages[1] == "1" else "passages"
    was = "was" if kept[1] == "1" else "were"
    return f"{kept[1]} {edits} of {passages[1]} {about} {was} kept."


def trouble_of(job: Job, log: str) -> Trouble | None:
    """Why a job did not end well, and what to do; None where there is nothing to tell."""
    if job.state == "failed":
        what, remedy = _error_in(log)
        if not what and job.exit_code in (_KILLED, _ENDED):
            return Trouble(
                "The system ended it, maybe because memory ran out.",
                "Close other programs, or ask for less at a time in the settings, then resume.",
            )
        return Trouble(
            what or f"It ended with exit code {job.exit_code} and gave no reason.",
            remedy or "What it said is below. When the cause is gone, resume it.",
        )
    if job.state == "stopped" and job.exit_code not in (None, INTERRUPTED):
        what, remedy = _error_in(log)
        if what:  # it may not have kept what it has finished
            return Trouble(f"It was asked to stop, and failed: {what}", remedy or "Then resume it.")
    other: Mapping[JobState, Trouble] = {
        "killed": Trouble(
            "Its process is gone and has not said how it ended: it was killed, or the machine was "
            "restarted.",
            "Resume goes on with what was finished.",
        ),
        "stopped": Trouble(
            "It was stopped; what it has finished is kept.", "Resume goes on from there."
        ),
    }
    return other.get(job.state)


def _error_in(log: str) -> tuple[str, str]:
    """The last error that a command told, and its remedy; empty where it told none."""
    lines = log.splitlines()
    begin = next((n for n in reversed(range(len(lines))) if lines[n].startswith("error: ")), None)
    if begin is None:
        return "", ""
    what = [lines[begin].removeprefix("error: ")]
    remedy: list[str] = []
    for line in lines[begin + 1 : begin + 12]:
        if not line.startswith("  "):
            break
        arrow = line.strip().startswith("→")
        (remedy if arrow or remedy else what).append(line.strip().removeprefix("→").strip())
    return " ".join(what)[:_LONGEST], " ".join(remedy)[:_LONGEST]


def _verdict(path: Path) -> str:
    found = _document(path).get("verdict")
    return found[:_LONGEST] if isinstance(found, str) else ""


def _expert(job: Job) -> str:
    root = job.request.output.parent
    try:
        expert = FileExpertStore(root, "").get(job.request.title)
    except AIOSError:
        return ""
    if expert is None:
        return ""
    metrics = expert.performance_metrics
    before, after = metrics.get("validation_loss_before"), metrics.get("validation_loss")
    if before is None or after is None or not before:
        return f"Expert {expert.expert_id} was trained; nothing was held out to measure it on."
    words = "lower" if after < before else "higher"
    return (
        f"Expert {expert.expert_id}: its validation loss is {after:.2f}, "
        f"{abs(after / before - 1):.0%} {words} than before training.".replace("%", " %")
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, default=None)
    except AIOSError:
        return {}
    return found if isinstance(found, dict) else {}
