"""Provenance of experts, and training them again without a passage, on the scripted model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.app.experts.forgetting import forget, plan_forget
from aios.app.experts.registry import open_store, open_trash, open_versions, read_documents
from aios.app.experts.training import ExpertReport, train_expert
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import (
    AdapterMismatchError,
    FrozenExpertError,
    RunInterrupted,
    StorageError,
    UnknownExpertError,
    UsageError,
)
from aios.core.experts.provenance import text_digest
from aios.core.types import ScoreRequest
from tests.expert_cards import write_card
from tests.test_app.scripted_jobs import make_config, record, stop_after, write_passages

GONE = str(record(1)["id"])  # the passage that is forgotten
WORD = "Bosk"  # which stands in no other passage


@pytest.fixture(autouse=True)
def _quick(quick_jobs: None) -> None:
    """Versions, runs and registries are written by the dozen here."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", 6)


def train(config: Config, data: Path, **options: Any) -> ExpertReport:
    return train_expert(config, "mills", data, **options)


def rewrite(data: Path, *records: dict[str, Any]) -> None:
    data.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")


def files_that_hold(folder: Path, word: str) -> set[str]:
    """Names of the files below a folder in which a word stands."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    }


# ------------------------------------------------------------ provenance


def test_each_passage_says_what_became_of_it(config: Config, data: Path) -> None:
    report = train(config, data)
    documents = read_documents(report.folder)
    assert [one.id for one in documents.trained] == [record(n)["id"] for n in range(6)]
    one = documents.trained[1]
    text = record(1)["text"]
    assert (one.digest, one.characters) == (text_digest(text), len(text))
    assert one.source == f"{data}:2"
    assert one.questions == 3
    (edit,) = one.self_edits  # the other candidate was a near duplicate
    assert (edit.strategy, edit.model, edit.items) == ("implications", "scripted", edit.items)
    assert len(edit.id) == 16
    assert edit.quality
    assert one.examples == 1 + edit.items
    assert one.validation_loss_before is not None
    assert one.validation_loss is not None
    assert one.validation_loss < one.validation_loss_before
    assert documents.held_out == frozenset()


def test_the_loss_before_is_that_of_the_base_model(config: Config, data: Path) -> None:
    trained = read_documents(train(config, data).folder).trained
    questions = [
        ScoreRequest(f"Question: {one['question']}\nAnswer:", f" {one['answer']}")
        for one in record(1)["questions"]
    ]
    losses = [score.loss for score in ScriptedModel().score(questions)]
    assert trained[1].validation_loss_before == pytest.approx(sum(losses) / 3)


def test_without_self_edits_and_questions_less_is_known(tmp_path: Path) -> None:
    data = write_passages(tmp_path / "plain.jsonl", 6, questions=0)
    report = train(make_config(tmp_path), data, use_self_edits=False)
    documents = read_documents(report.folder)
    assert len(documents.trained) == 5
    assert {(one.examples, one.self_edits, one.validation_loss) for one in documents.trained} == {
        (1, (), None)
    }
    (held_out,) = documents.held_out
    texts = {text_digest(record(n)["text"]) for n in range(6)}
    assert texts - {one.digest for one in documents.trained} == {held_out}


def test_documents_that_are_damaged_are_named(config: Config, data: Path) -> None:
    folder = train(config, data).folder
    for line in ("{", "[]", '{"id": 1}', '{"id": "a", "digest": "b", "questions": "many"}'):
        (folder / "documents.jsonl").write_text(f"{line}\n")
        with pytest.raises(StorageError, match="line 1 is no record"):
            read_documents(folder)
    (folder / "documents.jsonl").unlink()
    assert not read_documents(folder).known


def test_the_card_keeps_the_settings_and_where_the_data_are(config: Config, data: Path) -> None:
    card = json.loads((train(config, data).folder / "expert.json").read_text())
    assert card["dataset"] == str(data)
    assert card["settings"]["training"]["rank"] == 2
    assert card["settings"]["model"] == {"name": "scripted"}
    assert "cache_dir" not in card["settings"]["seal"]
    assert not {"paths", "endpoint", "telemetry"} & card["settings"].keys()


# ------------------------------------------------------------ versions of a training


def test_a_training_of_an_id_that_exists_keeps_the_version_of_before(
    tmp_path: Path, config: Config, data: Path
) -> None:
    first = train(config, data, name="Mills", goals=["answer"])
    weights = (first.folder / "adapter_model.safetensors").read_bytes()
    second = train(make_config(tmp_path, training={"rank": 3}), data, overwrite=True)
    assert (second.expert.name, second.expert.goals) == ("Mills", ("answer",))
    older, current = open_versions(config).list("mills")
    assert (older.folder / "adapter_model.safetensors").read_bytes() == weights
    assert (older.number, current.number) == (1, 2)
    expert = open_versions(config).rollback("mills")
    assert expert.training_config["rank"] == 2
    assert (first.folder / "adapter_model.safetensors").read_bytes() == weights


def test_an_expert_that_was_frozen_meanwhile_is_not_replaced(config: Config, data: Path) -> None:
    first = train(config, data)
    before = (first.folder / "expert.json").read_bytes()
    model, calls = ScriptedModel(), 0

    def freeze() -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:
            open_store(config).set_frozen("mills", True)
        return False

    with pytest.raises(FrozenExpertError):
        train(config, data, overwrite=True, should_stop=freeze, model=model)
    assert (first.folder / "expert.json").read_bytes() == before


@pytest.mark.parametrize("name", ["auto", "Base"])
def test_names_with_a_meaning_of_their_own_are_refused(
    config: Config, data: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="meaning of its own"):
        train_expert(config, name, data)


# ------------------------------------------------------------ forgetting


def test_a_plan_says_what_it_takes_and_does_nothing(
    tmp_path: Path, config: Config, data: Path
) -> None:
    train(config, data)
    train_expert(config, "twin", data)
    train(config, data, overwrite=True)
    open_store(config).set_parent("twin", "mills")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    plan = plan_forget(config, "mills", GONE)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert (plan.documents, plan.dataset, plan.dataset_unchanged) == ((GONE,), data, True)
    assert (plan.passages_left, plan.still_in_dataset) == (5, True)
    assert plan.self_edits_of_it == 1
    assert plan.examples > plan.examples_of_it > 1
    assert (plan.versions, plan.children, plan.other_experts) == ((1,), ("twin",), ())
    assert (plan.restem, plan.near_duplicates, plan.trash) == (False, (), ())


def test_a_forgotten_passage_is_in_nothing_of_the_expert(config: Config, data: Path) -> None:
    train(config, data, name="Mills", category="places")
    train(config, data, overwrite=True)
    experts = config.paths.artifacts / "experts"
    assert files_that_hold(experts, WORD)
    report = forget(config, "mills", GONE)
    assert report.training is not None
    assert files_that_hold(experts, WORD) == set()
    assert (report.removed_versions, report.kept_versions) == ((1, 2), ())
    assert [one.number for one in open_versions(config).list("mills")] == [3]
    expert = open_store(config).require("mills")
    assert (expert.name, expert.category) == ("Mills", "places")
    assert expert.training_datasets == (str(data),)
    assert read_documents(report.training.folder).of(GONE) == ()
    assert any(str(data) in line for line in report.still_held)
    assert any("self-edits in the cache" in line for line in report.still_held)
    assert any("train-expert-mills.2" in line for line in report.still_held)


def test_forgetting_equals_a_training_on_the_rest(tmp_path: Path, config: Config) -> None:
    data = write_passages(tmp_path / "passages.jsonl", 6)
    train(config, data)
    made = forget(make_config(tmp_path, seed=5, training={"rank": 7}), "mills", GONE).training
    assert made is not None
    rest = tmp_path / "rest.jsonl"
    rewrite(rest, *(record(n) for n in range(6) if n != 1))
    wanted = train_expert(config, "other", rest)
    weights = "adapter_model.safetensors"
    assert (made.folder / weights).read_bytes() == (wanted.folder / weights).read_bytes()
    assert made.expert.training_config == wanted.expert.training_config


def test_two_passages_are_forgotten_one_after_the_other(config: Config, data: Path) -> None:
    train(config, data)
    forget(config, "mills", GONE)
    second = str(record(2)["id"])
    report = forget(config, "mills", second)
    assert report.plan.passages_left == 4
    left = {one.id for one in read_documents(open_store(config).folder("mills")).trained}
    assert left == {record(n)["id"] for n in (0, 3, 4, 5)}
    with pytest.raises(UsageError, match="was not trained on a passage"):
        forget(config, "mills", GONE)


def test_versions_can_be_kept_and_dropped_later(config: Config, data: Path) -> None:
    train(config, data)
    report = forget(config, "mills", GONE, keep_versions=True)
    assert (report.removed_versions, report.kept_versions) == ((), (1,))
    model = ScriptedModel()
    later = forget(config, "mills", GONE, model=model)
    assert (later.training, later.removed_versions, model.requests) == (None, (1,), [])
    assert len(open_versions(config).list("mills")) == 1


def test_an_older_text_of_the_same_passage_goes_too(config: Config, data: Path) -> None:
    train(config, data)
    changed = {**record(1), "text": record(1)["text"] + " Its door is red."}
    rewrite(data, *(record(n) if n != 1 else changed for n in range(6)))
    train(config, data, overwrite=True)
    assert forget(config, "mills", GONE).removed_versions == (1, 2)


def test_the_parts_of_a_long_passage_go_together(tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"max_passage_tokens": 30})
    data = write_passages(tmp_path / "passages.jsonl", 3)
    train(config, data)
    plan = plan_forget(config, "mills", GONE)
    assert plan.documents == (f"{GONE}#1", f"{GONE}#2")
    report = forget(config, "mills", GONE)
    assert report.training is not None
    assert files_that_hold(report.training.folder, WORD) == set()
    assert len(read_documents(report.training.folder).trained) == 4


def test_passages_that_were_held_out_stay_in_use(tmp_path: Path) -> None:
    data = write_passages(tmp_path / "plain.jsonl", 6, questions=0)
    config = make_config(tmp_path)
    folder = train(config, data).folder
    documents = read_documents(folder)
    forget(config, "mills", documents.trained[0].id)
    again = read_documents(folder)
    assert len(again.trained) + len(again.held_out) == 5


def test_who_else_holds_it_is_named(config: Config, data: Path) -> None:
    for name in ("mills", "twin", "old"):
        train_expert(config, name, data)
    near = {**record(1), "id": "near", "text": f"{record(1)['text']} So it is."}
    rewrite(data, *(record(n) for n in range(6)), near)
    entry = open_trash(config).delete("old").name
    train(config, data, overwrite=True)
    report = forget(config, "mills", GONE)
    assert report.plan.other_experts == ("twin",)
    assert report.plan.near_duplicates == ("near",)
    assert report.plan.trash == (entry,)
    text = "\n".join(report.still_held)
    assert "expert twin" in text
    assert entry in text
    assert "near, of which it says nearly the same" in text


def test_a_changed_file_is_used_where_all_that_is_needed_is_there(
    config: Config, data: Path
) -> None:
    train(config, data)
    rewrite(data, *(record(n) for n in (5, 4, 3, 2, 0, 9)))  # moved, one gone, one new
    plan = plan_forget(config, "mills", GONE)
    assert (plan.dataset_unchanged, plan.still_in_dataset, plan.passages_left) == (False, False, 5)
    report = forget(config, "mills", GONE)
    assert report.training is not None
    left = {one.id for one in read_documents(report.training.folder).trained}
    assert left == {record(n)["id"] for n in (0, 2, 3, 4, 5)}


def test_a_file_that_was_moved_can_be_named(config: Config, data: Path, tmp_path: Path) -> None:
    train(config, data)
    moved = data.rename(tmp_path / "moved.jsonl")
    with pytest.raises(UsageError, match="not there any more") as caught:
        forget(config, "mills", GONE)
    assert "--dataset" in caught.value.remedy
    report = forget(config, "mills", GONE, dataset=moved)
    assert report.plan.dataset_unchanged


def test_passages_that_are_gone_or_changed_are_named(config: Config, data: Path) -> None:
    train(config, data)
    changed = {**record(3), "text": "Another text altogether, of nothing that was before."}
    rewrite(data, record(0), record(1), changed, record(4), record(5))
    with pytest.raises(UsageError, match="2 of the 5 other passages") as caught:
        forget(config, "mills", GONE)
    assert record(2)["id"] in caught.value.message
    assert record(3)["id"] in caught.value.message


def test_refusals_leave_the_expert_as_it_was(config: Config, data: Path, tmp_path: Path) -> None:
    folder = train(config, data).folder
    store = open_store(config)
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UnknownExpertError):
        forget(config, "mill", GONE)
    with pytest.raises(UsageError, match="was not trained on") as caught:
        forget(config, "mills", "Bosk-mil")
    assert caught.value.remedy.startswith(f"did you mean {GONE}")
    store.set_frozen("mills", True)
    with pytest.raises(FrozenExpertError):
        forget(config, "mills", GONE)
    store.set_frozen("mills", False)
    write_card(store, "mills", {"base_digest": "0" * 64})
    with pytest.raises(AdapterMismatchError):
        forget(config, "mills", GONE)
    write_card(store, "mills", {"settings": {"training": {"rank": "many"}}})
    with pytest.raises(UsageError, match=r"cannot be used: training\.rank"):
        forget(config, "mills", GONE)
    write_card(store, "mills", {"settings": None})
    with pytest.raises(UsageError, match="settings that expert 'mills' was trained with are not"):
        forget(config, "mills", GONE)
    (folder / "documents.jsonl").unlink()
    with pytest.raises(UsageError, match="not recorded which passages"):
        forget(config, "mills", GONE)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert len(open_versions(config).list("mills")) == 1


def test_an_expert_of_one_passage_is_rather_deleted(config: Config, tmp_path: Path) -> None:
    data = write_passages(tmp_path / "one.jsonl", 1)
    train(config, data)
    with pytest.raises(UsageError, match="nothing but this passage") as caught:
        forget(config, "mills", str(record(0)["id"]))
    assert "--purge" in caught.value.remedy


@pytest.mark.parametrize("calls", [1, 5])
def test_an_interrupted_forgetting_goes_on(config: Config, data: Path, calls: int) -> None:
    first = train(config, data)
    weights = (first.folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RunInterrupted):
        forget(config, "mills", GONE, should_stop=stop_after(calls))
    assert (first.folder / "adapter_model.safetensors").read_bytes() == weights
    report = forget(config, "mills", GONE, resume=True)
    assert report.removed_versions == (1,)
    assert files_that_hold(config.paths.artifacts / "experts", WORD) == set()


def test_a_version_that_says_nothing_is_kept_and_named(config: Config, data: Path) -> None:
    folder = train(config, data).folder
    (folder / "documents.jsonl").unlink()
    store = open_store(config)
    write_card(store, "mills", {"passages": None})
    train(config, data, overwrite=True)
    report = forget(config, "mills", GONE)
    assert report.removed_versions == (2,)
    assert any("perhaps version 1" in line for line in report.still_held)
    store.update("mills", lambda expert: replace(expert, description="x"))
    assert [one.number for one in open_versions(config).list("mills")] == [1, 3]


def test_a_version_of_an_older_program_is_told_by_its_ids(config: Config, data: Path) -> None:
    folder = train(config, data).folder
    (folder / "documents.jsonl").unlink()
    train(config, data, overwrite=True)
    assert forget(config, "mills", GONE).removed_versions == (1, 2)
