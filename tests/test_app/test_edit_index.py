from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from aios.app.edits.index import EditIndex
from aios.app.edits.inspect_edits import inspect_edits
from aios.app.edits.inspection import Selection
from aios.app.edits.records import Kind, parsed_line
from aios.app.edits.shelf import EditShelf, read_texts
from aios.app.edits.sources import EditSource, find_source, list_sources
from aios.app.jobs.store import JobStore
from aios.core.errors import UsageError
from aios.core.types import Drop, SelfEdit
from tests.test_app.edit_files import (
    dropped,
    journal_line,
    kept,
    write,
    write_job,
    write_many,
)

FOLDER = "edits/made"


def index_of(path: Path) -> EditIndex:
    return EditIndex((path, "edits"), (path.with_name("edits.dropped.jsonl"), "drops"))


@pytest.fixture
def three(tmp_path: Path) -> EditIndex:
    """Three passages: one whole, one with an item and an edit dropped, one with nothing left."""
    edits = [
        kept("a", 0, "The Ferry is old.", entropy=1.0),
        kept("a", 1, entropy=2.0),
        kept("b", 0, strategy="cloze", entropy=3.0),
    ]
    drops = [
        dropped("c", 0),
        dropped("c", 1, "ungrounded"),
        dropped("b", 0, "ungrounded", "cloze"),
        dropped("b", 1, text="It crossed the “Teal”."),
    ]
    return index_of(write(tmp_path, edits, drops))


def found(index: EditIndex, text: str = "", **wanted: object) -> list[str]:
    return index.ids(index.find(Selection(**wanted), text).passages)  # type: ignore[arg-type]


def test_totals_are_those_of_an_inspection(tmp_path: Path) -> None:
    write_many(tmp_path, 60)
    seen, totals = (
        inspect_edits(tmp_path / "edits.jsonl"),
        index_of(tmp_path / "edits.jsonl").totals(),
    )
    assert (totals.passages, totals.without_edits) == (seen.passages, seen.without_edits)
    assert (totals.all.kept, totals.all.dropped) == (seen.kept, seen.dropped)
    assert totals.all.reasons == seen.reasons
    assert totals.models == seen.models
    assert {s.strategy: (s.kept, s.dropped) for s in totals.strategies} == {
        s.strategy: (s.kept, s.dropped) for s in seen.strategies
    }
    ours = {score.name: score for score in totals.scores}
    for score in (*seen.scores, seen.tokens_generated):
        assert score is not None
        mine = ours[score.name]
        assert (mine.n, mine.bins, mine.low, mine.p10, mine.median, mine.p90, mine.high) == (
            (score.n, score.bins, score.low, score.p10, score.median, score.p90, score.high)
        )
        assert mine.mean == pytest.approx(score.mean)


def test_items_dropped_from_kept_edits_are_told_from_whole_ones(three: EditIndex) -> None:
    totals = three.totals()
    assert (totals.passages, totals.without_edits) == (3, 1)
    assert (totals.all.kept, totals.all.dropped, totals.all.items_dropped) == (3, 3, 1)
    cloze = next(one for one in totals.strategies if one.strategy == "cloze")
    assert (cloze.kept, cloze.dropped, cloze.share_kept) == (1, 0, 1.0)
    assert cloze.scores["entropy"].median == 3.0


def test_passages_without_edits_stand_where_the_list_of_drops_has_them(three: EditIndex) -> None:
    assert found(three) == ["a", "c", "b"]


def test_passages_are_found_by_what_became_of_them(three: EditIndex) -> None:
    assert found(three, dropped=False) == ["a", "b"]
    assert found(three, kept=False) == ["c", "b"]
    assert found(three, reasons=("ungrounded",)) == ["c", "b"]
    assert found(three, strategies=("cloze",)) == ["b"]
    assert found(three, strategies=("none such",)) == []


def test_passages_are_found_by_a_text_in_their_edits_drops_and_ids(three: EditIndex) -> None:
    assert found(three, "fERRY is") == ["a"]
    assert found(three, "the “teal”") == ["b"]
    assert found(three, "the “teal”", dropped=False) == []
    assert found(three, "c") == ["c", "b"]  # an id, and "crossed"
    assert found(three, '"items"') == []  # the file's own words are no text


