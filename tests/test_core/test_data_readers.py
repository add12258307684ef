"""Reading passages: every format, every bad input."""

from __future__ import annotations

import builtins
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios.core.data import lines, structured_records
from aios.core.data.readers import PASSAGE_KEPT, READERS, REASONS, Reject, read_passages
from aios.core.errors import DataError, UsageError
from aios.core.types import Passage, Question

SQUAD_V2 = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "The Normans gave their name to Normandy.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "What did the Normans name?",
                            "answers": [
                                {"text": "Normandy", "answer_start": 31},
                                {"text": "Normandy", "answer_start": 31},
                                {"text": "their Normandy", "answer_start": 25},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "2",
                            "question": "Who gave their name to Norway?",
                            "answers": [],
                            "plausible_answers": [{"text": "Normans", "answer_start": 4}],
                            "is_impossible": True,
                        },
                    ],
                },
                {
                    "context": "They were descended from Norse raiders.",
                    "qas": [
                        {
                            "id": "3",
                            "question": "Who is lost?",
                            "answers": [],
                            "is_impossible": True,
                        }
                    ],
                },
            ],
        }
    ],
}


def read(path: Path, **options: Any) -> tuple[list[Passage], list[Reject]]:
    rejects: list[Reject] = []
    passages = list(read_passages(path, on_reject=rejects.append, **options))
    return passages, rejects


def write(path: Path, content: str | bytes | object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def write_jsonl(path: Path, *records: object) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def reasons(rejects: list[Reject]) -> list[tuple[int, str]]:
    return [(reject.line, reject.reason) for reject in rejects]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


# ---------------------------------------------------------------- text


def test_txt_passages_stand_between_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\nOne\nstill one\r\n\n \t \nTwo é\n")
    passages, rejects = read(path)
    assert [p.text for p in passages] == ["One\nstill one", "Two é"]
    assert [p.source for p in passages] == [f"{path}:3", f"{path}:7"]
    assert not rejects


def test_txt_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    passages, _ = read(write(tmp_path / "a.txt", b"\xef\xbb\xbfOne\n\nTwo"))
    assert [p.text for p in passages] == ["One", "Two"]


def test_txt_line_that_is_not_utf8_rejects_its_passage_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"One\n\nTwo\ncaf\xe9 x\nmore\n\nThree\n\nnul\x00\n")
    passages, rejects = read(path)
    assert [p.text for p in passages] == ["One", "Three"]
    assert reasons(rejects) == [(4, "bad_encoding"), (9, "bad_encoding")]
    assert rejects[0].file == str(path)
    assert "0xe9 at position 4" in rejects[0].detail
    assert "NUL" in rejects[1].detail


def test_utf16_file_is_named_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16") as caught:
        read(path)
    assert "UTF-8" in caught.value.remedy


def test_record_over_the_size_limit_is_rejected_and_reading_goes_on(tmp_path: Path) -> None:
    big = "x" * (lines.MAX_RECORD_BYTES + 10)
    path = write(tmp_path / "a.txt", f"One\n\n{big}\nstill\n\nTwo\n")
    passages, rejects = read(path)
    assert [p.text for p in passages] == ["One", "Two"]
    assert reasons(rejects) == [(3, "too_long")]


def test_txt_block_of_many_lines_over_the_size_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 20)
    passages, rejects = read(write(tmp_path / "a.txt", "One\n\n" + "eight by\n" * 5 + "\nTwo"))
    assert [p.text for p in passages] == ["One", "Two"]
    assert reasons(rejects) == [(3, "too_long")]


