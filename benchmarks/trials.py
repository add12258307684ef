"""What a trial costs: a throw-away adapter trained on a self-edit and scored, six ways.

(a) the SEAL release's procedure, texts padded to 2048 tokens; (b) the same without padding: PEFT
and transformers' Trainer, one candidate after another, in float32 and bfloat16; (c) the trial
engine, all candidates at once, in both; (d) the same with racing; (e) with trunk caching. All
train the same recipe on the same self-edits with the same number of steps. Each contestant is a
process of its own; in each round every one has its turn on the same passages, ratios are taken
within a round. (a) would take hours, so a few of its steps are timed and its trials are
extrapolated by their number.

    make bench-trials
    make bench-trials DEVICE=cuda
    python benchmarks/trials.py --data iter0_train.json --passages 8 --rounds 5
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _trials_report as reports
from _generation_job import rotated
from _results import print_table, write_results
from _trials_data import EXAMPLES, RELEASE, Lesson, all_candidates, choose, read_lessons
from _trials_flops import Shape
from _trials_job import TRAINING, Host, Task, Turn
from _trials_report import Played, Report

from aios.core.seeds import derive
from aios.core.types import LoraRecipe

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-instruct"
BESIDE = ROOT.parent / "shared" / "data" / "seal_train100.json"  # used if it happens to be there
PADDED_TO = 2048
SEED = 0
OWN_ROWS = 512  # about the tokens of a pass of ours
_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}
_REPEATS = 5
_MUCH_SLOWER = 1.5  # a dtype whose first padded step is that much slower gets no second


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.perf_counter()
    from aios.backends.devices import choose_device

    device = choose_device(asked.device)
    tasks, source, config = prepare(asked)
    report = Report()
    report.more["job"] = facts(asked, tasks, source, device.type)
    say(str(report.more["job"]))
    with running(asked, tasks[0], device.type, config, report) as (hosts, peer):
        turns, peaks = play(hosts, tasks, device)
        for host in hosts:
            report.add(host.name, "peak memory", "GB", [host.ask("memory") / 1e9])
            if host.name == reports.OURS_HALF:
                own = [host.ask("own_products", OWN_ROWS) / 1e9]
    played = Played(
        tasks,
        turns,
        peaks,
        asked.padded_to,
        peer,
        Shape.of(config),
        trunk_layers(config),
    )
    reports.report_speeds(report, played)
    report.add("machine", f"the model's own products at {OWN_ROWS} rows", "GFLOP/s", own)
    reports.report_gains(report, played)
    reports.report_quality(report, played)
    report.rows.sort(key=lambda each: [*turns, "machine"].index(each["name"].partition(" − ")[0]))
    report.more["seconds"] = round(time.perf_counter() - began)
    print_table(report.rows, report.ratios)
    if not asked.quick:
        given = arguments or sys.argv[1:]
        command = (
            " ".join(["python benchmarks/trials.py", *given]) if given else "make bench-trials"
        )
        path = write_results("trials", command, report.rows, report.ratios, more=report.more)
        print(f"\nwritten to {path.relative_to(ROOT)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--quick` makes everything small."""
    parser = argparse.ArgumentParser(
        description="Measures what trials cost, beside PEFT and transformers' Trainer."
    )
    add = parser.add_argument
    add("--device", default=os.environ.get("DEVICE") or "auto", help="or environment DEVICE")
    add(
        "--data",
        type=Path,
        default=os.environ.get("SEAL_DATA") or None,
        help="SEAL-release JSON file",
    )
    add("--rounds", type=_count, default=3, help="each runs every contestant once (default 3)")
    add("--passages", type=_count, default=2, help="of a round; each round has others (default 2)")
    add("--candidates", type=_count, default=5, help="self-edits a passage (default 5)")
    add("--epochs", type=_count, default=2, help="of every trial; the release has 10 (default 2)")
    add("--padded-steps", type=_count, default=2, help="of the padded run, a round (default 2)")
    add("--threads", type=_count, help="of every contestant (default: torch's choice)")
    add("--groups", type=_count, help="of our bank (default: as planned)")
    add("--quick", action="store_true", help="a smoke test: tiny job, nothing written")
    asked = parser.parse_args(arguments)
    asked.padded_to = PADDED_TO
    if asked.data is None and BESIDE.is_file():
        asked.data = BESIDE
    if asked.quick:
        asked.rounds, asked.passages, asked.candidates, asked.epochs = 1, 1, 2, 1
        asked.padded_to, asked.padded_steps = 64, 1
    return asked