def test_a_search_in_a_journal_that_grows_reads_only_what_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / ".edits.jsonl.journal"
    journal.write_bytes(
        journal_line(0, "p0", kept("p0", 0, "The ferry.")) + journal_line(1, "p1", kept("p1", 0))
    )
    index, read = EditIndex((journal, "journal")), []

    def counted(kind: Kind, line: bytes, needle: str = "") -> list[SelfEdit | Drop]:
        read.append(line)
        return parsed_line(kind, line, needle)

    monkeypatch.setattr("aios.app.edits.index.parsed_line", counted)
    assert found(index, "ferry") == ["p0"]
    assert len(read) == 2
    with journal.open("ab") as handle:
        handle.write(journal_line(2, "p2", dropped("p2", 0, text="A Ferry, too.")))
    assert found(index, "ferry") == found(index, "ferry") == ["p0", "p2"]
    assert len(read) == 3
    with journal.open("ab") as handle:  # what was written is written again, without it
        handle.write(journal_line(0, "p0", kept("p0", 0, "A mill.")))
    assert found(index, "ferry") == ["p2"]
    assert found(index, "mill") == ["p0"]


def test_texts_are_read_again_for_the_passages_that_are_shown(three: EditIndex) -> None:
    (b, a) = three.shown(["b", "a"], Selection())
    assert (b.id, a.id) == ("b", "a")
    assert [row.strategy for row in b.rows()] == ["cloze", "cloze", "rewrite"]
    assert a.edits[0].items == ("The Ferry is old.",)
    (only,) = three.shown(["b"], Selection(kept=False, reasons=("too_short",)))
    assert (only.edits, len(only.drops)) == ((), 1)


def test_broken_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = write(tmp_path, [kept("a", 0)], [], "{", '{"items": 3}', "[]", "")
    totals = index_of(path).totals()
    assert (totals.all.kept, totals.broken) == (1, 3)
    assert [one.line for one in totals.broken_listed] == [2, 3, 4]


def test_a_reason_named_like_ours_is_no_kept_edit(tmp_path: Path) -> None:
    totals = index_of(write(tmp_path, [], [dropped("a", 0, ""), dropped("a", 1, "kept")])).totals()
    assert (totals.all.kept, totals.all.dropped) == (0, 2)


def test_a_journal_is_followed_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    index = EditIndex((path, "journal"))
    assert index.totals().passages == 0
    path.write_bytes(b'{"journal":1,"fingerprint":{}}\n' + journal_line(1, "b", kept("b", 0)))
    assert found(index) == ["b"]
    with path.open("ab") as handle:
        handle.write(journal_line(0, "a", kept("a", 0), dropped("a", 1), failure="no answer"))
        handle.write(journal_line(2, "c", dropped("c", 0))[:-5])  # not whole yet
    assert (found(index), index.totals().failed) == (["a", "b"], 1)
    with path.open("ab") as handle:
        handle.write(journal_line(2, "c", dropped("c", 0))[-5:])
        handle.write(journal_line(0, "a", kept("a", 0), kept("a", 1)))  # tried again
    totals = index.totals()
    assert (totals.passages, totals.all.kept, totals.all.dropped, totals.failed) == (3, 3, 1, 0)
    assert len(index.shown(["a"], Selection())[0].edits) == 2


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    index = index_of(write(tmp_path, [kept("a", 0)]))
    assert found(index) == ["a"]
    write(tmp_path / "new", [kept("b", 0, "x" * 500)]).replace(tmp_path / "edits.jsonl")
    assert found(index) == ["b"]


def test_a_folder_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    shelf = EditShelf()
    for passage in ("a", "b", "c"):
        shutil.rmtree(tmp_path / FOLDER, ignore_errors=True)
        write(tmp_path / FOLDER, [kept(passage, 0), kept(f"{passage}{passage}", 0)])
        shown = shelf.page(find_source(tmp_path, "made"), Selection()).shown
        assert [one.id for one in shown] == [passage, 2 * passage]