def test_md_heading_becomes_the_title(tmp_path: Path) -> None:
    text = (
        "Intro text.\n\n# Top #\n\n## Ovens\nOvens are hot.\n\nAnd big.\n\n```sh\n# no heading\n"
        "```\n\nUnderlined\n---\nText below.\n\nAlso underlined\n=====\nLast. #notaheading\n"
    )
    passages, rejects = read(write(tmp_path / "a.md", text))
    assert [(p.title, p.text) for p in passages] == [
        ("", "Intro text."),
        ("Ovens", "Ovens are hot.\n\nAnd big.\n\n```sh\n# no heading\n```"),
        ("Underlined", "Text below."),
        ("Also underlined", "Last. #notaheading"),
    ]
    assert passages[1].source.endswith(":5")
    assert not rejects


def test_md_heading_without_text_is_a_reject_unless_it_has_subsections(tmp_path: Path) -> None:
    path = write(tmp_path / "a.md", "# Book\n## Empty\n\n## Full\nText.\n# End\n")
    passages, rejects = read(path)
    assert [p.title for p in passages] == ["Full"]
    assert reasons(rejects) == [(2, "empty_text"), (6, "empty_text")]
    assert "'Empty'" in rejects[0].detail


def test_md_bad_line_rejects_its_section_alone(tmp_path: Path) -> None:
    passages, rejects = read(write(tmp_path / "a.md", b"# A\nbad \xff\n# B\ngood\n"))
    assert [p.title for p in passages] == ["B"]
    assert reasons(rejects) == [(2, "bad_encoding")]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("---\ntitle: T\ntags:\n  - x\n---\nText.\n", "Text."),
        ("---\nNo front matter here.\n\nText.\n", "---\nNo front matter here.\n\nText."),
        ("---\nkey: never closed\n", "---\nkey: never closed"),
    ],
)
def test_md_front_matter_is_left_out_only_if_it_is_some(
    tmp_path: Path, start: str, expected: str
) -> None:
    passages, _ = read(write(tmp_path / "a.md", start))
    assert [p.text for p in passages] == [expected]


def test_md_list_rule_after_a_paragraph_is_no_heading(tmp_path: Path) -> None:
    passages, _ = read(write(tmp_path / "a.md", "Line one\nline two\n---\n~~~\n# x\n```\n~~~\n"))
    assert [p.title for p in passages] == [""]
    assert "# x" in passages[0].text


# ---------------------------------------------------------------- JSON lines


def test_jsonl_reads_all_keys(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {
            "id": "p1",
            "title": " Ada  Lovelace ",
            "text": "  Ada wrote notes in 1843.  ",
            "questions": [
                {"question": "Who?", "answer": "Ada", "category": "name"},
                {"question": "When?", "answers": ["1843", "in 1843", "1843"]},
                {"question": "Year?", "answer": 1843, "category": None},
            ],
            "unknown": {"kept": False},
        },
        {"id": 7, "context": "Second."},
        {"passage": "Third.", "title": None, "questions": None, "completions": ["1. A", "2. B"]},
    )
    passages, rejects = read(path)
    first, second, third = passages
    assert first == Passage(
        text="Ada wrote notes in 1843.",
        id="p1",
        title="Ada Lovelace",
        questions=(
            Question("Who?", ("Ada",), "name"),
            Question("When?", ("1843", "in 1843")),
            Question("Year?", ("1843",)),
        ),
        source=f"{path}:1",
    )
    assert (second.id, second.text) == ("7", "Second.")
    assert third.id == Passage.make("Third.").id
    assert third.completions == ("1. A", "2. B")
    assert not rejects


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"text": ' + b"9" * 5000 + b"}", "bad_json"),
        (b'{"text": "caf\xe9"}', "bad_encoding"),
        (b'{"text": "\\ud800"}', "bad_encoding"),
        (b'["text"]', "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"3", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"title": "no text"}', "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'{"text": " \\n "}', "empty_text"),
        (b'{"text": 5}', "bad_text"),
        (b'{"text": ["a"]}', "bad_text"),
        (b'{"text": NaN}', "non_finite"),
        (b'{"text": "a", "title": Infinity}', "non_finite"),
        (b'{"text": "a", "title": ["x"]}', "bad_title"),
        (b'{"text": "a", "id": true}', "bad_id"),
        (b'{"text": "a", "id": "a\\u0007b"}', "bad_id"),
        (b'{"text": "a", "id": "' + b"i" * 201 + b'"}', "bad_id"),
        (b'{"text": "a", "id": "good"}', "duplicate_id"),
        (b'{"text": "Good  text.", "id": "other"}', "duplicate_text"),
        (b'{"text": "Good text."}', "duplicate_text"),
    ],
)
def test_jsonl_bad_record_is_rejected_with_its_line_and_the_others_are_read(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = b'{"text": "Good text.", "id": "good"}\n'
    path = write(tmp_path / "a.jsonl", good + b"\n" + line + b'\n{"text": "Last."}')
    passages, rejects = read(path)
    assert [p.text for p in passages] == ["Good text.", "Last."]
    assert reasons(rejects) == [(3, reason)]
    assert rejects[0].file == str(path)
    assert rejects[0].detail
    assert rejects[0].detail.isprintable()
    assert reason in REASONS


def test_duplicates_name_the_first_line(tmp_path: Path) -> None:
    question = {"question": "q?", "answer": "a"}
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"id": "x", "text": "A"},
        {"id": "x", "text": "B"},
        {"id": "y", "text": "A", "questions": [question]},
    )
    _, rejects = read(path)
    assert "at 1" in rejects[0].detail
    assert "at 1; its 1 questions go too" in rejects[1].detail


