"""How fast many people are answered at once, by several experts and the base model.

Clients are threads straight on the serving engine (`core.serving.Writer`): each asks, reads the
answer as it is written, and asks again, the base model and the experts in turn, until the time is
over. The same requests are then answered by one client alone, one after the other: by the engine,
and by PEFT, which puts the request's adapter on the model first (``set_adapter``; the decoding is
ours, so that switching is all that differs). A round has each of the three in turn, in one process
on one model; ratios are taken within a round. The adapters are random: what they say is of no use,
but it costs as much.

    make bench-serving
    python benchmarks/serving.py --clients 50 --seconds 120 --rounds 3
    python benchmarks/serving.py --model FOLDER --seconds 6 --quick   # does it run? writes nothing
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _results import print_table, ratios_of, row, write_results

from aios.core.errors import QueueFullError
from aios.core.serving import Ending, Part, Writer, WriteRequest
from aios.core.types import AdapterRef, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from aios.backends.torch_lm import TorchLM

ROOT = Path(__file__).resolve().parent.parent
PASSAGES = ROOT / "examples" / "passages.jsonl"
MODEL = "smollm2-135m-instruct"
MANY, ONE, PEFT = "{} clients at once", "one at a time", "PEFT, switched a request"
_SEED_SCALE = 0.01  # of the random weights: their updates are small, as trained ones are


@dataclass(slots=True)
class Tally:
    """What a contestant did in its time.

    Attributes:
        tokens: Tokens written.
        seconds: In this time.
        first: Seconds to the first token of each text.
        between: Seconds a token after the first, a text each.
        refused: Requests that found the queue full.
    """

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    refused: int = 0

    def add(self, ending: Ending) -> None:
        """Adds the times of a text that was written to its end."""
        self.first.append(ending.seconds_to_first)
        if ending.completion_tokens > 1:
            rest = ending.seconds - ending.seconds_to_first
            self.between.append(rest / (ending.completion_tokens - 1))


def random_experts(model: TorchLM, folder: Path, count: int, rank: int) -> list[AdapterRef]:
    """Adapters on all linear layers, in folders of their own."""
    import torch

    from aios.backends.trials.adapter_rows import export_row
    from aios.backends.trials.lora_bank import LoraBank

    bank = LoraBank(model.model, rank, 2 * rank)
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        weights = torch.randn(bank.length, generator=generator) * _SEED_SCALE
        target = folder / f"expert-{number}"
        made.append(
            export_row(bank, weights, target, base_name=model.name, base_digest=model.digest)
        )
    return made


def requests(
    prompts: Sequence[str], experts: Sequence[AdapterRef], sampling: SamplingParams, start: int
) -> Iterator[WriteRequest]:
    """Requests without end: the base model and the experts in turn."""
    writers: list[tuple[Part, ...]] = [(), *((Part(expert),) for expert in experts)]
    for number in itertools.count(start):
        parts = writers[number % len(writers)]
        yield WriteRequest(prompts[number % len(prompts)], parts, sampling, seed=number)


def many_clients(
    writer: Writer, todo: Iterator[WriteRequest], clients: int, seconds: float
) -> Tally:
    """Clients that ask again and again; what is unfinished when the time is over is cancelled."""
    tally, lock, over = Tally(), threading.Lock(), threading.Event()
    failures: list[BaseException] = []

    def client() -> None:
        while not over.is_set():
            with lock:
                request = next(todo)
            try:
                writing = writer.submit(request)
            except QueueFullError as error:
                with lock:
                    tally.refused += 1
                over.wait(error.retry_after)
                continue
            for _ in writing:
                if over.is_set():
                    writing.cancel()
            ending = writing.ending
            if ending is not None and ending.reason != "cancelled" and not over.is_set():
                with lock:
                    tally.add(ending)

    def guarded() -> None:
        try:
            client()
        except BaseException as error:
            failures.append(error)
            over.set()
            raise

    before, began = writer.load().tokens, time.perf_counter()
    threads = [threading.Thread(target=guarded) for _ in range(clients)]
    for thread in threads:
        thread.start()
    over.wait(seconds)
    tally.tokens = writer.load().tokens - before
    tally.seconds = time.perf_counter() - began
    over.set()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"a client failed: {failures[0]}")
    return tally


def one_client(writer: Writer, todo: Iterator[WriteRequest], seconds: float) -> Tally:
    """One text after the other, by the engine."""
    tally, began = Tally(), time.perf_counter()
    while tally.seconds < seconds:
        writing = writer.submit(next(todo))
        for _ in writing:
            pass
        assert writing.ending is not None
        tally.add(writing.ending)
        tally.tokens += writing.ending.completion_tokens
        tally.seconds = time.perf_counter() - began
    return tally


def switching(
    model: TorchLM, attached: dict[str, TorchLM], todo: Iterator[WriteRequest], seconds: float
) -> Tally:
    """One text after the other, each with its adapter put on by PEFT."""
    tally, began = Tally(), time.perf_counter()
    while tally.seconds < seconds:
        request = next(todo)
        view = model
        for part in request.parts:
            assert isinstance(part.adapter, AdapterRef)
            view = attached[part.adapter.digest]
        wanted = GenerationRequest(request.prompt, (request.seed,), request.sampling)
        tally.tokens += view.generate([wanted])[0][0].tokens
        tally.seconds = time.perf_counter() - began
    return tally


def read_prompts(model: TorchLM) -> list[str]:
    """A question about the beginning of each example passage."""
    texts = [json.loads(line)["text"] for line in PASSAGES.read_text("utf-8").splitlines()]
    asked = [f"{text[:300]}\n\nTell me more about this." for text in texts]
    return [model.format_chat([{"role": "user", "content": text}]) for text in asked]


def percentiles(name: str, metric: str, rounds: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Rows of median and 95th percentile of times, a sample each round."""
    rows = []
    for label, share in (("p50", 50), ("p95", 95)):
        samples = [
            statistics.quantiles(times, n=100, method="inclusive")[share - 1]
            for times in rounds
            if len(times) > 1
        ]
        if samples:
            rows.append(row(name, f"{metric} {label}", "s", samples))
    return rows


