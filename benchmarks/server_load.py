"""How `aios serve` does under load: 50 clients at once over 4 experts and the base model.

Four small experts are trained on the example passages, `aios serve` is started as a process of its
own, and clients of the official ``openai`` package ask it questions in streams, each the next one
as soon as the last is answered, each time another model. First one client alone, then all. Counted
are answers and tokens, the times to the first token and to the end, and errors by kind; 429 is the
only one that a client has to expect, and it waits as long as it is told to. The clients run on the
same machine as the server and take a little of it.

    make bench-server-load
    python benchmarks/server_load.py --quick      # does it run at all? writes nothing
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
from _results import print_table, ratios_of, row, write_results

ROOT = Path(__file__).resolve().parent.parent
PASSAGES = ROOT / "examples" / "passages.jsonl"
MODEL = "smollm2-135m-instruct"
EXPERTS = ("expert-a", "expert-b", "expert-c", "expert-d")
BASE = "base"
WINDOWS = 6  # of a run; percentiles are taken in each
PERCENTILES = (50, 95, 99)
STOP_SECONDS = 60.0

# When it was asked for (from the start), model, tokens, seconds to the first and the last token.
Answer = tuple[float, str, int, float, float]


@dataclass(slots=True)
class Tally:
    """What clients have seen.

    Attributes:
        seconds: How long they asked; what they had asked for by then was answered later.
        answers: All of them.
        errors: How many, by kind.
    """

    seconds: float
    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def tokens_per_second(self) -> float:
        """Of the answers that were there when the asking ended."""
        done = (answer for answer in self.answers if answer[0] + answer[4] < self.seconds)
        return sum(answer[2] for answer in done) / self.seconds

    def windows(self, *, by_end: bool = False) -> list[list[Answer]]:
        """The answers of each part of the run, by when they were asked for or were there."""
        parts: list[list[Answer]] = [[] for _ in range(WINDOWS)]
        for answer in self.answers:
            when = answer[0] + (answer[4] if by_end else 0)
            if when < self.seconds:
                parts[int(WINDOWS * when / self.seconds)].append(answer)
        return parts


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def questions() -> list[str]:
    """The questions on the example passages."""
    records = map(json.loads, PASSAGES.read_text(encoding="utf-8").splitlines())
    return [question["question"] for record in records for question in record["questions"]]


def train_experts(model: str, folder: Path) -> None:
    """Four experts, each on a quarter of the example passages, for one epoch."""
    lines = PASSAGES.read_text(encoding="utf-8").splitlines()
    for number, expert in enumerate(EXPERTS):
        dataset = folder / f"{expert}.jsonl"
        dataset.write_text("\n".join(lines[number :: len(EXPERTS)]) + "\n", encoding="utf-8")
        options = ("--expert-id", expert, "--dataset", str(dataset), "--no-seal", "--epochs", "1")
        command = ("hrm-hf", "train-expert", *options, "--model", model, "--quiet")
        subprocess.run([*aios(*command), *artifacts(folder)], check=True, stdout=subprocess.DEVNULL)


def aios(*words: str) -> list[str]:
    return [sys.executable, "-m", "aios", *words]


def artifacts(folder: Path) -> list[str]:
    return ["--set", f"paths.artifacts={json.dumps(str(folder / 'artifacts'))}"]


@contextmanager
def serving(model: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a running `aios serve`, and its process; it must stop in good order."""
    command = [*aios("serve", "--port", "0", "--model", model, "--json"), *artifacts(folder)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        announced = json.loads(program.stdout.readline() or "{}")
        if "url" not in announced:
            raise SystemExit(f"the server did not start: {announced}")
        missing = {BASE, *EXPERTS} - set(announced["models"])
        if missing:
            raise SystemExit(f"the server does not have {', '.join(sorted(missing))}")
        yield announced["url"], psutil.Process(program.pid)
        program.send_signal(signal.SIGTERM)
        if program.wait(STOP_SECONDS) != 0:
            raise SystemExit(f"the server ended with {program.returncode}")
    finally:
        program.kill()
        program.wait()


async def load(url: str, clients: int, seconds: float, max_tokens: int) -> Tally:
    """Has clients ask for a while; those that are being answered at the end are let finish."""
    tally = Tally(seconds)
    asked = questions()

    async def one(client: openai.AsyncOpenAI, number: int, began: float) -> None:
        turn = number
        while time.perf_counter() - began < seconds:
            model = (BASE, *EXPERTS)[turn % (1 + len(EXPERTS))]
            start = time.perf_counter()
            try:
                tokens, first = await ask(client, model, asked[turn % len(asked)], max_tokens, turn)
            except openai.RateLimitError as error:
                tally.errors["429"] += 1
                await asyncio.sleep(float(error.response.headers["retry-after"]))
            except openai.APIStatusError as error:
                tally.errors[str(error.status_code)] += 1
            except openai.APIError as error:
                tally.errors[type(error).__name__] += 1
            else:
                end = time.perf_counter()
                tally.answers.append((start - began, model, tokens, first - start, end - start))
            turn += 1

    limits: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 600.0}
    async with openai.AsyncOpenAI(base_url=url, **limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, number, began) for number in range(clients)))
    return tally


