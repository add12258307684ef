"""``aios seal inspect``: totals and samples in the terminal, as JSON and as a page."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from aios.cli.aios import run
from aios.core.data.edit_rows import to_row
from aios.core.types import Drop, SelfEdit

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """Twelve passages with a kept edit, each with a dropped one; the last two have drops alone."""
    kept = [
        SelfEdit(
            f"p{n}", "rewrite", 0, (f"Kept {n}.", "More."), "m", 1, "", 30, {"tokens": 20.0 + n}
        )
        for n in range(12)
    ]
    drops = [
        Drop(f"p{n}", "rewrite", 1, f"Bad {n}.", "ungrounded", "not in the passage: Rome")
        for n in range(14)
    ]
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(to_row(e)) + "\n" for e in kept) + "broken\n")
    listed = path.with_name("edits.dropped.jsonl")
    listed.write_text("".join(json.dumps(asdict(d)) + "\n" for d in drops))
    return path


def test_totals_and_the_first_ten_passages(edits: Path, capsys: Capture) -> None:
    assert run(["seal", "inspect", str(edits)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "passages           14\n" in out
    assert "kept               12\n" in out
    assert "dropped            14 (53.8 %)\n" in out
    assert "tokens of an edit  median 25, 90th percentile 30\n" in out
    assert "Nothing left of\n  p12 (1 ungrounded)\n  p13 (1 ungrounded)\n" in out
    assert "edits.jsonl:13: bad_json" in out
    assert "── 1. p0\n\nkept, rewrite #0\n  • Kept 0.\n  • More.\n" in out
    assert "dropped, rewrite #1, ungrounded (not in the passage: Rome)\n  • Bad 0.\n" in out
    assert "── 10. p9" in out
    assert "── 11." not in out
    assert out.endswith("\n4 more passages; --limit, --sample or --html show more.\n")


def test_a_spread_is_a_row_of_bars(edits: Path, capsys: Capture) -> None:
    assert run(["seal", "inspect", str(edits), "--limit", "0"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("tokens   "))
    assert set(line.split("31  ")[1].strip()) <= set("▁▂▃▄▅▆▇█ ")


def test_a_stream_without_unicode_gets_none(edits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["seal", "inspect", str(edits), "--limit", "1"]) == 0
    stream.flush()
    out = stream.buffer.getvalue().decode()
    assert "  - Kept 0." in out
    assert "####" in out


def test_filters_show_less(edits: Path, capsys: Capture) -> None:
    assert run(["seal", "inspect", str(edits), "--passage", "p3", "--dropped-only"]) == 0
    out = capsys.readouterr().out
    assert "Bad 3." in out
    assert "Kept 3." not in out
    assert "── 2." not in out
    assert run(["seal", "inspect", str(edits), "--strategy", "rewrite", "--kept-only"]) == 0
    out = capsys.readouterr().out
    assert "Bad" not in out
    assert "2 more passages" in out


def test_a_sample_follows_the_seed(edits: Path, capsys: Capture) -> None:
    def shown(seed: str) -> list[str]:
        line = ["seal", "inspect", str(edits), "--sample", "3", "--seed", seed, "--json"]
        assert run(line) == 0
        return [passage["id"] for passage in json.loads(capsys.readouterr().out)["shown"]]

    assert len(shown("1")) == 3
    assert shown("1") == shown("1")
    assert len({tuple(shown(str(seed))) for seed in range(5)}) > 1


def test_json_is_the_whole_inspection_alone(edits: Path, capsys: Capture) -> None:
    assert run(["seal", "inspect", str(edits), "--limit", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert (document["kept"], document["dropped"], document["broken"]) == (12, 14, 1)
    assert document["reasons"] == [{"reason": "ungrounded", "edits": 14, "items": 0}]
    assert document["matching"] == 14
    assert [p["id"] for p in document["shown"]] == ["p0", "p1"]
    assert document["shown"][0]["edits"][0]["items"] == ["Kept 0.", "More."]
    assert document["html"] is None


def test_a_page_is_written_beside_the_totals(edits: Path, capsys: Capture) -> None:
    assert run(["seal", "inspect", str(edits), "--html", "out/page.html"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\nwritten to out/page.html\n")
    assert "── 1." not in out
    page = Path("out/page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<article") == 14
    assert run(["seal", "inspect", str(edits), "--html", "p.html", "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == "p.html"
    assert Path("p.html").read_text(encoding="utf-8").count("<article") == 1


def test_a_page_never_replaces_what_is_read(edits: Path, capsys: Capture) -> None:
    before = edits.read_bytes()
    assert run(["seal", "inspect", str(edits), "--html", str(edits)]) == 2
    assert "ends in .html" in capsys.readouterr().err
    link = edits.with_name("link.html")
    link.symlink_to(edits)
    assert run(["seal", "inspect", str(edits), "--html", str(link)]) == 2
    assert "--html is the input file itself" in capsys.readouterr().err
    assert edits.read_bytes() == before


def test_the_passages_texts_stand_above_their_edits(edits: Path, capsys: Capture) -> None:
    texts = edits.with_name("passages.jsonl")
    rows = [{"id": f"p{n}", "title": f"Title {n}", "text": f"Source {n}."} for n in range(15)]
    texts.write_text("\n".join(map(json.dumps, rows)))
    assert run(["seal", "inspect", str(edits), "--input", str(texts), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "passages           14 of 15 (1 with no edit and no drop)" in out
    assert "── 1. Title 0 (p0)\n  Source 0.\n\nkept" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--kept-only --dropped-only", "--kept-only and --dropped-only"),
        ("--kept-only --reason ungrounded", "--kept-only and --reason"),
        ("--limit 3 --sample 3", "--limit (the first ones) or --sample"),
        ("--sample 0", "--sample"),
        ("--reason nonsense", "What is there: ungrounded"),
        ("--passage gone", "no self-edit of a passage 'gone'"),
        ("--dropped gone.jsonl", "does not exist"),
    ],
)
def test_wrong_usage_says_what_is_wrong(
    edits: Path, options: str, message: str, capsys: Capture
) -> None:
    assert run(["seal", "inspect", str(edits), *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_list_of_drops_may_be_elsewhere(edits: Path, capsys: Capture) -> None:
    moved = edits.with_name("dropped.jsonl")
    edits.with_name("edits.dropped.jsonl").rename(moved)
    assert run(["seal", "inspect", str(edits)]) == 0
    assert "drops are not known" in capsys.readouterr().out
    assert run(["seal", "inspect", str(edits), "--dropped", str(moved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 14


def test_a_text_cannot_steer_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    evil = "evil \x1b[2J\u202e\ud800 text"
    edit = SelfEdit(evil, evil, 0, (evil, "a\nb"), evil, 0, "", 3, {"loss": 1.0})
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps(to_row(edit)) + "\n")
    drop = Drop(evil, evil, 1, evil, evil, evil)
    path.with_name("edits.dropped.jsonl").write_text(json.dumps(asdict(drop)) + "\n")
    assert run(["seal", "inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "evil" in out
    assert not set(out) & set("\x1b\u202e\ud800")
    assert run(["seal", "inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1


def test_a_terminal_gets_colours_and_no_color_forbids_them(
    edits: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = ["seal", "inspect", str(edits), "--passage", "p0"]
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "\x1b[32mKept 0." in out
    assert "\x1b[31m\x1b[9mBad 0." in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(line) == 0
    assert "\x1b[3" not in capsys.readouterr().out
