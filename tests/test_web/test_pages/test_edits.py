from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

from aios.web.pages import edit_previews
from tests.test_app.edit_files import dropped, journal_line, kept, write, write_job
from tests.test_web.visitor import Visitor

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


def made(visitor: Visitor, *, hostile: str = "plain") -> Path:
    """A generation of three passages with its job and its input."""
    file = visitor.artifacts / "uploads" / "passages.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(
        '{"id":"a","title":"Teal bridge","text":"A bridge of nine pillars."}\n'
        '{"id":"b","title":"Ferry","text":"A ferry."}\n{"id":"c","text":"A crank."}\n'
    )
    folder = visitor.artifacts / "edits" / "made"
    edits = [kept("a", 0, f"{hostile} pillar", entropy=1.0), kept("b", 0, strategy="cloze")]
    drops = [
        dropped("a", 1, "ungrounded", text=f"{hostile} no truth"),
        dropped("c", 0, hostile, hostile),
    ]
    write(folder, edits, drops)
    write_job(visitor.artifacts, "made", file)
    return folder


def headings(html: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'<h3 class="text">(.*?)</h3>', html)]


def test_without_self_edits_the_page_says_where_to_begin(visitor: Visitor) -> None:
    html = visitor.look("/edits")
    assert "There are no self-edits yet" in html
    for path in ("/edits/preview", "/cache", "/"):
        assert f'href="{path}"' in html


def test_all_files_are_listed_with_their_counts(visitor: Visitor) -> None:
    made(visitor)
    run = visitor.artifacts / "runs" / "r" / "rounds" / "1"
    run.mkdir(parents=True)
    (run / "candidates.edits.journal").write_bytes(journal_line(0, "a", kept("a", 0)))
    html = visitor.look("/edits")
    row = html.partition('id="edits-made"')[2].partition("</tr>")[0]
    assert re.findall(r'<td class="n">(.*?)</td>', row) == ["3", "2", "2"]
    assert "r, round 1: candidates" in html
    assert headings(visitor.look("/edits/runs~r~1~candidates")) == ["a"]


def test_many_files_come_on_pages(visitor: Visitor) -> None:
    for number in range(30):
        write(visitor.artifacts / "edits" / f"made-{number}", [kept("a", 0)])
    assert visitor.look("/edits").count('<tr id="edits-') == 25
    assert visitor.look("/edits?page=2").count('<tr id="edits-') == 5
    assert visitor.look("/edits-list?page=99").count('<tr id="edits-') == 5


def test_passages_stand_beside_their_edits(visitor: Visitor) -> None:
    made(visitor)
    html = visitor.look("/edits/made")
    assert headings(html) == ["Teal bridge", "Ferry", "c"]
    assert "A bridge of nine pillars." in html
    assert "Dropped: ungrounded" in html
    assert "data-live" not in html  # it is complete
    assert 'href="/jobs/made"' in html


def test_passages_are_filtered(visitor: Visitor) -> None:
    made(visitor)
    for query, expected in (
        ("text=NINE+pillars", ["Teal bridge"]),
        ("text=no+truth", ["Teal bridge"]),
        ("strategy=cloze", ["Ferry"]),
        ("reason=ungrounded", ["Teal bridge"]),
        ("show=kept", ["Teal bridge", "Ferry"]),
        ("show=dropped&strategy=cloze", []),
        ("strategy=none-such&reason=none&show=all", ["Teal bridge", "Ferry", "c"]),
        ("per=1&page=2", ["Ferry"]),
        ("per=1&page=900", ["c"]),
        ("per=x&page=-3", ["Teal bridge", "Ferry", "c"]),
    ):
        assert headings(visitor.look(f"/edits/made?{query}")) == expected, query
    assert "No passage has that" in visitor.look("/edits/made?text=nowhere")
    assert "show=kept&amp;per=1&amp;page=2" in visitor.look("/edits/made?show=kept&per=1")


def test_what_a_model_wrote_is_text(visitor: Visitor) -> None:
    made(visitor, hostile=HOSTILE)
    for path in ("/edits", "/edits/made", "/edits/made/strategies", "/edits/made/passages"):
        html = visitor.look(path)
        assert ESCAPED in html, path
        assert "<script>alert" not in html
        assert "<img src=x" not in html
    assert ESCAPED in visitor.look("/edits/made", status=200)
    html = visitor.look("/edits/made?text=%3Cscript%3E")
    assert headings(html) == ["Teal bridge"]
    assert 'value="&lt;script&gt;"' in html


def test_strategies_are_compared(visitor: Visitor) -> None:
    made(visitor)
    html = visitor.look("/edits/made/strategies")
    assert html == visitor.look("/edits/made/strategies")
    assert "Scores by strategy" in html
    assert 'href="/edits/made?strategy=cloze"' in html
    assert 'href="/edits/made?reason=ungrounded"' in html
    assert 'class="histogram"' in html
    assert "style=" not in html