def test_text_key_that_is_blank_gives_way_to_the_next(tmp_path: Path) -> None:
    passages, _ = read(write_jsonl(tmp_path / "a.jsonl", {"text": "", "context": "C"}))
    assert passages[0].text == "C"


@pytest.mark.parametrize(
    "questions",
    [
        {"question": "q", "answer": "a"},
        "not json",
        5,
        ["q?"],
        [{"answer": "a"}],
        [{"question": "q"}],
        [{"question": "q", "answer": " "}],
        [{"question": "q", "answer": True}],
        [{"question": "q", "answer": float("nan")}],
        [{"question": "q", "answers": [{"wrong": 1}]}],
        [{"question": "q", "answer": "a", "category": ["x"]}],
        [{"question": "\ud800", "answer": "a"}],
    ],
)
def test_bad_question_is_rejected_and_its_passage_kept(tmp_path: Path, questions: Any) -> None:
    good = {"question": "good?", "answer": "yes"}
    mixed = [*questions, good] if isinstance(questions, list) else questions
    passages, rejects = read(write_jsonl(tmp_path / "a.jsonl", {"text": "A", "questions": mixed}))
    assert reasons(rejects) == [(1, "bad_questions")]
    assert rejects[0].reason in PASSAGE_KEPT
    expected = (Question("good?", ("yes",)),) if isinstance(questions, list) else ()
    assert passages[0].questions == expected


@pytest.mark.parametrize("completions", ["text", 5, [1, " "], {"a": 1}])
def test_bad_completions_are_rejected_and_the_passage_kept(
    tmp_path: Path, completions: object
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "A", "completions": completions})
    passages, rejects = read(path)
    assert passages[0].completions == ()
    assert reasons(rejects) == [(1, "bad_completions")]


def test_jsonl_line_over_the_size_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 40)
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "x" * 50}, {"text": "ok"})
    passages, rejects = read(path)
    assert [p.text for p in passages] == ["ok"]
    assert reasons(rejects) == [(1, "too_long")]


# ---------------------------------------------------------------- JSON


def test_squad_v2_leaves_out_unanswerable_questions_in_one_reject(tmp_path: Path) -> None:
    passages, rejects = read(write(tmp_path / "dev.json", SQUAD_V2))
    assert [(p.title, p.text) for p in passages] == [
        ("Normans", "The Normans gave their name to Normandy."),
        ("Normans", "They were descended from Norse raiders."),
    ]
    assert passages[0].questions == (
        Question("What did the Normans name?", ("Normandy", "their Normandy")),
    )
    assert passages[1].questions == ()
    assert reasons(rejects) == [(1, "unanswerable_question")]
    assert rejects[0].detail.startswith("2 questions")


