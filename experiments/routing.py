"""How well the router finds the expert for a message, and whether answers get better by it.

    python -m experiments.routing --data seal_train100.json --part dev
    python -m experiments.routing --data seal_train100.json --part test
    python -m experiments.routing --data seal_train100.json --answers

The set is that of ``routing_set.py``. Stage 1 (the first two) trains nothing: each combination of
signals routes every message; right is the expert that learnt the passage, or none for a message
out of domain. The threshold of a combination is the one with the most right messages of the
development part; the default of the config stands beside it. Passages are resampled for intervals
(paired bootstrap, 95 %). Stage 2 is in ``routing_answers.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.routing_set import Message, Part, RoutingSet, build
from numpy.typing import NDArray

from aios.backends.embeddings import open_embedder
from aios.core.config.serving_schemas import RoutingConfig
from aios.core.evaluation.statistics import difference_interval
from aios.core.experts.routing import Router
from aios.core.experts.routing_signals import (
    EmbeddingSignal,
    GoalSignal,
    LexicalSignal,
    Signal,
)

RESULTS = Path(__file__).parent / "results" / "routing.json"
DEFAULT = RoutingConfig()
KINDS = ("in", "rephrased", "near", "far", "everyday")
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    ("goals",),
    ("lexical",),
    ("embeddings",),
    ("goals", "lexical"),
    ("goals", "embeddings"),
    ("lexical", "embeddings"),
    ("goals", "lexical", "embeddings"),
)

Flags = NDArray[np.bool_]


def main() -> None:
    """Runs a stage."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="SQuAD passages with questions")
    parser.add_argument("--part", choices=("dev", "test"), default="dev")
    parser.add_argument("--answers", action="store_true", help="stage 2: trains experts")
    parser.add_argument("--experts", type=int, default=4, help="stage 2: how many")
    parser.add_argument("--passages", type=int, default=6, help="stage 2: of each, at most")
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path("artifacts/routing"),
        help="stage 2: where experts are kept",
    )
    given = parser.parse_args()
    made = build(given.data)
    if given.answers:
        from experiments.routing_answers import answers

        sys.stdout.write(answers(made, given.artifacts, given.experts, given.passages))
        return
    report = stage_one(made, given.part)
    if given.part == "test":
        RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(table(report))


def stage_one(made: RoutingSet, part: Part) -> dict[str, Any]:
    """Every combination of signals on a part; thresholds are those of the development part."""
    signals: dict[str, Signal] = {"goals": GoalSignal(), "lexical": LexicalSignal()}
    embedder = open_embedder("auto")
    if embedder is not None:
        signals["embeddings"] = EmbeddingSignal(embedder)
    rows: list[dict[str, Any]] = []
    rights: dict[tuple[tuple[str, ...], str], Flags] = {}
    for names in COMBINATIONS:
        if not set(names) <= set(signals):
            continue
        chosen = [signals[name] for name in names]
        threshold = best_threshold(made, chosen)
        for which, at in (("chosen", threshold), ("default", DEFAULT.threshold)):
            row, right = measure(made.of(part), router(made, chosen, at))
            rows.append({"signals": list(names), "threshold": at, "from": which, **row})
            rights[(names, which)] = right
    standard = (DEFAULT.signals, "default")
    clusters = [message.passage for message in made.of(part)]
    for row in rows:
        right = rights[(tuple(row["signals"]), row["from"])]
        change = difference_interval(right, rights[standard], clusters)
        row["against_default"] = [change.estimate, change.low, change.high]
    return {
        "command": f"python -m experiments.routing --data seal_train100.json --part {part}",
        "part": part,
        "experts": {p.expert_id: len(p.passages) for p in made.profiles},
        "messages": {kind: sum(m.kind == kind for m in made.of(part)) for kind in KINDS},
        "rows": rows,
        "conversations": conversations(made, part, [signals[n] for n in DEFAULT.signals]),
    }


def router(made: RoutingSet, signals: Sequence[Signal], threshold: float) -> Router:
    """A router over all experts of the set."""
    return Router(made.profiles, signals, RoutingConfig(threshold=threshold))


def best_threshold(made: RoutingSet, signals: Sequence[Signal]) -> float:
    """The threshold with the most right messages of the development part, between two scores."""
    everyone = router(made, signals, 0.0)
    found = [(everyone.route(m.text).totals, m.expert) for m in made.of("dev")]
    best = [max(totals, key=lambda name: totals[name]) for totals, _ in found]
    top = np.asarray([totals[name] for (totals, _), name in zip(found, best, strict=True)])
    hit = np.asarray([name == expert for (_, expert), name in zip(found, best, strict=True)])
    out = np.asarray([not expert for _, expert in found])
    scores = np.unique(np.concatenate([[0.0], top, [1.0]]))
    candidates = (scores[1:] + scores[:-1]) / 2
    right = [int(np.sum(np.where(top >= t, hit, out))) for t in candidates]
    return round(float(candidates[int(np.argmax(right))]), 3)


