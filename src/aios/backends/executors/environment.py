"""What a worker's environment says of GPUs and threads; set before torch is imported there.

It imports no torch, as it must be known before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aios.core.errors import UsageError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker may use of the machine.

    Attributes:
        gpu: Index of its GPU among those that this process may use; the worker sees it as
            ``cuda:0`` and sees no other. None: it sees what this process sees.
        threads: Threads of an operation on the CPU; None: its share of the cores.
    """

    gpu: int | None = None
    threads: int | None = None


def worker_environment(
    threads: int, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """How the threads of a worker wait for one another, and how many they are.

    OpenMP threads that wait keep their core busy for a while. Where another program wants the
    core, that stalls both: with one competing process, a training step on two threads went from
    0.29 s to 20.7 s, and took 0.50 s with passive waiting. Not spinning at all costs speed on an
    idle machine: with torch's GNU runtime, 166 to 198 tokens a second against 300 with the
    default and 302 with 1000 spins. So the GNU runtime gets 1000 spins (``GOMP_SPINCOUNT``, which
    counts there whatever ``OMP_WAIT_POLICY`` says), and other runtimes, which do not know that
    variable, wait passively.

    Args:
        threads: Threads of an operation.
        environment: What is set already, and stays; this process's by default.

    Returns:
        Variables to add. The spin count is left out where the user chose a wait policy, since it
        would take its place.
    """
    given = os.environ if environment is None else environment
    wanted = {"OMP_NUM_THREADS": str(max(1, threads)), "OMP_WAIT_POLICY": "PASSIVE"}
    if "OMP_WAIT_POLICY" not in given:
        wanted["GOMP_SPINCOUNT"] = "1000"
    return {name: value for name, value in wanted.items() if name not in given}


def environments(
    specs: Sequence[WorkerSpec], environment: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """The variables of each worker; cores are shared out evenly where a spec names no threads.

    Args:
        specs: One a worker, at least one.
        environment: What is set already; this process's by default.

    Raises:
        UsageError: There is no worker, or a GPU index that does not exist.
    """
    if not specs:
        raise UsageError("trials need at least one worker", "ask for 1 or more workers")
    given = os.environ if environment is None else environment
    share = max(1, usable_cores() // len(specs))
    found = []
    for spec in specs:
        if spec.threads is not None and spec.threads < 1:
            raise UsageError(f"a worker cannot have {spec.threads} threads", "give it at least 1")
        variables = worker_environment(share if spec.threads is None else spec.threads, given)
        if spec.gpu is not None:
            variables[_VISIBLE] = _visible_gpu(spec.gpu, given.get(_VISIBLE))
        found.append(variables)
    return found


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _visible_gpu(index: int, visible: str | None) -> str:
    """The name of the GPU that is number `index` among the visible ones."""
    if index < 0:
        raise UsageError(f"a worker cannot use GPU {index}", "GPUs are counted from 0")
    if visible is None:
        return str(index)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if index >= len(names):
        raise UsageError(
            f"a worker wants GPU {index}, but {_VISIBLE}={visible} shows {len(names)}",
            "ask for fewer workers, or make more GPUs visible",
        )
    return names[index]