def test_squad_v1_as_bare_list_of_articles(tmp_path: Path) -> None:
    articles = [
        {
            "title": "T",
            "paragraphs": [
                {"context": "C.", "qas": [{"question": "q?", "answers": {"text": ["C"]}}]}
            ],
        }
    ]
    passages, rejects = read(write(tmp_path / "a.json", articles))
    assert passages[0].questions == (Question("q?", ("C",)),)
    assert not rejects


def test_seal_release_json_keeps_completions(tmp_path: Path) -> None:
    records = [
        {
            "title": "Estonian",
            "context": "Writings in Estonian became significant.",
            "questions": [{"question": "What became significant?", "answer": "Writings"}],
            "completions": ["1. One.\n2. Two.", "1. Three."],
            "prompt": "Let's read the following passage …",
        }
    ]
    passages, rejects = read(write(tmp_path / "a.json", records))
    assert passages[0].completions == ("1. One.\n2. Two.", "1. Three.")
    assert passages[0].questions == (Question("What became significant?", ("Writings",)),)
    assert not rejects


@pytest.mark.parametrize("value", [{"text": "A"}, {"data": [{"text": "A"}]}, [{"text": "A"}]])
def test_json_shapes(tmp_path: Path, value: object) -> None:
    passages, _ = read(write(tmp_path / "a.json", value))
    assert [p.text for p in passages] == ["A"]


def test_json_entries_that_are_no_objects_are_rejected_by_number(tmp_path: Path) -> None:
    value = [
        5,
        {"text": "A"},
        {"title": "T", "paragraphs": "p"},
        {"paragraphs": [{"context": "B"}]},
    ]
    passages, rejects = read(write(tmp_path / "a.json", value))
    assert [p.text for p in passages] == ["A", "B"]
    assert reasons(rejects) == [(1, "not_an_object"), (3, "not_an_object")]


def test_json_record_over_the_size_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 40)
    passages, rejects = read(write(tmp_path / "a.json", [{"text": "x" * 41}, {"text": "ok"}]))
    assert [p.text for p in passages] == ["ok"]
    assert reasons(rejects) == [(1, "too_long")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"},\n{broken]', "line 2"),
        (b'{"model": "x"}', "neither a list"),
        (b"5", "neither a list"),
        (b'[\n{"text": "caf\xe9"}]', ":2: not UTF-8"),
    ],
)
def test_json_file_bad_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / "a.json", content))
    assert caught.value.remedy


def test_json_file_over_the_size_limit_points_to_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as handle:
        handle.truncate(structured_records.MAX_JSON_BYTES + 1)  # sparse: takes no space
    with pytest.raises(DataError, match="536,870,912") as caught:
        read(path)
    assert ".jsonl" in caught.value.remedy


# ---------------------------------------------------------------- CSV


def test_csv_reads_columns_and_json_questions(tmp_path: Path) -> None:
    questions = json.dumps([{"question": "q?", "answer": "a"}]).replace('"', '""')
    text = (
        "Text,title,id,questions,completions\n"
        f'"Line one,\nline two",T,1,"{questions}","[""c""]"\n\nB,,,,\n'
    )
    passages, rejects = read(write(tmp_path / "a.csv", "\ufeff" + text))
    assert [(p.text, p.title) for p in passages] == [("Line one,\nline two", "T"), ("B", "")]
    assert passages[0].id == "1"
    assert passages[0].questions == (Question("q?", ("a",)),)
    assert passages[0].completions == ("c",)
    assert [p.source[-2:] for p in passages] == [":2", ":5"]
    assert not rejects


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    text = f"title{delimiter}context\nT{delimiter}A, B\n"
    passages, _ = read(write(tmp_path / "a.csv", text))
    assert [(p.title, p.text) for p in passages] == [("T", "A, B")]


