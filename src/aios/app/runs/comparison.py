"""Two runs beside each other: settings that differ, results, and differences where they mean one.

Takes two runs of `aios.app.runs.listing`; gives a `RunComparison`. What is compared is the second
run against the first: a change is second − first.

Two A/B tests are compared arm by arm on the questions that both asked, with the statistics of the
A/B report itself (`aios.core.evaluation.comparison`): the interval of a change is a bootstrap over
passages and seeds, paired by question. Experiments on different models, or without a question in
common, have no differences that mean anything, and none are given; neither are there any where two
runs are of different kinds. Rounds of ReST-EM are compared by `aios.app.restem.two_runs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aios.app.ab_tests.report_charts import ARM_LABELS, curve_of, draw_curves
from aios.app.ab_tests.report_html import COLUMNS, METRIC_NAMES, metric_words, summary
from aios.app.ab_tests.results import METRICS_FILE, arm_runs, as_written, read_document
from aios.app.charts.report_page import interval_words, percent, points, tone_of
from aios.app.kept import KeptByStamp, stamp_of
from aios.app.restem.records import STATE_FILE
from aios.app.restem.report import FEW_PASSAGES
from aios.app.restem.two_runs import PLAN_FILE, compare_restem
from aios.app.runs.beside import NAMES, NO_VALUE, Block, Row, RunComparison, Setting
from aios.app.runs.listing import AB_TEST, RESTEM, RunEntry
from aios.core.config import yaml_text
from aios.core.errors import StorageError, UsageError
from aios.core.evaluation.comparison import (
    ArmRun,
    Comparison,
    ComparisonSettings,
    compare,
    ordered_arms,
)

COMPARABLE = (AB_TEST, RESTEM)

_MOST_SETTINGS = 500
_MOST_CELLS = 5_000_000  # bootstrap samples times passages, for one interval
_SAMPLES = (500, 10_000)
_LONGEST = 300
_INFO = ("model", "model_digest", "input", "passages", "report_questions", "strategy", "generator")
_FILES = (METRICS_FILE, STATE_FILE, PLAN_FILE, "config.yaml")
_BESIDE = COLUMNS[len(METRIC_NAMES) :]  # columns of the report that have no interval


_KEPT: KeptByStamp[RunComparison] = KeptByStamp(16)


def compare_runs(first: RunEntry, second: RunEntry) -> RunComparison:
    """Compares two runs.

    Raises:
        UsageError: They are the same run.
        StorageError: The numbers of one cannot be read.
    """
    if first.path == second.path:
        raise UsageError("a run cannot be compared with itself", "Choose another one.")

    def make() -> RunComparison:
        both = (first, second)
        settings = _settings(both)
        problem = _unlike(both)
        if problem:
            return RunComparison(both, problem, settings=settings)
        if first.kind == RESTEM:
            return replace(compare_restem(both), settings=settings)
        return replace(_compare_ab(both), settings=settings)

    files = [path / name for path in (first.path, second.path) for name in _FILES]
    found = _KEPT.get((first.path, second.path), stamp_of(*files), make)
    return replace(found, runs=(first, second))


def _unlike(runs: tuple[RunEntry, RunEntry]) -> str:
    """Why two runs cannot be compared whatever they found; empty for no reason."""
    first, second = runs
    for run in runs:
        if run.kind not in COMPARABLE:
            return (
                f"{run.id} is a run of {run.kind or 'an unknown kind'}: only A/B tests and runs of "
                "ReST-EM can be compared."
            )
    if first.kind != second.kind:
        return "An A/B test and a run of ReST-EM measure different things."
    for run in runs:
        if not run.finished:
            return f"{run.id} has no results yet."
    return ""


# ------------------------------------------------------------ A/B tests


def _compare_ab(runs: tuple[RunEntry, RunEntry]) -> RunComparison:
    documents = [read_document(run.path) for run in runs]
    arms = [arm_runs(d, r.path) for d, r in zip(documents, runs, strict=True)]
    shared = _shared_questions(documents)
    asked = [len(document["questions"]) for document in documents]
    passages = len({documents[0]["questions"][probe]["passage_id"] for probe in shared})
    problem = _incomparable(documents, shared)
    both = [name for name in ordered_arms(arms[0]) if name in arms[1]]
    cells = [_cells(run, document) for run, document in zip(runs, documents, strict=True)]
    blocks = []
    for number, name in enumerate(both):
        pair = (arms[0][name], arms[1][name])
        found = [] if problem else _differences(pair, shared)
        rows = [_row(one) for one in found] or _plain(cells, name, tuple(METRIC_NAMES.values()))
        chart = _chart(name, documents, id=f"curves-{number}")
        block = Block(name, ARM_LABELS.get(name, ""), (*rows, *_plain(cells, name, _BESIDE)), chart)
        blocks.append(block)
    if not both and not problem:
        problem = "They have no arm in common."
    return RunComparison(
        runs,
        problem,
        basis="" if problem else f"{_basis(len(shared), asked)}{_caution(passages)}",
        blocks=tuple(blocks),
        only=tuple(_only(arms)),
    )


def _shared_questions(documents: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The questions that both asked; an id is made of passage, question and answers."""
    first, second = (document["questions"] for document in documents)
    return frozenset(
        probe
        for probe, asked in first.items()
        if probe in second
        and all(asked[key] == second[probe][key] for key in ("passage_id", "question", "answers"))
    )


