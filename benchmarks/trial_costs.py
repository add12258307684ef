"""What trials cost: speed and memory by trainings at a time, length of texts and size of model.

Adapters of rank 32 on all linear layers, batches of one text, a few steps a point, each point in
a process of its own. The engine's own plan of memory stands beside what was measured. A *trial*
is counted as the release's: ten passes over nine texts.

    make bench-trial-costs
    make bench-trial-costs DEVICE=cuda
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _results import print_table, row, write_results
from _trials_job import Host

if TYPE_CHECKING:
    from aios.backends.models import ModelSource

ROOT = Path(__file__).resolve().parent.parent
MODEL, TINY = "smollm2-135m-instruct", "tiny"
GROUPS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256, 512)
TYPICAL_GROUPS, TYPICAL_LENGTH = 8, 64
TRIAL_STEPS = 90
_LEAST_TOKENS = 1024  # of a timed run
MEMORY = {
    "peak": "peak memory",
    "above the model": "memory above the model",
    "planned": "memory as planned",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the curve."""

    model: str
    groups: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.groups} at a time, {self.length} tokens"

    @property
    def steps(self) -> int:
        """Steps of a timed run: few, but not of a few tokens only."""
        return math.ceil(_LEAST_TOKENS / (self.groups * self.length))


def places(quick: bool) -> list[Place]:
    """All points of the curve, each once."""
    if quick:
        return [Place(TINY, 1, 16), Place(TINY, 4, 16)]
    found = [Place(MODEL, groups, TYPICAL_LENGTH) for groups in GROUPS]
    found += [Place(MODEL, TYPICAL_GROUPS, length) for length in LENGTHS]
    found += [Place(TINY, groups, TYPICAL_LENGTH) for groups in (1, TYPICAL_GROUPS, GROUPS[-1])]
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(ROOT))  # the tiny model is the tests'
    from _trials_point import tiny_source

    from aios.backends.models import resolve_model

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {TINY: tiny_source(Path(folder)), MODEL: resolve_model(MODEL)}
        points = places(asked.quick)
        for place in points:
            rows += measured(asked, place, sources[place.model])
    print_table(rows)
    if not asked.quick:
        given = arguments or sys.argv[1:]
        command = "python benchmarks/trial_costs.py"
        more = {
            "job": {"device": asked.device, "dtype": asked.dtype, "steps of a trial": TRIAL_STEPS},
            "points": [{"name": place.name, **asdict(place)} for place in points],
        }
        path = write_results(
            "trial_costs",
            " ".join([command, *given]) if given else "make bench-trial-costs",
            rows,
            more=more,
        )
        print(f"\nwritten to {path.relative_to(ROOT)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Measures what trials cost.")
    add = parser.add_argument
    add("--device", default=os.environ.get("DEVICE") or "auto", help="or environment DEVICE")
    add("--dtype", default="auto", help="of the base weights (default: the device's)")
    add("--repeats", type=_count, default=2, help="timed runs of a point (default 2)")
    add("--threads", type=_count, help="of the CPU (default: torch's choice)")
    add("--quick", action="store_true", help="a smoke test with the tiny model, nothing written")
    return parser.parse_args(arguments)


def measured(
    asked: argparse.Namespace, place: Place, source: ModelSource
) -> Iterator[dict[str, Any]]:
    """The rows of a point."""
    from _trials_point import Point

    host = Host(
        place.name,
        Point,
        source=source,
        device=asked.device,
        dtype=asked.dtype,
        groups=place.groups,
        length=place.length,
        threads=asked.threads,
    )
    try:
        host.ask("turn", 1, 0)
        runs = [host.ask("turn", place.steps, seed + 1) for seed in range(asked.repeats)]
        memory: dict[str, int] = host.ask("memory")
    finally:
        host.close()
    speeds = [tokens / seconds for tokens, seconds in runs]
    print(f"{place.name}: {max(speeds):.0f} tokens/s", file=sys.stderr, flush=True)
    trial = TRIAL_STEPS * place.length
    yield row(place.name, "training", "trials/h", [3600 * speed / trial for speed in speeds])
    yield row(place.name, "training", "tokens/s", speeds)
    for key, metric in MEMORY.items():
        yield row(place.name, metric, "GB", [memory[key] / 1e9])


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


if __name__ == "__main__":
    main()