def measure(messages: Sequence[Message], route: Router) -> tuple[dict[str, Any], Flags]:
    """Accuracy by kind of message, and which messages went right, shape (messages,)."""
    began = time.perf_counter()
    found = [route.route(message.text) for message in messages]
    seconds = time.perf_counter() - began
    who = [routing.chosen[0][0] if routing.chosen else "" for routing in found]
    right = np.asarray([w == m.expert for w, m in zip(who, messages, strict=True)])
    inside = np.asarray([bool(m.expert) for m in messages])
    top = np.asarray([max(routing.totals.values()) for routing in found])
    best = [max(r.totals, key=lambda name: r.totals[name]) for r in found]
    named = np.asarray([b == m.expert for b, m in zip(best, messages, strict=True)])
    clusters = np.asarray([m.passage for m in messages])
    row = {
        "accuracy": with_interval(right, clusters),
        "in_domain": with_interval(right[inside], clusters[inside]),
        "rejection": with_interval(right[~inside], clusters[~inside]),
        "to_a_wrong_expert": {
            kind: int(
                sum(
                    bool(w) and not r
                    for w, r, m in zip(who, right, messages, strict=True)
                    if m.kind == kind
                )
            )
            for kind in ("in", "rephrased")
        },
        "best_without_threshold": float(named[inside].mean()),
        "auroc": auroc(top[inside], top[~inside]),
        "by_kind": {
            kind: wilson(right[np.asarray([m.kind == kind for m in messages])]) for kind in KINDS
        },
        "milliseconds": round(1000 * seconds / len(messages), 2),
    }
    return row, right


def conversations(made: RoutingSet, part: Part, signals: Sequence[Signal]) -> dict[str, Any]:
    """What history does to the choice, at the defaults; after questions that were routed right."""
    route = router(made, signals, DEFAULT.threshold)

    def who(message: str, *history: str) -> str:
        chosen = route.route(message, history).chosen
        return chosen[0][0] if chosen else ""

    messages = made.of(part)
    asked = [m for m in messages if m.kind == "in" and who(m.text) == m.expert]
    chat = [m.text for m in messages if m.kind == "everyday" and not who(m.text)]
    jumps = [(m, asked[(n + len(asked) // 2) % len(asked)]) for n, m in enumerate(asked)]
    return {
        "follow_up_stays": share(
            [who(f, m.text) == m.expert for m in asked for f in made.follow_ups]
        ),
        "everyday_message_leaves": share([not who(text, m.text) for m in asked for text in chat]),
        "other_experts_question_changes": share(
            [who(b.text, a.text) == b.expert for a, b in jumps if a.expert != b.expert]
        ),
        "question_after_everyday_message_enters": share(
            [who(m.text, text) == m.expert for m in asked for text in chat]
        ),
    }


def share(flags: Sequence[bool]) -> dict[str, Any]:
    """A share of trues, and of how many."""
    return {"share": float(np.mean(flags)), "n": len(flags)}


def with_interval(right: Flags, clusters: NDArray[np.str_]) -> list[float]:
    """A mean with its interval; the passages of messages are resampled."""
    found = difference_interval(right, np.zeros(len(right)), list(clusters))
    return [round(value, 4) for value in (found.estimate, found.low, found.high)]


def wilson(right: Flags) -> dict[str, Any]:
    """A share with its Wilson score interval (Wilson 1927), 95 %."""
    n, z = len(right), 1.96
    p = float(right.mean())
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return {"share": p, "low": middle - half, "high": middle + half, "n": n}


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """How often a message in domain scores above one out of domain; ties count half."""
    above = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    return round(float(above), 4)


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ("signals", "threshold", "all", "in domain", "rejected", "AUROC", *KINDS, "ms")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in report["rows"]:
        cells = [
            " + ".join(row["signals"]),
            f"{row['threshold']:g}" + (" (default)" if row["from"] == "default" else ""),
            *("{:.1%} ({:.1%} … {:.1%})".format(*row[k]) for k in ("accuracy",)),
            *(f"{row[k][0]:.1%}" for k in ("in_domain", "rejection")),
            f"{row['auroc']:.3f}",
            *(f"{row['by_kind'][kind]['share']:.1%}" for kind in KINDS),
            f"{row['milliseconds']:g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    talk = [f"- {k}: {v['share']:.1%} of {v['n']}" for k, v in report["conversations"].items()]
    return "\n".join([f"messages: {report['messages']}", "", *lines, "", *talk, ""])


if __name__ == "__main__":
    main()