def _incomparable(documents: Sequence[Mapping[str, Any]], shared: frozenset[str]) -> str:
    models = [_model(document) for document in documents]
    if models[0] != models[1]:
        names = [str(_info(document).get("model", "unknown")) for document in documents]
        if names[0] == names[1]:
            names = [f"{n} ({m[:12] or 'unknown'})" for n, m in zip(names, models, strict=True)]
        return (
            f"They are on different models ({names[0]} and {names[1]}): a difference would be one "
            "of the models, and a loss per token is not the same measure for both."
        )
    if not shared:
        return "They asked different questions: none was put to both, so nothing can be paired."
    return ""


def _info(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("info")
    return found if isinstance(found, Mapping) else {}


def _model(document: Mapping[str, Any]) -> str:
    info = _info(document)
    return str(info.get("model_digest") or info.get("model") or "")


def _differences(
    pair: tuple[Sequence[ArmRun], Sequence[ArmRun]], shared: frozenset[str]
) -> list[Comparison]:
    """Every metric of an arm, the second run against the first, on the shared questions."""
    first, second = (
        [
            replace(run, results=tuple(r for r in run.results if r.probe_id in shared))
            for run in runs
        ]
        for runs in pair
    )
    passages = len({result.passage_id for result in first[0].results})
    least, most = _SAMPLES
    samples = min(most, max(least, _MOST_CELLS // max(1, passages)))
    try:
        return compare(
            {NAMES[0]: first, NAMES[1]: second},
            [(NAMES[1], NAMES[0])],
            ComparisonSettings(samples=samples),
        )
    except ValueError as error:  # a run of the arm has not all questions, or one twice
        raise StorageError(f"the results of two runs do not fit together: {error}") from error


def _row(found: Comparison) -> Row:
    relative = found.scale == "relative"
    number = percent if relative else points
    value = found.estimate
    return Row(
        name=METRIC_NAMES[found.metric],
        first=metric_words(found.metric, found.control_value),
        second=metric_words(found.metric, found.treatment_value),
        change=NO_VALUE if value is None else number(value),
        interval="" if found.ci95 is None else interval_words(found.ci95, number),
        verdict=found.verdict,
        tone=tone_of({"verdict": found.verdict}),
    )


def _cells(run: RunEntry, document: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The table of arms of a report: values by arm and column."""
    with as_written(run.path / METRICS_FILE):
        return {
            arm.name: dict(zip(COLUMNS, (cell.value for cell in arm.cells), strict=True))
            for arm in summary(document)["arms"]
        }


def _plain(
    cells: Sequence[Mapping[str, Mapping[str, str]]], arm: str, columns: Sequence[str]
) -> list[Row]:
    """Columns of both reports beside each other, without a difference."""
    return [Row(column, cells[0][arm][column], cells[1][arm][column]) for column in columns]


def _chart(name: str, documents: Sequence[Mapping[str, Any]], *, id: str) -> Markup | None:
    found = [
        curve_of(label, style, document["arms"][name]["runs"])
        for label, style, document in zip(NAMES, (1, 2), documents, strict=True)
    ]
    return draw_curves([one for one in found if one is not None], id=id, of=name)


def _basis(shared: int, asked: Sequence[int]) -> str:
    questions = "question" if shared == 1 else "questions"
    if shared == asked[0] == asked[1]:
        return f"Both asked the same {shared:,} {questions}; the differences are paired by these."
    return (
        f"{shared:,} {questions} were put to both (the first run asked {asked[0]:,}, the second "
        f"{asked[1]:,}); losses, accuracies and differences are over these alone."
    )


def _caution(passages: int) -> str:
    """What to know of intervals over few passages."""
    if not 1 < passages < FEW_PASSAGES:
        return ""
    return f" They are about {passages} passages: so few make intervals likely too narrow."


def _only(arms: Sequence[Mapping[str, object]]) -> Iterator[str]:
    for name, own, other in zip(NAMES, arms, reversed(arms), strict=True):
        alone = [arm for arm in ordered_arms(own) if arm not in other]
        if alone:
            yield f"Only the {name} has {', '.join(alone)}."


# ------------------------------------------------------------ settings


def _settings(runs: tuple[RunEntry, RunEntry]) -> tuple[Setting, ...]:
    """What differs between two configs, and of what was made of them."""
    first, second = ({**_facts(run), **_config(run.path)} for run in runs)
    names = list(dict.fromkeys([*first, *second]))
    found = [
        Setting(name, first.get(name, NO_VALUE), second.get(name, NO_VALUE))
        for name in names
        if first.get(name, NO_VALUE) != second.get(name, NO_VALUE)
    ]
    return tuple(found[:_MOST_SETTINGS])


def _facts(run: RunEntry) -> dict[str, str]:
    try:
        info = _info(read_document(run.path)) if run.finished else {}
    except StorageError:
        info = {}
    facts = {name.replace("_", " "): _words(info[name]) for name in _INFO if name in info}
    recipe = info.get("recipe")
    if isinstance(recipe, Mapping):
        facts |= {f"recipe: {name}": _words(value) for name, value in recipe.items()}
    return facts


def _config(path: Path) -> dict[str, str]:
    """The leaves of a run's config by dotted name; none where it cannot be read."""
    document = yaml_text.read_file(path / "config.yaml").value
    return dict(_leaves("", document)) if isinstance(document, Mapping) else {}


def _leaves(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), one)
    else:
        yield name, _words(value)


def _words(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