def test_what_is_being_written_is_shown_as_far_as_it_is(visitor: Visitor) -> None:
    folder = visitor.artifacts / "edits" / "begun"
    folder.mkdir(parents=True)
    journal = folder / ".edits.jsonl.journal"
    journal.write_bytes(journal_line(0, "a", kept("a", 0), failure="no answer"))
    html = visitor.look("/edits/begun")
    assert 'data-live="/edits/begun/passages/live?per=10&amp;page=1"' in html
    assert "interrupted" in html
    assert "Failed" in html
    with journal.open("ab") as handle:
        handle.write(journal_line(1, "b", kept("b", 0)))
    part = visitor.look("/edits/begun/passages")
    assert "<b>2</b>" in part
    assert headings(part) == ["a", "b"]
    assert headings(visitor.look("/edits/begun/passages?per=1&page=2")) == ["b"]
    page = visitor.look("/edits/begun?per=1&page=2&text=text&show=kept")
    live = "/edits/begun/passages/live?text=text&amp;show=kept&amp;per=1&amp;page=2"
    assert f'data-live="{live}"' in page
    write(folder, [kept("a", 0), kept("b", 0), kept("c", 0)])
    journal.unlink()
    assert "<b>3</b>" in visitor.look("/edits/begun/passages")
    assert "The file that the passages came from is not known" in visitor.look("/edits/begun")


def test_a_file_that_is_not_there_is_told(visitor: Visitor) -> None:
    assert "there is no file of self-edits" in visitor.look("/edits/nothing", status=404)
    visitor.look("/edits/runs~..~edits", status=400)
    visitor.look("/edits/..%2fjobs", status=404)


# ------------------------------------------------------------ trying a prompt


def passages(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mine.jsonl").write_text(
        '{"id":"a","title":"Teal","text":"The bridge over the Teal is 240 metres long. It rests on'
        ' nine pillars of granite. Masons of the guild built it."}\n'
        '{"id":"b","title":"<b>Ferry</b>","text":"The ferry of Arnholt sails at noon."}\n'
    )
    return folder


def with_files(tmp_path: Path) -> tuple[Visitor, str]:
    visitor = Visitor(tmp_path, "seal.strategy=implications", data=(passages(tmp_path / "mine"),))
    found = re.search(r'value="(file-\w+)"[^>]*>mine.jsonl', visitor.look("/edits/preview"))
    assert found is not None
    return visitor, found[1]


def test_the_prompt_on_a_passage_is_shown(tmp_path: Path) -> None:
    visitor, file = with_files(tmp_path)
    html = visitor.look(f"/edits/preview?file={file}&passage=2&strategy=self-qa")
    assert "The ferry of Arnholt sails at noon." in html
    assert "&lt;b&gt;Ferry&lt;/b&gt;" in html
    assert "<b>Ferry" not in html
    assert "rewrite it as questions and answers" in html
    assert not visitor.assistant.ready
    html = visitor.press("/edits/preview", file=file, passage="1", strategy="rewrite", step="after")
    assert "The ferry of Arnholt" in html
    assert "rewrite it in a few different ways" in html
    html = visitor.press("/edits/preview", file=file, passage="2", step="before")
    assert "nine pillars" in html
    visitor.close()


def test_self_edits_are_written_and_not_saved(tmp_path: Path) -> None:
    visitor, file = with_files(tmp_path)
    html = visitor.press(
        "/edits/preview/write", file=file, passage="1", strategy="implications", edits="3"
    )
    assert "What was written" in html
    assert "not saved" in html
    assert "It rests on nine pillars of granite." in html
    assert "All that the model reads, with its chat template" in html  # it is in memory now
    assert not (visitor.artifacts / "edits").exists()
    assert not (visitor.artifacts / "runs").exists()
    visitor.close()


def test_ones_own_prompt_stays_in_the_form_also_when_it_is_wrong(tmp_path: Path) -> None:
    visitor, file = with_files(tmp_path)
    own: dict[str, Any] = {
        "file": file,
        "passage": "1",
        "strategy": "your-prompt",
        "read_as": "rewrite",
    }
    html = visitor.press("/edits/preview", template="Say </textarea>{passage} {topic}", **own)
    assert "unknown variable {topic}" in html
    assert "known: domain, passage, title" in html
    assert "Say &lt;/textarea&gt;{passage} {topic}" in html
    html = visitor.press("/edits/preview/write", template="no variable", **own)
    assert "does not hold {passage}" in html
    assert "What was written" not in html
    html = visitor.press("/edits/preview/write", template="Rewrite.\n\nPassage:\n{passage}", **own)
    assert "What was written" in html
    assert "your-prompt" in html
    visitor.close()


def test_a_file_that_was_not_offered_is_refused(tmp_path: Path) -> None:
    visitor, _ = with_files(tmp_path)
    for path in ("/edits/preview", "/edits/preview/write"):
        assert "there is no such file" in visitor.press(path, file="../../etc/passwd")
    assert "there is no such file" in visitor.look("/edits/preview?file=/etc/passwd")
    visitor.close()


def test_previews_are_written_one_at_a_time(tmp_path: Path) -> None:
    visitor, file = with_files(tmp_path)
    wish: dict[str, Any] = {"file": file, "passage": "1", "strategy": "implications"}
    with edit_previews._tries.writing:
        html = visitor.press("/edits/preview/write", **wish)
        assert "Another preview is being written" in html
        assert "What was written" not in html
    assert "What was written" in visitor.press("/edits/preview/write", **wish)
    visitor.close()