def table(clients: int, tallies: dict[str, list[Tally]]) -> tuple[list[dict[str, Any]], Any]:
    """Rows and ratios of all rounds."""
    rows, speeds = [], {}
    for name, rounds in tallies.items():
        speeds[name] = [tally.tokens / tally.seconds for tally in rounds]
        rows.append(row(name, "speed", "tokens/s", speeds[name]))
        rows += percentiles(name, "to the first token", [tally.first for tally in rounds])
        rows += percentiles(name, "a token after it", [tally.between for tally in rounds])
    ours = MANY.format(clients)
    ratios = {f"{ours}/{other}": ratios_of(speeds[ours], speeds[other]) for other in (ONE, PEFT)}
    return rows, ratios


def measure(options: argparse.Namespace, folder: Path) -> tuple[TorchLM, dict[str, list[Tally]]]:
    """All rounds."""
    from aios.app.models import load_model
    from aios.backends.adapter_training import TorchAdapterTrainer
    from aios.backends.serving.engine import TorchWriter
    from aios.backends.torch_lm import TorchLM
    from aios.core.config.schemas import Config

    model = load_model(Config.model_validate({"model": {"name": options.model}}))
    assert isinstance(model, TorchLM)
    prompts = read_prompts(model)
    experts = random_experts(model, folder, options.experts, options.rank)
    sampling = SamplingParams(0.7, 0.95, options.tokens)
    slice_seconds = options.seconds / options.rounds
    many = MANY.format(options.clients)
    tallies: dict[str, list[Tally]] = {many: [], ONE: [], PEFT: []}
    trainer = TorchAdapterTrainer(model)
    for number in range(-1, options.rounds):  # the first is a warm-up
        seconds = slice_seconds if number >= 0 else min(3.0, slice_seconds)
        first = 10_000 * (number + 1)
        with closing(TorchWriter(model, max_concurrent=options.places)) as writer:
            found = {
                many: many_clients(
                    writer, requests(prompts, experts, sampling, first), options.clients, seconds
                ),
                ONE: one_client(
                    writer, requests(prompts, experts, sampling, first), seconds * options.share
                ),
            }
        views = {expert.digest: trainer.attach(expert) for expert in experts}
        attached = {key: view for key, view in views.items() if isinstance(view, TorchLM)}
        todo = requests(prompts, experts, sampling, first)
        found[PEFT] = switching(model, attached, todo, seconds * options.share)
        for view in views.values():  # off the model again: the engine meets it bare
            trainer.detach(view)
        if number >= 0:
            for name, tally in found.items():
                tallies[name].append(tally)
            print(f"round {number + 1} of {options.rounds} is measured", file=sys.stderr)
    return model, tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--places", type=int, default=32, help="texts written at once")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of all clients, in all rounds"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of that, for each of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="write no results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        model, tallies = measure(options, Path(folder))
    rows, ratios = table(options.clients, tallies)
    print_table(rows, ratios)
    refused = sum(tally.refused for tally in tallies[MANY.format(options.clients)])
    print(f"requests that found the queue full: {refused}")
    if options.quick:
        return
    settings = {k: v for k, v in vars(options).items() if k != "quick"}
    dtype = str(model.model.dtype).removeprefix("torch.")
    more = {"settings": {**settings, "dtype": dtype, "refused": refused}}
    path = write_results("serving", "make bench-serving", rows, ratios, more=more)
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
