"""Looking through registries, also those that other programs wrote, and what was read kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aios.app.experts.browsing import Branch, ExpertBrowser, ExpertQuery, goals_with_experts
from aios.app.experts.changes import delete_experts, describe_expert, set_active
from aios.app.experts.download import zipped
from aios.app.experts.learnt import ExpertReader, learning_curve
from aios.app.experts.registry import open_goals, open_store
from aios.app.jobs.commands import forget_job
from aios.core.config.schemas import Config
from aios.core.errors import FrozenExpertError, UnknownExpertError, UsageError
from aios.core.experts.provenance import Document, Documents, encode_documents
from aios.core.types import Expert
from tests.test_app.scripted_jobs import make_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


def register(config: Config, *experts: Expert) -> None:
    with open_store(config).change() as registry:
        for one in experts:
            registry.put(one)


def shape(branch: Branch) -> Any:
    return branch.expert.expert_id, [shape(child) for child in branch.children]


def test_circles_and_missing_parents_of_another_program_are_shown_once(config: Config) -> None:
    register(
        config,
        Expert("a", "a", parent_expert_id="c"),
        Expert("b", "b", parent_expert_id="a"),
        Expert("c", "c", parent_expert_id="b"),
        Expert("alone", "alone", parent_expert_id="gone"),
        Expert("self", "self", parent_expert_id="self"),
    )
    roots = ExpertBrowser().tree(config, ExpertQuery(), 1, 50).roots
    assert [shape(one) for one in roots] == [
        ("a", [("b", [("c", [])])]),
        ("alone", []),
        ("self", []),
    ]
    assert [one.below for one in roots] == [2, 0, 0]


def test_a_tree_is_bounded_in_depth_and_breadth(config: Config) -> None:
    chain = [Expert(f"d{n}", "d", parent_expert_id=f"d{n - 1}") for n in range(2000)]
    wide = [Expert(f"w{n:04}", f"w{n:04}", parent_expert_id="wide") for n in range(1000)]
    register(config, *chain, Expert("wide", "wide"), *wide)
    deep, broad = ExpertBrowser().tree(config, ExpertQuery(), 1, 50).roots
    assert (deep.below, broad.below) == (1999, 1000)
    assert broad.left_out == 1000 - len(broad.children) > 0
    depth = 1
    while deep.children:
        deep, depth = deep.children[0], depth + 1
    assert depth == 20
    assert deep.left_out == 1


def test_the_tree_of_a_search_leads_to_what_was_found(config: Config) -> None:
    register(
        config,
        Expert("root", "root"),
        Expert("mid", "mid", parent_expert_id="root"),
        Expert("leaf", "leaf", description="Tides", parent_expert_id="mid"),
        Expert("other", "other", parent_expert_id="root"),
    )
    found = ExpertBrowser().tree(config, ExpertQuery("tides"), 1, 50)
    assert [shape(one) for one in found.roots] == [("root", [("mid", [("leaf", [])])])]
    assert (found.found, found.roots[0].below) == (1, 1)


def test_goals_are_given_with_their_experts(config: Config) -> None:
    register(config, Expert("a", "a", goals=("KNOW tides", "know Tides")), Expert("b", "b"))
    open_goals(config).add("Know tides", "t")
    ((goal, experts),) = goals_with_experts(config)
    assert (goal.id, [one.expert_id for one in experts]) == ("t", ["a"])


def test_several_are_switched_all_or_none(config: Config) -> None:
    register(config, Expert("a", "a"), Expert("b", "b"))
    with pytest.raises(UnknownExpertError):
        set_active(config, ("a", "nobody"), False)
    assert open_store(config).require("a").is_active
    set_active(config, ("a", "b", "a"), False)
    assert not any(one.is_active for one in open_store(config).list())


def test_what_cannot_be_deleted_stays_and_says_why(config: Config) -> None:
    register(config, Expert("a", "a"), Expert("b", "b", is_frozen=True))
    done = delete_experts(config, ("a", "b", "nobody"))
    assert [one.expert.expert_id for one in done.trashed] == ["a"]
    assert [type(one) for one in done.problems] == [FrozenExpertError, UnknownExpertError]
    assert [one.expert_id for one in open_store(config).list()] == ["b"]


@pytest.mark.parametrize(
    "texts",
    [
        {"name": "two\nlines"},
        {"category": "x" * 101},
        {"description": "x" * 2001},
    ],
)
def test_texts_that_people_cannot_read_are_refused(config: Config, texts: dict[str, str]) -> None:
    register(config, Expert("a", "a", description="d"))
    with pytest.raises(UsageError):
        describe_expert(config, "a", **{"name": "n", "description": "", "category": "", **texts})
    assert open_store(config).require("a").description == "d"


def test_texts_that_are_not_given_stay(config: Config) -> None:
    register(config, Expert("a", "A", description="d", category="c"))
    describe_expert(config, "a", category=" places ")
    found = open_store(config).require("a")
    assert (found.name, found.description, found.category) == ("A", "d", "places")
    describe_expert(config, "a", name="", description="")
    found = open_store(config).require("a")
    assert (found.name, found.description, found.category) == ("a", "", "places")


def test_a_curve_that_is_no_curve_is_not_drawn() -> None:
    points = [{"step": n, "train_loss": 2.0 / n, "validation_loss": None} for n in (1, 2)]
    assert "svg" in str(learning_curve({"curve": points}))
    for curve in (None, "x", [], [1, None], points[:1], [{"step": "1", "train_loss": [2]}] * 3):
        assert learning_curve({"curve": curve}) is None


def test_scores_have_an_interval_where_there_are_enough_passages(tmp_path: Path) -> None:
    def write(count: int) -> None:
        documents = Documents(
            tuple(
                Document(f"p{n}", "0" * 64, validation_loss_before=3.0 + n, validation_loss=1.0)
                for n in range(count)
            )
        )
        (tmp_path / "documents.jsonl").write_bytes(encode_documents(documents))

    reader = ExpertReader()
    write(1)
    scores = reader.learnt(tmp_path).scores
    assert scores is not None
    assert (scores.passages, scores.before, scores.change) == (1, 3.0, None)
    write(3)
    scores = reader.learnt(tmp_path).scores
    assert scores is not None
    assert scores.change is not None
    assert scores.change.low < scores.change.estimate == -3.0 < scores.change.high


def test_lines_that_are_no_texts_are_passed_over(tmp_path: Path) -> None:
    good = {"text": "Question: who?\nAnswer: me", "source": "qa", "passage_id": "p"}
    lines = [
        json.dumps({**good, "loss_spans": [[22, 25]]}),
        "no json",
        json.dumps([1]),
        json.dumps({"text": 1, "source": "qa", "passage_id": "p"}),
        json.dumps({**good, "text": "x" * (2 << 20)}),
        json.dumps({**good, "text": "last", "loss_spans": [[-5, 1]]}),
    ]
    (tmp_path / "augmented.jsonl").write_text("\n".join(lines))
    found = ExpertReader().texts(tmp_path, source="", passage="", page=1, size=10)
    assert [(one.context, one.text) for one in found.texts] == [
        ("Question: who?\nAnswer:", " me"),
        ("", "last"),
    ]
    assert found.sources == {"qa": 2}


def test_a_zip_whose_file_fails_is_never_whole() -> None:
    def failing() -> Any:
        yield b"some"
        raise UsageError("changed meanwhile")

    sent = []
    with pytest.raises(UsageError):
        sent += list(zipped([("a", 4, (b"good",)), ("b", 8, failing())]))
    blocks = zipped([("a", 4, (b"good",)), ("b", 8, failing())])
    data = b""
    with pytest.raises(UsageError):
        for block in blocks:
            data += block
    assert data.startswith(b"PK\x03\x04")
    assert b"PK\x05\x06" not in data  # no directory


def test_a_passage_to_forget_is_one_argument(tmp_path: Path) -> None:
    request = forget_job(tmp_path, "mills", "--keep-versions")
    assert request.arguments == ("experts", "forget", "mills", "--passage=--keep-versions")
    for passage in ("a\0b", "\ud800"):
        with pytest.raises(UsageError):
            forget_job(tmp_path, "mills", passage)
    with pytest.raises(UsageError):
        forget_job(tmp_path, "--help", "x")
