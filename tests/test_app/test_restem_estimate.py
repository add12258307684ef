"""Estimates of ReST-EM runs on the scripted model: probe, data sheet, plain counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aios.app.restem.estimate import RestemEstimateReport, estimate_restem
from aios.core.config.schemas import Config
from aios.core.errors import DataError, ModelError, UsageError
from aios.core.events import Event, Notice
from aios.core.restem_workload import Span
from tests.test_app.scripted_jobs import files_below, make_config, write_passages


def config_for(folder: Path, **restem: Any) -> Config:
    seal = {"restem_batch_size": 4, "restem_candidates_per_passage": 3}
    return make_config(folder, seal=seal, restem={"arms": ("implications", "rewrite"), **restem})


def run(folder: Path, count: int = 10, **options: Any) -> RestemEstimateReport:
    data = write_passages(folder / "passages.jsonl", count)
    return estimate_restem(config_for(folder), data, **options)


def test_a_probe_measures_every_speed_and_keeps_nothing(tmp_path: Path) -> None:
    data = write_passages(tmp_path / "passages.jsonl", 10)
    before, told = files_below(tmp_path), list[Event]()
    report = estimate_restem(config_for(tmp_path), data, emit=told.append)
    assert files_below(tmp_path) == before
    found = report.estimate
    assert found is not None
    assert found.seconds.low > 0
    assert found.throughput.read is None
    assert "timed on this machine" in found.throughput.source
    assert report.probe_seconds > 0
    assert report.advice is None
    said = [event.message for event in told if isinstance(event, Notice)]
    assert any("timing trials" in message for message in said)


def test_the_work_is_what_the_config_and_the_file_say(tmp_path: Path) -> None:
    report = run(tmp_path)
    work = report.workload
    assert (report.passages, work.pool, work.held_out) == (10, 8, 2)
    assert (work.passages, work.rounds, work.candidates) == (4, 2, 3)
    assert work.questions == 3
    assert work.prompts == 2
    assert report.trials == work.trials
    assert work.edit_tokens.low > 0
    assert not any("self-edits of" in note for note in report.assumptions)  # they were measured


def test_passages_without_questions_do_not_count(tmp_path: Path) -> None:
    data = write_passages(tmp_path / "passages.jsonl", 4)
    with data.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "x", "text": "A wall stands in the moor, and nobody asks why."}\n')
    report = estimate_restem(config_for(tmp_path), data, probe=False)
    assert (report.passages, report.without_questions) == (4, 1)
    none = write_passages(tmp_path / "none.jsonl", 3, questions=0)
    with pytest.raises(DataError, match="has questions"):
        estimate_restem(config_for(tmp_path), none, probe=False)


def test_without_probe_and_gpu_there_are_counts_and_no_time(tmp_path: Path) -> None:
    report = run(tmp_path, probe=False)
    assert report.estimate is None
    assert report.trials > 0
    assert report.tokens["try"].trained > 0
    assert any("characters a token" in note for note in report.assumptions)
    with pytest.raises(UsageError, match="nothing is known of the machine's speed"):
        run(tmp_path, probe=False, budget_hours=1.0)


def test_a_gpu_is_reckoned_from_its_data_sheet(tmp_path: Path) -> None:
    price = Span(1.0, 1.5, 2.0)
    report = run(tmp_path, gpu="a100-80gb", model_parameters=7 * 10**9, price_per_hour=price)
    found = report.estimate
    assert found is not None
    assert found.money is not None
    assert found.money.low < found.money.middle < found.money.high
    assert found.memory is not None
    assert found.memory.model_bytes == 14 * 10**9
    assert found.memory.available_bytes == 80 * 10**9
    assert "not measured" in found.throughput.source
    assert any("usual proportions" in note for note in report.assumptions)
    assert report.probe_seconds == 0
    with pytest.raises(ModelError, match="how large scripted is"):
        run(tmp_path, gpu="L4")


def test_no_dataset_is_needed_for_a_number_of_passages(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    options: dict[str, Any] = {"passages": 20, "tokens_per_passage": 50}
    table = estimate_restem(config, gpu="T4", model_parameters=10**9, **options)
    timed = estimate_restem(config, **options)
    for report in (table, timed):
        assert report.passages == 20
        assert report.workload.passage_tokens == 50
        assert report.estimate is not None
        assert any("self-edits of 25 to 100 tokens" in note for note in report.assumptions)


def test_the_final_expert_is_counted_where_it_is_asked_for(tmp_path: Path) -> None:
    without, with_it = run(tmp_path), run(tmp_path, expert=True)
    assert without.tokens["expert"].fitted == 0
    assert with_it.tokens["expert"].fitted > 0
    assert with_it.tokens["expert"].written > 0


def test_a_budget_gets_advice(tmp_path: Path) -> None:
    options: dict[str, Any] = {"gpu": "L4", "model_parameters": 7 * 10**9}
    whole = run(tmp_path, **options).estimate
    assert whole is not None
    hours = whole.seconds.middle / 3600
    fits = run(tmp_path, budget_hours=hours * 1.01, **options)
    assert (fits.advice, fits.fits) == ((), True)
    lower = run(tmp_path, budget_hours=hours * 0.8, **options)
    assert lower.advice
    assert lower.fits
    assert "restem.repeats" not in [one.setting for one in lower.advice]  # auto needs the noise
    hopeless = run(tmp_path, budget_hours=hours / 10**4, **options)
    assert hopeless.fits is False
    price = Span.exactly(2.0)
    money = run(tmp_path, budget_money=2 * hours * 0.8, price_per_hour=price, **options)
    assert [one.setting for one in money.advice or ()] == [one.setting for one in lower.advice]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either a dataset or a number of passages"),
        ({"passages": 3}, "needs the length of one"),
        ({"passages": 3, "tokens_per_passage": 0}, "needs the length of one"),
        ({"passages": 3, "tokens_per_passage": 9, "budget_hours": -1.0}, "budget of hours is -1"),
        ({"passages": 3, "tokens_per_passage": 9, "budget_money": 1.0}, "needs a price"),
        ({"passages": 3, "tokens_per_passage": 9, "gpu": "X"}, "not in the table"),
        (
            {"passages": 3, "tokens_per_passage": 9, "gpu": "L4", "model_parameters": 0},
            "number of parameters is 0",
        ),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        estimate_restem(config_for(tmp_path), **options)


def test_kept_self_edits_range_from_those_by_chance_to_the_most(tmp_path: Path) -> None:
    data = write_passages(tmp_path / "passages.jsonl", 10)
    one = config_for(tmp_path, kept_per_passage=1)
    by_noise = estimate_restem(one, data, probe=False).workload.kept
    assert by_noise.low == pytest.approx(1 - 0.95**3)
    assert by_noise.high == 1
    best = config_for(tmp_path, keep="best_of_k", kept_per_passage=2)
    assert estimate_restem(best, data, probe=False).workload.kept == Span.exactly(2.0)
