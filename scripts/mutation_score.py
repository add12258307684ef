"""What share of small faults in `aios.core.seal` do its tests notice? A mutation score.

    make mutation                                     # a sample of 400 mutants, seed 1
    make mutation MUTATION="--seed 2 --size 150"      # another one
    make mutation MUTATION="--again survived"         # those that survived, once more

A mutant is the program with one small change: ``<`` for ``<=``, ``None`` for a value, an argument
left out. It is killed if a test fails or does not come to an end, and survives otherwise. mutmut
makes the mutants of all functions in ``src/aios/core/seal`` and runs, for each, the tests that
call the function (``[tool.mutmut]`` in ``pyproject.toml`` says which tests there are). All of them
take hours, so this draws a sample from them with a seed.

The score is killed / (killed + survived). Mutants of functions that none of these tests calls
are counted apart. The results are kept in ``mutants/``: the same command after an interruption goes
on where it was. Written with ``--output``: each mutant as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks._results import machine, versions
from experiments.routing import wilson
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src/aios/core/seal")
MUTANTS = Path("mutants")  # where mutmut keeps what it makes and finds out
PREFIX = "aios.core.seal."
KILLED = ("killed", "timeout")
SURVIVED = "survived"
UNKNOWN = "not checked"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        status: ``killed``, ``timeout``, ``survived``, ``no tests``, or what else mutmut says.
        seconds: How long its tests ran; None before they did.
    """

    status: str
    seconds: float | None


def all_mutants() -> list[str]:
    """Names of the mutants that mutmut makes of the package, sorted."""
    return sorted(
        get_mutant_name(path, name)
        for path in PACKAGE.glob("*.py")
        for name in mutate_file_contents(str(path), path.read_text(encoding="utf-8")).mutant_names
    )


def draw(mutants: Sequence[str], seed: int, size: int) -> list[str]:
    """A simple random sample, sorted: each mutant has the same chance."""
    return sorted(random.Random(seed).sample(mutants, min(size, len(mutants))))


def outcomes() -> dict[str, Outcome]:
    """What is known so far, by mutant."""
    known = {}
    for path in (MUTANTS / PACKAGE).glob("*.py.meta"):
        meta = json.loads(path.read_text(encoding="utf-8"))
        for name, code in meta["exit_code_by_key"].items():
            known[name] = Outcome(status_by_exit_code[code], meta["durations_by_key"].get(name))
    return known


def run_mutants(names: Sequence[str]) -> None:
    """Runs the tests on these mutants, one after the other.

    Raises:
        subprocess.CalledProcessError: mutmut failed, e.g. since a test fails without a mutant.
    """
    mutated = ROOT / MUTANTS / "src"
    mutated.mkdir(parents=True, exist_ok=True)  # Python never looks again where nothing was
    paths = [str(mutated), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),  # for programs that a test starts, too
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def module_of(mutant: str) -> str:
    """The module within the package that a mutant is made of."""
    return mutant.removeprefix(PREFIX).partition(".")[0]


def score(statuses: Sequence[str]) -> dict[str, Any]:
    """How many mutants of each kind, and the share of those killed with its 95 % interval."""
    counts = Counter(statuses)
    killed = sum(counts[status] for status in KILLED)
    tried = killed + counts[SURVIVED]
    numbers: dict[str, Any] = {"n": len(statuses), **dict(sorted(counts.items()))}
    if tried:
        share = wilson(np.arange(tried) < killed)
        numbers |= {"score": share["share"], "low": share["low"], "high": share["high"]}
        numbers = {key: round(value, 4) for key, value in numbers.items()}
    return numbers


def summary(sample: Mapping[str, Outcome], seed: int, of: int) -> dict[str, Any]:
    """The score of a sample, and of each module in it."""
    modules = sorted({module_of(name) for name in sample})
    return {
        "command": f'make mutation MUTATION="--seed {seed} --size {len(sample)}"',
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": versions()["python"], "mutmut": version("mutmut")},
        "seed": seed,
        "mutants": of,
        "intervals": "low and high are Wilson's 95 % interval",
        "all": score([outcome.status for outcome in sample.values()]),
        "modules": {
            module: score([out.status for name, out in sample.items() if module_of(name) == module])
            for module in modules
        },
    }


def write_lines(path: Path, sample: Mapping[str, Outcome]) -> None:
    """Each mutant of the sample as a line of JSON."""
    lines = (
        json.dumps({"mutant": name, "status": outcome.status, "seconds": outcome.seconds})
        for name, outcome in sample.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def names_in(path: Path) -> list[str]:
    """The mutants in a file of `write_lines`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["mutant"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: 1)")
    parser.add_argument("--size", type=int, default=400, help="mutants in it (default: 400)")
    parser.add_argument("--besides", type=Path, help="draw none of those that --output wrote there")
    parser.add_argument("--again", action="append", default=[], help="run these, too: a status")
    parser.add_argument("--output", type=Path, help="write a line of JSON for each mutant")
    parser.add_argument("--summary", type=Path, help="write the numbers, as JSON")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    mutants = all_mutants()
    drawn_before = set(names_in(arguments.besides)) if arguments.besides else set()
    others = [name for name in mutants if name not in drawn_before]
    names = draw(others, arguments.seed, arguments.size)
    run_again = {UNKNOWN, *arguments.again}
    known = outcomes()
    if open_ones := [n for n in names if n not in known or known[n].status in run_again]:
        run_mutants(open_ones)
        known = outcomes()
    sample = {name: known[name] for name in names}
    numbers = summary(sample, arguments.seed, len(mutants))
    if arguments.output:
        write_lines(arguments.output, sample)
    if arguments.summary:
        arguments.summary.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"survived: {name}" for name, out in sample.items() if out.status == SURVIVED))
    print(json.dumps(numbers["all"]))


if __name__ == "__main__":
    main()
