"""Generation from the command line, killed by the system and on long inputs, on the scripted model.

Every run is a process of its own; a kill is SIGKILL, at a moment drawn from a seed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aios.core.seal.cache import SelfEditCache
from tests.test_app.scripted_jobs import files_below, record

ROOT = Path(__file__).parents[2]
WRITTEN = {"edits.jsonl", "edits.dropped.jsonl"}
# Runs the command line, and writes the most memory that it took, in bytes, to a file.
MEASURED = """
import resource, sys
from aios.cli.aios import run
code = run(sys.argv[2:])
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
open(sys.argv[1], "w").write(str(peak))
sys.exit(code)
"""


def write_input(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = record(number)
            row["id"] = f"{row['id']}-{number}"
            row["text"] += f" It is number {number} of the valley."
            stream.write(f"{json.dumps(row)}\n")
    return path


def generate_line(
    folder: Path, data: Path, strategy: str = "implications:2,cloze:1", **settings: object
) -> list[str]:
    """The arguments of `aios seal generate` with all its files below a folder."""
    chosen = {
        "paths.artifacts": folder / "artifacts",
        "seal.cache_dir": folder / "cache",
        "seal.min_length": 5,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    sets = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    how = ["--strategy", strategy, "--model", "scripted", "--json", "--quiet"]
    output = folder / "out" / "edits.jsonl"
    files = ["--input", str(data), "--output", str(output)]
    return ["seal", "generate", *files, *how, *sets]


def start(
    arguments: list[str], script: tuple[str, ...] = ("-m", "aios")
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, *script, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )


def finish(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process; its exit code, -9 where it was killed."""
    _, errors = process.communicate()
    assert process.returncode in (0, -9), errors.decode()
    return process.returncode


def read_output(folder: Path) -> list[bytes]:
    return [(folder / "out" / name).read_bytes() for name in sorted(WRITTEN)]


# ------------------------------------------------------------ kill -9


@dataclass
class Torture:
    """Kills runs of one command, and has them go on until they are done.

    Attributes:
        folder: Where each job has a folder of its own.
        count: Passages of the input.
        seed: Of all moments.
    """

    folder: Path
    count: int
    seed: int
    kills: int = 0
    whole: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = write_input(self.folder / "passages.jsonl", self.count)
        began = time.monotonic()
        assert finish(start(generate_line(self.folder / "whole", self.data))) == 0
        self.seconds = time.monotonic() - began
        self.whole = read_output(self.folder / "whole")
        assert all(len(content.splitlines()) >= self.count for content in self.whole)

    def until_killed(self, times: int) -> None:
        """Jobs, each killed and resumed until it is done, with so many kills in all."""
        rng = random.Random(self.seed)
        jobs = 0
        while self.kills < times:
            jobs += 1
            folder = self.folder / str(jobs)
            cache = rng.random() < 0.7
            while self._run_and_kill(folder, rng, cache=cache):
                # whole or not there
                for name, content in zip(sorted(WRITTEN), self.whole, strict=True):
                    path = folder / "out" / name
                    assert not path.exists() or path.read_bytes() == content
            self._check(folder, cache=cache)

    def _run_and_kill(self, folder: Path, rng: random.Random, *, cache: bool) -> bool:
        """Starts or resumes a job; whether it was killed before it was done."""
        process = start(generate_line(folder, self.data, seal__enable_cache=str(cache).lower()))
        now = self._moment(folder, rng)
        while process.poll() is None:
            if now():
                process.kill()
                break
            time.sleep(0.001)
        killed = finish(process) == -9
        self.kills += killed
        return killed

    def _moment(self, folder: Path, rng: random.Random) -> Callable[[], bool]:
        """When to kill: after a time, or when so much of the work is in the journal."""
        if rng.random() < 0.3:
            end = time.monotonic() + rng.random() * self.seconds
            return lambda: time.monotonic() >= end
        journal = folder / "out" / ".edits.jsonl.journal"
        done = _lines(journal)
        target = rng.randint(done + 1, max(self.count, done + 1))
        pause = rng.random() * 0.01

        def reached() -> bool:
            if _lines(journal) < target:
                return False
            time.sleep(pause)
            return True

        return reached

    def _check(self, folder: Path, *, cache: bool) -> None:
        assert read_output(folder) == self.whole
        assert files_below(folder / "out") == WRITTEN
        if not cache:
            assert not (folder / "cache").exists()
            return
        keys = [path.stem for path in (folder / "cache").glob("*.json") if path.name[0] != "."]
        # it lacks no more than the three completions of the passage in hand at each kill
        assert 3 * self.count - 3 * self.kills <= len(keys) <= 3 * self.count
        found = SelfEditCache(folder / "cache", 10**10)
        assert all(found.get(key) is not None for key in keys)


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_output_of_one_that_was_not(tmp_path: Path) -> None:
    torture = Torture(tmp_path, count=50, seed=5)
    torture.until_killed(3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_killed_at_20_random_moments_end_with_the_output_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    torture = Torture(tmp_path, count=600, seed=11)
    torture.until_killed(20)


# ------------------------------------------------------------ memory


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_passages_but_for_the_indices_of_them(
    tmp_path: Path,
) -> None:
    """A passage costs its place in the journal and the hashes by which duplicates are found."""
    peaks = {}
    for count in (1_000, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        data = write_input(folder / "passages.jsonl", count)
        line = generate_line(folder, data, "implications:1", seal__enable_cache="false")
        assert finish(start([str(folder / "peak"), *line], ("-c", MEASURED))) == 0
        assert len(read_output(folder)[1].splitlines()) == count
        peaks[count] = int((folder / "peak").read_text())
    grown = peaks[10_000] - peaks[1_000]
    assert grown < 9_000 * 1_500  # bytes; all that is read and written is some 3,000 a passage
