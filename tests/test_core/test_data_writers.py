"""Self-edits to files and back."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from aios.core.data.rejects import Reject
from aios.core.data.writers import FORMATS, open_writer, read_edits, write_rejects
from aios.core.errors import DataError, StorageError, UsageError
from aios.core.types import Passage, SelfEdit

PASSAGE = Passage.make(
    "Orla Finn built the mill at Dunmery in 1871 of larch.", id="p", title="Mill"
)
UNTITLED = Passage.make("Orla Finn built the mill at Dunmery in 1871.", id="u")
STATEMENTS = SelfEdit(
    passage_id="p",
    strategy="implications",
    index=2,
    items=("Orla built it.", "It is old — très."),
    model="tiny",
    seed=2**63 - 1,
    completion="1. Orla built it.\n2. It is old",
    tokens=17,
    scores={"loss": 1.5, "overlap": 0},
)
PAIRS = SelfEdit(
    "p", "self-qa", 0, ("Question: Who built it?\nAnswer: Orla Finn", "The mill is old.")
)


def write(path: Path, *edits: SelfEdit, format: str | None = None) -> Path:
    with open_writer(path, format) as writer:
        for edit in edits:
            writer.write(edit, UNTITLED if edit.passage_id == "u" else PASSAGE)
    return path


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_txt_has_one_block_an_edit(tmp_path: Path) -> None:
    gappy = SelfEdit("p", "rewrite", 1, ("First.\n\n \nSecond.",))
    empty = SelfEdit("p", "rewrite", 2, ())
    path = write(tmp_path / "a.txt", STATEMENTS, empty, gappy)
    blocks = path.read_text("utf-8").split("\n\n")
    assert blocks == ["Orla built it.\nIt is old — très.", "First.\nSecond.\n"]


def test_jsonl_has_one_object_an_edit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", STATEMENTS)
    assert rows(path) == [
        {
            "text": "Orla built it.\nIt is old — très.",
            "items": ["Orla built it.", "It is old — très."],
            "passage_id": "p",
            "strategy": "implications",
            "edit": 2,
            "model": "tiny",
            "seed": 2**63 - 1,
            "tokens": 17,
            "quality": {"loss": 1.5, "overlap": 0.0},
            "completion": "1. Orla built it.\n2. It is old",
        }
    ]
    assert "très" in path.read_text("utf-8")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_edits_come_back_as_they_were(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    many = [SelfEdit("p", "rewrite", n, (f"Text {n}.",), scores={}) for n in range(600)]
    path = write(tmp_path / f"a{ending}", STATEMENTS, PAIRS, *many)
    assert list(read_edits(path)) == [STATEMENTS, PAIRS, *many]


def test_parquet_is_written_in_row_groups(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write(tmp_path / "a.parquet", *[STATEMENTS] * 1030)
    metadata = parquet.ParquetFile(path).metadata
    assert (metadata.num_rows, metadata.num_row_groups) == (1030, 3)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".txt"])
def test_no_edits_give_a_file_without_rows(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = write(tmp_path / f"a{ending}")
    assert path.is_file()
    if ending != ".txt":
        assert list(read_edits(path)) == []


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_score_that_is_not_finite_is_written_as_null(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    edit = SelfEdit("p", "s", 0, ("x",), scores={"nan": math.nan, "inf": math.inf, "ok": 1.0})
    path = write(tmp_path / f"a{ending}", edit)
    assert next(read_edits(path)).scores == {"ok": 1.0}
    if ending == ".jsonl":
        assert rows(path)[0]["quality"] == {"nan": None, "inf": None, "ok": 1.0}


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".txt"])
def test_lone_surrogates_do_not_stop_a_run(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    edit = SelfEdit("p", "s", 0, ("bad \ud800 text",), completion="\udfff", scores={"\ud800": 1.0})
    path = write(tmp_path / f"a{ending}", edit)
    assert b"bad " in path.read_bytes()


def test_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS, format="messages")
    assert rows(path) == [
        {
            "messages": [
                {"role": "user", "content": "Who built it?"},
                {"role": "assistant", "content": "Orla Finn"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "State what you know about Mill."},
                {"role": "assistant", "content": "The mill is old."},
            ]
        },
    ]


def test_prompt_completion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS, format="prompt-completion")
    assert rows(path) == [
        {"prompt": "Question: Who built it?\nAnswer:", "completion": " Orla Finn"},
        {"prompt": "State what you know about Mill.\n", "completion": "The mill is old."},
    ]


def test_alpaca_joins_the_statements_of_an_edit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", STATEMENTS, format="alpaca")
    assert rows(path) == [
        {
            "instruction": "State what you know about Mill.",
            "input": "",
            "output": "Orla built it.\nIt is old — très.",
        }
    ]


def test_sharegpt_names_an_untitled_passage_by_its_beginning(tmp_path: Path) -> None:
    edit = SelfEdit("u", "rewrite", 0, ("Rewritten.", " "))
    path = write(tmp_path / "a.jsonl", edit, format="sharegpt")
    asked = (
        'State what you know about the text that begins "Orla Finn built the mill at Dunmery in".'
    )
    assert rows(path) == [
        {
            "conversations": [
                {"from": "human", "value": asked},
                {"from": "gpt", "value": "Rewritten."},
            ]
        }
    ]


@pytest.mark.parametrize(
    "item",
    [
        "Question: Who?",
        "Question: \nAnswer: x",
        "Question: Who?\nAnswer: ",
        "Question: a?\nAnswer: b\nQuestion: c?\nAnswer: d",
        "Answer: x",
    ],
)
def test_item_that_is_no_single_pair_is_a_statement(tmp_path: Path, item: str) -> None:
    path = write(tmp_path / "a.jsonl", SelfEdit("p", "s", 0, (item,)), format="alpaca")
    assert rows(path)[0]["output"] == item.strip()


def test_old_file_stays_when_the_block_fails(tmp_path: Path) -> None:
    for ending in (".jsonl", ".txt", ".parquet"):
        path = tmp_path / f"a{ending}"
        path.write_text("old", "utf-8")
        with pytest.raises(KeyError), open_writer(path) as writer:
            writer.write(STATEMENTS, PASSAGE)
            raise KeyError
        assert path.read_text("utf-8") == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.parquet", "a.txt"]


def test_file_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    with open_writer(path) as writer:
        writer.write(STATEMENTS, PASSAGE)
        assert not path.exists()
    assert path.exists()


@pytest.mark.parametrize("ending", [".jsonl", ".txt", ".parquet"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / f"a{ending}"
    path.write_text("old", "utf-8")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="disk full"), open_writer(path) as writer:
            for n in range(2000):
                edit = SelfEdit("p", "s", n, (f"{n * 7919 % 10007} " * 20,), seed=n)
                writer.write(edit, PASSAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text("utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a.docx", None, "unknown ending '.docx'"),
        ("a", None, "unknown ending ''"),
        ("a.messages", None, "unknown ending '.messages'"),
        ("a.jsonl", "chatml", "unknown format 'chatml'"),
        ("a.txt", "alpaca", "'alpaca' is written to a .jsonl file"),
    ],
)
def test_bad_format_is_refused_at_once(
    tmp_path: Path, name: str, format: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_writer(tmp_path / name, format)
    assert all(known in caught.value.remedy for known in FORMATS)
    assert ".parquet" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pyarrow(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_pyarrow)
    with pytest.raises(UsageError) as caught:
        open_writer(tmp_path / "a.parquet")
    assert 'pip install "aios[parquet]"' in caught.value.remedy


ROW = {"items": ["x"], "passage_id": "p", "strategy": "s", "edit": 0}


def test_reading_needs_only_what_has_no_default(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW | {"quality": None, "foreign": 1}), "utf-8")
    assert list(read_edits(path)) == [SelfEdit("p", "s", 0, ("x",))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": "x"}, "'items'"),
        ({"items": [1]}, "'items'"),
        ({"passage_id": 3}, "'passage_id' is 3, not a text"),
        ({"strategy": None}, "'strategy'"),
        ({"edit": -1}, "'edit' is -1, below 0"),
        ({"edit": True}, "'edit'"),
        ({"edit": "0"}, "'edit'"),
        ({"seed": 1.5}, "'seed'"),
        ({"seed": 2**70}, "'seed'"),
        ({"tokens": -3}, "'tokens'"),
        ({"model": []}, "'model'"),
        ({"quality": "good"}, "'quality' is not an object"),
        ({"quality": {"a": "b"}}, "'quality' has 'b' for 'a'"),
        ({"quality": {"a": math.nan}}, "'quality' has nan"),
        ({"quality": {"a": True}}, "'quality' has True"),
        ({"quality": {"a": 10**400}}, "not a self-edit"),
        ({"quality": [{"value": 1.0}]}, "'quality' has 1.0 for 'None'"),
    ],
)
def test_hostile_row_gives_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | change), "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        list(read_edits(path))
    assert f"{path}:3:" in caught.value.message


@pytest.mark.parametrize("line", [b"{torn", b"[]", b'{"items": ["\xff"]}'])
def test_broken_line_gives_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + line)
    with pytest.raises(DataError, match=":2: not a self-edit"):
        list(read_edits(path))


def test_edits_cannot_be_read_from_other_endings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown ending '\.txt'"):
        list(read_edits(tmp_path / "a.txt"))


def test_rejects_file(tmp_path: Path) -> None:
    path = tmp_path / "out" / "rejects.jsonl"
    write_rejects(path, [Reject("a.txt", 3, "bad_encoding", "é"), Reject("a.txt", 5, "too_long")])
    assert rows(path) == [
        {"file": "a.txt", "line": 3, "reason": "bad_encoding", "detail": "é"},
        {"file": "a.txt", "line": 5, "reason": "too_long", "detail": ""},
    ]


def test_rejects_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    path.write_text("old", "utf-8")

    def failing() -> Any:
        yield Reject("a", 1, "too_long")
        raise KeyError

    with pytest.raises(KeyError):
        write_rejects(path, failing())
    assert path.read_text("utf-8") == "old"
