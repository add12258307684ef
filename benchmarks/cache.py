"""How fast the self-edit cache is with 1,000, 10,000 and 100,000 entries.

Measures, in a folder on this disk: a lookup that hits and one that misses, the first put after
start (it lists the folder), later puts, puts into a full cache with what they evict, `stats` (with
files in memory and read from disk), `prune` and `clear`. A put includes its two fsyncs.

    python benchmarks/cache.py [--entries N ...] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import print_table, ratios_of, row, write_results

from aios.core.seal.cache import CachedCompletion, SelfEditCache
from aios.core.seal.cache_format import encode_entry
from aios.core.types import Completion

ROOT = Path(__file__).parents[1]
SIZES = (1_000, 10_000, 100_000)
REPEATS = 5
LOOKUPS = 1_000  # in a sample
PUTS = 200  # in a sample
NO_LIMIT = 10**12
WORDS = (
    "the lighthouse of Orrin was built in 1821 by Ada Finch it stands on a cliff above the harbour "
    "and its lamp can be seen for twenty miles keepers lived there until 1974"
).split()


def completion(rng: random.Random) -> Completion:
    """Eight statements, as a strategy has them written."""
    lines = [" ".join(rng.choices(WORDS, k=14)).capitalize() + "." for _ in range(8)]
    losses = tuple(rng.uniform(0.5, 3.0) for _ in lines)
    return Completion("\n".join(lines), 150, "stop", rng.getrandbits(48), losses)


def new_key(rng: random.Random) -> str:
    return f"{rng.getrandbits(256):064x}"


def fill(folder: Path, count: int, rng: random.Random) -> list[str]:
    """Writes entries past the cache, without syncing each."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [new_key(rng) for _ in range(count)]
    for number, key in enumerate(keys):
        strategy = ("rewrite", "self-qa", "implications")[number % 3]
        made = f"2025-01-01T{number % 24:02}:00:00.000+00:00"
        found = CachedCompletion(completion(rng), strategy, "smollm2-135m-instruct", made)
        (folder / f"{key}.json").write_bytes(encode_entry(key, found))
    return keys


def drop_from_memory(folder: Path) -> None:
    """Asks the system to forget the files' content, not their names and sizes."""
    os.sync()
    for item in os.scandir(folder):
        fd = os.open(item.path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def put_all(cache: SelfEditCache, keys: list[str], found: Completion) -> None:
    for key in keys:
        if not cache.put(key, found, strategy="rewrite", model="smollm2-135m-instruct"):
            raise SystemExit("the cache could not be written")


def measure(folder: Path, count: int, rng: random.Random) -> dict[str, list[float]]:
    """Samples by quantity, in seconds each."""
    keys = fill(folder, count, rng)
    samples: dict[str, list[float]] = {}

    def sample(name: str, work: Callable[[], object], units: int = 1, n: int = REPEATS) -> None:
        samples[name] = [seconds(work) / units for _ in range(n)]

    cache = SelfEditCache(folder, NO_LIMIT)
    hits = [rng.choice(keys) for _ in range(LOOKUPS)]
    misses = [new_key(rng) for _ in range(LOOKUPS)]
    found = completion(rng)
    cache.stats()
    sample("get, hit", lambda: [cache.get(key) for key in hits], LOOKUPS)
    sample("get, miss", lambda: [cache.get(key) for key in misses], LOOKUPS)
    sample("first put", lambda: put_all(SelfEditCache(folder, NO_LIMIT), [new_key(rng)], found))
    put_all(cache, [new_key(rng)], found)
    sample("put", lambda: put_all(cache, [new_key(rng) for _ in range(PUTS)], found), PUTS)
    sample("stats, in memory", cache.stats)
    samples["stats, from disk"] = []
    for _ in range(REPEATS):
        drop_from_memory(folder)
        samples["stats, from disk"].append(seconds(cache.stats))
    sample("prune, nothing to do", cache.prune)
    # So many puts that the cache outgrows its limit twice: the mean has all that evicting takes.
    full = SelfEditCache(folder, cache.prune(dry_run=True).bytes_left)
    many = count // 10 + 100
    evicting = [new_key(rng) for _ in range(many)]
    sample("put with evictions", lambda: put_all(full, evicting, found), many, n=1)
    size = cache.prune(dry_run=True).bytes_left
    goals = [round(size * (1 - 0.1 * step)) for step in range(1, 4)]
    samples["prune a tenth"] = [seconds(lambda goal=goal: cache.prune(goal)) for goal in goals]
    fill(folder, count - cache.prune(dry_run=True).left, rng)
    samples["clear"] = [seconds(cache.clear)]
    return samples


IN_SECONDS = {"first put", "stats, in memory", "stats, from disk", "prune a tenth", "clear"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--folder", type=Path, default=ROOT / "artifacts")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    by_size: dict[int, dict[str, list[float]]] = {}
    size = 0
    for count in options.entries:
        with tempfile.TemporaryDirectory(prefix="bench-cache-", dir=options.folder) as folder:
            by_size[count] = measure(Path(folder) / "cache", count, rng)
        for name, samples in by_size[count].items():
            slow = name in IN_SECONDS or name.startswith("prune")
            scaled = samples if slow else [value * 1000 for value in samples]
            rows.append(row(f"{count:,} entries", name, "s" if slow else "ms", scaled))
    size = len(encode_entry("0" * 64, CachedCompletion(completion(rng), "rewrite", "m", "")))
    ratios = {}
    small, large = min(by_size), max(by_size)
    if small < large:
        for name in ("get, hit", "get, miss", "put"):
            key = f"{name}: {large:,} entries/{small:,} entries"
            ratios[key] = ratios_of(by_size[large][name], by_size[small][name])
    print_table(rows, ratios)
    path = write_results(
        "cache", "make bench-cache", rows, ratios, more={"settings": {"entry_bytes": size}}
    )
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
