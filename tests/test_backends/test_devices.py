"""The choice of device, dtype and threads, and what is known about memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aios.backends import devices
from aios.backends.devices import (
    choose_device,
    choose_dtype,
    memory_errors,
    peak_memory_bytes,
    prepare_cpu,
    reset_peak_memory,
)
from aios.core.errors import OutOfMemoryError, UsageError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def set_hardware(patch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    patch.setattr(torch.cuda, "device_count", lambda: cuda)
    patch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_fastest_device_there_is(
    cuda: int, mps: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_hardware(monkeypatch, cuda=cuda, mps=mps)
    assert choose_device("auto").type == wanted


def test_a_named_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_hardware(monkeypatch, cuda=2)
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("wish", ["abacus", "", "cuda:x", "meta", "CPU0", "cpu cuda"])
def test_an_unknown_device_is_refused(wish: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose_device(wish)


@pytest.mark.parametrize("wish", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_hardware(monkeypatch)
    with pytest.raises(UsageError, match="is not there"):
        choose_device(wish)


def test_a_device_number_past_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_hardware(monkeypatch, cuda=2)
    with pytest.raises(UsageError, match="2 CUDA devices found"):
        choose_device("cuda:2")


def test_a_named_dtype_is_taken_anywhere() -> None:
    assert choose_dtype("float32", CUDA) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert choose_dtype("float16", CPU) == torch.float16
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        choose_dtype("int8", CPU)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_bfloat16_where_the_hardware_has_it(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = torch.bfloat16 if fast else torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: fast)
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: fast)
    assert choose_dtype("auto", CUDA) == wanted
    assert choose_dtype("auto", CPU) == wanted
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("flags", "has"),
    [("sse4_2 avx512f avx512_bf16", True), ("avx2 amx_bf16 amx_tile", True), ("avx2", False)],
)
def test_the_processor_says_whether_it_has_bfloat16(
    flags: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags\t: fpu {flags}\n")
    assert devices._cpu_has_bf16() is has


def test_a_system_that_says_nothing_about_its_processor_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert devices._cpu_has_bf16() is False


def test_threads_are_set_only_where_asked() -> None:
    before = torch.get_num_threads()
    try:
        prepare_cpu(2)
        assert torch.get_num_threads() == 2
        prepare_cpu(None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_peak_memory_does_not_fall_when_memory_is_given_back() -> None:
    reset_peak_memory(CPU)
    block = torch.ones(50_000_000 // 4)
    held = peak_memory_bytes(CPU)
    assert 50_000_000 < held < 2**40
    del block
    assert peak_memory_bytes(CPU) > held - 10_000_000  # the kernel counts in batches


def test_peak_memory_is_read_without_a_proc_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    reset_peak_memory(CPU)
    assert 10_000_000 < peak_memory_bytes(CPU) < 2**40


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["device", "machine"],
)
def test_spent_memory_is_an_error_that_may_be_tried_again(error: RuntimeError) -> None:
    with (
        pytest.raises(OutOfMemoryError, match="out of memory while trying to score") as caught,
        memory_errors("score"),
    ):
        raise error
    assert caught.value.retryable
    assert "batch" in caught.value.remedy


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_errors("score"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