async def ask(
    client: openai.AsyncOpenAI, model: str, question: str, max_tokens: int, seed: int
) -> tuple[int, float]:
    """One answer as a stream: its tokens, and when the first text came."""
    first, tokens = 0.0, 0
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        seed=seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    async with stream:
        async for chunk in stream:
            if not first and any(choice.delta.content for choice in chunk.choices):
                first = time.perf_counter()
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    return tokens, first or time.perf_counter()


def rows_of(name: str, tally: Tally) -> list[dict[str, Any]]:
    """The lines of the table: percentiles in each part of the run, and their spread."""
    if not tally.answers:
        raise SystemExit(f"{name}: nothing was answered; errors: {dict(tally.errors)}")
    length = tally.seconds / WINDOWS
    done = tally.windows(by_end=True)
    rows = [
        row(name, "tokens", "1/s", [sum(answer[2] for answer in part) / length for part in done]),
        row(name, "answers", "1/s", [len(part) / length for part in done]),
    ]
    asked = [part for part in tally.windows() if part]
    for metric, place in (("time to first token", 3), ("time to the end", 4)):
        for percent in PERCENTILES:
            found = [percentile([answer[place] for answer in part], percent) for part in asked]
            rows.append(row(name, f"{metric}, p{percent}", "s", found))
    return rows


def facts_of(tally: Tally) -> dict[str, Any]:
    """What the results file says of a whole run."""
    times = {"first token": 3, "end": 4}
    return {
        "seconds": round(tally.seconds, 1),
        "answers": len(tally.answers),
        "answers by model": dict(sorted(Counter(a[1] for a in tally.answers).items())),
        "tokens": sum(answer[2] for answer in tally.answers),
        "tokens per second": round(tally.tokens_per_second, 1),
        "errors": dict(tally.errors),
        "percentiles (s)": {
            name: {
                f"p{percent}": round(percentile([a[place] for a in tally.answers], percent), 3)
                for percent in PERCENTILES
            }
            for name, place in times.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--alone-seconds", type=float, default=40.0, help="of one client alone")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.seconds, options.alone_seconds = "scripted", 2.0, 1.0
    with tempfile.TemporaryDirectory(prefix="bench-server-") as temporary:
        folder = Path(temporary)
        train_experts(options.model, folder)
        with serving(options.model, folder) as (url, process):
            asyncio.run(load(url, 2, 1.0, 4))  # warms up
            alone = asyncio.run(load(url, 1, options.alone_seconds, options.max_tokens))
            before = process.memory_info().rss
            many = asyncio.run(load(url, options.clients, options.seconds, options.max_tokens))
            after = process.memory_info().rss
    together = f"{options.clients} clients"
    rows = [*rows_of("1 client", alone), *rows_of(together, many)]
    rows.append(row(together, "memory of the server", "MB", [before / 1e6, after / 1e6]))
    ratio = ratios_of([many.tokens_per_second], [alone.tokens_per_second])
    ratios = {f"tokens/s: {together}/1 client": ratio}
    print_table(rows, ratios)
    errors = alone.errors + many.errors
    print(f"errors: {dict(errors) or 'none'}")
    if not options.quick:
        settings = {"model": options.model, "max_tokens": options.max_tokens}
        more = {"settings": settings, "alone": facts_of(alone), "together": facts_of(many)}
        path = write_results("server_load", "make bench-server-load", rows, ratios, more=more)
        print(f"written to {path.relative_to(ROOT)}")
    if set(errors) - {"429"}:
        raise SystemExit("there were errors besides 429")


if __name__ == "__main__":
    main()
