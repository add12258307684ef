"""Trials on Ray actors: on this machine, or on a cluster with the same code (extra ``ray``).

Takes a function that builds a bench, and gives a `core.protocols.Executor`. Every actor is one
worker; `aios` must be installed wherever one runs, and what the factory names (a model folder,
say) must be there. Ray pickles our own dataclasses between this process and the actors; the
Ray cluster itself trusts everyone who can reach it, so keep its ports closed to others.

Without an address, a local Ray instance is started at the first use and ended with `close`. It
has no dashboard and sends no usage statistics. An instance that the program has started itself
is used as it is.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from aios.backends.executors.environment import worker_environment
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
from aios.core.errors import UsageError

_USAGE_STATISTICS = "RAY_USAGE_STATS_ENABLED"


class RayExecutor(WorkerPool):
    """An `Executor` over Ray actors.

    Args:
        factory: Builds a worker's bench, in the actor; pickled as for `ProcessExecutor`.
        workers: How many actors.
        bank: Trials of a batch (`pool.WorkerPool`).
        num_gpus_per_worker: GPUs that Ray sets aside for each; it sees no others.
        num_cpus: Cores that Ray sets aside for each, and threads of its operations.
        address: A cluster (``auto``, ``host:port``, ``ray://…``); None: this machine.
        max_restarts: How often a worker is started again without an outcome in between.

    Raises:
        UsageError: Ray is not installed, the factory cannot be sent, or a number is not positive.
    """

    def __init__(
        self,
        factory: BenchFactory,
        *,
        workers: int,
        bank: int,
        num_gpus_per_worker: float = 0,
        num_cpus: float = 1,
        address: str | None = None,
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        needs = Needs(workers, num_cpus, num_gpus_per_worker)
        transport = RayTransport(pack_factory(factory), needs, address)
        super().__init__(transport, workers=workers, bank=bank, max_restarts=max_restarts)


@dataclass(frozen=True, slots=True)
class Needs:
    """How many actors there are, and what Ray sets aside for each."""

    workers: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class _Running:
    """An actor and the stream of its reports."""

    actor: Any
    reports: Any


class RayTransport:
    """A `pool.Transport` over Ray actors.

    With an actor goes what it has said and what has not arrived here, unlike with a process, whose
    pipe outlives it. So not only the trials that it was at are run once more, but also those whose
    outcomes were on the way: of all the batches that it had (`dispatch.DEPTH`) at most. That costs
    time and changes no outcome.

    Args:
        factory: From `worker.pack_factory`.
        needs: How many actors, and of what size.
        address: As `RayExecutor`.

    Raises:
        UsageError: Ray is not installed, or a number makes no sense.
    """

    def __init__(self, factory: bytes, needs: Needs, address: str | None) -> None:
        if needs.cpus < 0 or needs.gpus < 0:
            raise UsageError(
                f"a Ray worker cannot have {needs.cpus} cores and {needs.gpus} GPUs",
                "neither can be negative",
            )
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise UsageError(
                f"trials on Ray need the package ray ({error})", "pip install 'aios[ray]'"
            ) from error
        self._factory, self._needs, self._address = factory, needs, address
        self._running: dict[int, _Running] = {}
        self._actor_class: Any = None
        self._ours = False

    def start(self, worker: int) -> None:
        """Asks Ray for an actor; it starts when the cluster has room.

        Raises:
            UsageError: Ray cannot be started or reached, or this machine has not the GPUs.
        """
        if self._actor_class is None:
            self._connect()
            self._actor_class = self._ray.remote(
                num_cpus=self._needs.cpus,
                num_gpus=self._needs.gpus,
                max_restarts=0,
                concurrency_groups={"commands": 1, "reports": 1},
            )(WorkerActor)
        threads = max(1, math.floor(self._needs.cpus))
        actor = self._actor_class.remote(self._factory, worker_environment(threads, {}))
        reports = actor.reports.options(
            num_returns="streaming", concurrency_group="reports"
        ).remote()
        self._running[worker] = _Running(actor, reports)

    def send(self, worker: int, command: Command) -> None:
        """Sends a command; see `pool.Transport.send`."""
        if worker in self._running:
            actor = self._running[worker].actor
            actor.command.options(concurrency_group="commands").remote(command)

    def receive(self, timeout: float) -> list[tuple[int, Report]]:
        """One report of each worker that has one; see `pool.Transport.receive`."""
        streams = {number: running.reports for number, running in self._running.items()}
        if not streams:
            return []
        ready, _ = self._ray.wait(list(streams.values()), num_returns=1, timeout=timeout)
        return [
            (number, self._next_report(stream))
            for number, stream in streams.items()
            if any(stream is each for each in ready)
        ]

    def end(self, worker: int) -> None:
        """Ends an actor at once."""
        running = self._running.pop(worker, None)
        if running is not None and self._ray.is_initialized():
            self._ray.kill(running.actor)

    def close(self) -> None:
        """Ends all actors, and Ray where it was started here."""
        for worker in list(self._running):
            self.end(worker)
        if self._ours:
            self._ours = False
            self._ray.shutdown()

    def _next_report(self, stream: Any) -> Report:
        try:
            report: Report = self._ray.get(next(stream))
        except StopIteration:
            return Lost("ended")
        except self._ray.exceptions.RayTaskError:
            raise  # a bug in the actor's own methods
        except self._ray.exceptions.RayError as error:
            return Lost(f"was lost by Ray: {_first_line(error)}")
        return report

    def _connect(self) -> None:
        """Starts or joins a Ray instance, unless the program has one."""
        if self._ray.is_initialized():
            return
        os.environ[_USAGE_STATISTICS] = "0"  # Ray sends them unless told not to
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            settings |= {
                "address": "local",
                "num_cpus": max(1, math.ceil(self._needs.workers * self._needs.cpus)),
                "include_dashboard": False,
            }
        else:
            settings["address"] = self._address
        try:
            with _own_signal_handler():
                self._ray.init(**settings)
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            where = "started" if self._address is None else f"reached at {self._address}"
            raise UsageError(
                f"Ray cannot be {where}: {_first_line(error)}",
                "check the address, or use worker processes instead of Ray",
            ) from error
        self._ours = True
        if self._address is None:
            self._require_gpus()

    def _require_gpus(self) -> None:
        """On one machine, what is missing now will not come: an actor would wait for ever."""
        found = float(self._ray.cluster_resources().get("GPU", 0))
        wanted = self._needs.workers * self._needs.gpus
        if found < wanted:
            self.close()
            raise UsageError(
                f"{self._needs.workers} Ray workers want {wanted:g} GPUs, and Ray finds {found:g}",
                "use fewer workers or fewer GPUs for each, or give the address of a cluster",
            )


class WorkerActor:
    """What Ray runs: a worker on a thread of its own, and its two queues.

    Args:
        factory: From `worker.pack_factory`.
        environment: Variables to set where they are not, before the factory's modules are
            imported.
    """

    def __init__(self, factory: bytes, environment: Mapping[str, str]) -> None:
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        self._inbox = Inbox()
        self._reports: SimpleQueue[Report | None] = SimpleQueue()
        threading.Thread(target=self._serve, args=(factory,), daemon=True).start()

    def command(self, command: Command) -> None:
        """Takes a command."""
        self._inbox.put(command)

    def reports(self) -> Iterator[Report]:
        """All reports, each as it is made; ends with the worker."""
        while (report := self._reports.get()) is not None:
            yield report

    def _serve(self, factory: bytes) -> None:
        try:
            serve(factory, self._inbox, self._reports.put)
        finally:
            self._reports.put(None)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM; the program's is put back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)
