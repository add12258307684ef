"""What an A/B experiment found: one plain sentence, and one JSON document of all numbers.

Takes the runs of the arms and their comparisons; gives the sentence that is printed, and the
document that is saved as ``metrics.json`` and drawn as the HTML report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aios.core.evaluation.comparison import (
    CONTROL_PAIR,
    MAIN_PAIR,
    ArmRun,
    Comparison,
    ordered_arms,
    shared_questions,
)
from aios.core.evaluation.metrics import MetricSummary, summarize
from aios.core.evaluation.statistics import Spread, spread

SCHEMA_VERSION = 1

_PHRASES = {
    "base": "no training",
    "passage": "training on the passages alone",
    "passage+edits": "training on the passages and self-edits of them",
    "passage+other-edits": "training on the passages and self-edits of other passages",
    "in-context": "having the passage in the prompt",
}


def main_comparison(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The comparison that the verdict is about: validation loss of the main pair.

    Without that pair, the first comparison of the validation loss; None where nothing was
    compared.
    """
    losses = [c for c in comparisons if c.metric == "validation_loss"]
    main = [c for c in losses if (c.treatment, c.control) == MAIN_PAIR]
    return next(iter(main or losses), None)


def verdict_sentence(comparisons: Sequence[Comparison]) -> str:
    """One plain sentence: what the main comparison says, with its interval, n and seeds."""
    main = main_comparison(comparisons)
    if main is None or main.relative_change is None:
        return "Nothing was compared: fewer than two arms were run."
    what = (
        f"{_phrase(main.treatment)} gave a validation loss {_versus(main.relative_change)} "
        f"{_phrase(main.control)}"
    )
    basis = (
        f"{_count(main.n, 'question')} about {_count(main.passages, 'passage')}, "
        f"{_count(main.seeds, 'seed')}"
    )
    if main.ci95 is None:
        return f"Too few passages to tell: {what}, measured on {basis}."
    interval = f"95 % interval: {_interval_words(main.ci95)}; {basis}"
    if main.verdict == "no difference found":
        return f"No difference found: {what}, and the interval holds zero ({interval})."
    return f"{main.verdict.capitalize()}: {what} ({interval}){_control_clause(main, comparisons)}."


def metrics_document(
    arms: Mapping[str, Sequence[ArmRun]],
    comparisons: Sequence[Comparison],
    *,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All numbers of an experiment as a JSON object, without NaN or infinity.

    Args:
        arms: Runs by arm; all on the same questions, at least one run.
        comparisons: What `compare` gave.
        info: More to save under ``info`` (JSON values): model, recipe, versions, command, ….

    Returns:
        ``comparison`` (the main one, or None), ``comparisons``, ``verdict``, ``questions`` by
        probe id, ``arms`` with a ``summary`` over seeds, ``retention`` and ``runs`` (one a seed,
        with its own summary, curve and per-question results), and ``info``.

    Raises:
        NonFiniteError: A result is NaN or infinite.
        UsageError: There are no questions.
        ValueError: The runs do not hold the same questions.
    """
    questions = shared_questions(arms)
    main = main_comparison(comparisons)
    base = _retention(arms.get("base", ()))
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict_sentence(comparisons),
        "comparison": main.to_dict() if main else None,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "questions": {
            probe: {
                "passage_id": result.passage_id,
                "question": result.question,
                "answers": list(result.answers),
                "category": result.category,
            }
            for probe, result in questions.items()
        },
        "arms": {
            name: _arm_document(arms[name], base) for name in ordered_arms(arms) if arms[name]
        },
        "info": dict(info or {}),
    }


def _arm_document(runs: Sequence[ArmRun], base: Spread | None) -> dict[str, Any]:
    summaries = [summarize(run.results) for run in runs]
    return {
        "seeds": [run.seed for run in runs],
        "summary": {**_spreads(summaries), "n": summaries[0].n},
        "retention": _retention_document(_retention(runs), base),
        "train_seconds": asdict(spread([run.train_seconds for run in runs])),
        "tokens": asdict(spread([run.tokens for run in runs])),
        "peak_memory_bytes": max(run.peak_memory_bytes for run in runs),
        "runs": [_run_document(run, own) for run, own in zip(runs, summaries, strict=True)],
    }


def _spreads(summaries: Sequence[MetricSummary]) -> dict[str, Any]:
    values: dict[str, list[float]] = {
        "validation_loss": [s.loss for s in summaries],
        "perplexity": [s.perplexity for s in summaries],
        "exact_match": [s.exact for s in summaries],
        "f1": [s.f1 for s in summaries],
        "contains_answer": [s.contains for s in summaries],
        "greedy": [s.greedy for s in summaries],
    }
    return {name: asdict(spread(series)) for name, series in values.items()}


def _retention(runs: Sequence[ArmRun]) -> Spread | None:
    losses = [run.retention_loss for run in runs if run.retention_loss is not None]
    return spread(losses) if losses else None


def _retention_document(own: Spread | None, base: Spread | None) -> dict[str, Any] | None:
    if own is None:
        return None
    change = None if base is None else own.mean - base.mean
    relative = None if base is None or not base.mean else own.mean / base.mean - 1
    return {"loss": asdict(own), "change_vs_base": change, "relative_change_vs_base": relative}


def _run_document(run: ArmRun, summary: MetricSummary) -> dict[str, Any]:
    per_question = ("probe_id", "logprob", "tokens", "greedy", "prediction", "exact", "f1")
    return {
        **{k: v for k, v in asdict(run).items() if k not in ("arm", "results", "curve")},
        "summary": {**asdict(summary), "validation_loss": summary.loss},
        "curve": [asdict(point) for point in run.curve],
        "results": [
            {
                **{name: getattr(result, name) for name in per_question},
                "contains": result.contains,
                "loss": result.loss,
            }
            for result in run.results
        ],
    }


def _control_clause(main: Comparison, comparisons: Sequence[Comparison]) -> str:
    """What the control for format says about a better main comparison; else empty."""
    found = [
        c
        for c in comparisons
        if (c.treatment, c.control) == CONTROL_PAIR and c.metric == main.metric
    ]
    if (main.treatment, main.control) != MAIN_PAIR or main.verdict != "better" or not found:
        return ""
    control = found[0]
    if control.ci95 is None or control.relative_change is None:
        return ""
    against = f"{_versus(control.relative_change)} with self-edits of other passages"
    if control.verdict == "better":
        return f", and {against} ({_interval_words(control.ci95)}), so it is not the format alone"
    return (
        f", but it is {against} ({_interval_words(control.ci95)}), so the format alone may explain "
        "the gain"
    )


def _phrase(arm: str) -> str:
    return _PHRASES.get(arm, f"arm {arm}")


def _versus(change: float) -> str:
    return f"{abs(change):.1%} {'lower' if change < 0 else 'higher'} than".replace("%", " %")


def _interval_words(interval: tuple[float, float]) -> str:
    """Says an interval as ``12.0 % to 20.1 % lower`` or ``1.0 % lower to 3.0 % higher``."""
    low, high = interval
    near, far = f"{abs(low):.1%}".replace("%", " %"), f"{abs(high):.1%}".replace("%", " %")
    if high < 0:
        return f"{far} to {near} lower"
    if low > 0:
        return f"{near} to {far} higher"
    return f"{near} lower to {far} higher"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
