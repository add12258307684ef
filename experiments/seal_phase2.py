"""What ReST-EM's generators are worth on passages that nothing was chosen, tuned or trained on.

    python experiments/split_seal_data.py --data seal_train100.json --output-dir artifacts/data
    python experiments/seal_phase2.py --data artifacts/data/report.json --run artifacts/phase2/run
    python experiments/seal_phase2.py --table

Takes the run directory of ``experiments/seal_phase2_experiment.yaml``. For each passage and seed, a
self-edit is written by each arm (another seed, another self-edit), a temporary adapter is trained
on the passage and it, with the same number of tokens and the same seed for all arms, and asked the
passage's questions. An arm of which the quality filter leaves nothing has the passage alone, whose
trial with that seed it shares. One JSON line a trial goes to ``results/phase2/trials.jsonl``;
trials that are there are skipped. The trials are those of ``edit_search.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.edit_search import (
    RELEASED,
    Variant,
    edits_of,
    retention_probes,
    trials,
)

import aios
from aios.core.data.readers import read_passages
from aios.core.protocols import LanguageModel, TrialBench
from aios.core.seal.test_time_training import own_bench
from aios.core.types import Passage

FOLDER = Path(__file__).parent / "results" / "phase2"
RECORD, SUMMARY = FOLDER / "trials.jsonl", FOLDER / "summary.json"
STRATEGIES = ("implications", "rewrite")
TEMPERATURE = 0.7  # as the run's
RESAMPLES = 10_000
ALONE = "passage"


def arms(run: Path | None) -> list[Variant]:
    """What is compared; `run` is where the generators are."""
    found = [
        Variant(ALONE),
        Variant("cloze", "cloze"),
        Variant("7B implications", RELEASED),
    ]
    for number in (0, 1, 2):
        label = f"round {number}" if number else "untrained"
        folder = str(run / "rounds" / str(number) / "generator") if number and run else ""
        found += [
            Variant(f"{name}, {label}", name, temperature=TEMPERATURE, generator=folder)
            for name in STRATEGIES
        ]
    return found


def main() -> None:
    """Runs what is missing, then reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="passages to report on")
    parser.add_argument("--run", type=Path, help="run directory of ReST-EM")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="make the tables only")
    given = parser.parse_args()
    if not given.table:
        if given.data is None or given.run is None:
            parser.error("--data and --run are needed")
        passages = list(read_passages(given.data, on_reject=lambda reject: None))
        search(arms(given.run), passages[: given.passages], given.seeds)
    summary = summarize(read_rows())
    SUMMARY.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_tables(summary)


def search(variants: Sequence[Variant], passages: Sequence[Passage], seeds: int) -> None:
    """All arms of a seed, then the next seed."""
    model = aios.load_model()
    bench = own_bench(model)
    for seed in range(seeds):
        for variant in variants:
            run_arm(model, bench, variant, passages, seed)


def run_arm(
    model: LanguageModel,
    bench: TrialBench,
    variant: Variant,
    passages: Sequence[Passage],
    seed: int,
) -> None:
    """One arm with one seed; passages without a self-edit share the trial of the passage alone."""
    rows = read_rows()
    done = {(r["arm"], r["passage"], r["seed"]) for r in rows}
    missing = [p for p in passages if (variant.name, p.id, seed) not in done]
    if not missing:
        return
    edits = edits_of(model, variant, missing, seed)
    alone = {r["passage"]: r for r in rows if r["arm"] == ALONE and r["seed"] == seed}
    empty = [p for p in missing if variant.name != ALONE and not edits[p.id]]
    made = [{**alone[p.id], "as_passage": True} for p in empty]
    left = [(p, seed) for p in missing if p not in empty]
    if left:
        made += trials(bench, model, variant, left, edits, retention_probes())
    with RECORD.open("a", encoding="utf-8") as stream:
        for row in made:
            stream.write(json.dumps({**row, "arm": variant.name}) + "\n")
    print(f"seed {seed}, {variant.name}: {len(left)} trials, {len(empty)} empty", flush=True)


