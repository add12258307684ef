"""What a run keeps: the stores without a disk, and the state as JSON, which is not trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import DataError, StorageError
from aios.core.files import encode_json
from aios.core.restem import ArmReport, Diversity, HeldOut, ReSTEMState, RoundReport, TriedPassage
from aios.core.seal.restem_rules import Laps, check_passages
from aios.core.seal.restem_store import MemoryRecords, UnrecordedRounds
from aios.core.types import AdapterRef, Passage, Question

DIGEST, BASE = "d" * 64, "b" * 64


def test_records_in_memory_are_found_again() -> None:
    records = MemoryRecords()
    assert records.get("a") is None
    records.append("a", [1])
    records.append("a", [2])
    assert records.get("a") == [2]


def test_a_store_without_a_disk_keeps_the_state_and_the_records_of_each_stage(
    tmp_path: Path,
) -> None:
    store = UnrecordedRounds(tmp_path)
    assert store.load() is None
    state = ReSTEMState((RoundReport(0),), {"rewrite": 1.0})
    store.commit(state)
    assert store.load() is state
    with store.records("one") as records:
        records.append("a", 1)
    with store.records("two") as records:
        assert records.get("a") is None
    with store.records("one") as records:
        assert records.get("a") == 1
    passage = TriedPassage("p", (), 1, 0, 0, 1.0, 1.0)
    store.keep(1, "held_out", [passage])
    assert store.kept == {(1, "held_out"): (passage,)}


def test_adapters_stay_where_they_were_trained_each_round_in_a_folder_of_its_own(
    tmp_path: Path,
) -> None:
    store = UnrecordedRounds(tmp_path)
    assert store.fit_folder(1) != store.fit_folder(2)
    adapter = AdapterRef(store.fit_folder(2), DIGEST, BASE)
    place = store.publish(2, adapter, ReSTEMState())
    assert store.adapter(place, DIGEST, BASE) == adapter
    other = UnrecordedRounds()
    assert other.folder.is_dir()
    assert other.folder != UnrecordedRounds().folder


# ------------------------------------------------------------ the state


def full_report(number: int) -> RoundReport:
    return RoundReport(
        number,
        f"rounds/{number}/generator",
        DIGEST,
        passages=2,
        asked=10,
        tried=8,
        filtered=1,
        failed=1,
        trials=30,
        failed_trials=2,
        rewarded=4,
        kept=2,
        threshold=0.1,
        improvement=0.2,
        accuracy_gain=None,
        improvements=(0.1, -0.3),
        reliability="It is so.",
        icc=0.5,
        noise=0.05,
        arms={"rewrite": ArmReport(0.5, 5, 4, 2, None, 20.0, 1.5, 0.6)},
        diversity=Diversity(0.9, 0.8, 0.0, 0.5),
        sft={"examples": 2.0},
        held_out=HeldOut({"h": 0.1}, {"h": 0.0}, 0.5),
        seconds={"try": 3.0},
        tokens=200,
        train_tokens=3000,
    )


def full_state() -> ReSTEMState:
    rounds = (RoundReport(0), full_report(1), full_report(2))
    return ReSTEMState(rounds, {"rewrite": 0.6, "cloze": 0.4}, 1, "all 2 rounds are done")


def as_json(state: ReSTEMState) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(encode_json(state.to_json()))
    return record


def test_a_state_is_the_same_after_a_file() -> None:
    state = full_state()
    read = ReSTEMState.from_json(as_json(state))
    assert read == state
    assert list(read.shares) == list(state.shares)  # the arms' order numbers the candidates
    assert read.next_round == 3
    empty = ReSTEMState()
    assert ReSTEMState.from_json(as_json(empty)) == empty


def test_a_generator_is_found_in_the_run_and_the_base_model_is_none(tmp_path: Path) -> None:
    state = full_state()
    assert state.adapter(tmp_path, BASE, 0) is None
    wanted = AdapterRef(tmp_path / "rounds/2/generator", DIGEST, BASE)
    assert state.adapter(tmp_path, BASE, 2) == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": None},
        {"rounds": "abc"},
        {"rounds": [5]},
        {"rounds": [{}]},
        {"rounds": [{"number": 0, "unknown": 1}]},
        {"shares": 3},
        {"shares": None},
        {"best": "many"},
        {"best": None},
        {"best": 3},
        {"best": -1},
    ],
    ids=str,
)
def test_a_state_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match="state is of another form") as caught:
        ReSTEMState.from_json({**as_json(full_state()), **changes})
    assert caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 5},
        {"arms": [1]},
        {"arms": {"rewrite": 5}},
        {"arms": {"rewrite": {"share": 1.0}}},
        {"improvements": 5},
        {"diversity": [1]},
        {"held_out": {"x": 1}},
    ],
    ids=str,
)
def test_a_round_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    record = as_json(full_state())
    record["rounds"][1].update(changes)
    with pytest.raises(StorageError, match="state is of another form"):
        ReSTEMState.from_json(record)


@pytest.mark.parametrize("missing", ["rounds", "shares", "best", "stopped"])
def test_a_state_without_a_part_is_refused(missing: str) -> None:
    record = as_json(full_state())
    del record[missing]
    with pytest.raises(StorageError, match=missing):
        ReSTEMState.from_json(record)


# ------------------------------------------------------------ small rules


def test_passages_that_nothing_can_be_rewarded_on_are_named() -> None:
    asked = Passage.make("A.", id="a", questions=(Question("?", ("x",)),))
    check_passages([asked], [])
    with pytest.raises(DataError, match="passage b has no questions"):
        check_passages([asked], [Passage.make("B.", id="b")])
    with pytest.raises(DataError, match="passage a is optimised on and held out"):
        check_passages([asked], [asked])
    with pytest.raises(DataError, match="no passages"):
        check_passages([], [asked])


def test_laps_are_the_seconds_since_the_lap_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 12.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    laps = Laps()
    laps.end("try")
    laps.end("fit")
    assert laps.seconds == {"try": 2.0, "fit": 0.5}