def test_csv_bad_rows_are_rejected_and_the_others_read(tmp_path: Path) -> None:
    rows = (
        b"text,title,questions\n"
        b"Good,T,\n"
        b",no text,\n"
        b"caf\xe9,T,\n"
        b"a,b,c,d\n"
        b'"a" b,T,\n'
        b"Kept,T,{oops\n"
        b"Short\n"
        b'"never closed,T\nmore\n'
    )
    passages, rejects = read(write(tmp_path / "a.csv", rows))
    assert [p.text for p in passages] == ["Good", "Kept", "Short"]
    assert reasons(rejects) == [
        (3, "empty_text"),
        (4, "bad_encoding"),
        (5, "bad_columns"),
        (6, "bad_csv"),
        (7, "bad_questions"),
        (9, "bad_csv"),
    ]


def test_csv_record_over_the_size_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 40)
    rows = "text\nA\n" + "x" * 60 + '\nB\n"' + "eight ch\n" * 5 + "C\n"
    passages, rejects = read(write(tmp_path / "a.csv", rows))
    assert [p.text for p in passages][:2] == ["A", "B"]
    assert passages[-1].text == "C"
    assert reasons(rejects)[:2] == [(3, "too_long"), (5, "too_long")]


def test_csv_passage_longer_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    passages, _ = read(write(tmp_path / "a.csv", "text\n" + "word " * 40_000 + "\n"))
    assert len(passages[0].text) > 131_072


@pytest.mark.parametrize("header", ["name,age", "", "x" * 100])
def test_csv_without_a_text_column(
    tmp_path: Path, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 50)
    with pytest.raises(DataError, match="no column is named text"):
        read(write(tmp_path / "a.csv", f"{header}\nA,B\n"))


# ---------------------------------------------------------------- Parquet


def test_parquet_reads_rows_and_nested_questions(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        {
            "context": f"Text {n}.",
            "title": None if n else "T",
            "questions": [{"question": "q?", "answers": ["a", "b"], "answer": None}],
            "other": n,
        }
        for n in range(150)
    ]
    rows[3]["context"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    passages, rejects = read(path)
    assert len(passages) == 149
    assert passages[0].title == "T"
    assert passages[5].questions == (Question("q?", ("a", "b")),)
    assert passages[-1].source == f"{path}:150"
    assert reasons(rejects) == [(4, "missing_text")]


def test_parquet_damaged_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(write(tmp_path / "a.parquet", b"PAR1 no parquet at all PAR1"))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pyarrow(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_pyarrow)
    path = write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(UsageError) as caught:
        read_passages(path, on_reject=lambda reject: None)
    assert 'pip install "aios[parquet]"' in caught.value.remedy


# ---------------------------------------------------------------- whole files


@pytest.mark.parametrize("ending", sorted(READERS))
def test_empty_file_of_every_format(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match="is empty") as caught:
        read(write(tmp_path / f"a{ending}", b""))
    assert all(known in caught.value.remedy for known in READERS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", " \n\n\n"),
        ("a.md", "\n"),
        ("a.jsonl", "\n\n"),
        ("a.json", "[]"),
        ("a.csv", "text,title\n"),
    ],
)
def test_file_without_passages(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match="holds no passages") as caught:
        read(write(tmp_path / name, content))
    assert ".jsonl" in caught.value.remedy


def test_file_of_rejects_alone_counts_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{x\n{}\n{}\n")
    rejects: list[Reject] = []
    with pytest.raises(DataError, match=r"rejected: missing_text 2, bad_json 1"):
        list(read_passages(path, on_reject=rejects.append))
    assert len(rejects) == 3


@pytest.mark.parametrize("name", ["a.docx", "a", "a.jsonl.gz"])
def test_unknown_ending_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "text")
    with pytest.raises(DataError, match="unknown ending") as caught:
        read_passages(path, on_reject=lambda reject: None)
    assert all(ending in caught.value.remedy for ending in READERS)


