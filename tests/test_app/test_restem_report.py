"""The report of a ReST-EM run: right numbers, self-contained, safe, and sound when thin."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pytest

from aios.app.charts.histogram import HistogramRow, histogram_rows
from aios.app.charts.rounds import BarRow, StripColumn, StripPoint, paired_strips, stacked_bars
from aios.app.restem.charts import diversity_warnings
from aios.app.restem.report import render_restem_report, restem_document
from aios.core.restem import (
    ArmReport,
    Diversity,
    HeldOut,
    ReSTEMState,
    RoundReport,
    Tried,
    TriedPassage,
)
from aios.core.restem_costs import Compared
from aios.core.restem_workload import Span
from aios.core.trials import Reward
from aios.core.types import Failure, Passage, SelfEdit
from tests.test_app.made_up_restem import Run, made_up_run
from tests.test_app.test_report_html import Page

HOSTILE = (
    "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)>\x00\ud800"
)
SECTIONS = [
    "rewards", "reliability", "held-out", "strategies", "diversity", "learning", "edits",
    "failures", "cost", "setup", "reading",
]  # fmt: skip
CHARTS = 6


@pytest.fixture(scope="module")
def run() -> Run:
    return made_up_run()


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return render(run)


@pytest.fixture(scope="module")
def hostile() -> str:
    return render(made_up_run(rounds=2, passages=4, held_out=3, text=HOSTILE))


def render(run: Run) -> str:
    return render_restem_report(
        run.state, run.candidates, run.held_out, run.passages, run.info
    ).replace("\N{NO-BREAK SPACE}", " ")


def render_state(*rounds: RoundReport, best: int = 0, **info: Any) -> str:
    state = ReSTEMState(rounds, {}, best, "")
    return render(Run(state, {}, {}, {}, {"reward": "loss", **info}))


def section(html: str, name: str) -> str:
    """The words of a section."""
    return Page(re.findall(rf'<section id="{name}">.*?</section>', html, re.DOTALL)[0]).text


def row(html: str, name: str, label: str, number: int = 0) -> list[str]:
    """The cells of the row that is called `label` in a table of a section."""
    part = re.findall(rf'<section id="{name}">.*?</section>', html, re.DOTALL)[0]
    tables = re.findall(r"<tbody>.*?</tbody>", part, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", tables[number], re.DOTALL)
    cells = [[Page(c).text.strip() for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]
    return next(found for found in cells if found[0] == label)


def held(untrained: dict[str, float], trained: dict[str, float], **more: Any) -> str:
    """The page of a run with one round and these improvements on held-out passages."""
    reports = [
        RoundReport(n, held_out=HeldOut(one, dict.fromkeys(one, 0.0), 0.5))
        for n, one in enumerate((untrained, trained))
    ]
    return render_state(*reports, **more)


def tried(
    passage: str, index: int, improvement: float | None, *, kept: bool = False, **more: Any
) -> Tried:
    edit = SelfEdit(passage, "rewrite", index, more.pop("items", (f"text {passage}{index}",)))
    if improvement is None:
        return Tried(edit, None, **more)
    reward = Reward(
        float(improvement > 0.1), 2.0, 2.0 - improvement, 4, "logprob", 0.1, None, "loss",
        "number", improvement,
    )  # fmt: skip
    return Tried(edit, reward, (improvement,), 0.0, 100, kept=kept, **more)


# ---------------------------------------------------------------- the whole page


def test_the_page_is_well_formed_and_has_every_section(html: str) -> None:
    page = Page(html)
    ids = page.ids()
    assert [i for i in ids if i in SECTIONS] == SECTIONS
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links == {f"#{name}" for name in SECTIONS} | {"events.jsonl"}


def test_the_charts_are_valid_svg_with_title_and_description(hostile: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", hostile, flags=re.DOTALL)
    assert len(charts) == CHARTS
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert [root[0].tag, root[1].tag] == ["title", "desc"]
        assert root[0].text
        assert root[1].text
        assert root.attrib["aria-labelledby"] == f"{root[0].get('id')} {root[1].get('id')}"


def test_nothing_is_fetched_and_no_script_runs(hostile: str) -> None:
    page = Page(hostile)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "style", "action"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
        assert not (attrs.get("href") or "").startswith("http")
    style = hostile[hostile.index("<style>") : hostile.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_shown_and_not_run(hostile: str) -> None:
    assert "<script" not in hostile
    assert hostile.count("&lt;script&gt;") > 50
    assert "\x00" not in hostile
    assert hostile.encode("utf-8")
    assert "\ufffd" in hostile


def test_a_log_link_out_of_the_folder_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="not relative"):
        render(replace(run, info={"log_link": "http://x.example/"}))


def test_the_tiles_hold_the_totals_of_the_state(run: Run, html: str) -> None:
    first, last = run.state.rounds[1], run.state.rounds[-1]
    intro = Page(html[html.index("<h1>") : html.index("<nav")]).text
    assert f"round 1: {first.rewarded} of {first.asked}" in intro
    assert f"round 3: {last.rewarded} of {last.asked}" in intro
    assert f"{sum(report.trials for report in run.state.rounds)}" in intro
    assert f"{sum(report.failed_trials for report in run.state.rounds)} failed" in intro
    assert run.state.stopped in intro


def test_the_set_up_is_shown_without_what_has_its_own_place(html: str) -> None:
    setup = section(html, "setup")
    assert "aios seal restem optimize --dataset passages.jsonl" in setup
    assert "optimised on 16" in setup
    assert "Estimate" not in setup
    assert "Log link" not in setup


# ---------------------------------------------------------------- the verdict


def test_a_gain_that_is_clear_of_zero_is_better() -> None:
    html = held({"a": 0.0, "b": 0.02, "c": 0.01}, {"a": 0.1, "b": 0.12, "c": 0.14}, title="T")
    assert 'class="verdict good"' in html
    words = Page(html).text
    assert "Better: on 3 held-out passages" in words
    assert "round 1 improve on the baseline by +0.120 nats" in words
    assert "the untrained one by +0.010 nats: a difference of +0.110 nats" in words
    assert "With 3 passages the intervals are likely too narrow." in words


def test_a_loss_is_worse_and_an_unclear_change_is_no_difference() -> None:
    same = {"a": 0.0, "b": 0.02, "c": 0.01}
    assert 'class="verdict bad"' in held(same, {"a": -0.1, "b": -0.12, "c": -0.14})
    unclear = held(same, {"a": 0.1, "b": -0.1, "c": 0.02})
    assert 'class="verdict even"' in unclear
    assert "No difference found: " in unclear
    assert "No difference found: " in held(same, same)


def test_one_passage_is_too_few_to_tell() -> None:
    html = held({"a": 0.0}, {"a": 1.0})
    assert "Too few passages to tell: on 1 held-out passage, " in Page(html).text
    assert 'class="whisker"' not in html


def test_the_verdict_is_about_the_best_round_else_about_the_last() -> None:
    reports = [
        RoundReport(n, held_out=HeldOut({"a": level, "b": level + 0.01}, {}, 0.0))
        for n, level in enumerate((0.0, 0.3, 0.2))
    ]
    assert "by the generator of round 1 improve" in Page(render_state(*reports, best=1)).text
    html = render_state(*reports, best=0)
    assert "by the generator of round 2 improve" in Page(html).text
    assert "Best generator: the untrained one" in html


def test_the_unit_follows_the_reward() -> None:
    same = {"a": 0.0, "b": 0.02}
    assert "+12.0 pp" in held(same, {"a": 0.12, "b": 0.12}, reward="accuracy")
    assert "+0.12 of perplexity" in held(same, {"a": 0.12, "b": 0.12}, reward="perplexity")
    assert "baseline by +0.120, those" in held(same, {"a": 0.12, "b": 0.12}, reward=None)


def test_the_unit_is_that_of_the_rewards_where_the_set_up_has_none() -> None:
    run = made_up_run(rounds=1, passages=2, held_out=2)
    assert "nats per answer token" in render(replace(run, info={}))


# ---------------------------------------------------------------- numbers of a small run


def small() -> str:
    edits = TriedPassage(
        "a", (tried("a", 0, 0.25, kept=True), tried("a", 1, 0.05), tried("a", 2, -0.3)), 4, 5, 1,
        3.0, 2.0,
    )  # fmt: skip
    failure = Failure("train", "b/0", "the loss is not finite")
    other = TriedPassage(
        "b", (tried("b", 0, None, failures=(failure, failure)),), 4, 4, 3, 3.0, 2.0
    )
    first = RoundReport(
        0,
        held_out=HeldOut({"h": 0.01, "i": 0.03}, {"h": 0.0, "i": 0.1}, 0.25),
        seconds={"held-out": 30.0},
    )
    second = RoundReport(
        1, "rounds/1/generator", "d" * 64, passages=2, asked=8, tried=3, filtered=4, failed=1,
        trials=9, failed_trials=4, rewarded=1, kept=1, threshold=0.1, improvement=0.0,
        accuracy_gain=0.125, improvements=(0.25, 0.05, -0.3), reliability="Hardly reliable.",
        icc=0.31, noise=0.042,
        arms={"rewrite": ArmReport(0.75, 6, 3, 1, 0.0123, 41.4, 2.4567, 0.6)},
        diversity=Diversity(0.512, 0.734, 0.25, 0.125),
        sft={"examples": 1, "tokens": 77, "steps": 3, "seconds": 5, "loss_first": 2.5,
             "loss_last": 1.25},
        held_out=HeldOut({"h": 0.11, "i": 0.17}, {"h": 0.2, "i": 0.3}, 0.5),
        seconds={"propose": 60, "try": 3600, "fit": 5, "held-out": 35}, tokens=1234,
        train_tokens=5678,
    )  # fmt: skip
    state = ReSTEMState((first, second), {"rewrite": 0.6, "self-qa": 0.4}, 1, "patience ran out")
    passages = {"a": Passage.make("The text of a.", id="a", title="Title A")}
    info = {
        "reward": "loss",
        "estimate": [
            asdict(Compared("all", "s", Span(1800, 2000, 2400), 3730)),
            asdict(Compared("trials", "trials", Span.exactly(18), 9)),
            asdict(Compared("tokens written", "tokens", Span(900, 1000, 1100), 1234)),
        ],
    }
    return render(Run(state, {1: [edits, other]}, {}, passages, info))


def test_every_number_of_a_small_run_is_right() -> None:
    html = small()
    assert row(html, "rewards", "round 1") == [
        "round 1", "2", "8", "4", "1", "3", "2 (25 %)", "1 (12 %) 0 to 25 %", "1", "0.000 nats",
        "+12.5 pp",
    ]  # fmt: skip
    assert row(html, "reliability", "round 1") == [
        "round 1", "0.31", "0.042 nats", "0.100 nats", "–", "–"
    ]  # fmt: skip
    assert "Round 1. Hardly reliable." in section(html, "reliability")
    untrained, trained = (row(html, "held-out", name) for name in ("untrained", "round 1"))
    assert untrained[:3] == ["untrained", "2", "25 %"]
    assert untrained[3].startswith("+0.020 nats")
    assert untrained[4:] == ["–", "–", "–"]
    assert trained[3].startswith("+0.140 nats")
    assert trained[4] == "+0.120 nats +0.100 to +0.140 nats"
    assert trained[5].startswith("+20.0 pp")
    assert trained[6] == "better"
    assert row(html, "strategies", "rewrite") == [
        "rewrite", "1", "75 %", "6", "3", "1 (33 %)", "+0.012 nats", "41", "2.457 nats", "60 %"
    ]  # fmt: skip
    assert row(html, "diversity", "round 1") == ["round 1", "0.512", "0.734", "25 %", "12 %"]
    assert row(html, "learning", "round 1") == [
        "round 1", "1", "77", "3", "2.500", "1.250", "5.0 s"
    ]  # fmt: skip
    assert row(html, "cost", "all") == [
        "all", "1 min 00 s", "1 h 00 min", "5.0 s", "1 min 05 s", "1 h 02 min", "9", "4",
        "1,234", "5,678",
    ]  # fmt: skip
    assert row(html, "cost", "time: all", 1) == [
        "time: all", "33 min 20 s", "30 min 00 s to 40 min 00 s", "1 h 02 min", "1.86"
    ]  # fmt: skip
    assert row(html, "cost", "trials", 1) == ["trials", "18", "18 to 18", "9", "0.50"]
    assert row(html, "cost", "tokens written", 1)[1:4] == ["1,000", "900 to 1,100", "1,234"]
    assert "left nothing of 4, and 1 could not" in section(html, "failures")
    assert row(html, "failures", "round 1") == [
        "round 1", "train", "2", "the loss is not finite", "b/0"
    ]  # fmt: skip


def test_the_best_and_the_worst_self_edits_stand_side_by_side() -> None:
    html = small()
    best, worst = re.findall(r"<h3>(?:Best|Worst)</h3>.*?</div>", html, re.DOTALL)
    assert re.findall(r"text a\d", best) == ["text a0", "text a1"]
    assert re.findall(r"text a\d", worst) == ["text a2"]
    assert "+0.250 nats" in best
    assert "−0.300 nats" in worst
    assert best.count('class="card kept"') == best.count(">kept<") == 1
    assert "kept" not in worst
    assert "Title A" in worst
    assert "The text of a." in worst


def test_the_charts_hold_the_numbers() -> None:
    charts = {
        name: chart
        for chart in re.findall(r"<svg.*?</svg>", small(), re.DOTALL)
        for name in re.findall(r'id="([a-z-]+)-title"', chart)
    }
    assert {"3 candidates", "1 rewarded", "mean 0.000"} <= texts(charts["rewards"])
    assert "round 1, rewarded: 12.5 %" in charts["outcomes"]
    assert "round 1, better, not rewarded: 12.5 %" in charts["outcomes"]
    assert "round 1, not better: 12.5 %" in charts["outcomes"]
    assert "round 1, no result: 62.5 %" in charts["outcomes"]
    assert {"untrained", "round 1", "best", "+0.020", "+0.140"} <= texts(charts["held-out"])
    assert "next, self-qa: 40.0 %" in charts["strategies"]
    assert "1 h 01 min" in texts(charts["seconds"])
    assert "diversity" not in charts  # a single round is no line


def texts(chart: str) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", chart))


def test_correct_picks_are_shown_where_the_repeats_are_known(run: Run, html: str) -> None:
    cells = row(html, "reliability", "round 1")
    share = re.findall(r"truly best candidate in (\d+)%", run.state.rounds[1].reliability)[0]
    assert cells[4] == f"{share} %"
    without = render(replace(run, candidates={}))
    assert row(without, "reliability", "round 1")[4] == "–"


# ---------------------------------------------------------------- diversity


def test_a_fall_of_diversity_by_more_than_a_third_is_a_warning() -> None:
    def rounds(*levels: tuple[float, float]) -> list[RoundReport]:
        return [
            RoundReport(n, diversity=Diversity(0.6, distinct, near, 0.3))
            for n, (distinct, near) in enumerate(levels, 1)
        ]

    assert diversity_warnings(rounds((0.9, 0.0), (0.61, 0.3))) == []
    assert diversity_warnings(rounds((0.9, 0.0))) == []
    assert diversity_warnings(rounds((0.0, 1.0), (0.0, 1.0))) == []
    (line,) = diversity_warnings(rounds((0.9, 0.0), (0.3, 0.0), (0.8, 0.0)))
    assert "word pairs fell from 90" in line
    assert "in round 2 (−66.7" in line
    (line,) = diversity_warnings(rounds((0.9, 0.1), (0.9, 0.6)))
    assert "repeat no other fell from 90" in line


def test_the_warning_stands_in_the_page(html: str) -> None:
    assert 'class="warning"' in html
    assert "The share of distinct word pairs fell from 76 %" in section(html, "diversity")


# ---------------------------------------------------------------- missing parts


def test_a_run_without_a_round_has_a_page() -> None:
    page = Page(render(Run(ReSTEMState(), {}, {}, {}, {})))
    assert [i for i in page.ids() if i in SECTIONS] == SECTIONS
    assert "no round is finished" in page.text
    assert "No candidate has been tried" in page.text
    assert "No passages were held out" in page.text
    assert "No generator was trained" in page.text
    assert "Nothing was spent" in page.text


def test_a_run_that_stopped_after_the_untrained_generator_has_a_page() -> None:
    html = render(made_up_run(rounds=0))
    assert "only the untrained generator was examined" in html
    assert "No self-edit has been tried in a round." in html


def test_a_run_without_held_out_passages_has_a_page() -> None:
    html = render(made_up_run(rounds=2, passages=3, held_out=0))
    assert "no passages were held out" in html
    assert "Held-out gain" not in html
    assert html.count("<svg") == CHARTS - 1


def test_a_round_in_which_nothing_could_be_tried_has_a_page() -> None:
    failed = RoundReport(1, passages=2, asked=8, filtered=2, failed=6, trials=14, failed_trials=14)
    html = render_state(RoundReport(0), failed, RoundReport(2))
    assert row(html, "rewards", "round 1")[5:8] == ["0", "0 (0 %)", "0 (0 %)"]
    assert row(html, "rewards", "round 2")[6] == "0 (–)"
    assert "No candidate has been tried in a round." in html


def test_a_round_without_a_rewarded_candidate_says_so() -> None:
    report = RoundReport(1, asked=3, tried=3, threshold=0.5, improvements=(0.1, 0.1, 0.1))
    html = render_state(RoundReport(0), report)
    assert row(html, "rewards", "round 1")[7] == "0 (0 %)"
    assert "No generator was trained." in html


def test_without_the_candidates_the_threshold_tells_who_was_rewarded() -> None:
    report = RoundReport(
        1, asked=3, tried=3, rewarded=2, threshold=0.1, improvements=(0.1, 0.2, 0.3)
    )
    chart = re.findall(r"<svg.*?</svg>", render_state(RoundReport(0), report), re.DOTALL)[0]
    assert {"3 candidates", "2 rewarded", "mean +0.200"} <= texts(chart)


def test_rounds_with_other_held_out_passages_are_compared_on_those_that_both_have() -> None:
    html = held({"a": 0.0, "b": 0.0, "c": 9.0}, {"a": 0.2, "b": 0.1, "d": 9.0})
    assert "on 2 held-out passages" in Page(html).text
    assert "a difference of +0.150 nats" in Page(html).text
    assert "no passages were held out" in held({"a": 0.0}, {"b": 0.0})


def test_numbers_that_are_not_finite_are_not_shown() -> None:
    broken = RoundReport(
        1, asked=2, tried=2, improvements=(float("nan"), 0.5), sft={"loss_last": float("nan")}
    )
    estimate = [1, {}, {"estimated": {"middle": float("nan")}, "actual": 1}, {"estimated": []}]
    html = render_state(RoundReport(0), broken, estimate=estimate)
    assert row(html, "learning", "round 1")[5] == "–"
    assert "1 candidate<" in html
    assert "Estimate beside actual" not in html


# ---------------------------------------------------------------- the document


def test_the_document_holds_the_rounds_and_the_comparison(run: Run) -> None:
    document = json.loads(json.dumps(restem_document(run.state, run.info), allow_nan=False))
    assert len(document["rounds"]) == 4
    after, before = (run.state.rounds[n].held_out for n in (3, 0))
    assert after is not None
    assert before is not None
    main = document["comparison"]
    assert (main["treatment"], main["control"]) == ("round 3", "untrained")
    assert main["change"] == pytest.approx(after.mean - before.mean)
    assert main["relative_change"] == pytest.approx(after.mean / before.mean - 1)
    assert main["ci95"][0] < main["change"] < main["ci95"][1]
    assert (main["metric"], main["n"], main["seeds"]) == ("improvement", 8, 1)
    assert main["verdict"] == "better"
    assert [c["treatment"] for c in document["comparisons"]] == [
        f"round {n}" for n in (1, 1, 2, 2, 3, 3)
    ]
    assert document["rounds"][3]["held_out"]["mean"] == pytest.approx(
        fmean(after.passages.values())
    )
    assert document["totals"]["trials"] == sum(r.trials for r in run.state.rounds)
    assert document["verdict"].startswith("Better: on 8 held-out passages")


def test_the_document_of_a_thin_run_has_no_comparison() -> None:
    for state in (ReSTEMState(), ReSTEMState((RoundReport(0), RoundReport(1)))):
        document = restem_document(state, {})
        assert document["comparison"] is None
        assert document["comparisons"] == []
        json.dumps(document, allow_nan=False)


def test_a_relative_change_needs_a_control_above_zero() -> None:
    rounds = tuple(
        RoundReport(n, held_out=HeldOut({"a": v, "b": v}, {}, 0.0)) for n, v in enumerate((-1, 1))
    )
    main = restem_document(ReSTEMState(rounds), {})["comparison"]
    assert main["change"] == 2
    assert main["relative_change"] is None


# ---------------------------------------------------------------- the charts


def test_values_far_out_are_counted_at_the_ends_of_the_histogram() -> None:
    values = [n / 100 for n in range(-20, 20)]
    chart = histogram_rows(
        [HistogramRow("r", (), [*values, -1e9], [1e9, 2e9], 0.1)],
        id="h", title="t", desc="d", x_label="x", names=("no", "yes"), decimals=1,
    )  # fmt: skip
    assert {"← 1 further", "2 further →"} <= texts(chart)
    counts = [int(n) for n in re.findall(r"<title>(\d+) of 43", chart)]
    assert sum(counts) == 43
    ElementTree.fromstring(chart)


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
def test_a_histogram_of_hardly_any_spread_is_drawn(values: list[float]) -> None:
    chart = histogram_rows(
        [HistogramRow("r", (), values, [], None)],
        id="h", title="t", desc="d", x_label="x", names=("no", "yes"), decimals=1,
    )  # fmt: skip
    counts = [int(n) for n in re.findall(r"<title>(\d+) of", chart)]
    assert sum(counts) == len(values)
    assert "threshold" not in chart


def test_stacked_bars_end_where_their_parts_do() -> None:
    chart = stacked_bars(
        ["one", "two", "none"], [BarRow("r", [30.0, 70.0, 0.0]), BarRow("s", [50.0, 0.0, 0.0])],
        id="b", title="t", desc="d", x_label="x", unit="%",
    )  # fmt: skip
    bars = re.findall(r'<rect x="([\d.]+)"[^>]* width="([\d.]+)"[^>]*><title>(\w), (\w+)', chart)
    first, second, half = [(float(x), float(w)) for x, w, *_ in bars]
    assert first[0] + first[1] == pytest.approx(second[0])
    assert first[1] / second[1] == pytest.approx(3 / 7, rel=1e-3)
    assert half[1] == pytest.approx((first[1] + second[1]) / 2, rel=1e-3)


def test_more_strategies_than_colours_are_told_apart() -> None:
    names = [f"strategy {n}" for n in range(9)]
    chart = stacked_bars(
        names, [BarRow("r", [1.0] * 9)], id="b", title="t", desc="d", x_label="x", unit="%"
    )
    classes = re.findall(r'<g class="(s[^"]*)">', chart)
    assert len(set(classes)) == 9


def test_a_passage_keeps_its_place_in_every_column_of_the_strips() -> None:
    columns = [
        StripColumn(f"c{n}", "", [StripPoint(k, n + 0.1, k) for k in keys], 0.0, None, None, n)
        for n, keys in enumerate((["a", "b"], ["b", "c", "a"]))
    ]
    chart = paired_strips(columns, id="s", title="t", desc="d", y_label="y", decimals=1)
    places = re.findall(r'<circle cx="([\d.]+)"[^>]*><title>([abc])<', chart)
    width = float(places[2][0]) - float(places[1][0])  # of b, from column to column
    assert float(places[4][0]) - float(places[0][0]) == pytest.approx(width, abs=0.02)
    assert chart.count('class="link"') == 2
