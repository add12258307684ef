"""Inspecting self-edits: totals over everything, a choice of passages, and a page that is safe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tracemalloc
from collections.abc import Iterable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aios.app.edits import inspect_choice
from aios.app.edits.inspect_edits import inspect_edits
from aios.app.edits.inspect_html import render_inspection
from aios.app.edits.inspection import OTHERS, Inspection, Selection, ShownEdit, Values
from aios.core.data.edit_rows import to_row
from aios.core.errors import DataError, UsageError
from aios.core.events import Event, StageFinished, StageProgress
from aios.core.types import Drop, SelfEdit

HOSTILE = (
    "<script>alert('x')</script></style><img src=http://evil.example/a.png onerror=alert(1)>"
    "\"'>\x00\x1b[2J\u202e\ud800"
)
VOID = {"meta", "br", "img", "input", "link", "hr"}


def kept(
    passage: str, index: int = 0, *items: str, strategy: str = "rewrite", **scores: float
) -> SelfEdit:
    return SelfEdit(passage, strategy, index, items or ("A text.",), "m", 1, "", 9, scores)


def dropped(
    passage: str, index: int = 9, reason: str = "too_short", strategy: str = "rewrite"
) -> Drop:
    return Drop(passage, strategy, index, f"Text {index}.", reason, "2 < 20")


def write(
    folder: Path, edits: Iterable[SelfEdit], drops: Iterable[Drop] | None = (), *more: str
) -> Path:
    path = folder / "edits.jsonl"
    path.write_text("\n".join([*(json.dumps(to_row(e)) for e in edits), *more, ""]))
    if drops is not None:
        text = "\n".join([*(json.dumps(asdict(d)) for d in drops), ""])
        (folder / "edits.dropped.jsonl").write_text(text)
    return path


def ids(seen: Inspection) -> list[str]:
    return [passage.id for passage in seen.shown]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three passages: one whole, one with an item and an edit dropped, one with nothing left."""
    return write(
        tmp_path,
        [kept("a", 0), kept("a", 1), kept("b", 0, strategy="cloze")],
        [
            dropped("c", 0),
            dropped("c", 1, "ungrounded"),
            dropped("b", 0, "ungrounded", "cloze"),
            dropped("b", 1),
        ],
    )


def test_totals_tell_whole_candidates_from_items_of_kept_ones(three: Path) -> None:
    seen = inspect_edits(three)
    assert (seen.passages, seen.kept, seen.dropped, seen.items_dropped) == (3, 3, 3, 1)
    assert seen.share_dropped == 0.5
    assert [(r.reason, r.edits, r.items) for r in seen.reasons] == [
        ("too_short", 2, 0),
        ("ungrounded", 1, 1),
    ]
    shares = {s.strategy: (s.kept, s.dropped, s.share_dropped) for s in seen.strategies}
    assert shares == {"rewrite": (2, 3, 0.6), "cloze": (1, 0, 0.0)}
    assert seen.models == {"m": 3}


def test_passages_with_nothing_left_are_listed_with_their_reasons(three: Path) -> None:
    seen = inspect_edits(three)
    assert seen.without_edits == 1
    (listed,) = seen.without_edits_listed
    assert (listed.passage_id, listed.reasons) == ("c", {"too_short": 1, "ungrounded": 1})


def test_the_items_dropped_from_an_edit_stand_below_it(three: Path) -> None:
    (passage,) = inspect_edits(three, Selection(passages=("b",))).shown
    edit, item, whole = passage.rows()
    assert isinstance(edit, ShownEdit)
    assert not isinstance(item, ShownEdit)
    assert not isinstance(whole, ShownEdit)
    assert (item.whole, item.index, whole.whole, whole.index) == (False, 0, True, 1)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ["a", "c", "b"]),
        (Selection(limit=1), ["a"]),
        (Selection(limit=0), []),
        (Selection(kept=False), ["c", "b"]),
        (Selection(dropped=False), ["a", "b"]),
        (Selection(reasons=("ungrounded",)), ["c", "b"]),
        (Selection(strategies=("cloze",)), ["b"]),
        (Selection(passages=("c", "a"), limit=1), ["a", "c"]),
        (Selection(passages=("a",), reasons=("ungrounded",)), []),
    ],
)
def test_passages_are_chosen_in_the_files_order(
    three: Path, selection: Selection, expected: list[str]
) -> None:
    assert ids(inspect_edits(three, selection)) == expected


