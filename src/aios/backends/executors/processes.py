"""Trials in worker processes: one a GPU, or several on the CPU.

Takes a function that builds a bench, and gives a `core.protocols.Executor`. A worker is a new
Python process (``spawn``: CUDA cannot be used in a forked one) that talks to this one through two
pipes. Only our own dataclasses go through them, between this process and those it started;
nothing from outside is unpickled. As with every use of multiprocessing, a program that makes a
`ProcessExecutor` must do so under ``if __name__ == "__main__":``.

A worker ends when its command pipe does: with `ProcessExecutor.close`, and with this process,
however that ended. (The kernel's parent-death signal is not used: it is bound to the thread that
started the worker, which may end long before the process.) Ctrl-C, which a terminal sends to
workers too, is left to this process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from aios.backends.executors.environment import WorkerSpec, environments
from aios.backends.executors.pool import MAX_RESTARTS, WorkerPool
from aios.backends.executors.worker import (
    BenchFactory,
    Command,
    Inbox,
    Lost,
    Report,
    pack_factory,
    serve,
)
from aios.core.errors import BackendError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_GRACE_SECONDS = 5.0  # a worker without a parent may take so long to end by itself
_END_SECONDS = 2.0  # and one that is told to end, before it is killed


class ProcessExecutor(WorkerPool):
    """An `Executor` over worker processes.

    Args:
        factory: Builds a worker's bench, in the worker. It is pickled: a function of a module, or
            ``functools.partial`` of one.
        workers: What each worker may use, or how many there are on the CPU.
        bank: Trials of a batch (`pool.WorkerPool`).
        max_restarts: How often a worker is started again without an outcome in between.

    Raises:
        UsageError: The factory cannot be sent, a number is not positive, or a GPU is not there.
    """

    def __init__(
        self,
        factory: BenchFactory,
        workers: Sequence[WorkerSpec] | int,
        *,
        bank: int,
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        specs = [WorkerSpec()] * workers if isinstance(workers, int) else workers
        self._processes = ProcessTransport(pack_factory(factory), environments(specs))
        super().__init__(self._processes, workers=len(specs), bank=bank, max_restarts=max_restarts)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Process ids of the workers that run."""
        return self._processes.process_ids


@dataclass(frozen=True, slots=True)
class _Running:
    """A worker's process and this side of its pipes."""

    process: BaseProcess
    commands: Connection
    reports: Connection


class ProcessTransport:
    """A `pool.Transport` over processes.

    Args:
        factory: From `worker.pack_factory`.
        environments: Variables that each worker sets before anything else.
    """

    def __init__(self, factory: bytes, environments: Sequence[Mapping[str, str]]) -> None:
        self._factory, self._environments = factory, environments
        self._running: dict[int, _Running] = {}
        self._context = get_context("spawn")

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Process ids of the workers that run."""
        return tuple(r.process.pid for r in self._running.values() if r.process.pid is not None)

    def start(self, worker: int) -> None:
        """Starts a process.

        Raises:
            BackendError: The system refuses (no memory, no descriptors, …).
        """
        try:
            commands_in, commands_out = self._context.Pipe(duplex=False)
            reports_in, reports_out = self._context.Pipe(duplex=False)
            process = self._context.Process(
                target=_work,
                args=(dict(self._environments[worker]), self._factory, commands_in, reports_out),
                name=f"aios-worker-{worker}",
                daemon=True,
            )
            with _interrupts_held():
                process.start()
        except OSError as error:
            raise BackendError(f"could not be started: {error}", retryable=True) from error
        commands_in.close()
        reports_out.close()
        self._running[worker] = _Running(process, commands_out, reports_in)

    def send(self, worker: int, command: Command) -> None:
        """Sends a command; see `pool.Transport.send`."""
        if worker in self._running:
            with suppress(OSError):  # it is gone, as the other pipe will show
                self._running[worker].commands.send(command)

    def receive(self, timeout: float) -> list[tuple[int, Report]]:
        """One report of each worker that has one; see `pool.Transport.receive`."""
        numbers = {running.reports: number for number, running in self._running.items()}
        found: list[tuple[int, Report]] = []
        for ready in connection.wait(list(numbers), timeout):
            number = next(n for pipe, n in numbers.items() if pipe is ready)
            running = self._running[number]
            try:
                report: Report = running.reports.recv()
            except (EOFError, OSError):  # the other end is closed, maybe amid a report
                report = Lost(_how_it_ended(running.process))
            found.append((number, report))
        return found

    def end(self, worker: int) -> None:
        """Ends a process: it may finish by itself for a moment, and is killed then."""
        running = self._running.pop(worker, None)
        if running is None:
            return
        running.commands.close()
        running.reports.close()
        running.process.join(_END_SECONDS)
        if running.process.is_alive():
            running.process.kill()
            running.process.join()
        running.process.close()

    def close(self) -> None:
        """Ends all processes."""
        for running in self._running.values():
            running.commands.close()  # all of them begin to end at once
        for worker in list(self._running):
            self.end(worker)


def _how_it_ended(process: BaseProcess) -> str:
    """What became of a process whose pipe is closed; completes "it …"."""
    process.join(_END_SECONDS)
    code = process.exitcode
    if code is None:
        return "stopped talking"
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    memory = " (the system does so when memory is short)" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, in this thread and in what it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------- in the worker


def _work(
    environment: Mapping[str, str], factory: bytes, commands: Connection, reports: Connection
) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(environment)
    inbox = Inbox()
    threading.Thread(target=_listen, args=(commands, inbox), daemon=True).start()

    def report(message: Report) -> None:
        try:
            reports.send(message)
        except OSError:
            raise SystemExit(1) from None  # nobody listens any more

    serve(factory, inbox, report)


def _listen(commands: Connection, inbox: Inbox) -> None:
    """Takes in commands; ends the process when no more can come."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put(commands.recv())
    inbox.end()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)  # it is in the midst of something that does not ask whether to stop