def test_ending_in_capitals_is_known(tmp_path: Path) -> None:
    assert read(write(tmp_path / "A.TXT", "One"))[0][0].text == "One"


def test_missing_file_and_folder_are_found_before_iterating(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_passages(tmp_path / "none.txt", on_reject=lambda reject: None)
    with pytest.raises(DataError, match="is a folder"):
        read_passages(tmp_path, on_reject=lambda reject: None)
    with pytest.raises(DataError, match="cannot be read"):
        read_passages(tmp_path / ("x" * 300 + ".txt"), on_reject=lambda reject: None)


@pytest.mark.parametrize("ending", [".txt", ".json", ".csv"])
def test_file_that_the_system_does_not_let_us_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = write(tmp_path / f"a{ending}", "text\n")

    def denied(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read(path)


def test_error_of_the_callers_callback_is_not_taken_for_a_read_error(tmp_path: Path) -> None:
    def full_disk(reject: Reject) -> None:
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "a.jsonl", "{x\n")
    with pytest.raises(OSError, match="No space left"):
        list(read_passages(path, on_reject=full_disk))


def test_reading_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": f"Text {n}"} for n in range(5000)))
    passages = read_passages(path, on_reject=lambda reject: None)
    read_lines = 0
    original: Callable[..., Any] = structured_records.parse_json

    def counted(text: str) -> object:
        nonlocal read_lines
        read_lines += 1
        return original(text)

    monkeypatch.setattr(structured_records, "parse_json", counted)
    assert [next(passages).text for _ in range(3)] == ["Text 0", "Text 1", "Text 2"]
    assert read_lines == 3


def test_text_formats_need_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith("pyarrow")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert read(write(tmp_path / "a.txt", "One"))[0]


# ---------------------------------------------------------------- long passages


def count_words(text: str) -> int:
    return len(text.split())


def test_long_passage_is_split_and_questions_go_to_their_part(tmp_path: Path) -> None:
    record = {
        "id": "doc",
        "title": "T",
        "text": "The mill was built by Orla Finn. It stands in Dunmery. It burned down in 1904.",
        "questions": [
            {"question": "When did it burn?", "answer": "1904"},
            {"question": "Who built the mill?", "answers": ["Finn", "Orla Finn"]},
            {"question": "Is it old?", "answer": "unknown"},
        ],
        "completions": ["c"],
    }
    path = write_jsonl(tmp_path / "a.jsonl", record, {"text": "Short."})
    passages, rejects = read(path, count_tokens=count_words, max_tokens=7)
    assert [p.id for p in passages[:3]] == ["doc#1", "doc#2", "doc#3"]
    assert all(count_words(p.text) <= 7 for p in passages)
    assert " ".join(p.text for p in passages[:3]) == record["text"]
    assert [[q.question for q in p.questions] for p in passages[:3]] == [
        ["Who built the mill?", "Is it old?"],
        [],
        ["When did it burn?"],
    ]
    assert [p.completions for p in passages[:3]] == [("c",), (), ()]
    assert {p.title for p in passages[:3]} == {"T"}
    assert passages[3].id == Passage.make("Short.").id
    assert not rejects


def test_nothing_is_split_without_a_budget(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One two. Three four.")
    assert len(read(path, count_tokens=count_words)[0]) == 1
    assert len(read(path, max_tokens=1)[0]) == 1


def test_part_id_that_is_taken_is_a_reject(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", {"id": "d#2", "text": "Taken."}, {"id": "d", "text": "One a. Two b."}
    )
    passages, rejects = read(path, count_tokens=count_words, max_tokens=2)
    assert [p.id for p in passages] == ["d#2", "d#1"]
    assert reasons(rejects) == [(2, "duplicate_id")]


def test_budget_below_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "One")
    with pytest.raises(UsageError, match="max_tokens is 0"):
        read_passages(path, on_reject=lambda r: None, count_tokens=count_words, max_tokens=0)