def test_only_what_was_asked_for_is_shown_and_all_that_matches_is_counted(three: Path) -> None:
    seen = inspect_edits(three, Selection(reasons=("ungrounded",), limit=1))
    assert seen.matching == 2
    (passage,) = seen.shown
    assert passage.edits == ()
    assert [d.reason for d in passage.drops] == ["ungrounded"]
    assert seen.kept == 3  # totals are of everything


def test_passages_with_edits_far_behind_are_not_taken_for_ones_with_nothing_left(
    tmp_path: Path,
) -> None:
    edits = [kept(f"p{n}") for n in range(30)]
    path = write(tmp_path, edits, [dropped(f"p{n}", 1) for n in range(20, 30)])
    seen = inspect_edits(path, Selection(limit=3))
    assert ids(seen) == ["p0", "p1", "p2"]
    assert seen.matching == 30


def test_records_of_a_passage_may_stand_apart(tmp_path: Path) -> None:
    edits = [kept(name, n) for n in range(3) for name in ("a", "b", "c")]
    seen = inspect_edits(write(tmp_path, edits), Selection(limit=2))
    assert [(p.id, [e.index for e in p.edits]) for p in seen.shown] == [
        ("a", [0, 1, 2]),
        ("b", [0, 1, 2]),
    ]


def test_a_sample_depends_on_the_seed_alone_and_misses_no_record(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(200)]
    edits = [kept(name, n) for n in range(2) for name in names]
    path = write(tmp_path, edits, [dropped(name) for name in names])

    def drawn(seed: int) -> Inspection:
        return inspect_edits(path, Selection(limit=10, sample=True, seed=seed))

    first = drawn(1)
    assert ids(first) == ids(drawn(1)) != ids(drawn(2))
    assert len(first.shown) == 10
    assert ids(first) != names[:10]
    assert all((len(p.edits), len(p.drops)) == (2, 1) for p in first.shown)
    write(tmp_path, reversed(edits), [dropped(name) for name in names])
    assert set(ids(drawn(1))) == set(ids(first))


def test_all_candidates_are_drawn_about_equally_often(tmp_path: Path) -> None:
    path = write(tmp_path, [kept(f"p{n}") for n in range(5)], [dropped(f"p{n}") for n in range(10)])
    drawn = [
        name
        for seed in range(60)
        for name in ids(inspect_edits(path, Selection(limit=3, sample=True, seed=seed)))
    ]
    assert {f"p{n}" for n in range(10)} == set(drawn)
    assert max(map(drawn.count, drawn)) < 3 * 18  # 18 is the mean


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(passages=("z",)), "no self-edit of a passage 'z'"),
        (Selection(reasons=("z",)), "has the reason 'z'"),
        (Selection(strategies=("z",)), "has the strategy 'z'"),
    ],
)
def test_a_name_that_is_not_there_is_refused(
    three: Path, selection: Selection, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        inspect_edits(three, selection)


def test_without_a_list_of_drops_none_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, [kept("a")], None)
    seen = inspect_edits(path)
    assert (seen.files.dropped, seen.dropped, seen.without_edits) == (None, 0, 0)
    with pytest.raises(UsageError, match="no list of what was dropped"):
        inspect_edits(path, Selection(reasons=("too_short",)))
    assert "no list of what was dropped" in render_inspection(seen, title="t")


def test_all_dropped_is_no_error(tmp_path: Path) -> None:
    seen = inspect_edits(write(tmp_path, [], [dropped("a"), dropped("b")]))
    assert (seen.kept, seen.without_edits, seen.share_dropped) == (0, 2, 1.0)
    assert seen.scores == ()
    assert "Nothing left" in render_inspection(seen, title="t")


def test_nothing_at_all_is_no_error(tmp_path: Path) -> None:
    seen = inspect_edits(write(tmp_path, [], None))
    assert (seen.passages, seen.share_dropped, seen.shown) == (0, None, ())
    assert "Nothing of this kind" in render_inspection(seen, title="t")


def test_broken_lines_of_all_files_are_counted(three: Path) -> None:
    with three.open("a") as file:
        file.write("{broken\n" * 7)
    with three.with_name("edits.dropped.jsonl").open("a") as file:
        file.write("[]\n")
    rejects = {"file": "f", "line": 1, "reason": "bad_json", "detail": ""}
    three.with_name("edits.rejects.jsonl").write_text(json.dumps(rejects) + "\nx\n")
    seen = inspect_edits(three)
    assert (seen.broken, seen.kept, seen.dropped) == (9, 3, 3)
    assert [b.line for b in seen.broken_listed] == [4, 5, 6, 7, 8]
    assert seen.rejects == {"bad_json": 1}


