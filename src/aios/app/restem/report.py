"""The report of a ReST-EM run: one HTML page that needs nothing but itself.

Takes the state of the run, the candidates of its rounds and the set-up; gives the page as text
(`render_restem_report`) and the numbers that are saved beside it (`restem_document`). A run that
was stopped, that rewarded nothing or that held no passages out has a page too: what is not known
is said, not drawn.

The page is made as that of an A/B experiment is (`aios.app.charts.report_page`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aios.app.charts import svg
from aios.app.charts.report_page import (
    check_log_link,
    environment,
    interval_words,
    printable,
    seconds_words,
    setup_row,
    tone_of,
)
from aios.app.restem import charts as restem_charts
from aios.app.restem.charts import STAGES, Candidates
from aios.app.restem.edits import LISTED_FAILURES, edits_by_round, failure_groups
from aios.app.restem.generator_gain import (
    Gain,
    Unit,
    gains,
    generator_name,
    main_gain,
    restem_document,
    totals,
    unit_of,
    verdict_sentence,
)
from aios.app.restem.tables import share, tables
from aios.core.restem import ReSTEMState, TriedPassage
from aios.core.types import Passage

__all__ = ["render_restem_report", "restem_document"]

FEW_PASSAGES = 8  # below this a bootstrap interval is too narrow to be relied on

_TITLE = "ReST-EM: run report"
_NOT_SET_UP = {"title", "log_link", "estimate"}
_BASELINES = {
    "passage": "training on the passage alone, as long as on the self-edit, or no training where "
    "that is better",
    "base": "no training",
}
_SECTIONS = (
    ("rewards", "Rewards"),
    ("reliability", "Reliability"),
    ("held-out", "Held-out passages"),
    ("strategies", "Strategies"),
    ("diversity", "Diversity"),
    ("learning", "Training"),
    ("edits", "Self-edits"),
    ("failures", "Failures"),
    ("cost", "Cost"),
    ("setup", "Set-up"),
    ("reading", "How to read this"),
)


def render_restem_report(
    state: ReSTEMState,
    candidates: Mapping[int, Sequence[TriedPassage]],
    held_out: Mapping[int, Sequence[TriedPassage]],
    passages: Mapping[str, Passage],
    info: Mapping[str, Any],
) -> str:
    """Renders the report as one HTML page.

    Args:
        state: The rounds that are done; may be none.
        candidates: Tried training passages by round, from 1; rounds may be missing.
        held_out: Tried held-out passages by round, from 0; rounds may be missing.
        passages: Passages by id, for their titles and texts; may be missing too.
        info: The set-up in the order in which it is to be shown: text, numbers, sequences of
            them, or one more level of mapping. ``command`` is shown as a command line. ``reward``
            (``loss``, ``perplexity``, ``accuracy``) is the unit of improvements; without it that
            of the candidates' rewards is taken. ``baseline`` (``passage``, ``base``) says what
            was to be beaten. Not shown among the set-up: ``title`` (heading of the page),
            ``log_link`` (relative link to the event log) and ``estimate``, the cost that was
            expected beside the actual one: a sequence of `core.restem_costs.Compared` as JSON
            objects.

    Returns:
        The page; encodes as UTF-8.

    Raises:
        ValueError: The link to the log is not relative.
    """
    check_log_link(info.get("log_link"))
    return (
        environment()
        .get_template("restem_report.html.j2")
        .render(
            **report_parts(state, candidates, held_out, passages, info),
            title=info.get("title") or _TITLE,
            sections=_SECTIONS,
            chart_css=svg.CSS,
            setup=[setup_row(k, v) for k, v in info.items() if k not in _NOT_SET_UP],
            log_link=info.get("log_link"),
        )
    )


def report_parts(
    state: ReSTEMState,
    candidates: Mapping[int, Sequence[TriedPassage]],
    held_out: Mapping[int, Sequence[TriedPassage]],
    passages: Mapping[str, Passage],
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """What the report shows, by the names of its template; for other pages about a run, too.

    Args:
        state: As `render_restem_report`.
        candidates: As there.
        held_out: As there.
        passages: As there.
        info: As there; only ``reward``, ``baseline`` and ``estimate`` are read.
    """
    unit = unit_of(info.get("reward") or _reward_kind([candidates, held_out]))
    compared = gains(state, unit)
    main = main_gain(state, compared)
    names = {key: passage.title or key for key, passage in passages.items()}
    failures = failure_groups(candidates, held_out)
    return {
        "verdict": verdict_sentence(state, main, unit),
        "tone": tone_of(main.to_dict() if main else None),
        "ending": _ending(state, main),
        "tiles": _tiles(state, main, unit),
        "cautions": _cautions(state, main, compared),
        "charts": restem_charts.charts(state, candidates, names, unit, printable),
        "tables": tables(state, candidates, compared, unit, info.get("estimate")),
        "warnings": restem_charts.diversity_warnings(state.rounds),
        "edits": edits_by_round(candidates, passages, unit),
        "failures": failures[:LISTED_FAILURES],
        "more_failures": max(0, len(failures) - LISTED_FAILURES),
        "counts": _counts(state),
        "reliability": [(r.number, r.reliability) for r in state.rounds if r.reliability],
        "unit": unit,
        "baseline": _BASELINES.get(str(info.get("baseline")), ""),
    }


def _reward_kind(sides: Sequence[Candidates]) -> str:
    """The kind of the first reward; empty without any."""
    return next(
        (
            one.reward.kind
            for side in sides
            for passages in side.values()
            for passage in passages
            for one in passage.candidates
            if one.reward is not None
        ),
        "",
    )


def _ending(state: ReSTEMState, main: Gain | None) -> list[str]:
    """Lines under the verdict: the generator that is kept, and why the run ended."""
    lines = []
    if state.best and main is None:
        lines.append(f"Generator that is kept: that of {generator_name(state.best)}.")
    elif state.best:
        lines.append(f"Best generator: that of {generator_name(state.best)}.")
    elif main is not None:
        lines.append("Best generator: the untrained one; no round is better on held-out passages.")
    if state.stopped:
        lines.append(f"Why it ended: {state.stopped}")
    return lines


def _tiles(state: ReSTEMState, main: Gain | None, unit: Unit) -> list[dict[str, Any]]:
    """The boxes under the verdict: name, number, lines below it, tone."""
    rounds = [report for report in state.rounds if report.number]
    whole = totals(state)
    kept = "kept" if main is None else "best"
    tiles = [
        _tile("Rounds", f"{len(rounds)}", f"{kept}: {generator_name(state.best)}"),
        _tile("Trials", f"{whole['trials']:,.0f}", f"{whole['failed_trials']:,.0f} failed"),
    ]
    asked = [report for report in rounds if report.asked]
    if asked:
        ends = list(dict.fromkeys((asked[0].number, asked[-1].number)))
        both = [state.rounds[number] for number in ends]
        tiles.append(
            _tile(
                "Candidates rewarded",
                " → ".join(share(report.rewarded, report.asked) for report in both),
                *(f"round {r.number}: {r.rewarded:,} of {r.asked:,}" for r in both),
            )
        )
    if main is not None:
        interval = f"95 %: {interval_words(main.ci95, unit.signed)}" if main.ci95 else ""
        tile = _tile(
            f"Held-out gain of {main.treatment}",
            unit.signed(main.change),
            f"{unit.number(main.control_value)} → {unit.signed(main.treatment_value)}",
            *([interval] if interval else []),
            main.verdict,
        )
        tiles.append({**tile, "tone": tone_of(main.to_dict())})
    if whole["seconds"] > 0:
        by_stage = {
            stage: sum(report.seconds.get(stage, 0.0) for report in state.rounds)
            for stage in restem_charts.stage_names(state.rounds)
        }
        stage, most = max(by_stage.items(), key=lambda entry: entry[1])
        note = f"{share(most, whole['seconds'])} {STAGES.get(stage, stage)}"
        tiles.append(_tile("Time", seconds_words(whole["seconds"]), note))
    return tiles


def _tile(name: str, number: str, *notes: str) -> dict[str, Any]:
    return {"name": name, "number": number, "notes": notes, "tone": "even"}


def _cautions(state: ReSTEMState, main: Gain | None, compared: Sequence[Gain]) -> list[str]:
    """What a reader of the comparison must know."""
    lines = []
    if main is not None and 1 < main.n < FEW_PASSAGES:
        lines.append(f"With {main.n} passages the intervals are likely too narrow.")
    if state.best and len({gain.treatment for gain in compared}) > 1:
        lines.append(
            "The best round was chosen by these passages, so its gain is somewhat overstated."
        )
    return lines


def _counts(state: ReSTEMState) -> dict[str, int]:
    rounds = state.rounds
    return {
        "asked": sum(report.asked for report in rounds),
        "filtered": sum(report.filtered for report in rounds),
        "failed": sum(report.failed for report in rounds),
        "trials": sum(report.trials for report in rounds),
        "failed_trials": sum(report.failed_trials for report in rounds),
    }
