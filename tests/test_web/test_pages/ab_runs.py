"""A/B runs on disk, made by the scripted model as the command line makes them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aios.app.ab_tests.job import run_ab_test
from aios.core.errors import RunInterrupted
from tests.test_app.scripted_jobs import make_config, record, stop_after

HOSTILE = "<script>alert('x')</script><b>bold</b>"


def make_tests(folder: Path) -> Path:
    """Artifacts with A/B tests.

    Returns:
        The artifacts: ``one`` and ``again`` are on the same questions, ``other`` on others,
        ``halfway`` was interrupted.
    """
    artifacts = folder / "artifacts"
    made = artifacts / "seal_experiments"
    data = write_data(folder / "passages.jsonl", 6)
    others = write_data(folder / "others.jsonl", 6, first=6)
    config = make_config(folder)
    run_ab_test(config, data, output=made / "one")
    slower = make_config(folder, training={"learning_rate": 0.0002}, ab_test={"seeds": 1})
    run_ab_test(slower, data, output=made / "again")
    run_ab_test(slower, others, output=made / "other")
    try:
        run_ab_test(config, data, output=made / "halfway", should_stop=stop_after(9))
    except RunInterrupted:
        return artifacts
    raise AssertionError("it was to be interrupted")


def write_data(path: Path, count: int, *, first: int = 0) -> Path:
    """Passages with questions, the first of which holds HTML."""
    rows = [record(number) for number in range(first, first + count)]
    for question in rows[0]["questions"]:
        question["question"] = f"{HOSTILE} {question['question']}"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def copy_of(artifacts: Path, name: str, new: str) -> Path:
    """A copy of an A/B test under another name."""
    folder = artifacts / "seal_experiments"
    return Path(shutil.copytree(folder / name, folder / new))


def change_metrics(run: Path, **changes: Any) -> None:
    """Changes keys of a run's ``metrics.json``."""
    file = run / "metrics.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**document, **changes}, indent=2), encoding="utf-8")


@contextmanager
def worked_on(run: Path) -> Iterator[None]:
    """Holds a run's lock, as a process that works on it does."""
    lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
