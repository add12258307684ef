from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path

from aios.app.machine.load import GPULoad, LoadSample, MachineLoad, Sampler, read_gpus
from aios.app.machine.load_charts import load_charts, memory_chart

GIB = 2**30


def sample(at: float, cpu: float = 0.5, *, gpus: tuple[GPULoad, ...] = ()) -> LoadSample:
    return LoadSample(at, cpu, 2 * GIB, 8 * GIB, gpus)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_samples_while_somebody_looks_and_ends_by_itself() -> None:
    load = MachineLoad(lambda: sample(time.time()), every=0.01, linger=0.15)
    assert load.look() == ()
    until(lambda: len(load.look()) > 3)
    until(lambda: load.sampling is False)
    kept = len(load.look())  # what was seen before is kept, and it samples again
    until(lambda: len(load.look()) > kept)


def test_samples_older_than_ten_minutes_are_forgotten() -> None:
    times = iter([0.0, 300.0, 590.0, 700.0])
    load = MachineLoad(lambda: sample(next(times, 700.0)), every=0.01, linger=5)
    until(lambda: load.look() and load.look()[-1].time == 700.0)
    assert load.look()[0].time == 300.0


def test_a_sample_is_of_this_machine() -> None:
    sampler = Sampler(None)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    found = sampler()
    assert 0 < found.cpu <= 1
    assert 0 < found.memory_bytes < found.memory_total_bytes
    assert found.gpus == ()


def test_gpus_are_asked_through_a_program(tmp_path: Path) -> None:
    program = script(tmp_path, "echo '37, 1024, 81920'; echo '[N/A], 5, 10'")
    first, second = Sampler(str(program))().gpus
    assert first == GPULoad(0.37, 1024 * 2**20, 81920 * 2**20)
    assert second.busy == 0


def test_a_program_that_fails_again_and_again_is_asked_no_more(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    sampler = Sampler(str(script(tmp_path, f"echo x >> {asked}; exit 9")))
    for _ in range(6):
        assert sampler().gpus == ()
    assert len(asked.read_text().split()) == 3
    assert Sampler(str(tmp_path / "missing"))().gpus == ()


def test_nonsense_about_gpus_is_left_out() -> None:
    assert read_gpus("Unable to determine the device handle\n\n1,2\n") == ()
    assert read_gpus("nan, -4, inf") == (GPULoad(0, 0, 0),)


def script(folder: Path, text: str) -> Path:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_charts_have_a_line_for_each_stretch_in_which_somebody_looked() -> None:
    assert load_charts([sample(0)]) == []
    gpu = (GPULoad(0.9, GIB, 4 * GIB),)
    samples = [sample(at, gpus=gpu) for at in (0, 2, 4, 100, 102)]
    charts = load_charts(samples)
    assert [one.name for one in charts] == ["Processors", "Memory", "GPU 0", "Memory of GPU 0"]
    assert charts[0].now == "50\u00a0%"
    assert charts[3].now == "1.0 of 4.0\u00a0GiB"
    assert charts[0].chart.count("<path") == 2


def test_a_run_s_memory_is_drawn_from_two_heartbeats_on() -> None:
    assert memory_chart([(0, GIB)]) is None
    chart = memory_chart([(0, GIB), (3600 * 3, 3 * GIB)])
    assert chart is not None
    assert "hours since the run began" in chart
    assert "3.00 at most" in chart
