from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from aios.app.data import files as data_files
from aios.app.data.files import DataFiles, bundled_example, safe_name
from aios.app.data.preview import SHOWN_TEXT, Previews, look_at
from aios.core.errors import DataError, UsageError


def test_an_upload_is_kept_listed_and_deleted(tmp_path: Path) -> None:
    files = DataFiles(tmp_path)
    assert files.list() == ()
    kept = files.add("../../My passages (1).JSONL", io.BytesIO(b'{"text": "a"}\n'))
    assert kept.name == "My-passages-1.jsonl"
    assert kept.path.parent.parent == tmp_path / "uploads"
    assert kept.path.read_bytes() == b'{"text": "a"}\n'
    assert files.list() == (kept,) == DataFiles(tmp_path).list()
    assert files.get(kept.id) == kept
    with pytest.raises(UsageError, match="a job is reading"):
        files.delete(kept.id, {kept.path})
    assert files.delete(kept.id) == kept.name
    assert files.list() == ()
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.sh", b"echo", "cannot be read"),
        ("noending", b"x", "no ending"),
        ("", b"x", "no ending"),
        ("a.jsonl.exe", b"x", "cannot be read"),
        ("empty.txt", b"", "empty"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        DataFiles(tmp_path).add(name, io.BytesIO(content))
    assert not list(tmp_path.rglob("*.*"))


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_files, "MOST_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        DataFiles(tmp_path).add("a.txt", io.BytesIO(b"x" * 11))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b\\c.txt", "c.txt"),
        ("<script>.md", "script.md"),
        ("...txt", "passages.txt"),
        ("-rf.txt", "rf.txt"),
        ("a\0b\n.csv", "a-b.csv"),
        ("Größe.json", "Größe.json"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_long_name_is_cut_and_keeps_its_ending() -> None:
    cut = safe_name("ä" * 500 + ".parquet")
    assert cut.endswith("ä.parquet")
    assert len(cut.encode()) <= 150


def test_files_of_folders_can_be_chosen_by_id_and_not_deleted(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    outside.mkdir()
    (folder / "notes.txt").write_text("a")
    (folder / "deep" / "b.jsonl").write_text("{}")
    (folder / ".hidden.txt").write_text("a")
    (folder / "program.py").write_text("a")
    (outside / "secret.txt").write_text("a")
    (folder / "linked.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    files = DataFiles(tmp_path / "artifacts", (folder, tmp_path / "missing"))
    assert [file.name for file in files.list()] == ["deep/b.jsonl", "notes.txt"]
    first = files.list()[0]
    assert files.get(first.id) == first
    assert first.place == "data"
    with pytest.raises(UsageError, match="not uploaded"):
        files.delete(first.id)
    assert first.path.exists()


@pytest.mark.parametrize(
    "file_id", ["", "..", "../x", "upload-x", "upload-20260101-000000-abcdef", "file-0", "a\0"]
)
def test_an_id_that_is_none_leads_nowhere(tmp_path: Path, file_id: str) -> None:
    for ask in (DataFiles(tmp_path).get, DataFiles(tmp_path).delete):
        with pytest.raises(UsageError, match="no such file"):
            ask(file_id)


def test_an_upload_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("a")
    (tmp_path / "artifacts" / "uploads").mkdir(parents=True)
    name = "upload-20260101-000000-abcdef"
    (tmp_path / "artifacts" / "uploads" / name).symlink_to(outside)
    files = DataFiles(tmp_path / "artifacts")
    with pytest.raises(UsageError):
        files.get(name)


def test_the_example_is_there_once_even_if_its_folder_is_given() -> None:
    example = bundled_example()
    assert example is not None
    files = DataFiles(Path("nowhere"), (example.parent,), example)
    found = [file for file in files.list() if file.path == example]
    assert [file.source for file in found] == ["example"]


# ------------------------------------------------------------------ previews


def test_a_preview_counts_passages_questions_and_what_was_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "One. " * 1000, "title": "T", "questions": [{"question": "q?", "answer": "a"}]},
        {"text": "Two."},
        {"text": "Two."},
        {"title": "no text"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    found = look_at(path)
    assert (found.passages, found.with_questions, found.questions, found.lost) == (2, 1, 1, 3)
    assert found.whole
    assert found.rejected == {"duplicate_text": 1, "missing_text": 1, "bad_json": 1}
    assert [reject.line for reject in found.rejects] == [3, 4, 5]
    assert found.first[0].cut
    assert len(found.first[0].text) == SHOWN_TEXT
    assert found.first[0].asked == 1


def test_a_file_without_passages_is_a_problem_without_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n")
    found = look_at(path)
    assert "no column" in found.problem
    assert str(tmp_path) not in found.problem
    assert "is a folder" in look_at(tmp_path).problem


def test_a_look_is_bounded_also_where_there_is_no_passage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios.app.data.preview.MOST_SECONDS", 0.0)
    path = tmp_path / "a.jsonl"
    path.write_text("bad\n" * 10_000)
    found = look_at(path)
    assert not found.whole
    assert not found.problem
    assert sum(found.rejected.values()) < 200
    path.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(10_000)))
    assert look_at(path).passages < 200


def test_a_preview_is_made_anew_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    previews = Previews()
    first = previews.of(path)
    assert previews.of(path) is first
    path.write_text("one\n\ntwo")
    assert previews.of(path).passages == 2