def prepare(asked: argparse.Namespace) -> tuple[list[Task], str, Any]:
    """The tasks, where their texts come from, and the model's configuration."""
    from transformers import AutoConfig, AutoTokenizer

    from aios.backends.models import resolve_model

    folder = resolve_model(MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def count_tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    source = RELEASE if asked.data else EXAMPLES
    if not asked.data:
        say("no file of the SEAL release (--data, SEAL_DATA): fill-in-the-blank questions instead")
    examples = ROOT / "examples" / "passages.jsonl"
    lessons = read_lessons(asked.data, examples, asked.candidates, count_tokens)
    recipe = LoraRecipe(
        rank=32,
        alpha=64,
        learning_rate=1e-3,
        epochs=asked.epochs,
        batch_size=1,
        schedule="linear",  # the Trainer's default, which the release leaves as it is
        grad_clip=1.0,
        max_seq_len=PADDED_TO,
    )
    drawn = choose(lessons, asked.rounds, asked.passages, SEED)
    tasks = [
        Task(tuple(each), recipe, derive(SEED, "round", number))
        for number, each in enumerate(drawn)
    ]
    return tasks, source, AutoConfig.from_pretrained(folder, local_files_only=True)


def facts(
    asked: argparse.Namespace, tasks: Sequence[Task], source: str, device: str
) -> dict[str, Any]:
    """What was run, for the results file."""
    lessons: list[Lesson] = [lesson for task in tasks for lesson in task.lessons]
    lengths = [length for _, c in all_candidates(lessons) for length in c.lengths]
    recipe = tasks[0].recipe
    return {
        "model": MODEL,
        "device": device,
        "self-edits": source,
        "rounds": asked.rounds,
        "passages": asked.passages,
        "candidates": asked.candidates,
        "epochs": recipe.epochs,
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "learning_rate": recipe.learning_rate,
        "tokens of a trial": round(sum(t.mean_tokens for t in tasks) / len(tasks)),
        "steps of a trial": round(sum(t.mean_steps for t in tasks) / len(tasks), 1),
        "tokens of a text": round(sum(lengths) / len(lengths), 1),
        "longest text": max(lengths),
    }


def trunk_layers(config: Any) -> int:
    """Two thirds of the layers."""
    return int(config.num_hidden_layers) * 2 // 3


@contextmanager
def running(
    asked: argparse.Namespace, task: Task, device: str, config: Any, report: Report
) -> Iterator[tuple[list[Host], str]]:
    """The contestants, loaded, and the name of the one that differs from (a) by padding alone."""
    from _trials_grouped import GroupedTrials
    from _trials_sequential import SequentialTrials

    from aios.backends.models import resolve_model

    common = {"device": asked.device, "threads": asked.threads}
    folder = resolve_model(MODEL).path
    hosts: list[Host] = []

    def start(name: str, make: Any, **settings: Any) -> Host:
        hosts.append(Host(name, make, **common, **settings))
        return hosts[-1]

    def peft(name: str, dtype: str, **more: Any) -> Host:
        autocast = dtype == "bfloat16" and device == "cuda"  # as in the release
        return start(name, SequentialTrials, folder=folder, dtype=dtype, autocast=autocast, **more)

    def ours(name: str, dtype: str, **more: Any) -> None:
        start(name, GroupedTrials, model=MODEL, dtype=dtype, groups=asked.groups, **more)

    try:
        dtype = padded_dtype(hosts, peft, asked, task, device, report)
        peft(reports.PEFT_FULL, "float32", candidates=asked.candidates)
        peft(reports.PEFT_HALF, "bfloat16", candidates=min(2, asked.candidates))
        if device == "cpu":
            peft(reports.PEFT_KEPT, "float32", candidates=1, keep_memory=True)
        ours(reports.OURS_FULL, "float32")
        ours(reports.OURS_HALF, "bfloat16")
        ours(reports.RACING, "bfloat16", race=True)
        ours(reports.TRUNK, "bfloat16", trunk_layers=trunk_layers(config))
        for host in hosts[1:]:
            host.ask("load")
        report.more["settings"] = {host.name: host.ask("settings") for host in hosts}
        yield hosts, reports.PEFT_FULL if dtype == "float32" else reports.PEFT_HALF
    finally:
        for host in hosts:
            host.close()


def padded_dtype(
    hosts: list[Host],
    peft: Any,
    asked: argparse.Namespace,
    task: Task,
    device: str,
    report: Report,
) -> str:
    """Starts (a) in the dtype in which a step is faster; says what a step takes otherwise.

    On a GPU it is the release's: bfloat16 with autocast.
    """
    sizes = {"padded": asked.padded_to, "steps": 1}
    tried: dict[str, float] = {}

    def step(dtype: str, **more: Any) -> float:
        host = peft(reports.PADDED, dtype, **sizes, **more)
        host.ask("load")
        seconds = []
        for _ in range(2):  # in the first step all tensors' pages are fetched
            turn: Turn = host.ask("turn", task)
            seconds.append(turn.seconds[TRAINING])
            if seconds[0] > _MUCH_SLOWER * min(tried.values(), default=math.inf):
                break
        hosts.pop().close()
        return seconds[-1]

    dtypes = ("bfloat16",) if device == "cuda" else ("bfloat16", "float32")
    for dtype in dtypes:
        tried[dtype] = step(dtype)
    best = min(dtypes, key=lambda each: tried[each])
    tried[f"{best}, adapters on query and value only"] = step(best, targets=None)
    report.more["padded step, s"] = {what: round(seconds, 2) for what, seconds in tried.items()}
    say(f"seconds of a padded step: {report.more['padded step, s']}")
    host = peft(reports.PADDED, best, padded=asked.padded_to, steps=asked.padded_steps)
    host.ask("load")
    return best


def play(
    hosts: Sequence[Host], tasks: Sequence[Task], device: torch.device
) -> tuple[dict[str, list[Turn]], list[float]]:
    """Each contestant's turns, in rotating order, and the machine's rate of products."""
    turns: dict[str, list[Turn]] = {host.name: [] for host in hosts}
    peaks = []
    for number, task in enumerate(tasks):
        peaks.append(square_rate(device))
        for host in rotated(hosts, number):
            host.ask("warm_up", task)
            turn: Turn = host.ask("turn", task)
            turns[host.name].append(turn)
            rate = reports.training_rate(turn, task)
            say(
                f"round {number + 1}, {host.name}: {turn.steps} steps in {turn.wall:.1f} s,"
                f" {rate * task.mean_tokens:.1f} tokens/s, {rate * reports.HOUR:.0f} trials/h"
            )
    return turns, peaks


def square_rate(device: torch.device) -> float:
    """Operations per second of the best of some square bfloat16 matrix products."""
    import torch
    from _trials_job import wait_for

    best = 0.0
    for size in _SIZES.get(device.type, _SIZES["cpu"]):
        a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
        torch.mm(a, b)
        for _ in range(_REPEATS):
            wait_for(device)
            began = time.perf_counter()
            torch.mm(a, b)
            wait_for(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


if __name__ == "__main__":
    main()
