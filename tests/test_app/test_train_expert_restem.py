"""An expert whose generator is optimised by ReST-EM first, in a world where that can be learned."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.app.experts.training import ExpertReport, train_expert
from aios.app.restem.expert import restem_run_of
from aios.core.config.schemas import Config
from aios.core.errors import DataError, ExpertExistsError, RunInterrupted, UsageError
from aios.core.events import Event, Notice, RoundFinished, RunStarted
from aios.core.seal.generator_card import passage_hash
from aios.storage.event_log import read_events
from aios.storage.experts import FileExpertStore
from aios.storage.generators import read_card
from tests.killed_process import Tell, killed_at
from tests.planted_generators import planted_config, write_planted
from tests.planted_world import PlantedModel, is_helpful, planted_passages
from tests.test_app.scripted_jobs import pause_in_writes, stop_after, without_times

PASSAGES = planted_passages(10)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return planted_config(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "passages.jsonl", PASSAGES)


def train(config: Config, data: Path, **options: Any) -> ExpertReport:
    return train_expert(
        config, "gates", data, **{"restem": True, "model": PlantedModel(), **options}
    )


def card_of(report: ExpertReport) -> Any:
    return json.loads((report.folder / "expert.json").read_text(encoding="utf-8"))


def state_of(report: ExpertReport) -> Any:
    return json.loads((report.run_dir / "state.json").read_text(encoding="utf-8"))


def edits_of(report: ExpertReport) -> list[str]:
    lines = (report.folder / "augmented.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    return [one["text"] for one in examples if one["source"] != "passage"]


def weights(report: ExpertReport) -> bytes:
    return (report.folder / "adapter_model.safetensors").read_bytes()


def plain(report: ExpertReport) -> Any:
    """The expert's card without what differs from run to run."""
    card = card_of(report)
    times, places = ("created_at", "last_trained"), ("checkpoint_path", "training_datasets")
    for key in (*times, *places, "dataset"):
        del card[key]
    del card["generator"]["folder"], card["generator"]["created_at"]
    del card["strategy_source"], card["restem"]["run"], card["restem"]["generator"]
    return without_times(card)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExpertReport, int]:
    """An expert whose training nothing disturbed, and how often it was asked to stop."""
    folder = tmp_path_factory.mktemp("whole")
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return False

    data = write_planted(folder / "passages.jsonl", PASSAGES)
    return train(planted_config(folder), data, should_stop=should_stop), asked


@pytest.fixture
def whole(counted: tuple[ExpertReport, int]) -> ExpertReport:
    """That expert."""
    return counted[0]


# ------------------------------------------------------------ the whole way


def test_the_best_generator_writes_the_experts_self_edits(whole: ExpertReport) -> None:
    restem = whole.restem
    assert restem is not None
    card = card_of(whole)
    generator = Path(restem["generator"])
    assert card["generator"]["folder"] == str(generator)
    assert card["generator"]["adapter_digest"] == read_card(generator).adapter_digest
    assert card["strategy_source"] == f"generator {generator}"
    assert card["restem"] == restem
    helpful = [is_helpful(text) for text in edits_of(whole)]
    assert sum(helpful) / len(helpful) > 0.8
    assert card["base_digest"] == PlantedModel().digest
    assert f"ReST-EM: {restem['verdict']}" in whole.notes


def test_the_restem_run_lies_beside_the_experts_and_is_named_in_its_state(
    whole: ExpertReport,
) -> None:
    run = restem_run_of(whole.run_dir)
    assert run is not None
    assert run.parent == whole.run_dir.parent
    assert whole.restem is not None
    assert whole.restem["run"] == str(run)
    assert state_of(whole) == {"finished": True, "restem_run": run.name}
    assert Path(whole.restem["generator"]) == run / "generator"
    assert json.loads((run / "run.json").read_text())["kind"] == "restem"
    assert (run / "report.html").exists()
    assert f"| generator optimised in | `{run.name}`, on 8 passages |" in (
        whole.folder / "README.md"
    ).read_text(encoding="utf-8")
    rounds = [e for _, e in read_events(run / "events.jsonl") if isinstance(e, RoundFinished)]
    assert len(rounds) >= 2
    started = [e.kind for _, e in read_events(whole.run_dir / "events.jsonl")
               if isinstance(e, RunStarted)]  # fmt: skip
    assert started == ["train-expert"]


def test_the_expert_is_validated_on_passages_that_the_generator_was_not_optimised_on(
    whole: ExpertReport,
) -> None:
    assert whole.restem is not None
    assert (whole.restem["passages"], whole.restem["validated_on"]) == (8, 2)
    card = card_of(whole)
    assert card["validation"] == "questions"
    assert len(card["passages"]) == 10
    optimised = set(read_card(Path(whole.restem["generator"])).passage_ids)
    assert optimised
    file = whole.run_dir / "restem_passages.jsonl"
    given = {json.loads(line)["id"] for line in file.read_text().splitlines()}
    assert len(given) == 8
    assert optimised < {passage_hash(p) for p in PASSAGES if p.id in given}  # some are held out


def test_where_no_generator_is_better_the_untrained_model_writes(
    tmp_path: Path, data: Path
) -> None:
    config = planted_config(tmp_path, restem={"threshold": 99.0})
    report = train(config, data)
    assert report.restem is not None
    assert report.restem["generator"] is None
    assert card_of(report)["generator"] is None
    assert any("the untrained model wrote" in note for note in report.notes)


