"""What a ReST-EM run has come to so far, told from its directory: what its pages show of it.

Takes a run directory, finished or not; gives the parts of its report (`report.report_parts`) with
the estimate that was made of it. The texts of passages are not in the directory: they are read
from the file that the run is on, where that is still there; else passages go by their ids.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aios.app.edits.generation_plan import ignore_reject
from aios.app.kept import Stamp, stamp_of
from aios.app.restem.kept_estimate import ESTIMATE_FILE, kept_estimate
from aios.app.restem.records import (
    CANDIDATES_FILE,
    HELD_OUT_FILE,
    ROUNDS_FOLDER,
    STATE_FILE,
    RoundRewards,
    read_rewards,
    read_state,
)
from aios.app.restem.report import report_parts
from aios.core.data.readers import read_passages
from aios.core.errors import AIOSError, StorageError
from aios.core.files import read_json
from aios.core.restem import TriedPassage
from aios.core.restem_costs import RestemEstimate, compare_with_actual
from aios.core.types import Passage

PLAN_FILE = "plan.json"
REPORT_FILE = "report.html"
SOME_BYTES = 4 * 2**20  # of candidates: read in a moment
MANY_BYTES = 24 * 2**20  # read in some seconds
_MOST_DATA_BYTES = 64 * 2**20
_MOST_FOLDERS = 1000


@dataclass(frozen=True, slots=True)
class RunResults:
    """What a run has come to.

    Attributes:
        parts: What its report shows, by the names that `report.report_parts` gives.
        rounds: Rounds that are done, the untrained one not counted.
        candidate_bytes: Size of the files of candidates.
        whole: Whether these were read: single self-edits and failures are known.
        curves: Whether the losses of trials' trainings were recorded.
        dataset: The file of passages; empty where it is not known.
        with_texts: Whether passages are shown with their texts.
        estimate: What it was estimated to take; None where it was not, or the estimate is damaged.
    """

    parts: Mapping[str, Any]
    rounds: int
    candidate_bytes: int
    whole: bool
    curves: bool
    dataset: str
    with_texts: bool
    estimate: RestemEstimate | None


def read_plan(path: Path) -> Mapping[str, Any]:
    """What a run's results follow from, by names for people; empty where it is not kept yet.

    Raises:
        StorageError: The file is corrupt.
    """
    found = read_json(path / PLAN_FILE, default=None)
    return found if isinstance(found, dict) else {}


def results_stamp(path: Path) -> Stamp:
    """Changes when what `read_results` gives may have changed."""
    files = [path / STATE_FILE, path / PLAN_FILE, path / ESTIMATE_FILE]
    return stamp_of(*files, *_candidate_files(path))


def read_results(path: Path, most_bytes: int | None = SOME_BYTES) -> RunResults:
    """What a run has come to.

    Args:
        path: The run's directory.
        most_bytes: Candidates are read if their files are no larger together; else charts are
            drawn from the rounds' own record. None: however large they are.

    Raises:
        StorageError: The state, the plan or the candidates are corrupt or cannot be read.
    """
    saved, plan = read_state(path), read_plan(path)
    size = sum(size for _, _, size, _ in filter(None, stamp_of(*_candidate_files(path))))
    read = most_bytes is None or size <= most_bytes
    found: tuple[RoundRewards, ...] = read_rewards(path) if read else ()
    candidates = {one.number: one.tried for one in found if one.tried}
    held_out = {one.number: one.held_out for one in found if one.held_out}
    passages = _passages(saved.dataset, _ids(candidates.values(), held_out.values()))
    estimate = _estimate(path)
    rows = [] if estimate is None else compare_with_actual(estimate, saved.state.rounds)
    info = {
        "reward": plan.get("restem.reward"),
        "baseline": plan.get("restem.baseline"),
        "estimate": [asdict(row) for row in rows],
    }
    every = (one for part in candidates.values() for p in part for one in p.candidates)
    return RunResults(
        parts=report_parts(saved.state, candidates, held_out, passages, info),
        rounds=sum(report.number > 0 for report in saved.state.rounds),
        candidate_bytes=size,
        whole=read,
        curves=any(any(one.losses) for one in every),
        dataset=saved.dataset,
        with_texts=bool(passages),
        estimate=estimate,
    )


def _candidate_files(path: Path) -> list[Path]:
    folder = path / ROUNDS_FOLDER
    try:
        names = sorted(os.listdir(folder))[:_MOST_FOLDERS]
    except OSError:
        return []
    return [folder / name / file for name in names for file in (CANDIDATES_FILE, HELD_OUT_FILE)]


def _estimate(path: Path) -> RestemEstimate | None:
    try:
        return kept_estimate(path)
    except StorageError:  # it is no reason not to show the run
        return None


def _ids(*sides: Iterable[tuple[TriedPassage, ...]]) -> set[str]:
    return {passage.passage_id for side in sides for part in side for passage in part}


def _passages(dataset: str, wanted: set[str]) -> dict[str, Passage]:
    """Passages by id from the file that the run is on; none where it is not as it was."""
    path = Path(dataset)
    try:
        facts = os.stat(path) if dataset and wanted else None
    except (OSError, ValueError):
        return {}
    if facts is None or not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_DATA_BYTES:
        return {}
    whole: dict[str, list[str]] = {}  # passages that the run has split
    for name in wanted:
        whole.setdefault(name.partition("#")[0], []).append(name)
    found: dict[str, Passage] = {}
    try:
        for passage in read_passages(path, on_reject=ignore_reject):
            if passage.id in wanted:
                found[passage.id] = passage
            for name in whole.get(passage.id, ()):
                found.setdefault(name, passage)
    except AIOSError:  # damaged, or of another form by now
        return {}
    return found