# ------------------------------------------------------------ where they are


def test_sources_are_found_with_the_jobs_that_wrote_them(tmp_path: Path) -> None:
    write(tmp_path / FOLDER, [kept("a", 0)])
    write_job(tmp_path, "made", tmp_path / "passages.jsonl")
    folder = tmp_path / "edits" / "begun"
    folder.mkdir()
    (folder / ".edits.jsonl.journal").write_bytes(journal_line(0, "a", kept("a", 0)))
    for path in ("runs/r/edits.journal", "runs/r/rounds/2/candidates.edits.journal"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(journal_line(0, "a", kept("a", 0)))
    (tmp_path / "edits" / "empty").mkdir()
    jobs = JobStore(tmp_path).list()
    sources = {source.id: source for source in list_sources(tmp_path, jobs)}
    assert sorted(sources) == ["begun", "made", "runs~r~2~candidates", "runs~r~edits"]
    assert sources["made"].title == "passages.jsonl"
    assert (sources["made"].complete, sources["begun"].complete) == (True, False)
    assert sources["runs~r~2~candidates"].index().totals().all.kept == 1


@pytest.mark.parametrize(
    "hostile",
    ["..", "../edits", "runs~..~edits", "runs~r~../../x~candidates", "jobs~made~edits", "runs~r",
     "runs~r~1~trials", "a/b", "~", "runs~r~²~candidates"],
)  # fmt: skip
def test_ids_that_name_no_source_are_refused(tmp_path: Path, hostile: str) -> None:
    with pytest.raises(UsageError):
        find_source(tmp_path, hostile)


def test_a_link_out_of_the_artifacts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "outside", [kept("a", 0)])
    (tmp_path / "inside" / "edits").mkdir(parents=True)
    (tmp_path / "inside" / "edits" / "made").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="leads out"):
        find_source(tmp_path / "inside", "made")


# ------------------------------------------------------------ many passages


def source_of(tmp_path: Path) -> EditSource:
    return find_source(tmp_path, "made", JobStore(tmp_path).list())


def test_passages_are_shown_with_their_texts_and_found_by_them(tmp_path: Path) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_text(
        '{"id":"a","title":"Teal","text":"A bridge."}\n{"id":"b","text":"A <b> road."}\n'
    )
    write(tmp_path / FOLDER, [kept("a#1", 0), kept("b", 0)])
    write_job(tmp_path, "made", file)
    shelf = EditShelf()
    page = shelf.page(source_of(tmp_path), Selection())
    assert [(one.id, one.title, one.text) for one in page.shown] == [
        ("a#1", "Teal", "A bridge."),
        ("b", "", "A <b> road."),
    ]
    assert [one.id for one in shelf.page(source_of(tmp_path), Selection(), "BRIDGE").shown] == [
        "a#1"
    ]
    file.unlink()
    page = shelf.page(source_of(tmp_path), Selection())
    assert (page.texts, page.matching) == (False, 2)
    assert "passages.jsonl" in page.problem
    assert str(tmp_path) not in page.problem


def test_texts_of_a_large_file_are_held_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("First passage.\n\nSecond passage, which is longer.\n")
    monkeypatch.setattr("aios.app.edits.shelf.MOST_TEXT", 20)
    texts = read_texts(file)
    assert (len(texts.passages), texts.whole) == (1, False)


@pytest.mark.slow
def test_pages_of_ten_thousand_passages_come_quickly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_many(tmp_path / FOLDER, 10_000)
    shelf, source, took = EditShelf(), source_of(tmp_path), {}
    for name, page, text in (("first", 1, ""), ("another", 777, ""), ("search", 2, "9-2.")):
        began = time.perf_counter()
        found = shelf.page(source, Selection(limit=10), text, page)
        took[name] = time.perf_counter() - began
        assert len(found.shown) == 10
    with capsys.disabled():
        sys.stdout.write(" ".join(f"{name} {took[name]:.3f} s" for name in took) + "\n")
    assert took["another"] < 1.0
