"""The llama.cpp server as a contestant, and the search for its best number of slots.

The server runs in a process of its own with continuous batching and prompt caching on, and is
asked over HTTP (``/completion``, which counts each completion's tokens). Two ways of asking:

* ``separate``: a request for each completion with its own seed. The first completions of all
  passages are asked for first, then the second ones: a slot that comes free has then read the
  prompt that is asked for next, and the server finds it there.
* ``together``: a request a passage for all its completions (``n_cmpl``), whose prompt the server
  reads once and copies to the other slots.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from _generation_job import Job, Tally, measure, warm_up_job

from aios.core.types import SamplingParams

Way = Literal["separate", "together"]
TIMEOUT_SECONDS = 600.0
START_SECONDS = 120.0
SLOTS: dict[Way, tuple[int, ...]] = {"separate": (8, 16), "together": (10, 20, 30)}


@dataclass(frozen=True, slots=True)
class Server:
    """What is started: a GGUF file in the wheel's server, or in a program of the user's own."""

    weights: Path
    context: int
    threads: int
    program: Path | None = None

    def command(self, slots: int, port: int) -> list[str]:
        if self.program is None:
            script = str(Path(__file__).with_name("_llama_server.py"))
            return [
                *(sys.executable, script, str(self.weights), "--slots", str(slots)),
                *("--context", str(self.context), "--threads", str(self.threads)),
            ]
        return [
            *(str(self.program), "-m", str(self.weights), "-np", str(slots)),
            *("-c", str(slots * self.context), "-t", str(self.threads), "-tb", str(self.threads)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]


class LlamaServer:
    """A llama.cpp server asked over HTTP.

    Args:
        server: What to start.
        way: How completions are asked for.
        slots: Completions that the server writes at a time.
        name: The contestant's name.
    """

    def __init__(
        self, server: Server, way: Way, slots: int, *, name: str = "llama.cpp server"
    ) -> None:
        self.name, self._server, self._way, self._slots = name, server, way, slots
        self._process: subprocess.Popen[bytes] | None = None
        self._host = ""

    @property
    def settings(self) -> dict[str, Any]:
        kind = kind_of(self._server.weights)
        return {"weights": kind, "slots": self._slots, "completions asked": self._way}

    def prepare(self) -> None:
        """Starts the server anew: it keeps the prompts it has read for later requests."""
        self.close()
        port = _free_port() if self._server.program else 0
        self._process = subprocess.Popen(
            self._server.command(self._slots, port),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if self._server.program else subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._host = f"127.0.0.1:{port}" if self._server.program else self._announced()
            self._wait_until_ready()
            self.write(warm_up_job(Job((), 0, SamplingParams())))
        except BaseException:
            self.close()
            raise

    def write(self, job: Job) -> list[int]:
        asked = [self._body(job, *one) for one in requests_of(job, self._way, self._slots)]
        at_once = self._slots if self._way == "separate" else self._slots // job.candidates
        connections = _Connections(self._host)
        with ThreadPoolExecutor(max(1, at_once)) as pool:
            answers = list(pool.map(connections.ask, asked))
        connections.close()
        each = [one for a in answers for one in (a if isinstance(a, list) else [a])]
        return [one["tokens_predicted"] for one in each]

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if self._server.program is not None:
            process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _body(self, job: Job, prompt: str, seed: int, count: int) -> dict[str, Any]:
        together = {"n_cmpl": count} if count > 1 else {}
        return {
            "prompt": prompt,
            "n_predict": job.sampling.max_new_tokens,
            "temperature": job.sampling.temperature,
            "top_p": job.sampling.top_p,
            "samplers": ["temperature", "top_p"],
            "seed": seed,
            "cache_prompt": True,
            **together,
        }

    def _announced(self) -> str:
        stdout = self._process.stdout if self._process else None
        line = stdout.readline() if stdout else b""
        if not line:
            raise RuntimeError("the llama.cpp server did not start")
        address: str = json.loads(line)["address"]
        return address.removeprefix("http://")

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(self._host, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == http.client.OK:
                    return
            time.sleep(0.1)
        raise RuntimeError("the llama.cpp server is not ready")


class _Connections:
    """One kept-alive connection a thread."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._local = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def ask(self, body: dict[str, Any]) -> Any:
        if not hasattr(self._local, "connection"):
            made = http.client.HTTPConnection(self._host, timeout=TIMEOUT_SECONDS)
            self._local.connection = made
            self._all.append(made)
        connection: http.client.HTTPConnection = self._local.connection
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/completion", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"the llama.cpp server answered {answer.status}: {text[:200]!r}")
        return json.loads(text)

    def close(self) -> None:
        for connection in self._all:
            connection.close()


def requests_of(job: Job, way: Way, slots: int) -> Iterator[tuple[str, int, int]]:
    """Prompt, seed and number of completions of each request, in the order they are asked."""
    seeds = [job.seeds_of(i) for i in range(len(job.prompts))]
    if way == "together":
        for prompt, own in zip(job.prompts, seeds, strict=True):
            yield prompt, own[0], len(own)
        return
    for first in range(0, len(job.prompts), slots):
        block = range(first, min(first + slots, len(job.prompts)))
        for candidate in range(job.candidates):
            for i in block:
                yield job.prompts[i], seeds[i][candidate], 1


def search(
    weights: Sequence[Path], start: Server, job: Job, *, slots: dict[Way, tuple[int, ...]] = SLOTS
) -> tuple[Server, Way, int, dict[str, Tally]]:
    """Finds the best weights, way of asking and number of slots.

    Slots are tried with the first weights, the other weights then with the best slots.

    Returns:
        What to start, way, slots, and every attempt by its name.
    """
    tried: dict[str, Tally] = {}
    best: tuple[float, Path, Way, int] = (0.0, weights[0], "separate", 8)

    def attempt(path: Path, way: Way, count: int) -> None:
        nonlocal best
        contestant = LlamaServer(replace(start, weights=path), way, count)
        try:
            tally = measure(contestant, job)
        finally:
            contestant.close()
        tried[f"{kind_of(path)}, {count} slots, {way}"] = tally
        best = max(best, (tally.tokens_per_second, path, way, count))

    for way, counts in slots.items():
        for count in counts:
            attempt(weights[0], way, count)
    for path in weights[1:]:
        attempt(path, *best[2:])
    return replace(start, weights=best[1]), best[2], best[3], tried


def kind_of(weights: Path) -> str:
    """The kind of weights, as the file's name says it."""
    return weights.name.rsplit(".", 2)[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
