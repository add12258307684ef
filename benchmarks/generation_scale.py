"""What generating self-edits costs beside the model: time, memory and disk for many passages.

Files of 1,000, 10,000 and 100,000 passages go through `aios.app.edits.generate` with the scripted
model, which answers at once, so what is measured is ours: reading, prompts, parsing, the quality
filter, journal, event log and output. Every sample is a process of its own. It is stopped before
the last passage, so that the journal is there to be measured and a second run can go on from it:
its time is that of reading back everything that was done.

    python benchmarks/generation_scale.py [--passages N ...] [--folder DIR] [--repeats R]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import print_table, row, write_results

from aios.app.edits.generate import dropped_path, generate_edits
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import RunInterrupted

ROOT = Path(__file__).parents[1]
SIZES = (1_000, 10_000, 100_000)
WITH_CACHE = 10_000  # above it no cache: `cache.py` measures how that scales
EDITS = 2  # candidates of a passage
MEGA = 10**6
UNITS = {
    "time": "s",
    "throughput": "passages/s",
    "going on": "s",
    "peak memory": "MB",
    "journal": "MB",
    "output": "MB",
    "dropped": "MB",
    "events": "MB",
    "cache": "MB",
}


def write_passages(path: Path, count: int) -> None:
    """Passages of four sentences, some 60 words, no two alike."""
    things = ("mill", "harbour", "tower", "saltworks", "ferry", "orchard", "quarry", "lock")
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            thing, year = things[number % 8], 1500 + number % 500
            text = (
                f"The {thing} of Arn {number} was founded by Tove Lind-{number} in {year}. "
                f"Each spring {number % 90 + 4} wardens mend its roof with larch from the hills. "
                f"Its walls are kept dry with pitch from Cald, since the moor is wet. "
                f"A bell rings over Arn {number} whenever the north gate of the {thing} is shut."
            )
            stream.write(json.dumps({"id": f"passage-{number}", "text": text}) + "\n")


def job(folder: Path, count: int, cache: bool) -> dict[str, float]:
    """One sample, in this process; figures by the names in `UNITS`."""
    data, output = folder / "passages.jsonl", folder / "out" / "edits.jsonl"
    write_passages(data, count)
    seal = {
        "strategy": "implications",
        "num_edits_per_passage": EDITS,
        "enable_cache": cache,
        "cache_dir": folder / "cache",
    }
    config = Config.model_validate(
        {"model": {"name": "scripted"}, "paths": {"artifacts": folder / "artifacts"}, "seal": seal}
    )
    seconds, peak = _until_the_last(config, data, output, count)
    journal = output.with_name(f".{output.name}.journal").stat().st_size
    began = time.perf_counter()
    report = generate_edits(config, data, output, resume="always", model=ScriptedModel())
    again = time.perf_counter() - began
    if (report.passages, report.reused) != (count, count - 1):
        raise SystemExit(f"{report.reused} of {count} passages were found again")
    found = {
        "time": seconds,
        "throughput": (count - 1) / seconds,
        "going on": again,
        "peak memory": peak / MEGA,
        "journal": journal / MEGA,
        "output": output.stat().st_size / MEGA,
        "dropped": dropped_path(output).stat().st_size / MEGA,
        "events": _bytes_below(folder / "artifacts") / MEGA,
    }
    if cache:
        found["cache"] = _bytes_below(folder / "cache") / MEGA
    return found


def _until_the_last(config: Config, data: Path, output: Path, count: int) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a run that is stopped before its last passage."""
    began = time.perf_counter()
    try:
        generate_edits(config, data, output, should_stop=_after(count - 1), model=ScriptedModel())
    except RunInterrupted:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return time.perf_counter() - began, peak
    raise SystemExit("the run was not stopped")


def _after(calls: int) -> Callable[[], bool]:
    left = calls

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return should_stop


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sample(parent: Path, count: int, cache: bool) -> dict[str, float]:
    """One sample, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=parent) as folder:
        arguments = ["--job", folder, "--passages", str(count), *(["--cache"] if cache else [])]
        line = [sys.executable, __file__, *arguments]
        done = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--folder", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--repeats", type=int, default=3, help="samples of all but the largest")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(job(options.job, options.passages[0], options.cache)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for count in options.passages:
        largest = len(options.passages) > 1 and count == max(options.passages)
        for cache in (False, True)[: 1 + (count <= WITH_CACHE)]:
            samples = [
                sample(options.folder, count, cache)
                for _ in range(1 if largest else options.repeats)
            ]
            name = f"{count:,} passages" + (", with cache" if cache else "")
            rows += [
                row(name, metric, UNITS[metric], [each[metric] for each in samples])
                for metric in samples[0]
            ]
            print(f"measured: {name}", file=sys.stderr)
    print_table(rows)
    settings = {"edits_per_passage": EDITS, "strategy": "implications", "model": "scripted"}
    command = "make bench-generation-scale"
    path = write_results("generation_scale", command, rows, more={"settings": settings})
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
