"""The tables of an A/B test: what each arm reached, what it cost, and how they compare.

Takes the document of ``metrics.json`` (`aios.core.evaluation.document.metrics_document`).
Accuracies are in percent, losses in nats per answer token; ``±`` is the standard deviation over
seeds. All other numbers are in the document and in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aios.cli.rendering import write_line, write_table
from aios.cli.text import NOTHING, format_bytes, format_duration, format_number, format_percent

_METRICS = {
    "validation_loss": "validation loss",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "f1": "F1",
    "contains_answer": "contains answer",
}
_ACCURACIES = ("exact_match", "f1", "contains_answer")


def summary_document(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The document without per-question results, for ``--json``."""
    arms = {
        name: {key: value for key, value in arm.items() if key != "runs"}
        for name, arm in metrics["arms"].items()
    }
    return {
        "verdict": metrics["verdict"],
        "comparison": metrics["comparison"],
        "comparisons": metrics["comparisons"],
        "arms": arms,
    }


def write_ab_tables(metrics: Mapping[str, Any]) -> None:
    """Writes the tables and the verdict to stdout."""
    arms = metrics["arms"]
    write_table(
        ("arm", "loss", "perplexity", "exact %", "F1 %", "contains %"),
        [_quality_row(name, arm["summary"]) for name, arm in arms.items()],
        title=_basis(metrics),
        numeric=range(1, 6),
    )
    write_line()
    write_table(
        ("arm", "seeds", "retention loss", "tokens", "training time", "memory"),
        [_cost_row(name, arm) for name, arm in arms.items()],
        title="What it cost (retention: loss on unrelated text, change against base)",
        numeric=range(1, 6),
    )
    rows = [_comparison_row(c) for c in metrics["comparisons"] if _is_shown(c, metrics)]
    if rows:
        write_line()
        write_table(
            ("compared", "with", "metric", "change", "95 % interval", ""),
            rows,
            title="Comparisons (paired over questions; loss and perplexity relative)",
            numeric=(3, 4),
        )
    write_line()
    write_line(metrics["verdict"])


def _basis(metrics: Mapping[str, Any]) -> str:
    questions = metrics["questions"]
    passages = {question["passage_id"] for question in questions.values()}
    return f"Held-out questions: {len(questions):,} about {len(passages):,} passages"


def _quality_row(name: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        _spread(summary["validation_loss"], 3),
        _spread(summary["perplexity"], 1),
        *(_spread(summary[metric], 1, scale=100) for metric in _ACCURACIES),
    )


def _cost_row(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
    retention = arm["retention"]
    kept = NOTHING
    if retention is not None:
        kept = format_number(retention["loss"]["mean"])
        if name != "base" and retention["relative_change_vs_base"] is not None:
            kept += f" ({format_percent(retention['relative_change_vs_base'], sign=True)})"
    trained = arm["tokens"]["mean"] > 0
    return (
        name,
        str(len(arm["seeds"])),
        kept,
        f"{arm['tokens']['mean']:,.0f}" if trained else NOTHING,
        format_duration(arm["train_seconds"]["mean"]) if trained else NOTHING,
        format_bytes(arm["peak_memory_bytes"]) if arm["peak_memory_bytes"] else NOTHING,
    )


def _spread(value: Mapping[str, Any], digits: int, *, scale: float = 1) -> str:
    mean = format_number(value["mean"] * scale, digits)
    return mean if value["sd"] is None else f"{mean} ±{value['sd'] * scale:.{digits}f}"


def _is_shown(comparison: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """All metrics of the main pair, the loss of the others; the report has the rest."""
    main = metrics["comparison"] or {}
    is_main = all(comparison[side] == main.get(side) for side in ("treatment", "control"))
    return is_main or comparison["metric"] == "validation_loss"


def _comparison_row(comparison: Mapping[str, Any]) -> tuple[str, ...]:
    relative = comparison["scale"] == "relative"
    change = comparison["relative_change" if relative else "change"]
    interval = comparison["ci95"]
    unit = " %" if relative else " points"
    return (
        comparison["treatment"],
        comparison["control"],
        _METRICS.get(comparison["metric"], comparison["metric"]),
        NOTHING if change is None else f"{100 * change:+.1f}{unit}",
        NOTHING if interval is None else f"{100 * interval[0]:+.1f} … {100 * interval[1]:+.1f}",
        comparison["verdict"],
    )
