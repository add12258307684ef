"""Two generators on the same passages, in a world where it is known which one is better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from aios.app.restem.comparing.job import (
    ComparisonReport,
    compare_generators,
    find_comparison,
    plan_comparison,
)
from aios.app.restem.comparing.results import decide_together
from aios.backends.scripted import Faults, ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import (
    AdapterMismatchError,
    DataError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Event, Notice, StageFinished
from aios.core.restem import Tried, TriedPassage
from aios.core.seal.reward import ValidationLossReward
from aios.core.trials import Reward
from aios.core.types import AdapterRef, SelfEdit
from tests.planted_generators import planted_config, skilled_generator, write_planted
from tests.planted_world import PlantedModel, is_helpful, place, planted_passages
from tests.test_app.scripted_jobs import stop_after, without_times

NEW = planted_passages(8, 40)
SEEN = planted_passages(8)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return planted_config(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "new.jsonl", NEW)


@pytest.fixture
def skilled(tmp_path: Path) -> AdapterRef:
    return skilled_generator(tmp_path / "skilled", SEEN)


def compare(
    config: Config, baseline: Path | None, optimized: Path, data: Path, **options: Any
) -> ComparisonReport:
    options = {"model": PlantedModel(), **options}
    return compare_generators(config, baseline, optimized, data, **options)


def warnings(events: list[Event]) -> list[str]:
    return [e.message for e in events if isinstance(e, Notice) and e.level == "warning"]


def edits(report: ComparisonReport, side: str, seed: int = 0) -> list[tuple[int, str]]:
    """Seeds and texts of what a side wrote."""
    text = (report.run_dir / f"seed-{seed}" / f"{side}.jsonl").read_text(encoding="utf-8")
    return [
        (one["edit"]["seed"], "\n".join(one["edit"]["items"]))
        for line in text.splitlines()
        for one in json.loads(line)["candidates"]
    ]


# ------------------------------------------------------------ the verdict


def test_a_generator_that_has_learned_is_better_than_the_untrained_model(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    events: list[Event] = []
    report = compare(config, None, skilled.path, data, emit=events.append)
    main = report.metrics["comparison"]
    assert (main["verdict"], main["n"], main["seeds"]) == ("better", 8, 1)
    assert main["ci95"][0] > 0
    assert report.verdict.startswith(
        f"Better: on 8 passages, self-edits by the generator {skilled.path} improve on training "
        "on the passage alone by +"
    )
    assert "those by the untrained model by" in report.verdict
    generators = report.metrics["generators"]
    assert generators["optimized"]["rewarded"] > generators["baseline"]["rewarded"]
    assert generators["optimized"]["asked"] == generators["baseline"]["asked"] == 24
    assert generators["optimized"]["tokens"] > 0
    assert warnings(events) == []
    assert report.notes == ()


def test_the_other_way_round_it_is_worse(config: Config, data: Path, skilled: AdapterRef) -> None:
    beginner = skilled_generator(config.paths.artifacts.parent / "beginner", SEEN, lessons=1)
    report = compare(config, skilled.path, beginner.path, data)
    assert report.metrics["comparison"]["verdict"] == "worse"
    assert report.verdict.startswith("Worse: ")


def test_a_generator_compared_with_itself_makes_no_difference(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    report = compare(config, skilled.path, skilled.path, data)
    assert report.metrics["comparison"]["change"] == 0
    assert report.verdict.startswith("No difference found")
    assert edits(report, "baseline") == edits(report, "optimized")


def test_both_write_with_the_same_seeds_and_are_kept(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    report = compare(config, None, skilled.path, data, seeds=2, candidates=2)
    drawn = []
    for seed in (0, 1):
        first, second = (edits(report, side, seed) for side in ("baseline", "optimized"))
        assert [s for s, _ in first] == [s for s, _ in second]
        assert len(first) == 16
        drawn.append([s for s, _ in first])
    assert drawn[0] != drawn[1]
    assert len(report.metrics["generators"]["baseline"]["improvement_by_seed"]) == 2
    assert report.metrics["comparison"]["seeds"] == 2
    helpful = [is_helpful(text) for _, text in edits(report, "optimized")]
    assert sum(helpful) / len(helpful) > 0.8


def test_every_candidate_is_tried_as_often_and_baselines_once_for_both(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    report = compare(config, None, skilled.path, data)
    repeats = config.restem.repeats
    path = report.run_dir / "seed-0" / "optimized.jsonl"
    passages = [json.loads(line) for line in path.read_text().splitlines()]
    assert {len(one["improvements"]) for p in passages for one in p["candidates"]} == {repeats}
    generators = report.metrics["generators"]
    assert generators["baseline"]["trials"] == 8 * repeats * (3 + 1)
    assert generators["optimized"]["trials"] == 8 * repeats * 3


def test_one_margin_decides_for_both_generators() -> None:
    def tried(name: str, improvements: tuple[tuple[float, ...], ...]) -> TriedPassage:
        candidates = tuple(
            Tried(
                SelfEdit("p", name, index, (f"{name} {index}",)),
                Reward(
                    fmean(values),
                    before=None,
                    after=0.0,
                    n=2,
                    grader="exact",
                    threshold=None,
                    standard_error=None,
                    kind="loss",
                    rule="improvement",
                    improvement=fmean(values),
                    repeats=len(values),
                ),
                values,
            )
            for index, values in enumerate(improvements)
        )
        return TriedPassage("p", candidates, len(candidates), 0, 0, 0.0, 0.0)

    quiet = tried("quiet", ((0.20, 0.21), (0.30, 0.31)))
    noisy = tried("noisy", ((1.0, -1.0), (2.0, -1.0)))
    first, second, reliability = decide_together([quiet], [noisy], ValidationLossReward(), "auto")
    margins = {
        one.reward.threshold
        for passage in (*first, *second)
        for one in passage.candidates
        if one.reward is not None
    }
    assert len(margins) == 1
    assert reliability is not None
    assert [one.edit.text for one in second[0].candidates] == ["noisy 0", "noisy 1"]
    assert [one.edit.index for one in second[0].candidates] == [0, 1]


def test_with_one_passage_there_is_no_interval(
    config: Config, tmp_path: Path, skilled: AdapterRef
) -> None:
    data = write_planted(tmp_path / "one.jsonl", NEW[:1])
    report = compare(config, None, skilled.path, data)
    assert report.verdict.startswith("Too few passages to tell")
    assert report.metrics["comparison"]["ci95"] is None


# ------------------------------------------------------------ passages that are not new


def test_passages_that_a_generator_was_optimised_on_are_told_by_their_texts(
    config: Config, tmp_path: Path, skilled: AdapterRef
) -> None:
    renamed = [replace(p, id=f"other-{p.id}") for p in SEEN[:2]]
    data = write_planted(tmp_path / "mixed.jsonl", [*renamed, *NEW[:3]])
    events: list[Event] = []
    report = compare(config, None, skilled.path, data, emit=events.append)
    (note,) = report.notes
    assert "was optimised on 2 of the 5 passages, which flatters it" in note
    assert warnings(events) == [note]
    flagged = {
        passage: one["optimised_on"]
        for passage, one in report.metrics["passages"].items()
        if one["optimised_on"]
    }
    assert flagged == {"other-p0": ["optimized"], "other-p1": ["optimized"]}


def test_a_card_that_does_not_name_its_passages_is_warned_of(
    config: Config, data: Path, tmp_path: Path
) -> None:
    silent = skilled_generator(tmp_path / "silent", SEEN, passage_ids=())
    events: list[Event] = []
    compare(config, None, silent.path, data, emit=events.append)
    (warning,) = warnings(events)
    assert "does not name all passages" in warning


def test_passages_without_questions_and_records_that_cannot_be_used_are_told(
    config: Config, tmp_path: Path, skilled: AdapterRef
) -> None:
    data = write_planted(tmp_path / "some.jsonl", [*NEW[:3], replace(NEW[3], questions=())])
    data.write_text(data.read_text() + '{"no": "text"}\n')
    events: list[Event] = []
    report = compare(config, None, skilled.path, data, emit=events.append)
    assert len(report.metrics["passages"]) == 3
    assert warnings(events) == [
        "1 passages have no questions: left out",
        "1 records could not be used",
    ]
    assert (report.run_dir / "rejects.jsonl").exists()


# ------------------------------------------------------------ strategies


def test_with_auto_the_strategies_are_those_of_the_generators_that_the_model_writes_by(
    tmp_path: Path, data: Path
) -> None:
    shares = {"cloze": 0.5, "implications": 0.5}
    generator = skilled_generator(tmp_path / "g", SEEN, strategies=shares)
    plan = plan_comparison(
        planted_config(tmp_path, restem={"arms": "auto"}),
        None,
        generator.path,
        data,
        model=PlantedModel(),
    )
    assert plan.arms == ("implications",)
    chosen = plan_comparison(
        planted_config(tmp_path, restem={"arms": ["cloze", "implications"]}),
        None,
        generator.path,
        data,
        model=PlantedModel(),
    )
    assert chosen.arms == ("cloze", "implications")


def test_the_plan_counts_what_is_then_done(config: Config, data: Path, skilled: AdapterRef) -> None:
    plan = plan_comparison(
        config, None, skilled.path, data, seeds=2, candidates=2, model=PlantedModel()
    )
    assert not config.paths.artifacts.exists()
    report = compare(config, None, skilled.path, data, seeds=2, candidates=2)
    figures = report.metrics["generators"].values()
    assert plan.candidates == sum(one["asked"] for one in figures)
    assert plan.trials == sum(one["trials"] for one in figures)


# ------------------------------------------------------------ stopping and going on


@pytest.mark.slow
@pytest.mark.parametrize("calls", [0, 3, 12, 20, 40])
def test_a_comparison_that_was_stopped_goes_on_and_ends_with_the_same_numbers(
    config: Config, data: Path, skilled: AdapterRef, tmp_path: Path, calls: int
) -> None:
    whole = compare(config, None, skilled.path, data, candidates=2)
    folder = tmp_path / "stopped"
    with pytest.raises(RunInterrupted):
        compare(
            config, None, skilled.path, data, candidates=2, output=folder,
            should_stop=stop_after(calls),
        )  # fmt: skip
    report = compare(config, None, skilled.path, data, candidates=2, output=folder, resume=True)
    assert without_times(report.metrics) == without_times(whole.metrics)


@pytest.mark.slow
def test_a_comparison_may_be_given_more_seeds(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    first = compare(config, None, skilled.path, data, candidates=2)
    model, events = PlantedModel(), list[Event]()
    more = compare(
        config, None, skilled.path, data, candidates=2, seeds=2, output=first.run_dir,
        resume=True, model=model, emit=events.append,
    )  # fmt: skip
    means = more.metrics["generators"]["baseline"]["improvement_by_seed"]
    assert means[0] == first.metrics["generators"]["baseline"]["improvement"]
    assert len(means) == 2
    assert len(model.requests) == 8  # the second seed's alone
    stages = [e.stage for e in events if isinstance(e, StageFinished)]
    assert "seed 2 of 2: optimized is tried" in stages


@pytest.mark.parametrize("change", ["generator", "candidates", "seed", "data", "recipe"])
def test_going_on_with_other_work_is_refused(
    tmp_path: Path, data: Path, skilled: AdapterRef, change: str
) -> None:
    config = planted_config(tmp_path)
    first = compare(config, None, skilled.path, data, candidates=2)
    others: dict[str, Any] = {
        "config": {"seed": planted_config(tmp_path, seed=1)}.get(change, config),
        "candidates": 3 if change == "candidates" else 2,
    }
    if change == "recipe":
        others["config"] = planted_config(tmp_path, training={"rank": 4})
    other = skilled_generator(tmp_path / "other", SEEN, lessons=7)
    rows = NEW[:5] if change == "data" else NEW
    file = write_planted(tmp_path / "again.jsonl", rows)
    with pytest.raises(UsageError, match="was started with another"):
        compare(
            others["config"],
            None,
            other.path if change == "generator" else skilled.path,
            file,
            candidates=others["candidates"],
            output=first.run_dir,
            resume=True,
        )


def test_a_run_is_found_by_its_name_or_folder(
    config: Config, data: Path, skilled: AdapterRef, tmp_path: Path
) -> None:
    report = compare(config, None, skilled.path, data, candidates=1)
    assert find_comparison(config, report.run_dir.name) == report.run_dir
    assert find_comparison(config, str(report.run_dir)) == report.run_dir
    with pytest.raises(UsageError, match="no comparison to go on with"):
        compare(config, None, skilled.path, data, output=tmp_path / "none", resume=True)


# ------------------------------------------------------------ refusals


def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    config: Config, data: Path, skilled: AdapterRef, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not a generator"):
        compare(config, None, tmp_path / "nothing", data)
    with pytest.raises(UsageError, match="is not a generator"):
        compare(config, tmp_path / "nothing", skilled.path, data)
    with pytest.raises(DataError, match="does not exist"):
        compare(config, None, skilled.path, tmp_path / "nowhere.jsonl")
    for numbers in ({"seeds": 0}, {"candidates": 0}):
        with pytest.raises(UsageError, match="is 0"):
            compare(config, None, skilled.path, data, **numbers)
    damaged = skilled_generator(tmp_path / "damaged", SEEN)
    (damaged.path / "adapter_model.safetensors").write_bytes(b"?")
    with pytest.raises(StorageError, match="not the file"):
        compare(config, None, damaged.path, data)
    assert not config.paths.artifacts.exists()


def test_a_generator_of_another_base_model_is_refused(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    with pytest.raises(AdapterMismatchError):
        compare(config, None, skilled.path, data, model=ScriptedModel(name="other"))


def test_data_without_questions_cannot_be_compared_on(
    config: Config, tmp_path: Path, skilled: AdapterRef
) -> None:
    data = write_planted(tmp_path / "plain.jsonl", [replace(p, questions=()) for p in NEW])
    with pytest.raises(DataError, match="no self-edit can be rewarded"):
        compare(config, None, skilled.path, data)


def test_the_configs_own_generator_takes_no_part(
    tmp_path: Path, data: Path, skilled: AdapterRef
) -> None:
    config = planted_config(tmp_path)
    own = planted_config(tmp_path, seal={"generator": skilled.path})
    plain, other = (compare(one, None, skilled.path, data, candidates=1) for one in (config, own))
    assert without_times(plain.metrics) == without_times(other.metrics)


def test_a_passage_that_one_generator_could_not_write_of_is_left_out(
    config: Config, data: Path, skilled: AdapterRef
) -> None:
    faults = Faults(fail_times=99, fail_on=place(40), retryable=False)
    report = compare(config, None, skilled.path, data, model=PlantedModel(faults=faults))
    assert report.metrics["generators"]["baseline"]["failed"] == 3
    assert report.metrics["generators"]["optimized"]["failed"] == 0
    assert report.metrics["passages"]["p40"]["baseline"] == [None]
    assert report.metrics["comparison"]["n"] == 7