def test_the_config_asks_for_it_too(tmp_path: Path, data: Path, whole: ExpertReport) -> None:
    config = planted_config(tmp_path, seal={"enable_rl_optimization": True})
    report = train(config, data, restem=False)
    assert report.restem is not None
    assert weights(report) == weights(whole)
    without = train_expert(config, "plain", data, use_self_edits=False, model=PlantedModel())
    assert without.restem is None
    assert not (without.run_dir / "restem_passages.jsonl").exists()


def test_progress_of_the_rounds_is_shown(config: Config, data: Path) -> None:
    events: list[Event] = []
    report = train(config, data, emit=events.append)
    assert [e.number for e in events if isinstance(e, RoundFinished)][:2] == [0, 1]
    assert report.restem is not None
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert f"the generator is optimised on 8 passages first, in {report.restem['run']}" in notices


# ------------------------------------------------------------ refusals


def test_contradictions_are_refused_before_any_work(
    tmp_path: Path, config: Config, data: Path
) -> None:
    with pytest.raises(UsageError, match="none are to be written"):
        train(config, data, use_self_edits=False)
    own = planted_config(tmp_path, seal={"generator": tmp_path / "generator"})
    with pytest.raises(UsageError, match="begins with the base model"):
        train(own, data)
    assert not config.paths.artifacts.exists()


def test_data_without_questions_are_refused_and_do_not_stand_in_the_way(
    tmp_path: Path, config: Config, data: Path
) -> None:
    blank = write_planted(tmp_path / "blank.jsonl", [replace(p, questions=()) for p in PASSAGES])
    with pytest.raises(DataError, match="no self-edit can be rewarded"):
        train(config, blank)
    assert train(config, data).restem is not None


# ------------------------------------------------------------ stopping and killing


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_a_training_stopped_on_the_way_ends_with_the_same_expert(
    config: Config, data: Path, counted: tuple[ExpertReport, int], share: float
) -> None:
    whole, asked = counted
    with pytest.raises(RunInterrupted):
        train(config, data, should_stop=stop_after(int(share * asked)))
    with pytest.raises(ExpertExistsError, match="was interrupted"):
        train(config, data)
    with pytest.raises(UsageError, match="begun with ReST-EM"):
        train(config, data, restem=False, resume=True)
    report = train(config, data, resume=True)
    assert weights(report) == weights(whole)
    assert plain(report) == plain(whole)
    runs = [path.name for path in report.run_dir.parent.iterdir()]
    assert len([name for name in runs if name.startswith("restem-")]) == 1


def test_a_finished_optimisation_is_not_done_again(config: Config, data: Path) -> None:
    stage: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, RunStarted):
            stage.append(event.kind)
        if isinstance(event, Notice) and event.message.startswith("self-edits are written by"):
            stage.append("writing")

    with pytest.raises(RunInterrupted):
        train(config, data, emit=emit, should_stop=lambda: stage[-1:] == ["writing"])
    model, events = PlantedModel(), list[Event]()
    train(config, data, resume=True, model=model, emit=events.append)
    assert model.requests == []  # nothing is written by the base model, whose turn is over
    assert not any(isinstance(event, RoundFinished) for event in events)


def test_a_training_begun_without_restem_is_not_gone_on_with_as_one(
    config: Config, data: Path
) -> None:
    with pytest.raises(RunInterrupted):
        train(config, data, restem=False, should_stop=stop_after(4))
    with pytest.raises(UsageError, match="begun without ReST-EM"):
        train(config, data, resume=True)
    assert train(config, data, restem=False, resume=True).restem is None


def test_starting_over_optimises_anew_and_keeps_the_earlier_runs(
    config: Config, data: Path, whole: ExpertReport
) -> None:
    with pytest.raises(RunInterrupted):
        train(config, data, should_stop=stop_after(60))
    report = train(config, data, overwrite=True)
    assert weights(report) == weights(whole)
    runs = sorted(path.name for path in report.run_dir.parent.iterdir())
    assert len([name for name in runs if name.startswith("restem-")]) == 2
    earlier = next(name for name in runs if name.startswith("train-expert-gates."))
    kept = restem_run_of(report.run_dir.parent / earlier)
    assert kept is not None
    assert kept.exists()
    assert kept != restem_run_of(report.run_dir)


def work_slowly(folder: Path, resume: bool, tell: Tell) -> None:
    """Trains on a disk that pauses in every write, and tells of each event."""
    pause_in_writes(0.0002)
    data = folder / "passages.jsonl"
    train(planted_config(folder), data, resume=resume, emit=lambda event: tell())


@pytest.mark.slow
@pytest.mark.usefixtures("process_server")
def test_a_training_killed_again_and_again_ends_with_the_same_expert(
    tmp_path: Path, whole: ExpertReport
) -> None:
    data = write_planted(tmp_path / "passages.jsonl", PASSAGES)
    config, rng = planted_config(tmp_path), random.Random(5)
    run = config.paths.artifacts / "runs" / "train-expert-gates"
    kills = 0
    for _ in range(5):
        started = (run / "run.json").exists()
        kills += killed_at(rng.randint(1, 45), rng.random() * 0.02, work_slowly, tmp_path, started)
    assert kills >= 4
    report = train(config, data, resume=(run / "run.json").exists())
    assert weights(report) == weights(whole)
    assert plain(report) == plain(whole)
    registry = FileExpertStore(config.paths.artifacts / "experts", "scripted")
    assert [e.expert_id for e in registry.list()] == ["gates"]
