"""The page that shows generated self-edits: one HTML file that needs nothing but itself.

Takes an `Inspection`; gives the page as text, with its own style, a short script that filters what
is shown (all is there without it), and small histograms as inline SVG. It asks nothing of the
network: a content security policy in the page allows its own style and script by their hashes and
forbids the rest. What a model wrote is hostile until shown otherwise: every text is escaped,
control characters, lone surrogates and marks that override the writing direction are replaced, and
texts are kept apart in their writing direction.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from aios.app.charts.report_page import NO_BREAK, printable
from aios.app.edits.inspection import Inspection, ScoreSummary, ShownEdit, ShownPassage

_TEMPLATES = Path(__file__).parents[1] / "templates"
_BAR = 120  # width of a whole bar in a table, in SVG units
_HISTOGRAM = (192, 44)


@dataclass(frozen=True, slots=True)
class ReasonRow:
    """A reason in the table of drops, with a bar for its share of them."""

    reason: str
    edits: int
    items: int
    share: str
    bar: Markup


@dataclass(frozen=True, slots=True)
class StrategyRow:
    """A strategy in the table, with a bar for the share that was dropped."""

    strategy: str
    kept: int
    dropped: int
    share: str
    bar: Markup


@dataclass(frozen=True, slots=True)
class ScoreCard:
    """A score's distribution: its histogram and its numbers as people read them."""

    name: str
    chart: Markup
    low: str
    high: str
    summary: str
    worse: str


def render_inspection(inspection: Inspection, *, title: str) -> str:
    """Renders an inspection as one HTML page.

    Args:
        inspection: What `aios.app.edits.inspect_edits.inspect_edits` gave.
        title: Heading of the page.

    Returns:
        The page; encodes as UTF-8.
    """
    style, script = _part("inspect.css"), _part("inspect.js")
    shown = inspection.shown
    template = _environment().get_template("inspect.html.j2")
    return template.render(
        title=title,
        policy=_policy(style, script),
        style=style,
        script=script,
        seen=inspection,
        share_dropped=_percent(inspection.share_dropped),
        reasons=_reasons(inspection),
        strategies=_strategies(inspection),
        models=[(name, n) for name, n in inspection.models.items() if name != "(none)"],
        scores=_score_cards(inspection),
        more=inspection.matching - len(shown),
        reason_choices=sorted({drop.reason for p in shown for drop in p.drops}),
        strategy_choices=sorted({row.strategy for p in shown for row in p.rows()}),
        has_texts=any(p.text for p in shown),
        count=_count,
        heading=_heading,
    )


@cache
def _environment() -> Environment:
    """The templates; always the same object, since it keeps those that it has compiled."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["score"] = _score
    environment.tests["kept"] = lambda row: isinstance(row, ShownEdit)
    return environment


def _part(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # ours, as it stands


def _policy(style: str, script: str) -> str:
    def allowed(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    return (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(script)}; "
        "form-action 'none'; base-uri 'none'"
    )


def _reasons(inspection: Inspection) -> list[ReasonRow]:
    counts = [(row, row.edits + row.items) for row in inspection.reasons]
    total = sum(count for _, count in counts) or 1
    most = max((count for _, count in counts), default=1)
    return [
        ReasonRow(
            row.reason, row.edits, row.items, _percent(count / total), share_bar(count / most)
        )
        for row, count in counts
    ]


def _strategies(inspection: Inspection) -> list[StrategyRow]:
    return [
        StrategyRow(
            row.strategy,
            row.kept,
            row.dropped,
            _percent(row.share_dropped),
            share_bar(row.share_dropped or 0.0),
        )
        for row in inspection.strategies
    ]


def _score_cards(inspection: Inspection) -> list[ScoreCard]:
    first = [inspection.tokens_generated] if inspection.tokens_generated else []
    return [score_card(score) for score in (*first, *inspection.scores)]


def score_card(score: ScoreSummary) -> ScoreCard:
    """How a page shows the distribution of a score."""
    ends = _score(score.low), _score(score.high)
    worse = {"high": "high is bad", "low": "low is bad"}.get(score.worse, "")
    if score.low == score.high:
        words = f"{ends[0]} everywhere"
    else:
        words = f"median {_score(score.median)}, most {_score(score.p10)} to {_score(score.p90)}"
    label = f"{printable(score.name)}: {words}"
    return ScoreCard(score.name, _histogram(score, label), *ends, words, worse)


def _histogram(score: ScoreSummary, label: str) -> Markup:
    """Bars of the counts; the side of the bad values has a mark below it."""
    width, height = _HISTOGRAM
    bins = score.bins if len(score.bins) > 1 else (0,) * 7 + score.bins + (0,) * 7
    step, most = width / len(bins), max(bins)
    bars = ""
    for place, count in enumerate(bins):
        size = max(1.0, height * count / most) if count else 0.0  # one edit can be seen
        bars += (
            f'<rect x="{place * step + 0.5:.2f}" y="{height - size:.2f}" '
            f'width="{step - 1:.2f}" height="{size:.2f}"><title>{count:,}</title></rect>'
        )
    start = {"high": width * 0.8, "low": 0.0}.get(score.worse) if len(score.bins) > 1 else None
    mark = (
        ""
        if start is None
        else f'<rect class="worse" x="{start:g}" y="{height + 2}" width="{width / 5:g}" '
        f'height="3"/>'
    )
    return Markup(  # numbers, and a label that is escaped
        f'<svg class="histogram" role="img" viewBox="0 0 {width} {height + 6}" '
        f'preserveAspectRatio="none" aria-label="{escape(label)}">{bars}'
        f'<rect class="base" x="0" y="{height}" width="{width}" height="1"/>{mark}</svg>'
    )


def share_bar(share: float) -> Markup:
    """A bar for a share of one, as inline SVG."""
    width = round(_BAR * min(1.0, max(0.0, share)), 1)
    return Markup(  # numbers alone
        f'<svg class="bar" viewBox="0 0 {_BAR} 10" aria-hidden="true">'
        f'<rect class="track" width="{_BAR}" height="10" rx="2"/>'
        f'<rect width="{width}" height="10" rx="2"/></svg>'
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}{NO_BREAK}%"


def _score(value: float) -> str:
    """A score with at most three decimals."""
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1e6 else f"{value:.3g}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _heading(passage: ShownPassage) -> str:
    return passage.title or passage.id
