"""A ReST-EM run on a tiny real model, in a process of its own, to be killed there."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from aios.app.models import load_model
from aios.app.restem.job import ReSTEMReport, optimize
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.bench import TorchTrialBench
from aios.core.config.schemas import Config
from aios.core.protocols import Emit, ShouldStop, TrialBench, ignore, never
from aios.core.trials import TrialJob, TrialOutcome
from aios.storage import runs
from tests.killed_process import Tell
from tests.test_app.scripted_jobs import pause_in_writes, record

TRIALS_OF_A_PASSAGE = 2 + 2 + 2  # baselines, candidates, repeats of both
BATCH = 2  # passages whose trials are recorded at once

_write = os.write  # before any pause is put into it


def write_passages(path: Path, count: int = 6) -> Path:
    """Passages of two sentences with two questions each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        made = record(number * 5, 2)
        made["text"] = ". ".join(made["text"].split(". ")[:2]) + "."
        lines.append(json.dumps(made) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def config_of(folder: Path, model: Path) -> Config:
    """Two rounds of six passages and two candidates; what a random model writes is kept."""
    return Config.model_validate(
        {
            "model": {
                "name": str(model),
                "cache_dir": folder / "models",
                "offline": True,
                "device": "cpu",
                "dtype": "float32",
                "threads": 1,
            },
            "paths": {"artifacts": folder / "artifacts"},
            "seal": {
                "max_new_tokens": 16,
                "batch_size": 2,
                "cache_dir": folder / "cache",
                "enable_quality_filter": False,
                "enable_grounding": False,
                "enable_deduplication": False,
                "min_length": 0,
                "restem_iterations": 2,
                "restem_batch_size": 4,
                "restem_candidates_per_passage": 2,
            },
            "training": {"rank": 2, "alpha": 4, "batch_size": 2, "learning_rate": 0.01},
            "restem": {
                "estimate": False,
                "arms": ["implications", "rewrite"],
                "keep": "best_of_k",
                "trial_tokens": 60,
                "trial_batch": BATCH,
                "held_out_fraction": 0.34,
                "held_out_candidates": 2,
                "patience": 0,
                "sft_rank": 2,
                "sft_alpha": 4,
                "sft_batch_size": 1,
                "sft_max_seq_len": 1024,
            },
        }
    )


class CountingBench:
    """A bench that notes every trial that it has run in a file, which outlives the process."""

    def __init__(self, bench: TrialBench, notes: Path) -> None:
        self._bench, self._notes = bench, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        for outcome in self._bench.run(jobs, emit=emit, should_stop=should_stop):
            note(self._notes, outcome.job_id)
            yield outcome


def note(file: Path, text: str) -> None:
    """Appends a line in one write."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        _write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def pause_in_file_writes(seconds: float) -> None:
    """Makes writes slow, with a pause in the middle, but for those into pipes."""
    whole = os.write
    pause_in_writes(seconds)
    halves = os.write

    def write(fd: int, data: Any) -> int:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return halves(fd, data) if regular else whole(fd, data)

    os.write = write


def run(folder: Path, model: Path, *, resume: bool, emit: Emit = ignore) -> ReSTEMReport:
    """Runs or goes on with the run of a folder."""
    torch.set_num_threads(1)
    config = config_of(folder, model)
    lm = load_model(config)
    assert isinstance(lm, TorchLM)
    bench = CountingBench(TorchTrialBench(lm, groups=3), folder / "trials.log")
    lm.trial_bench = lambda: bench  # type: ignore[method-assign,return-value,assignment]
    return optimize(
        config,
        folder / "passages.jsonl",
        folder / "generator",
        run_dir=folder / "run",
        resume=resume,
        emit=emit,
        model=lm,
    )


def work(folder: Path, model: Path, resume: bool, tell: Tell) -> None:
    """The same on a disk that pauses amid every write; tells of every event.

    So the parent knows when to kill, and hits writes too.
    """
    tqdm.set_lock(threading.RLock())  # its own is between processes, and left behind by a kill
    pause_in_file_writes(0.0002)
    runs.git_revision = lambda folder: None
    run(folder, model, resume=resume, emit=lambda event: tell())
