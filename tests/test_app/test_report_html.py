"""The HTML report: complete, self-contained, safe against hostile text, and sound when thin."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from aios.app.ab_tests.report_html import render_report
from aios.app.charts import svg
from aios.app.charts.report_page import printable
from aios.core.evaluation.comparison import ArmRun, ComparisonSettings, available_pairs, compare
from aios.core.evaluation.document import metrics_document
from aios.core.evaluation.metrics import AnswerResult
from aios.core.trainings import CurvePoint
from aios.core.types import Drop, Passage, Question, Score, SelfEdit

HOSTILE = (
    "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)>\x00\ud800"
)
SECTIONS = ["arms", "comparisons", "curves", "questions", "edits", "setup", "reading"]
LOSSES = {
    "base": 4.0,
    "passage": 3.3,
    "passage+edits": 2.7,
    "passage+other-edits": 3.4,
    "in-context": 1.0,
}
VOID = {"meta", "br", "img", "input", "link", "hr"}


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
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


def run(
    arm: str, seed: int, text: str, *, loss: float | None = None, early: bool = False
) -> ArmRun:
    """A run on 2 questions about each of 6 passages."""
    level = LOSSES[arm] if loss is None else loss
    results = tuple(
        AnswerResult.judge(
            f"q{n}",
            f"p{n // 2}",
            Question(f"Question {n}? {text}", ("yes", text), ("name", "date")[n % 2]),
            Score(-2 * (level + 0.1 * (n % 5) + 0.01 * seed), 2, False),
            text if n else "yes",
        )
        for n in range(12)
    )
    if arm in ("base", "in-context"):
        return ArmRun(arm, seed, results, 3.0)
    curve = tuple(
        CurvePoint(10 * k, k, 100 * k + seed, None, 4 - k * (4 - level) / 4, 1.0 * k)
        for k in range(4 if early else 5)
    )
    return ArmRun(arm, seed, results, 3.1, curve, 30, 40, 400, 75.0, 2 * 2**30, 50)


def document(
    arms: tuple[str, ...] = tuple(LOSSES), seeds: int = 3, text: str = "plain", **options: Any
) -> dict[str, Any]:
    """The document of an experiment, as read back from its file."""
    runs = {arm: [run(arm, s, text, **options) for s in range(seeds)] for arm in arms}
    for arm in {"base", "in-context"} & set(arms):
        runs[arm] = runs[arm][:1]
    comparisons = compare(runs, available_pairs(runs), ComparisonSettings(samples=50))
    loaded: dict[str, Any] = json.loads(json.dumps(metrics_document(runs, comparisons)))
    return loaded


def render(numbers: dict[str, Any], text: str = "plain", **options: Any) -> str:
    """The report with a few edits and drops that hold `text`."""
    defaults: dict[str, Any] = {
        "title": f"Report {text}",
        "edits_kept": [SelfEdit("p0", "rewrite", 0, (f"An edit {text}",) * 6, seed=1)],
        "edits_dropped": [
            Drop("p1", "self-qa", 0, f"A drop {text}", "too_short", f"7 < 20 {text}"),
            Drop("p1", "self-qa", 1, "x" * 5000, "gibberish", ""),
            Drop("p9", "self-qa", 2, "Another", "too_short", ""),
        ],
        "run_info": {
            "model": {"name": f"tiny {text}", "digest": "abc"},
            "seeds": [0, 1, 2],
            "offline": True,
            "git_revision": None,
            "nested": {"limits": {"tokens": 5}},
            "command": f"aios seal ab-test {text}",
        },
        "log_link": "events.jsonl",
        "passages": [Passage.make(f"Passage text {text}", id="p0", title=f"Title {text}")],
    }
    return render_report(numbers, **{**defaults, **options})


def test_the_page_is_well_formed_and_has_every_section() -> None:
    page = Page(render(document()))
    ids = page.ids()
    assert [i for i in ids if i in SECTIONS] == SECTIONS
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links == {f"#{section}" for section in SECTIONS} | {"events.jsonl"}


def test_the_page_says_the_verdict_the_numbers_and_the_set_up() -> None:
    numbers = document()
    text = Page(render(numbers)).text
    assert numbers["verdict"] in text
    for part in (
        *LOSSES,
        "1 min 15 s",
        "2.00 GiB",
        "McNemar p",
        "too short",
        "Title plain",
        "and 2 more",
        "aios seal ab-test plain",
        "limits tokens 5",
        "0, 1, 2",
        "A drop plain",
        "Most improved",
        "rewrite 1",
    ):
        assert part in text


def test_the_charts_are_valid_svg_with_title_and_description() -> None:
    charts = re.findall(r"<svg.*?</svg>", render(document(text=HOSTILE)), flags=re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert [root[0].tag, root[1].tag] == ["title", "desc"]
        assert root[0].text
        assert root[1].text
        assert root.attrib["aria-labelledby"] == f"{root[0].get('id')} {root[1].get('id')}"


def test_nothing_is_fetched_and_no_script_runs() -> None:
    html = render(document(text=HOSTILE), HOSTILE)
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "style", "action"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_shown_and_not_run() -> None:
    html = render(document(text=HOSTILE), HOSTILE)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 20
    assert "\x00" not in html
    assert html.encode("utf-8")
    assert "\ufffd" in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢\n\ttext", "plain ü 漢\n\ttext"),
        ("user\u202e\u2066nimda\u2069", "user��nimda�"),
        ("a\x00b\x1b[2Jc\x9bd\ud800", "a�b�[2Jc�d�"),
        ("שלום\u200f, سلام\u061c", "שלום\u200f, سلام\u061c"),
        (Markup("<b>\u202e</b>"), Markup("<b>\u202e</b>")),
        (7, 7),
    ],
)
def test_what_steers_a_terminal_or_the_writing_direction_is_not_shown(
    text: object, shown: object
) -> None:
    assert printable(text) == shown


def test_one_seed_has_no_spread_and_no_band() -> None:
    html = render(document(seeds=1))
    assert "±" not in html.split("</table>")[0]
    assert 'class="band"' not in html
    assert 'class="band"' in render(document())


@pytest.mark.parametrize("missing", list(LOSSES))
def test_any_arm_may_be_missing(missing: str) -> None:
    numbers = document(tuple(arm for arm in LOSSES if arm != missing))
    page = Page(render(numbers))
    assert [i for i in page.ids() if i in SECTIONS] == SECTIONS
    assert numbers["verdict"] in page.text


def test_a_single_arm_is_reported_without_comparisons() -> None:
    page = Page(render(document(("base",)), edits_kept=[], edits_dropped=[], log_link=None))
    assert page.text.count("Nothing was compared") == 3
    assert "No learning curve" in page.text
    assert "0 self-edits" in page.text


def test_the_ceiling_is_drawn_only_where_nothing_else_is() -> None:
    assert "in-context vs base" not in Page(render(document())).text
    assert "in-context vs base" in Page(render(document(("base", "in-context")))).text


def test_no_question_changed() -> None:
    page = Page(render(document(("passage", "passage+edits"), loss=3.0)))
    assert "fell on 0 of 12 questions, rose on 0 and stayed the same on 12" in page.text
    assert page.text.count("None.") == 2
    assert "0.0" in page.text


def test_worse_is_drawn_as_worse() -> None:
    runs = {
        "passage": [run("passage", 0, "t", loss=2.0)],
        "passage+edits": [run("passage+edits", 0, "t", loss=3.0)],
    }
    comparisons = compare(runs, available_pairs(runs), ComparisonSettings(samples=50))
    numbers = metrics_document(runs, comparisons)
    html = render(numbers)
    assert 'class="verdict bad"' in html
    assert "rose on 12" in Page(html).text


def test_one_passage_has_changes_without_intervals() -> None:
    runs = {}
    for arm in ("passage", "passage+edits"):
        whole = run(arm, 0, "t")
        runs[arm] = [ArmRun(arm, 0, whole.results[:2])]
    numbers = metrics_document(runs, compare(runs, available_pairs(runs)))
    html = render(numbers)
    assert "too few passages to tell" in html
    assert 'class="whisker"' not in html


def test_seeds_that_end_at_different_tokens_share_a_line_as_far_as_both_reach() -> None:
    runs = {"passage": [run("passage", 0, "t"), run("passage", 5, "t", early=True)]}
    html = render(metrics_document(runs, []))
    chart = next(c for c in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "curves-title" in c)
    last = [float(x) for x in re.findall(r"([\d.]+) [\d.]+\" class=\"line\"", chart)][-1]
    traces = [float(x) for x in re.findall(r"([\d.]+) [\d.]+\" class=\"trace\"", chart)]
    assert last == min(traces) < max(traces)


def test_durations_and_sizes_are_written_for_people() -> None:
    whole = run("passage", 0, "t")
    short = replace(whole, train_seconds=4.25, peak_memory_bytes=5 * 2**20)
    long = replace(whole, train_seconds=3725.0)
    assert "4.2 s" in render(metrics_document({"passage": [short]}, []))
    assert "5 MiB" in render(metrics_document({"passage": [short]}, []))
    assert "1 h 02 min" in render(metrics_document({"passage": [long]}, []))


@pytest.mark.parametrize(
    "link", ["http://x.example/", "javascript:alert(1)", "//x.example", "/etc/passwd", "file:x"]
)
def test_a_log_link_out_of_the_folder_is_refused(link: str) -> None:
    with pytest.raises(ValueError, match="not relative"):
        render(document(("base",)), log_link=link)


def test_examples_of_edits_are_spread_over_strategies_and_passages() -> None:
    edits = [
        SelfEdit(f"passage-{p}", strategy, 0, ("text",))
        for strategy in ("one", "two", "three")
        for p in range(9)
    ]
    html = render(document(("base",)), edits_kept=edits, edits_dropped=[])
    cards = re.findall(r"passage-\d</span> <span class=\"tag\">(\w+)<", html)
    assert sorted(cards) == ["one", "one", "three", "three", "two", "two"]
    assert len(set(re.findall(r"passage-\d", html))) == 6


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (2.61, 4.2, [3.0, 3.5, 4.0]),
        (-0.3, 0.1, [-0.3, -0.2, -0.1, 0.0, 0.1]),
        (0, 60120, [0, 20000, 40000, 60000]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert svg.nice_ticks(low, high) == pytest.approx(ticks)


def test_numbers_are_written_for_people() -> None:
    ticks = [svg.format_tick(v) for v in (0, -2.5, 2500, 20000, 1.5e6, 3e9, -0.0)]
    assert ticks == ["0", "−2.5", "2.5k", "20k", "1.5M", "3G", "0"]
    assert [svg.format_signed(v, 1) for v in (-0.04, 0.04, -1, 1)] == ["0.0", "0.0", "−1.0", "+1.0"]


def test_a_long_legend_takes_another_row() -> None:
    series = [svg.Series(f"an arm with a long name {n}", n, [(0, 1)]) for n in range(6)]
    chart = svg.line_chart(series, id="c", title="t", desc="d", x_label="x", y_label="y")
    tops = set(re.findall(r'y="([\d.]+)"[^>]*class="ink"', chart))
    assert len(tops) == 3
    ElementTree.fromstring(chart)
