from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.app.experts import training as job_module
from aios.app.experts.training import ExpertReport, train_expert
from aios.backends.scripted import Faults, ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.config.schemas import Config
from aios.core.errors import (
    BackendError,
    DataError,
    ExpertExistsError,
    FrozenExpertError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Evaluated, Event, Notice, RunFinished
from aios.core.types import Expert
from aios.storage.event_log import read_events
from aios.storage.experts import FileExpertStore
from tests.expert_cards import write_card
from tests.test_app.scripted_jobs import (
    expert,
    files_below,
    kill_on_the_way,
    make_config,
    record,
    stop_after,
    without_times,
    write_passages,
)

FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "augmented.jsonl",
    "dataset_stats.json",
    "documents.jsonl",
    "expert.json",
}
REGISTERED = set(
    """expert_id name description category goals created_at last_trained training_datasets
    performance_metrics total_activations avg_routing_weight is_active is_frozen parent_expert_id
    child_expert_ids model_architecture checkpoint_path training_config""".split()
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", 6)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def store(config: Config) -> FileExpertStore:
    return FileExpertStore(config.paths.artifacts / "experts", "scripted")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ExpertReport:
    """An expert whose training nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_passages(folder / "passages.jsonl", 6)
    report: ExpertReport = expert(folder, resume=False)
    return report


def weights(report: ExpertReport) -> bytes:
    return (report.folder / "adapter_model.safetensors").read_bytes()


def run_folder(config: Config, expert_id: str = "mills") -> Path:
    return config.paths.artifacts / "runs" / f"train-expert-{expert_id}"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------ a complete training


def test_an_expert_is_trained_and_registered(
    config: Config, data: Path, store: FileExpertStore
) -> None:
    report = train_expert(
        config,
        "mills",
        data,
        name="Mills",
        description="Knows the mills.",
        category="places",
        goals=["answer", "recall"],
    )
    expert = store.get("mills")
    assert expert == report.expert
    assert expert is not None
    assert (expert.name, expert.description, expert.category, expert.goals) == (
        "Mills",
        "Knows the mills.",
        "places",
        ("answer", "recall"),
    )
    assert expert.training_datasets == (str(data),)
    assert expert.created_at == expert.last_trained
    assert expert.created_at.endswith("+00:00")
    assert (expert.model_architecture, expert.checkpoint_path) == ("scripted", str(report.folder))
    assert expert.training_config["rank"] == 2
    metrics = expert.performance_metrics
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert metrics["tokens"] == report.result.tokens
    assert (expert.is_active, expert.is_frozen, expert.total_activations) == (True, False, 0)


def test_the_registry_file_has_the_fields_of_the_contract(config: Config, data: Path) -> None:
    train_expert(config, "mills", data)
    registry = json.loads((config.paths.artifacts / "experts" / "registry.json").read_text())
    assert set(registry) == {"version", "created_at", "base_model", "experts"}
    assert registry["base_model"] == "scripted"
    assert [set(entry) for entry in registry["experts"]] == [REGISTERED]


def test_the_folder_is_a_peft_adapter_with_card_and_data(config: Config, data: Path) -> None:
    report = train_expert(config, "mills", data, description="Knows the mills.")
    assert report.folder == config.paths.artifacts / "experts" / "mills"
    assert files_below(report.folder) == FILES
    adapter = json.loads((report.folder / "adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["r"]) == ("LORA", 2)
    stats = json.loads((report.folder / "dataset_stats.json").read_text())
    assert stats == report.dataset_stats
    examples = lines(report.folder / "augmented.jsonl")
    assert len(examples) == stats["augmented"]["examples"]
    assert {example["source"] for example in examples} == {"passage", "implications"}


def test_expert_json_says_where_the_expert_comes_from(config: Config, data: Path) -> None:
    report = train_expert(config, "mills", data)
    card = json.loads((report.folder / "expert.json").read_text())
    assert set(card) > REGISTERED
    model = ScriptedModel()
    assert (card["base_model"], card["base_digest"]) == ("scripted", model.digest)
    assert card["adapter_digest"] == report.result.adapter.digest
    assert (card["recipe"], card["strategy"]) == ("recipes.default", "implications")
    assert card["strategy_source"] == "chosen by you"
    assert (card["seed"], card["validation"]) == (0, "questions")
    assert card["passages"] == [record(n)["id"] for n in range(6)]
    assert (card["edits"], card["drops"], card["generation_failures"]) == (6, 6, [])
    assert len(card["curve"]) == len(report.result.curve)
    assert card["best_step"] == report.result.best.step
    assert len(card["dataset_sha256"]) == 64


def test_the_model_card_has_a_head_that_the_hub_reads(config: Config, data: Path) -> None:
    report = train_expert(config, "mills", data, name="Mills", description="Knows the mills.")
    text = (report.folder / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    assert "base_model: scripted" in head
    assert "library_name: peft" in head
    assert body.startswith("\n# Mills\n\nKnows the mills.\n")
    before, after = (report.result.curve[0].validation_loss, report.result.best.validation_loss)
    assert f"| validation loss before | {before:.3f} |" in body
    assert f"| validation loss after | {after:.3f} |" in body
    assert "| self-edits | 6 (implications) |" in body


def test_the_run_keeps_events_data_and_no_checkpoints(config: Config, data: Path) -> None:
    report = train_expert(config, "mills", data)
    run = report.run_dir
    assert run == run_folder(config)
    assert lines(run / "augmented.jsonl") == lines(report.folder / "augmented.jsonl")
    assert {drop["reason"] for drop in lines(run / "dropped.jsonl")} == {"near_duplicate"}
    assert list((run / "checkpoints").iterdir()) == []
    events = [event for _, event in read_events(run / "events.jsonl")]
    assert sum(isinstance(event, Evaluated) for event in events) == len(report.result.curve)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == "done"
    assert [e.message for e in events if isinstance(e, Notice)] == list(report.notes)
    assert report.notes == ("strategy implications (chosen by you)",)


@pytest.mark.parametrize(
    ("use", "changes"),
    [
        (False, {}),
        (True, {"seal": {"enabled": False}}),
        (True, {"features": {"enable_seal_self_edits": False}}),
        (False, {"training": {"passage_copies": 0}}),
    ],
)
def test_without_self_edits_the_passages_alone_are_trained_on(
    tmp_path: Path, data: Path, use: bool, changes: dict[str, Any]
) -> None:
    model = ScriptedModel()
    config = make_config(tmp_path, **changes)
    report = train_expert(config, "plain", data, use_self_edits=use, model=model)
    assert model.requests == []
    assert report.dataset_stats["by_source"] == {"passage": 6}
    assert report.notes == ()
    card = json.loads((report.folder / "expert.json").read_text())
    assert (card["strategy"], card["edits"]) == (None, 0)
    assert "(none)" in (report.folder / "README.md").read_text()


def test_passages_are_held_back_where_there_are_no_questions(tmp_path: Path) -> None:
    data = write_passages(tmp_path / "plain.jsonl", 6, questions=0)
    report = train_expert(make_config(tmp_path), "plain", data)
    card = json.loads((report.folder / "expert.json").read_text())
    assert card["validation"] == "passages"
    assert len(card["passages"]) == 5


@pytest.mark.parametrize(
    ("count", "fraction", "reason"),
    [(1, 0.2, "too few passages"), (4, 0.0, "validation_fraction is 0")],
)
def test_a_training_without_validation_says_so(
    tmp_path: Path, count: int, fraction: float, reason: str
) -> None:
    data = write_passages(tmp_path / "plain.jsonl", count, questions=0)
    config = make_config(tmp_path, training={"validation_fraction": fraction})
    report = train_expert(config, "plain", data)
    assert any(reason in note for note in report.notes)
    assert "validation_loss" not in report.expert.performance_metrics
    assert "validation loss" not in (report.folder / "README.md").read_text()


def test_a_failed_passage_is_trained_on_as_it_is_and_listed(config: Config, data: Path) -> None:
    model = ScriptedModel(faults=Faults(fail_times=99, fail_on="of Bosk"))
    report = train_expert(config, "mills", data, model=model)
    assert any("1 passages have no self-edits" in note for note in report.notes)
    card = json.loads((report.folder / "expert.json").read_text())
    assert [failure["subject"] for failure in card["generation_failures"]] == ["Bosk-mill"]
    texts = [e["text"] for e in lines(report.folder / "augmented.jsonl")]
    assert record(1)["text"] in texts


def test_records_that_cannot_be_used_are_listed_in_the_run(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [record(0), {"no": "text"}, record(0)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    events: list[Event] = []
    report = train_expert(config, "mills", path, emit=events.append)
    listed = lines(report.run_dir / "rejects.jsonl")
    assert [(r["line"], r["reason"]) for r in listed] == [(2, "missing_text"), (3, "duplicate_id")]
    assert Notice(f"2 records of {path} were left out", "warning") in events


# ------------------------------------------------------------ refusals, before any work


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.jsonl", None, "does not exist"),
        (".", None, "is a folder"),
        ("data.jsonl", "", "is empty"),
        ("data.docx", "text", "unknown ending"),
        ("data.jsonl", '{"text": ""}\n', "holds no passages"),
    ],
)
def test_data_that_cannot_be_used_are_refused(
    tmp_path: Path, config: Config, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    before = files_below(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        train_expert(config, "mills", path)
    assert caught.value.exit_code == 2
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "expert_id", ["", "../up", "a/b", "a b", ".hidden", "registry.json", "con"]
)
def test_an_id_that_is_none_is_refused(config: Config, data: Path, expert_id: str) -> None:
    with pytest.raises(UsageError, match="not a valid expert id"):
        train_expert(config, expert_id, data)
    assert not config.paths.artifacts.exists()


def test_an_expert_that_exists_is_refused_before_any_work(
    config: Config, data: Path, tmp_path: Path
) -> None:
    first = train_expert(config, "mills", data)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files_below(tmp_path)}
    model = ScriptedModel()
    with pytest.raises(ExpertExistsError, match="exists already") as caught:
        train_expert(config, "mills", data, model=model)
    assert "--overwrite" in caught.value.remedy
    assert caught.value.exit_code == 2
    assert model.requests == []
    assert model.scored == 0
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in files_below(tmp_path)}
    assert after == before
    assert weights(first)


def test_a_frozen_expert_is_refused_also_with_overwrite(
    config: Config, data: Path, store: FileExpertStore
) -> None:
    report = train_expert(config, "mills", data)
    store.save(replace(report.expert, is_frozen=True))
    for overwrite in (False, True):
        with pytest.raises(FrozenExpertError, match="is frozen"):
            train_expert(config, "mills", data, overwrite=overwrite)
    assert run_folder(config).exists()


def test_a_folder_that_no_registry_knows_is_not_replaced(
    config: Config, data: Path, store: FileExpertStore
) -> None:
    store.folder("mills").mkdir(parents=True)
    (store.folder("mills") / "notes.txt").write_text("mine")
    with pytest.raises(ExpertExistsError, match="not in the registry"):
        train_expert(config, "mills", data)
    assert files_below(store.folder("mills")) == {"notes.txt"}


def test_overwrite_and_resume_exclude_each_other(config: Config, data: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        train_expert(config, "mills", data, overwrite=True, resume=True)


def test_going_on_needs_an_interrupted_training(config: Config, data: Path) -> None:
    with pytest.raises(UsageError, match="no interrupted training"):
        train_expert(config, "mills", data, resume=True)
    train_expert(config, "mills", data)
    with pytest.raises(UsageError, match="no interrupted training"):
        train_expert(config, "mills", data, resume=True)


def test_a_damaged_registry_is_refused_before_any_work(
    config: Config, data: Path, store: FileExpertStore
) -> None:
    store.root.mkdir(parents=True)
    store.path.write_text("{")
    with pytest.raises(StorageError, match=r"registry.json is corrupt"):
        train_expert(config, "mills", data)
    assert not run_folder(config).exists()


def test_a_refused_run_does_not_stand_in_the_way(tmp_path: Path, data: Path) -> None:
    wrong = make_config(tmp_path, seal={"strategy": "inplications"})
    with pytest.raises(UsageError, match="unknown strategy"):
        train_expert(wrong, "mills", data)
    report = train_expert(make_config(tmp_path), "mills", data)
    assert len(list(run_folder(make_config(tmp_path)).parent.iterdir())) == 2  # one set aside
    assert report.result.steps > 0


def test_leaking_questions_are_refused(config: Config, tmp_path: Path) -> None:
    leaky = record(0)
    leaky["text"] += f" {leaky['questions'][0]['question']} Nobody asks."
    path = tmp_path / "leaky.jsonl"
    path.write_text(json.dumps(leaky) + "\n")
    with pytest.raises(DataError, match="leaks into training"):
        train_expert(config, "mills", path)
    assert not (config.paths.artifacts / "experts").exists()


# ------------------------------------------------------------ overwriting


def test_overwriting_replaces_the_expert_and_keeps_its_place(
    tmp_path: Path, data: Path, store: FileExpertStore
) -> None:
    first = train_expert(make_config(tmp_path), "mills", data, name="Old")
    others = replace(
        first.expert,
        created_at="2020-01-01T00:00:00+00:00",
        parent_expert_id="all",
        child_expert_ids=("small",),
        is_active=False,
        total_activations=7,
    )
    store.save(others)
    write_card(store, "mills", {"mine": "kept"})
    (first.folder / "stale.txt").write_text("old")
    config = make_config(tmp_path, training={"rank": 3})
    second = train_expert(config, "mills", data, name="New", overwrite=True)
    expert = store.get("mills")
    assert expert is not None
    assert (expert.name, expert.created_at) == ("New", "2020-01-01T00:00:00+00:00")
    assert (expert.parent_expert_id, expert.child_expert_ids) == ("all", ("small",))
    assert (expert.is_active, expert.total_activations) == (False, 0)
    assert expert.last_trained > expert.created_at
    assert files_below(second.folder) == FILES
    card = json.loads((second.folder / "expert.json").read_text())
    assert (card["mine"], card["name"], card["training_config"]["rank"]) == ("kept", "New", 3)
    assert len(store.list()) == 1
    runs = sorted(path.name for path in run_folder(config).parent.iterdir())
    assert runs[0] == "train-expert-mills"
    assert runs[1].startswith("train-expert-mills.2")


def test_earlier_runs_of_the_same_second_are_all_kept(config: Config, data: Path) -> None:
    train_expert(config, "mills", data)
    for _ in range(2):
        os.utime(run_folder(config), (10**9, 10**9))
        train_expert(config, "mills", data, overwrite=True)
    names = sorted(path.name for path in run_folder(config).parent.iterdir())
    assert names == [
        "train-expert-mills",
        "train-expert-mills.20010909-014640",
        "train-expert-mills.20010909-014640-1",
    ]


def test_an_expert_keeps_working_until_its_successor_is_whole(
    config: Config, data: Path, store: FileExpertStore
) -> None:
    first = train_expert(config, "mills", data)
    before = files_below(first.folder), weights(first)
    with pytest.raises(RunInterrupted):
        train_expert(config, "mills", data, overwrite=True, should_stop=stop_after(5))
    assert (files_below(first.folder), weights(first)) == before
    assert store.get("mills") == first.expert


# ------------------------------------------------------------ stopping, killing, full disks


@pytest.mark.parametrize("calls", [0, 1, 3, 5, 9])
def test_a_training_stopped_on_the_way_ends_with_the_same_expert(
    config: Config, data: Path, whole: ExpertReport, calls: int, store: FileExpertStore
) -> None:
    with pytest.raises(RunInterrupted):
        train_expert(config, "mills", data, should_stop=stop_after(calls))
    assert store.get("mills") is None
    assert not store.folder("mills").exists()
    with pytest.raises(ExpertExistsError, match="was interrupted") as caught:
        train_expert(config, "mills", data)
    assert "--resume" in caught.value.remedy
    report = train_expert(config, "mills", data, resume=True)
    assert weights(report) == weights(whole)
    assert without_times(report.dataset_stats) == without_times(whole.dataset_stats)
    assert [p.validation_loss for p in report.result.curve] == [
        p.validation_loss for p in whole.result.curve
    ]
    events = [e for _, e in read_events(report.run_dir / "events.jsonl")]
    assert [e.status for e in events if isinstance(e, RunFinished)] == ["interrupted", "done"]


def test_an_interrupted_training_can_be_started_over(
    config: Config, data: Path, whole: ExpertReport
) -> None:
    with pytest.raises(RunInterrupted):
        train_expert(config, "mills", data, should_stop=stop_after(5))
    report = train_expert(config, "mills", data, overwrite=True)
    assert weights(report) == weights(whole)


@pytest.mark.parametrize(
    ("changes", "calls", "message"),
    [
        ({"seal": {"temperature": 0.5}}, 2, "sampling: "),
        ({"seed": 1}, 2, "seed: 0 then, 1 now"),
        ({"training": {"learning_rate": 0.5}}, 6, "other data or settings"),
    ],
)
def test_going_on_with_other_settings_is_refused(
    tmp_path: Path, data: Path, changes: dict[str, Any], calls: int, message: str
) -> None:
    with pytest.raises(RunInterrupted):
        train_expert(make_config(tmp_path), "mills", data, should_stop=stop_after(calls))
    with pytest.raises(UsageError, match=message):
        train_expert(make_config(tmp_path, **changes), "mills", data, resume=True)
    assert train_expert(make_config(tmp_path), "mills", data, resume=True).result.steps > 0


def test_a_training_that_failed_can_be_gone_on_with(
    config: Config, data: Path, whole: ExpertReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            job_module,
            "load_trainer",
            lambda config, model: ScriptedTrainer(model, fail_at_step=3, nan=True),
        )
        with pytest.raises(BackendError, match="NaN at step 3"):
            train_expert(config, "mills", data)
    model = ScriptedModel()
    report = train_expert(config, "mills", data, resume=True, model=model)
    assert weights(report) == weights(whole)
    assert model.requests == []  # the self-edits are not made again


@pytest.mark.parametrize(
    "failing", ["adapter_config.json", "README.md", "registry.json", "expert.json"]
)
def test_a_disk_that_fills_while_publishing_loses_nothing(
    config: Config,
    data: Path,
    whole: ExpertReport,
    store: FileExpertStore,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    replace_file = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="disk full"):
            train_expert(config, "mills", data)
    if failing in ("adapter_config.json", "README.md"):
        assert not store.folder("mills").exists()
        assert store.get("mills") is None
    report = train_expert(config, "mills", data, resume=True)
    assert weights(report) == weights(whole)
    assert files_below(report.folder) == FILES
    assert store.get("mills") == report.expert


@pytest.mark.usefixtures("process_server")
def test_a_training_killed_again_and_again_ends_with_the_same_expert(
    tmp_path: Path, whole: ExpertReport
) -> None:
    folder = tmp_path / "killed"
    write_passages(folder / "passages.jsonl", 6)
    run = run_folder(make_config(folder))
    rng = random.Random(3)
    kills = 0
    for _ in range(4):
        if (run / "state.json").exists():
            break
        started = (run / "run.json").exists()
        kills += kill_on_the_way("train-expert", folder, rng, resume=started, within=16)
    assert kills >= 3
    if (run / "state.json").exists():
        pytest.fail("the training was not to be done so soon: kill it earlier")
    report = expert(folder, resume=(run / "run.json").exists())
    assert weights(report) == weights(whole)
    assert files_below(report.folder) == FILES
    card = json.loads((report.folder / "expert.json").read_text())
    other = json.loads((whole.folder / "expert.json").read_text())
    for one in (card, other):
        times, places = ("created_at", "last_trained"), ("checkpoint_path", "training_datasets")
        for key in (*times, *places, "dataset"):
            del one[key]
    assert without_times(card) == without_times(other)
    registry = FileExpertStore(folder / "artifacts" / "experts", "scripted")
    assert [e.expert_id for e in registry.list()] == ["mills"]


def test_an_expert_without_description_has_a_card_all_the_same() -> None:
    from aios.app.experts.model_card import render_model_card

    card = render_model_card(Expert("e", "E: a: b"), {})
    assert card.startswith("---\nbase_model: ''\n")
    assert "# E: a: b" in card
    assert "| passages | 0 |" in card
