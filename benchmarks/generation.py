"""How fast completions are written: our loop, transformers' ``generate``, llama.cpp's server.

All write the same number of completions of the same prompts (the implications prompts of
``examples/passages.jsonl``) with the same bundled model in 16-bit weights, the same sampling
(temperature 1, top-p 0.95, no top-k) and the same number of threads. The best batch of
``generate`` and the best slots of the server are found first, on a smaller job. Then each round
runs every contestant once, in rotating order; ratios are taken within a round. The same run
measures what the machine can do at most and where our loop's time goes.

    make bench-generation
    python benchmarks/generation.py --passages 28 --rounds 5
    python benchmarks/generation.py --llama-server ~/llama.cpp/build/bin/llama-server
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _generation_job import Contestant, Job, Tally, measure, rotated, warm_up_job
from _results import print_table, ratios_of, row, write_results

from aios.core.types import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from aios.backends.torch_lm import TorchLM

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-instruct"
OURS = "aios"
_SPARE_TOKENS = 16  # of a slot, besides the longest prompt and completion
_QUICK_TOKENS = 8
_SEARCH_TOKENS = 32
_SEARCH_PASSAGES = 10


class OurLoop:
    """`TorchLM.stream`: one request a passage, with the seeds of all its completions."""

    name = OURS

    def __init__(self, model: TorchLM, width: int | None) -> None:
        self._model, self._width = model, width

    @property
    def settings(self) -> dict[str, Any]:
        from aios.backends import torch_lm

        dtype = str(self._model.model.dtype).removeprefix("torch.")
        return {"dtype": dtype, "width": self._width or torch_lm._WIDTH}

    def prepare(self) -> None:
        """Nothing is kept from job to job."""

    def write(self, job: Job) -> list[int]:
        requests = (
            GenerationRequest(prompt, job.seeds_of(i), job.sampling)
            for i, prompt in enumerate(job.prompts)
        )
        lengths = []
        for outcome in self._model.stream(requests, width=self._width):
            if outcome.error is not None:
                raise outcome.error
            lengths += [completion.tokens for completion in outcome.completions]
        return lengths

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class Report:
    """What goes into the results file."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        self.rows.append(row(name, metric, unit, samples))


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    report = Report()
    model, job = prepare(asked)
    report.more["job"] = {
        "model": MODEL,
        "passages": len(job.prompts),
        "candidates": job.candidates,
        "prompt_tokens": sum(model.count_tokens(prompt) for prompt in job.prompts),
        "sampling": asdict(job.sampling),
        "threads": asked.threads,
        "rounds": asked.rounds,
    }
    contestants = [OurLoop(model, asked.width), *baselines(asked, model, job, report)]
    try:
        report.more["settings"] = {c.name: c.settings for c in contestants}
        for name, settings in report.more["settings"].items():
            say(f"{name}: {settings}")
        tallies = play(contestants, job, asked.rounds)
    finally:
        for contestant in contestants:
            contestant.close()
    speeds(report, tallies)
    limits(report, model, contestants[0], job, quick=asked.quick)
    print_table(report.rows, report.ratios)
    if not asked.quick:
        command = " ".join(["python benchmarks/generation.py", *(arguments or sys.argv[1:])])
        given = bool(arguments or sys.argv[1:])
        path = write_results(
            "generation",
            command if given else "make bench-generation",
            report.rows,
            report.ratios,
            more=report.more,
        )
        print(f"\nwritten to {path.relative_to(ROOT)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--quick` makes everything small."""
    parser = argparse.ArgumentParser(
        description="Measures how fast completions are written, beside other programs."
    )
    add = parser.add_argument
    add("--rounds", type=_count, default=3, help="each runs every contestant once (default 3)")
    add("--passages", type=_count, default=10, help="of the 28 example passages (default 10)")
    add("--candidates", type=_count, default=5, help="completions a passage (default 5)")
    add("--max-new-tokens", type=_count, default=128, help="of a completion (default 128)")
    add("--threads", type=_count, default=2, help="of every contestant (default 2)")
    add("--width", type=_count, help="our completions in flight (default: the backend's own)")
    add("--batch-rows", type=_count, help="of transformers' generate; searched by default")
    add("--slots", type=_count, help="of the llama.cpp server; searched by default")
    add("--asked", choices=("separate", "together"), default="together", help="with --slots")
    add("--weights", choices=("f16", "bf16"), help="of llama.cpp; searched by default")
    add("--shared-prompts", action="store_true", help="add generate with prompts read once by hand")
    add("--llama-server", type=Path, metavar="PROGRAM", help="add a llama-server of your own build")
    add("--quick", action="store_true", help="a smoke test: tiny job, no search, nothing written")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.rounds, asked.passages, asked.max_new_tokens = 1, 2, _QUICK_TOKENS
        asked.batch_rows, asked.slots = asked.batch_rows or 8, asked.slots or 10
    return asked


def prepare(asked: argparse.Namespace) -> tuple[TorchLM, Job]:
    """The model and the job."""
    from aios.backends.models import resolve_model
    from aios.backends.torch_lm import TorchLM
    from aios.core.data.readers import read_passages
    from aios.core.seal.strategies import get_strategy

    source = resolve_model(MODEL)
    model = TorchLM.load(source, device="cpu", threads=asked.threads)
    strategy = get_strategy("implications")
    passages = read_passages(ROOT / "examples" / "passages.jsonl", on_reject=print)
    prompts = [strategy.prompt_text(model, passage) for passage in passages][: asked.passages]
    sampling = SamplingParams(temperature=1.0, top_p=0.95, max_new_tokens=asked.max_new_tokens)
    return model, Job(tuple(prompts), asked.candidates, sampling)


def baselines(
    asked: argparse.Namespace, model: TorchLM, job: Job, report: Report
) -> list[Contestant]:
    """The other contestants, with the best settings found for them."""
    found: list[Contestant] = list(_transformers(asked, job, report))
    try:
        found += _llama(asked, model, job, report)
    except BaseException:
        for contestant in found:
            contestant.close()
        raise
    return found


def _transformers(asked: argparse.Namespace, job: Job, report: Report) -> list[Contestant]:
    from _generation_transformers import TransformersGenerate, search

    from aios.backends.models import resolve_model

    folder = resolve_model(MODEL).path
    rows, dtype = asked.batch_rows, "bfloat16"
    if rows is None:
        say("searching transformers' best batch")
        small = job.part(_SEARCH_PASSAGES, _SEARCH_TOKENS)
        rows, dtype, tried = search(folder, small)
        _searched(report, "transformers generate", tried)
    found: list[Contestant] = [TransformersGenerate(folder, dtype, rows)]
    if asked.shared_prompts:
        found.append(TransformersGenerate(folder, dtype, rows, shared_prompts=True))
    return found


def _llama(asked: argparse.Namespace, model: TorchLM, job: Job, report: Report) -> list[Contestant]:
    from _generation_llama import LlamaServer, Server, search
    from _llama_weights import FORMATS, sixteen_bit_gguf

    programs: dict[str, Path | None] = {}
    if find_spec("xllamacpp") is not None:
        programs["llama.cpp server"] = None
    else:
        report.more["left_out"] = "llama.cpp server: the package xllamacpp is not installed"
        say(report.more["left_out"])
    if asked.llama_server is not None:
        programs["llama.cpp server, own build"] = asked.llama_server.expanduser().resolve()
    if not programs:
        return []
    kinds = [asked.weights] if asked.weights else FORMATS[: 1 if asked.slots else None]
    weights = [sixteen_bit_gguf(ROOT / "artifacts" / "benchmarks", kind) for kind in kinds]
    longest = max(model.count_tokens(prompt) for prompt in job.prompts)
    room = longest + job.sampling.max_new_tokens + _SPARE_TOKENS
    found: list[Contestant] = []
    for name, program in programs.items():
        server = Server(weights[0], room, asked.threads, program)
        way, slots = asked.asked, asked.slots
        if slots is None:
            say(f"searching the best slots of {name}")
            small = job.part(_SEARCH_PASSAGES, _SEARCH_TOKENS)
            server, way, slots, tried = search(weights, server, small)
            _searched(report, name, tried)
        found.append(LlamaServer(server, way, slots, name=name))
    return found


def _searched(report: Report, name: str, tried: Mapping[str, Tally]) -> None:
    speeds = {what: round(tally.tokens_per_second, 1) for what, tally in tried.items()}
    report.more.setdefault("search, tokens/s on a small job", {})[name] = speeds
    for what, speed in speeds.items():
        say(f"  {what}: {speed} tokens/s")


def play(contestants: Sequence[Contestant], job: Job, rounds: int) -> dict[str, list[Tally]]:
    """Runs every contestant once a round, in rotating order, after a short warm-up."""
    for contestant in contestants:
        contestant.prepare()
        contestant.write(warm_up_job(job))
    tallies: dict[str, list[Tally]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in rotated(contestants, number):
            tally = measure(contestant, job.with_seed(number + 1))
            tallies[contestant.name].append(tally)
            say(
                f"round {number + 1}, {contestant.name}: {tally.tokens} tokens in"
                f" {tally.seconds:.1f} s, {tally.tokens_per_second:.1f} tokens/s"
            )
    return tallies


def speeds(report: Report, tallies: Mapping[str, Sequence[Tally]]) -> None:
    """Rows of the speeds, and our ratios to the others round by round."""
    measures: dict[str, tuple[str, Callable[[Tally], float]]] = {
        "generated tokens": ("tokens/s", lambda tally: tally.tokens_per_second),
        "completions": ("completions/s", lambda tally: tally.completions_per_second),
    }
    for metric, (unit, speed) in measures.items():
        samples = {name: [speed(tally) for tally in each] for name, each in tallies.items()}
        for name, each in samples.items():
            report.add(name, metric, unit, each)
            if name != OURS:
                suffix = "" if metric == "generated tokens" else f" ({metric})"
                report.ratios[f"{OURS}/{name}{suffix}"] = ratios_of(samples[OURS], each)
    for name, done in tallies.items():
        means = [tally.tokens / tally.completions for tally in done]
        report.add(name, "length of a completion", "tokens", means)


def limits(
    report: Report, model: TorchLM, ours: OurLoop | Contestant, job: Job, *, quick: bool
) -> None:
    """Rows of the machine's limits, our share of them, and the parts of our loop's time."""
    import _machine_limits as machine

    say("measuring the machine's limits and the parts of our loop")
    module = model.model
    products = machine.product_rate(module.dtype)
    memory = machine.memory_rates(2**24 if quick else machine.BANDWIDTH_BYTES)
    bandwidth = max(memory.values())
    width = ours.settings["width"]
    alone = machine.linear_seconds(module, width)
    needs = machine.Needs.of(module)
    with machine.observed(module) as seen:
        tally = measure(ours, job.with_seed(1))
    first = tally.completions  # their first tokens come from the prompts' own logits
    arithmetic = needs.written(seen.contexts, tally.tokens - first)
    arithmetic += sum(needs.read(length) for length in seen.prompts)
    fetched = needs.weight_bytes * (seen.steps + len(seen.prompts))
    fetched += needs.cache_bytes * seen.cache_tokens
    step = (tally.seconds - seen.seconds.get(machine.READING, 0.0)) / seen.steps
    limit, loop = "machine", "aios, observed"
    report.add(limit, "bfloat16 matrix products, square", "GFLOP/s", [products / 1e9])
    for name, rate in memory.items():
        report.add(limit, f"memory, {name}", "GB/s", [rate / 1e9])
    at_width = 2 * needs.weights * width / alone
    report.add(limit, f"the model's own products at {width} rows", "GFLOP/s", [at_width / 1e9])
    report.add(limit, f"the same alone, as a speed at {width} rows", "tokens/s", [width / alone])
    report.add(loop, "step", "ms", [step * 1e3])
    report.add(loop, "rows of a step", "rows", [seen.rows / seen.steps])
    report.add(loop, "share of the square products' rate", "%", _share(arithmetic, tally, products))
    report.add(loop, "share of the own products' rate", "%", _share(arithmetic, tally, at_width))
    report.add(loop, "share of the memory's rate", "%", _share(fetched, tally, bandwidth))
    total = sum(seen.seconds.values())
    for part, seconds in sorted(seen.seconds.items(), key=lambda item: -item[1]):
        report.add(loop, f"time: {part}", "%", [100 * seconds / total])


def _share(amount: float, tally: Tally, rate: float) -> list[float]:
    return [100 * amount / tally.seconds / rate]


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
