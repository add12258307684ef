"""How busy this machine is: processors, memory and GPU, sampled while somebody looks.

Takes nothing; gives the samples of the last ten minutes. A thread takes one every two seconds from
the first look on, and ends by itself a while after the last. GPUs are asked through ``nvidia-smi``
where that is installed, never through torch, which would take memory of a GPU only to look at it.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from aios.app.machine.facts import container_memory_left

SAMPLE_SECONDS = 2.0
KEPT_SECONDS = 600.0
LINGER_SECONDS = 60.0  # after the last look
GAP_SECONDS = 3 * SAMPLE_SECONDS  # more between two samples: nobody looked
_FIRST_SECONDS = 0.5
_GPU_SECONDS = 3.0
_GPU_FAILURES = 3  # in a row, after which it is asked no more
_QUERY = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
_MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class GPULoad:
    """One GPU at one time: its busy share in [0, 1], memory in use and in all, in bytes."""

    busy: float
    used_bytes: float
    total_bytes: float


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The machine at one time.

    Attributes:
        time: Unix seconds.
        cpu: Busy share of all cores since the sample before, in [0, 1].
        memory_bytes: Memory that is not available to a new program.
        memory_total_bytes: All of it.
        gpus: The GPUs, in their order; empty where there are none, or none that can be asked.
    """

    time: float
    cpu: float
    memory_bytes: float
    memory_total_bytes: float
    gpus: tuple[GPULoad, ...] = ()


class MachineLoad:
    """Samples the machine while somebody looks; safe to be asked by several threads.

    Args:
        sample: Takes a sample.
        every: Seconds between two.
        linger: Seconds after the last look in which sampling goes on.
    """

    def __init__(
        self,
        sample: Callable[[], LoadSample] | None = None,
        *,
        every: float = SAMPLE_SECONDS,
        linger: float = LINGER_SECONDS,
    ) -> None:
        self._sample = sample or Sampler()
        self._every, self._linger = every, linger
        self._kept: deque[LoadSample] = deque(maxlen=round(KEPT_SECONDS / SAMPLE_SECONDS))
        self._guard = threading.Lock()
        self._looked = 0.0
        self._thread: threading.Thread | None = None

    @property
    def sampling(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None

    def look(self) -> tuple[LoadSample, ...]:
        """The samples of the last ten minutes, the oldest first; sampling goes on from now.

        The first look begins it, and gives none.
        """
        with self._guard:
            self._looked = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._go_on, name="machine-load", daemon=True
                )
                self._thread.start()
            return tuple(self._kept)

    def _go_on(self) -> None:
        time.sleep(min(_FIRST_SECONDS, self._every))  # a busy share is of some time
        while True:
            found = self._sample()  # may take long where a GPU does not answer
            with self._guard:
                self._kept.append(found)
                while self._kept[0].time < found.time - KEPT_SECONDS:
                    self._kept.popleft()
            time.sleep(self._every)
            with self._guard:
                if time.monotonic() - self._looked > self._linger:
                    self._thread = None
                    return


class Sampler:
    """Takes samples of the machine.

    Args:
        nvidia_smi: The program that is asked about GPUs; None where there is none.
    """

    def __init__(self, nvidia_smi: str | None = "") -> None:
        self._program = shutil.which("nvidia-smi") if nvidia_smi == "" else nvidia_smi
        self._failures = 0
        self._before = _cpu_seconds()

    def __call__(self) -> LoadSample:
        """A sample; the busy share is that since the call before."""
        memory = psutil.virtual_memory()
        idle_before, whole_before = self._before
        self._before = idle, whole = _cpu_seconds()
        passed = whole - whole_before
        return LoadSample(
            time=time.time(),
            cpu=min(1.0, max(0.0, 1 - (idle - idle_before) / passed)) if passed > 0 else 0.0,
            memory_bytes=float(memory.total - memory.available),
            memory_total_bytes=float(memory.total),
            gpus=self._gpus(),
        )

    def _gpus(self) -> tuple[GPULoad, ...]:
        if self._program is None or self._failures >= _GPU_FAILURES:
            return ()
        try:
            done = subprocess.run(
                [self._program, *_QUERY],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_GPU_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            self._failures += 1
            return ()
        self._failures = 0 if done.returncode == 0 else self._failures + 1
        return read_gpus(done.stdout.decode("utf-8", "replace")) if done.returncode == 0 else ()


def free_memory(device: str = "cpu") -> int | None:
    """Bytes of memory that a new program can take now.

    Args:
        device: ``cuda`` or ``cuda:N`` for that GPU's; any other for the machine's.

    Returns:
        None where the GPU cannot be asked.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return min(psutil.virtual_memory().available, container_memory_left())
    index = int(number) if number.isdecimal() else 0
    gpus = Sampler()().gpus
    if index >= len(gpus):
        return None
    return int(gpus[index].total_bytes - gpus[index].used_bytes)


def _cpu_seconds() -> tuple[float, float]:
    """Seconds that all cores were idle, and all seconds, since the machine began."""
    times = psutil.cpu_times()
    named = times._asdict()
    inside = ("guest", "guest_nice")  # counted in user and nice already
    whole = sum(value for name, value in named.items() if name not in inside)
    return named["idle"] + named.get("iowait", 0.0), whole


def read_gpus(text: str) -> tuple[GPULoad, ...]:
    """What ``nvidia-smi`` said of the GPUs, a line each; what is not known there counts as 0."""
    found = []
    for line in text.splitlines():
        cells = [_number(cell) for cell in line.split(",")]
        if len(cells) == 3:
            busy, used, total = cells
            found.append(GPULoad(min(1.0, busy / 100), used * _MEBIBYTE, total * _MEBIBYTE))
    return tuple(found)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:  # [N/A], where the GPU does not tell
        return 0.0
    return value if math.isfinite(value) and value >= 0 else 0.0
