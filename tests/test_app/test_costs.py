"""What runs measure of the machine, what is told from that beforehand, and the probe."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.app.ab_tests.job import run_ab_test
from aios.app.composition import recipe_named
from aios.app.costs import records
from aios.app.costs.forecast import FORESEEN, Forecast, Forecasts
from aios.app.costs.measuring import written_pieces
from aios.app.costs.plans import plan_ab_test, plan_expert
from aios.app.costs.records import (
    COSTS_FILE,
    EarlierRuns,
    keep_costs,
    manner_of,
    read_costs,
)
from aios.app.experts.training import train_expert
from aios.app.machine.load import free_memory
from aios.core.config.schemas import Config
from aios.core.errors import DataError, RunInterrupted
from aios.core.events import Event, Notice
from aios.core.seal.passage_edits import PassageEdits
from aios.core.telemetry import TelemetrySummary
from aios.core.types import Passage
from tests.test_app.planted_costs import plant_run
from tests.test_app.scripted_jobs import files_below, make_config, stop_after, write_passages


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", 6)


def look(config: Config, data: Path, kind: Any = "ab-test") -> Forecast:
    return Forecasts().of(kind, config, data, config.paths.artifacts)


def earlier(config: Config) -> records.Earlier:
    manner = manner_of(config, recipe_named(config, config.model.name))
    return EarlierRuns().of(config.paths.artifacts, manner)


# ------------------------------------------------------------ what runs keep


def test_a_finished_ab_test_keeps_what_it_measured(config: Config, data: Path) -> None:
    report = run_ab_test(config, data)
    costs = read_costs(report.run_dir / COSTS_FILE)
    runs = [r for arm in report.metrics["arms"].values() for r in arm["runs"]]
    assert sum(units for units, _ in costs.trained) == sum(run["tokens"] for run in runs)
    trained = sum(seconds for _, seconds in costs.trained)
    assert trained == pytest.approx(sum(run["train_seconds"] for run in runs))
    assert [units for units, _ in costs.answered] == [6.0] * 6  # of those that were trained
    assert len(costs.scored) == 6
    assert sum(units for units, _ in costs.written) == 6  # of the three passages that are learned
    assert costs.peak_memory_bytes == max(run["peak_memory_bytes"] for run in runs)
    assert costs.once_seconds is not None
    assert costs.edit_items == (4.0, 4.0, 4.0)
    assert costs.characters_per_token == pytest.approx(5, abs=2)
    assert [name for name, _ in earlier(config).runs] == [report.run_dir.name]


def test_a_finished_expert_keeps_what_it_measured(config: Config, data: Path) -> None:
    report = train_expert(config, "mills", data)
    costs = read_costs(report.run_dir / COSTS_FILE)
    assert sum(units for units, _ in costs.trained) == report.result.tokens
    assert (len(costs.written), costs.answered) == (1, ())
    assert costs.scored
    again = train_expert(config, "towers", data, use_self_edits=False)
    assert read_costs(again.run_dir / COSTS_FILE).edit_items == ()
    assert len(earlier(config).runs) == 2


def test_a_run_that_was_broken_off_keeps_nothing_until_it_is_done(
    config: Config, data: Path, tmp_path: Path
) -> None:
    output = config.paths.artifacts / "runs" / "ab"
    with pytest.raises(RunInterrupted):
        run_ab_test(config, data, output=output, should_stop=stop_after(40))
    assert not (output / COSTS_FILE).exists()
    run_ab_test(config, data, output=output, resume=True)
    costs = read_costs(output / COSTS_FILE)
    assert costs.once_seconds is None  # a part of it was spent before
    assert costs.trained


def test_pieces_of_writing_add_up_to_the_wall_time() -> None:
    passage = Passage.make("A text.")
    results = [PassageEdits(passage, generated=2, seconds=float(n)) for n in range(1, 21)]
    telemetry = TelemetrySummary(passages=20, generated=40, seconds=105.0)
    alone = written_pieces((), telemetry)
    assert alone == ((40.0, 105.0),)
    spread = written_pieces(results, replace(telemetry, passage_seconds=_spread(10.5)))
    assert len(spread) == 8
    assert sum(units for units, _ in spread) == 40
    assert sum(seconds for _, seconds in spread) == pytest.approx(105.0)
    assert written_pieces((), TelemetrySummary()) == ()


def _spread(mean: float) -> Any:
    from aios.core.telemetry import Spread

    return Spread(mean, mean, mean, mean)


# ------------------------------------------------------------ without a model


def test_time_is_told_from_planted_runs(config: Config, data: Path) -> None:
    for number in range(3):
        plant_run(config, f"run-{number}", folder=("runs", "seal_experiments")[number % 2])
    found = look(config, data)
    assert found.work is not None
    assert found.estimate is not None
    work, middle = found.work, found.estimate.seconds.middle
    assert found.basis == "3 earlier runs here"
    expected = 2 * 12 + 0.01 * work.trained.middle + 0.02 * work.scored.middle + 0.5 * 42 + 8
    assert middle == pytest.approx(expected)
    assert found.estimate.seconds.low < middle < found.estimate.seconds.high
    assert found.time.startswith("about ")
    assert found.seed_time.startswith("about ")
    assert found.peak_bytes == 10**9


def test_an_expert_is_told_likewise(config: Config, data: Path) -> None:
    plant_run(config)
    found = look(config, data, "train-expert")
    assert found.estimate is not None
    assert found.basis == "1 earlier run here"
    assert found.estimate.arms.keys() == {""}
    assert found.seed_time == ""


def test_the_count_without_a_model_is_near_that_with_its_tokens(config: Config, data: Path) -> None:
    run_ab_test(config, data)
    near, exact = look(config, data), plan_ab_test(config, data).forecast
    assert near.work is not None
    assert exact.work is not None
    assert near.work.trained.middle == pytest.approx(exact.work.trained.middle, rel=0.1)
    assert near.work.scored.middle == pytest.approx(exact.work.scored.middle, rel=0.25)
    assert near.work.answered == exact.work.answered
    assert (near.work.written.low, near.work.written.high) == (0, 12)  # some may be in the cache
    assert exact.work.written.high == 0  # all of them are


@pytest.mark.parametrize("kind", FORESEEN)
def test_without_an_earlier_run_there_is_no_time(config: Config, data: Path, kind: Any) -> None:
    found = look(config, data, kind)
    assert (found.estimate, found.time, found.basis) == (None, "", "")
    assert found.reason == "no earlier run here has measured it"
    assert found.peak_bytes is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answered": ()}, "not measured by an earlier run here: answers"),
        ({"edit_tokens": ()}, "not measured by an earlier run here: how long self-edits are"),
        ({"characters_per_token": None}, "no earlier run here has measured it"),
    ],
)
def test_what_no_run_has_measured_is_named(
    config: Config, data: Path, changes: dict[str, Any], told: str
) -> None:
    plant_run(config, **changes)
    assert look(config, data).reason == told


def test_where_earlier_self_edits_were_cached_the_time_is_that_of_the_rest(
    config: Config, data: Path
) -> None:
    run = plant_run(config)
    whole = look(config, data)
    (run / "costs.json").unlink()
    plant_run(config, "cached", written=())
    rest = look(config, data)
    assert (whole.without_writing, rest.without_writing) == (False, True)
    assert whole.estimate is not None
    assert rest.estimate is not None
    assert rest.estimate.seconds.high < whole.estimate.seconds.high
    assert rest.estimate.parts["training"] == whole.estimate.parts["training"]


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"name": "scripted", "dtype": "float32"}},
        {"training": {"rank": 7}, "seal": {"strategy": "rewrite"}},
    ],
)
def test_runs_of_another_kind_do_not_count(
    tmp_path: Path, config: Config, data: Path, other: dict[str, Any]
) -> None:
    plant_run(make_config(tmp_path, **other))
    assert look(config, data).estimate is None


def test_damaged_and_huge_records_are_left_out_and_counted(config: Config, data: Path) -> None:
    plant_run(config)
    whole = (config.paths.artifacts / "runs" / "planted" / COSTS_FILE).read_text(encoding="utf-8")
    record = json.loads(whole)
    bad = {
        "cut": whole[: len(whole) // 2],
        "huge": " " * 70_000 + whole,
        "list": "[1, 2]",
        "version": json.dumps({**record, "version": 99}),
        "negative": json.dumps({**record, "trained": [[1000, -1]]}),
        "nan": whole.replace("8.0", "NaN"),
        "endless": json.dumps({**record, "trained": [[1, 1]] * 100}),
        "words": json.dumps({**record, "trained": "<script>"}),
        "deep": "[" * 60_000,
        "long": json.dumps({**record, "trained": [[10**400, 1]], "peak_memory_bytes": 10**400}),
    }
    for name, text in bad.items():
        run = config.paths.artifacts / "runs" / name
        run.mkdir()
        (run / COSTS_FILE).write_text(text, encoding="utf-8")
    (config.paths.artifacts / "runs" / "folder" / COSTS_FILE).mkdir(parents=True)
    os.mkfifo(_inside(config.paths.artifacts / "runs" / "pipe"))
    found = look(config, data)
    assert found.basis == "1 earlier run here"
    assert found.damaged == len(bad) + 2


def _inside(run: Path) -> Path:
    run.mkdir()
    return run / COSTS_FILE


def test_only_the_newest_runs_are_read(
    config: Config, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        run = plant_run(config, f"run-{number:02d}", once_seconds=1.0 + number)
        os.utime(run / COSTS_FILE, (1000 + number, 1000 + number))
    assert look(config, data).basis == "8 earlier runs here"
    assert [name for name, _ in earlier(config).runs][:2] == ["run-11", "run-10"]
    monkeypatch.setattr(records, "_MOST_READ", 3)
    assert look(config, data).basis == "3 earlier runs here"


def test_records_are_read_again_only_when_they_change(
    config: Config, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plant_run(config)
    forecasts, reads = Forecasts(), list[Path]()

    def counting(file: Path) -> Any:
        reads.append(file)
        return read_costs(file)

    monkeypatch.setattr(records, "read_costs", counting)
    for _ in range(3):
        first = forecasts.of("ab-test", config, data, config.paths.artifacts)
    assert len(reads) == 1
    keep_costs(run, replace(read_costs(run / COSTS_FILE), once_seconds=5000.0))
    second = forecasts.of("ab-test", config, data, config.paths.artifacts)
    assert len(reads) == 2
    assert first.estimate is not None
    assert second.estimate is not None
    assert second.estimate.seconds.middle > first.estimate.seconds.middle + 4000


def test_a_file_that_cannot_be_used_says_why(config: Config, tmp_path: Path) -> None:
    plant_run(config)
    bare = write_passages(tmp_path / "bare.jsonl", 3, questions=0)
    assert "no passage has questions" in look(config, bare).reason
    assert look(config, bare, "train-expert").estimate is not None
    assert look(config, tmp_path / "missing.jsonl").estimate is None


def test_a_file_that_is_too_large_is_not_counted(
    config: Config, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_run(config)
    monkeypatch.setattr("aios.app.costs.texts.MOST_PASSAGES", 3)
    assert look(config, data).reason == "the file is too large to be counted here"


def test_more_memory_than_is_free_does_not_fit(config: Config, data: Path) -> None:
    plant_run(config, peak_memory_bytes=10**14)
    found = look(config, data)
    assert found.fits is False
    assert replace(found, free_bytes=None).fits is None


def test_free_memory_is_that_of_the_named_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.app.machine import load

    free = free_memory()
    assert free is not None
    assert free > 10**6
    gpus = (load.GPULoad(0.0, 1.0, 10.0), load.GPULoad(0.0, 4.0, 10.0))
    sample = load.LoadSample(0.0, 0.0, 0.0, 0.0, gpus)
    monkeypatch.setattr(load, "Sampler", lambda: lambda: sample)
    assert [free_memory(name) for name in ("cuda", "cuda:1", "cuda:7")] == [9, 6, None]


# ------------------------------------------------------------ with the model


def test_a_dry_run_probes_where_there_is_no_earlier_run(config: Config, data: Path) -> None:
    before, told = files_below(data.parent), list[Event]()
    plan = plan_ab_test(config, data, emit=told.append)
    assert files_below(data.parent) == before
    found = plan.forecast
    assert found.basis == "a timed probe"
    assert found.estimate is not None
    assert found.estimate.seconds.low > 0
    assert found.peak_bytes is not None
    assert found.at_least
    assert found.fits
    said = [event.message for event in told if isinstance(event, Notice)]
    assert any("timing 3 passages" in message for message in said)
    assert found.work is not None
    assert [arm.times for arm in found.work.arms] == [1, 2, 2, 2]
    assert plan.generation.candidates == 12


def test_a_dry_run_goes_by_earlier_runs_and_probes_only_what_they_lack(
    config: Config, data: Path
) -> None:
    plant_run(config)
    told = list[Event]()
    assert plan_ab_test(config, data, emit=told.append).forecast.basis == "1 earlier run here"
    assert not any("timing" in str(event) for event in told)
    plant_run(config, "no-answers", answered=())
    (config.paths.artifacts / "runs" / "planted" / COSTS_FILE).unlink()
    found = plan_ab_test(config, data, emit=told.append).forecast
    assert found.basis == "1 earlier run here and a timed probe"
    assert (found.peak_bytes, found.at_least) == (10**9, False)
    said = [event.message for event in told if isinstance(event, Notice)]
    assert "timing a training in small" in said
    assert not any("writing" in message for message in said)  # that was measured


def test_cached_self_edits_need_no_writing(config: Config, data: Path) -> None:
    before = plan_expert(config, data).forecast.work
    train_expert(config, "mills", data)
    after = plan_expert(config, data).forecast.work
    assert before is not None
    assert after is not None
    assert (before.written.high, after.written.high) == (12, 0)


def test_an_expert_without_questions_or_self_edits_is_probed_too(
    config: Config, tmp_path: Path
) -> None:
    bare = write_passages(tmp_path / "bare.jsonl", 5, questions=0)
    for use_self_edits in (True, False):
        found = plan_expert(config, bare, use_self_edits=use_self_edits).forecast
        assert found.estimate is not None
        assert found.work is not None
        assert bool(found.work.written.high) is use_self_edits
        assert found.work.scored.high > 0  # of the passages that are held back


def test_where_nothing_is_kept_self_edits_add_nothing(tmp_path: Path, data: Path) -> None:
    config = make_config(tmp_path, seal={"min_length": 200})  # so that all of them are dropped
    found = plan_expert(config, data).forecast
    assert found.estimate is not None
    assert found.work is not None
    assert found.work.written.high == 12
    alone = plan_expert(config, data, use_self_edits=False).forecast.work
    assert alone is not None
    assert found.work.trained == alone.trained


def test_a_dry_run_refuses_what_the_test_would_refuse(config: Config, tmp_path: Path) -> None:
    bare = write_passages(tmp_path / "bare.jsonl", 3, questions=0)
    with pytest.raises(DataError, match="no passage has questions"):
        plan_ab_test(config, bare)


@pytest.mark.slow
@pytest.mark.parametrize("questions", [3, 0])
def test_a_real_model_is_probed_and_then_told_by_its_own_run(
    tmp_path: Path, questions: int
) -> None:
    from tests.tiny_model import build_tiny_model

    folder = build_tiny_model(tmp_path / "tiny")
    config = make_config(tmp_path, model={"name": str(folder)}, seal={"strategy": "cloze"})
    data = write_passages(tmp_path / "passages.jsonl", 6, questions=questions)
    before = plan_expert(config, data).forecast
    assert before.estimate is not None
    assert before.basis == "a timed probe"
    train_expert(config, "mills", data)
    after = plan_expert(config, data).forecast
    assert after.estimate is not None
    assert after.basis == "1 earlier run here"
    assert after.peak_bytes is not None
    assert after.peak_bytes > 10**7