def read_rows() -> list[dict[str, Any]]:
    """All rows so far."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not RECORD.exists():
        return []
    return [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- what it says


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of each arm, of the strategies of a generator together, and comparisons."""
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "nll" in row:
            by_arm[row["arm"]].append(row)
            label = row["arm"].partition(", ")[2]
            if label:
                by_arm[f"both, {label}"].append(row)
    base = [
        {
            **r,
            "nll": r["nll_before"],
            "greedy": r["greedy_before"],
            "retention": r["retention_before"],
            "items": 0,
        }
        for r in by_arm[ALONE]
    ]
    by_arm["base"] = base
    pairs = [
        ("both, round 1", "both, untrained"),
        ("both, round 2", "both, untrained"),
        ("both, round 2", "both, round 1"),
        ("both, round 1", ALONE),
        ("both, round 2", ALONE),
        ("both, untrained", ALONE),
        ("cloze", ALONE),
        ("cloze", "7B implications"),
        ("7B implications", ALONE),
        ("both, round 2", "7B implications"),
        ("both, round 2", "cloze"),
    ]
    return {
        "command": "python experiments/seal_phase2.py --data report.json --run RUN",
        "passages": len({r["passage"] for r in rows}),
        "seeds": len({r["seed"] for r in rows}),
        "arms": {name: figures(found) for name, found in by_arm.items()},
        "comparisons": [
            {"treatment": a, "control": b, **compared(by_arm[a], by_arm[b])}
            for a, b in pairs
            if by_arm[a] and by_arm[b]
        ],
    }


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Loss of all answer tokens, its spread over seeds, and the rest."""
    seeds = sorted({r["seed"] for r in rows})
    losses = [loss([r for r in rows if r["seed"] == seed]) for seed in seeds]
    return {
        "loss": round(loss(rows), 4),
        "sd_over_seeds": round(float(np.std(losses, ddof=1)), 4) if len(losses) > 1 else 0.0,
        "exact": sum(r["greedy"] for r in rows) / sum(r["questions"] for r in rows),
        "retention": float(np.mean([r["retention"] for r in rows])),
        "items": float(np.mean([r["items"] for r in rows])),
        "edit_tokens": float(np.mean([r.get("edit_tokens", 0) for r in rows])),
        "empty": float(np.mean([r.get("as_passage", False) for r in rows])),
        "n": len(rows),
    }


def loss(rows: Sequence[dict[str, Any]]) -> float:
    """Loss of all answer tokens (nats a token)."""
    return float(sum(r["nll"] for r in rows) / sum(r["answer_tokens"] for r in rows))


def compared(
    treatment: Sequence[dict[str, Any]], control: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Relative change of the loss; passages are resampled in pairs, with all their seeds."""
    both = sorted({r["passage"] for r in treatment} & {r["passage"] for r in control})

    def sums(rows: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
        """Mean over seeds and strategies of each passage's summed loss, and its tokens."""
        found = []
        for passage in both:
            mine = [r for r in rows if r["passage"] == passage]
            found.append([np.mean([r["nll"] for r in mine]), mine[0]["answer_tokens"]])
        return np.array(found)

    ours, theirs = sums(treatment), sums(control)
    draws = np.random.default_rng(0).integers(len(both), size=(RESAMPLES, len(both)))

    def change(indices: Any) -> Any:
        a, b = ours[indices].sum(axis=-2), theirs[indices].sum(axis=-2)
        return (a[..., 0] / a[..., 1]) / (b[..., 0] / b[..., 1]) - 1

    low, high = np.percentile(change(draws), [2.5, 97.5])
    point = float(change(np.arange(len(both))))
    verdict = "better" if high < 0 else "worse" if low > 0 else "no difference found"
    return {
        "relative_change": point,
        "ci95": [float(low), float(high)],
        "n": len(both),
        "verdict": verdict,
    }


def print_tables(summary: dict[str, Any]) -> None:
    """The tables, as Markdown."""
    print(f"\n{summary['passages']} passages, {summary['seeds']} seeds\n")
    print("| arm | loss | exact | retention loss | items | edit tokens | nothing left | trials |")
    print("|---|---|---|---|---|---|---|---|")
    for name, f in sorted(summary["arms"].items(), key=lambda pair: pair[1]["loss"]):
        print(
            f"| {name} | {f['loss']:.3f} ± {f['sd_over_seeds']:.3f} | {f['exact']:.1%} |"
            f" {f['retention']:.2f} | {f['items']:.1f} | {f['edit_tokens']:.0f} |"
            f" {f['empty']:.0%} | {f['n']} |"
        )
    print("\n| compared | with | loss | 95 % interval | verdict |\n|---|---|---|---|---|")
    for c in summary["comparisons"]:
        low, high = c["ci95"]
        print(
            f"| {c['treatment']} | {c['control']} | {c['relative_change']:+.1%} |"
            f" {low:+.1%} … {high:+.1%} | {c['verdict']} |"
        )


if __name__ == "__main__":
    main()
