"""Reading what a generation left: rows, drops and rejects, broken lines in their places."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aios.core.data.edit_files import (
    BrokenLine,
    files_of,
    read_drops,
    read_edit_rows,
    read_rejects,
)
from aios.core.data.edit_rows import to_row
from aios.core.data.rejects import Reject
from aios.core.data.writers import FORMATS, open_writer
from aios.core.errors import DataError
from aios.core.types import Drop, Passage, SelfEdit

PASSAGE = Passage.make("Orla Finn built the mill.", id="p")
EDIT = SelfEdit("p", "rewrite", 1, ("One.", "Two."), "m", 7, "raw", 5, {"entropy": 4.0})
DROP = Drop("p", "rewrite", 0, "It is.", "too_short", "2 tokens < 20")


def lines(path: Path, *records: object) -> Path:
    """A file of JSON lines; a text stands as it is."""
    texts = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["edits.jsonl", "edits.parquet"])
def test_edits_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open_writer(path) as writer:
        writer.write(EDIT, PASSAGE)
    assert list(read_edit_rows(path)) == [EDIT]


def test_a_broken_line_costs_only_itself(tmp_path: Path) -> None:
    row = to_row(EDIT)
    bad: list[Any] = ["{", [1], "9" * 5000, {**row, "edit": -1}, {**row, "quality": {"a": "x"}}]
    path = lines(tmp_path / "edits.jsonl", *bad, row, "", "\x00", row)
    found = list(read_edit_rows(path))
    assert [f for f in found if isinstance(f, SelfEdit)] == [EDIT, EDIT]
    broken = [f for f in found if isinstance(f, BrokenLine)]
    assert [b.line for b in broken] == [1, 2, 3, 4, 5, 8]
    assert all(b.file == path and b.problem and "\n" not in b.problem for b in broken)


@pytest.mark.parametrize("shape", sorted(set(FORMATS) - {"txt", "jsonl", "parquet"}))
def test_rows_for_other_training_tools_are_recognised_and_refused(
    tmp_path: Path, shape: str
) -> None:
    path = tmp_path / "chat.jsonl"
    with open_writer(path, shape) as writer:
        writer.write(EDIT, PASSAGE)
    with pytest.raises(DataError, match=f"--format {shape}.*which passage is whose") as caught:
        list(read_edit_rows(path))
    assert "without --format" in caught.value.remedy


def test_texts_without_ids_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "edits.txt", "One.")
    with pytest.raises(DataError, match="which passage is whose"):
        files_of(path)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("a.dropped.jsonl", asdict(DROP), "lists drops"),
        ("a.rejects.jsonl", asdict(Reject("f", 1, "bad_json")), "lists rejects"),
        ("b.jsonl", asdict(DROP), "lists drops"),
        ("b.jsonl", asdict(Reject("f", 1, "bad_json")), "lists rejects"),
        ("b.jsonl", {"text": "A passage."}, "holds no self-edits: 1 broken lines"),
        ("b.jsonl", "not JSON", "the first is 1: bad_json"),
        ("b.csv", "text", "unknown ending '.csv'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, record: object, message: str) -> None:
    path = lines(tmp_path / name, record)
    with pytest.raises(DataError, match=message):
        list(read_edit_rows(files_of(path).edits))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        files_of(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        files_of(tmp_path)
    edits = lines(tmp_path / "edits.jsonl", to_row(EDIT))
    with pytest.raises(DataError, match="does not exist"):
        files_of(edits, tmp_path / "gone.jsonl")


def test_a_damaged_table_is_an_error_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "edits.parquet"
    path.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(read_edit_rows(path))


def test_an_empty_file_holds_no_edits(tmp_path: Path) -> None:
    (tmp_path / "edits.jsonl").write_text("")
    assert list(read_edit_rows(tmp_path / "edits.jsonl")) == []


def test_the_lists_beside_a_file_are_found(tmp_path: Path) -> None:
    path = lines(tmp_path / "edits.jsonl", to_row(EDIT))
    assert (files_of(path).dropped, files_of(path).rejects) == (None, None)
    dropped = lines(tmp_path / "edits.dropped.jsonl", asdict(DROP))
    rejects = lines(tmp_path / "edits.rejects.jsonl", asdict(Reject("f", 1, "bad_json")))
    other = lines(tmp_path / "other.jsonl", asdict(DROP))
    assert (files_of(path).dropped, files_of(path).rejects) == (dropped, rejects)
    assert files_of(path, other).dropped == other


def test_drops_and_rejects_are_read_with_broken_lines_in_their_places(tmp_path: Path) -> None:
    drops = lines(tmp_path / "d", asdict(DROP), "{}", {**asdict(DROP), "index": True}, "x")
    first, *rest = read_drops(drops)
    assert first == DROP
    assert [b.line for b in rest if isinstance(b, BrokenLine)] == [2, 3, 4]
    reject = Reject("f", 3, "bad_json", "why")
    rejects = lines(tmp_path / "r", asdict(reject), {**asdict(reject), "detail": 5})
    found, broken = read_rejects(rejects)
    assert found == reject
    assert isinstance(broken, BrokenLine)
