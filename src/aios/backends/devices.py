"""The one place where device, dtype and threads are chosen, and memory is watched."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from aios.core.errors import OutOfMemoryError, UsageError

_DEVICES = ("cpu", "cuda", "mps")
# glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD (malloc.h), in bytes
_MALLOC = {-3: 1 << 30, -1: (1 << 31) - 1, -2: 1 << 26}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(wish: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        wish: ``auto`` (CUDA, then Apple's MPS, then the CPU) or a torch device name.

    Raises:
        UsageError: The named device is unknown or not there.
    """
    if wish == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in _DEVICES:
        raise UsageError(f"unknown device {wish!r}", "use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {wish!r} is not there ({torch.cuda.device_count()} CUDA devices found)",
            "set model.device to auto or cpu",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' is not there", "set model.device to auto or cpu")
    return device


def gpu_count(wish: str = "auto") -> int:
    """How many CUDA devices there are for workers; 0 where the wish is for another device."""
    if wish not in ("auto", "cuda") or not torch.cuda.is_available():
        return 0
    return torch.cuda.device_count()


def choose_dtype(wish: str, device: torch.device) -> torch.dtype:
    """The dtype of the base weights.

    ``auto`` is bfloat16 where the hardware multiplies it natively (recent GPUs; CPUs with
    AVX512-BF16 or AMX, where it measured twice as fast as float32), else float32.

    Raises:
        UsageError: An unknown dtype.
    """
    if wish != "auto":
        if wish not in _DTYPES:
            raise UsageError(f"unknown dtype {wish!r}", f"use auto, {', '.join(_DTYPES)}")
        return _DTYPES[wish]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def prepare_cpu(threads: int | None) -> None:
    """Sets the number of threads of a CPU operation; None leaves torch's choice, one per core."""
    if threads is not None:
        torch.set_num_threads(threads)


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement for `peak_memory_bytes` where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since the last reset: the device's on CUDA, the process's elsewhere (bytes)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_memory(device: torch.device) -> None:
    """Gives what a finished training or batch has freed back to the system.

    On Linux the C library keeps freed blocks between those in use, so that the process would grow
    with every training.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: it has no such call
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed_memory() -> None:
    """Has the C library keep large freed blocks for the next tensors, instead of returning them.

    A training step allocates the same large tensors again and again, and each new mapping costs
    a page fault for every 4 KiB. `release_memory` still gives everything back.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library: it has no such call
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in _MALLOC.items():
            libc.mallopt(parameter, value)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turns torch's out-of-memory errors into ours.

    Args:
        what: What is being done, for the message, e.g. ``score``.

    Raises:
        OutOfMemoryError: The device, or the machine, has no memory left.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory while trying to {what}: {error}",
            "use a smaller seal.batch_size or training.batch_size",
            retryable=True,
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while trying to {what}",
            "close other programs, or use a smaller batch size",
            retryable=True,
        ) from error