def test_passages_are_shown_with_their_texts_in_their_order(three: Path, tmp_path: Path) -> None:
    texts = tmp_path / "passages.jsonl"
    rows = [{"id": i, "text": f"Text of {i}.", "title": f"Title {i}"} for i in ("c", "b", "a", "z")]
    texts.write_text("\n".join(map(json.dumps, rows)))
    seen = inspect_edits(three, passages=texts)
    assert [(p.id, p.title, p.text) for p in seen.shown] == [
        (i, f"Title {i}", f"Text of {i}.") for i in ("c", "b", "a")
    ]
    assert (seen.input_passages, seen.untouched) == (4, 1)
    assert "Text of b." in Page(render_inspection(seen, title="t")).text


def test_the_parts_of_a_split_passage_are_shown_with_its_text(tmp_path: Path) -> None:
    path = write(tmp_path, [kept("long#1")], [dropped("long#2")])
    texts = tmp_path / "passages.jsonl"
    texts.write_text(json.dumps({"id": "long", "text": "A long text."}))
    seen = inspect_edits(path, passages=texts)
    assert [p.text for p in seen.shown] == ["A long text."] * 2
    assert seen.untouched == 0


def test_a_file_that_is_none_of_passages_is_refused(three: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        inspect_edits(three, passages=tmp_path / "empty.txt")


# ------------------------------------------------------------ scores


def test_a_distribution_has_its_ends_quantiles_and_bins() -> None:
    values = Values("tokens")
    for n in range(1, 101):
        values.add(n)
    summary = values.summary()
    assert summary is not None
    assert (summary.low, summary.p10, summary.median, summary.p90, summary.high) == (
        1,
        10,
        50,
        90,
        100,
    )
    assert (summary.n, summary.mean, sum(summary.bins)) == (100, 50.5, 100)
    assert max(summary.bins) - min(summary.bins) <= 1
    assert Values("x").summary() is None


def test_values_of_any_size_are_counted_in_bounded_memory() -> None:
    values = Values("x")
    for n in range(50_000):
        values.add(n / 50_000)
    values.add(1e308)
    values.add(-1e308)
    values.add(1e-300)
    summary = values.summary()
    assert summary is not None
    assert summary.n == 50_003
    assert (summary.low, summary.high) == (-1e12, 1e12)
    assert len(values._counts) < 15_000


def test_scores_in_the_worst_tenth_are_named(tmp_path: Path) -> None:
    edits = [kept(f"p{n}", grounded=1 - n / 100, repetition=n / 100, items=n) for n in range(20)]
    seen = inspect_edits(write(tmp_path, edits), Selection(limit=20))
    bad = {p.id: p.edits[0].bad for p in seen.shown}
    assert bad["p19"] == ("grounded", "repetition")
    assert bad["p18"] == ("grounded", "repetition")
    assert bad["p10"] == bad["p0"] == ()


def test_a_score_that_is_the_same_everywhere_is_nowhere_bad(tmp_path: Path) -> None:
    seen = inspect_edits(write(tmp_path, [kept(f"p{n}", grounded=1.0) for n in range(3)]))
    assert {e.bad for p in seen.shown for e in p.edits} == {()}
    assert seen.scores[0].bins == (3,)


# ------------------------------------------------------------ limits


def test_names_without_end_are_counted_as_others(tmp_path: Path) -> None:
    edits = [kept(f"p{n}", strategy=f"s{n}") for n in range(150)]
    seen = inspect_edits(write(tmp_path, edits, [dropped("q", reason="r" * 500)]))
    counts = {s.strategy: s.kept for s in seen.strategies}
    assert counts[OTHERS] == 50
    assert len(counts) == 102  # 100 names, the others, and the drop's
    assert len(seen.reasons[0].reason) == 60


def test_what_is_shown_of_a_passage_is_bounded(tmp_path: Path) -> None:
    huge = kept("a", 0, *["x" * 5000] * 50)
    edits = [huge, *(kept("a", n) for n in range(1, 100)), *(kept("b", n) for n in range(100))]
    seen = inspect_edits(write(tmp_path, edits, [dropped("b", n) for n in range(100, 200)]))
    a, b = seen.shown
    assert (len(a.edits), a.more_edits) == (1, 99)
    assert a.edits[0].more == 10
    assert a.edits[0].items[0].endswith("x … [3,000 more characters]")
    assert (len(b.edits), b.more_edits, len(b.drops), b.more_drops) == (40, 60, 40, 60)
    assert "60 kept, 60 dropped" in Page(render_inspection(seen, title="t")).text


def test_memory_does_not_grow_with_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(size: int) -> int:
        edits = (kept(f"p{n}", 0, "word " * size) for n in range(1000))
        path = write(tmp_path, edits, [])
        tracemalloc.start()
        inspect_edits(path, Selection(limit=1))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    monkeypatch.setattr(inspect_choice, "MOST_CHARACTERS", 100)
    assert peak(1000) < peak(10) + 200_000  # the file is 5 MB larger


def test_a_large_file_tells_its_progress_and_a_small_one_nothing(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    inspect_edits(three, emit=events.append)
    assert events == []
    monkeypatch.setattr("aios.app.edits.inspect_edits._ROWS_BETWEEN_EVENTS", 2)
    inspect_edits(three, emit=events.append)
    assert [e.done for e in events if isinstance(e, StageProgress)] == [2, 2, 4]
    assert [e.summary for e in events if isinstance(e, StageFinished)] == ["3 rows", "4 rows"]


# ------------------------------------------------------------ the page


class Page(HTMLParser):
    """Collects elements, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def with_tag(self, name: str) -> list[dict[str, Any]]:
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """The page of a file in which every text is hostile."""
    edit = SelfEdit(HOSTILE, HOSTILE, 0, (HOSTILE, "x" * 9000), HOSTILE, 2**62, "", 2**62)
    row = {**to_row(edit), "quality": {HOSTILE: 1e308, "grounded": 0.1}}
    drops = [Drop(f"{n}{HOSTILE}", HOSTILE, 0, HOSTILE, f"{n}{HOSTILE}", HOSTILE) for n in range(3)]
    path = write(tmp_path, [kept("p", grounded=1.0)], drops, json.dumps(row), HOSTILE[:-1])
    return render_inspection(inspect_edits(path), title=f"Edits {HOSTILE}")


def test_hostile_text_is_shown_and_not_run(hostile: str) -> None:
    page = Page(hostile)
    assert hostile.encode("utf-8")
    assert not re.search("[\x00\x1b\u202e\ud800]", hostile)
    assert "alert('x')" in page.text
    assert not page.with_tag("img")
    assert len(page.with_tag("script")) == 1
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)


def test_the_page_asks_nothing_of_the_network_and_runs_only_its_own_script(hostile: str) -> None:
    page = Page(hostile)
    names = {tag for tag, _ in page.tags}
    assert not names & {"img", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "style", "action"} & set(attrs)
    (policy,) = (m["content"] for m in page.with_tag("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", hostile, re.DOTALL)
        assert not re.search(r"url\(|@import|https?:|innerHTML|eval", content)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_is_whole_without_its_script(three: Path) -> None:
    page = Page(render_inspection(inspect_edits(three), title="t"))
    (bar,) = (a for a in page.with_tag("div") if a.get("id") == "filter")
    assert "hidden" in bar  # the script shows it
    assert not [a for a in page.with_tag("article") + page.with_tag("section") if "hidden" in a]
    assert page.text.count("Text 1.") == 2


def test_each_row_can_be_filtered_by_kind_reason_and_strategy(three: Path) -> None:
    page = Page(render_inspection(inspect_edits(three), title="t"))
    rows = [a for a in page.with_tag("section") if "data-kind" in a]
    assert len(rows) == 7
    options = [a["value"] for a in page.with_tag("option")]
    for row in rows:
        assert row["data-kind"] in options
        assert row["data-strategy"] in options
        assert row.get("data-reason", "") in options


def test_the_page_says_what_the_terminal_says(three: Path) -> None:
    text = Page(render_inspection(inspect_edits(three, Selection(limit=1)), title="Mine")).text
    for part in ("Mine", "50.0", "Passages with nothing left", "2 more are in the file", "cloze"):
        assert part in text


def test_ids_are_unique_and_labels_lead_to_them(three: Path) -> None:
    page = Page(render_inspection(inspect_edits(three), title="t"))
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))
    targets = {a["href"].removeprefix("#") for a in page.with_tag("a")}
    targets |= {a["aria-labelledby"] for a in page.with_tag("article")}
    assert targets <= set(names)


def test_the_histograms_are_valid_svg_with_a_label(tmp_path: Path) -> None:
    edits = [kept(f"p{n}", grounded=n / 9, loss=1.0) for n in range(10)]
    html = render_inspection(inspect_edits(write(tmp_path, edits)), title="t")
    charts = re.findall(r'<svg class="histogram".*?</svg>', html, re.DOTALL)
    assert len(charts) == 3
    for chart in charts:
        assert "median" in (label := ElementTree.fromstring(chart).attrib["aria-label"]) or (
            "everywhere" in label
        )
