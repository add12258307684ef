"""Which cheap signals foretell a trial's reward? And what do racing and trunk caching keep of it?

    python experiments/trial_signals.py SEAL_FILE [--passages 30] [--report]

Takes a SEAL-release JSON file (passages with questions, and completions as self-edits). For the
first five completions of each passage it trains and examines two temporary adapters on the
bundled model (repeats 0 and 1), and one more with adapters on the upper third of the layers only
(trunk caching). The reward is the gain of the answers' mean log-probability a token over the base
model's. The signals cost no such training. Everything is kept in
``results/trial_signals.jsonl``, a line a passage and stage, so that a run that was stopped goes on;
``--report`` makes ``results/trial_signals.json`` and the table of that file alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import aios
from aios.app.trials import gradient_alignment
from aios.core.data.probes import Probe, make_probes
from aios.core.evaluation.metrics import normalize_answer
from aios.core.protocols import LanguageModel, TrialBench
from aios.core.seal.reliability import report as reliability_of
from aios.core.seal.test_time_training import own_bench
from aios.core.seal.trial_set import Candidate
from aios.core.training.examples import passage_examples
from aios.core.trials import Answered, TrialJob, TrialOutcome
from aios.core.types import LoraRecipe, Passage, ScoreRequest, TrainExample

RESULTS = Path(__file__).parent / "results"
RECORD = RESULTS / "trial_signals.jsonl"
SUMMARY = RESULTS / "trial_signals.json"
RECIPE = LoraRecipe(rank=32, alpha=64, learning_rate=1e-3, epochs=4, batch_size=4)
CANDIDATES = 5
TRUNK_LAYERS = 20  # of 30
SEED = 0
STAGES = ("signals", "repeat-0", "repeat-1", "one-epoch", "trunk")
TOGETHER = 8  # passages whose candidates are trained at once
RESAMPLES = 10_000


def main() -> None:
    """Runs what is missing, then reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", help="a SEAL-release JSON file")
    parser.add_argument("--passages", type=int, default=30)
    parser.add_argument("--report", action="store_true", help="make the tables only")
    given = parser.parse_args()
    if not given.report:
        passages = [
            p
            for p in aios.read_passages(Path(given.data), on_reject=print)
            if p.questions and p.completions
        ]
        chosen = random.Random(SEED).sample(passages, given.passages)
        run(chosen)
    summary = summarize(read_record())
    SUMMARY.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_tables(summary)


# ---------------------------------------------------------------- running


def run(passages: Sequence[Passage]) -> None:
    """Adds the lines that the record does not have yet, all stages of some passages at a time."""
    model = aios.load_model()
    bench = own_bench(model)
    done = {(line["passage"], line["stage"]) for line in read_record()}
    for start in range(0, len(passages), TOGETHER):
        for stage in STAGES:
            part = passages[start : start + TOGETHER]
            missing = [p for p in part if (p.id, stage) not in done]
            if not missing:
                continue
            began = time.perf_counter()
            found = signals(model, missing) if stage == "signals" else trials(bench, missing, stage)
            seconds = (time.perf_counter() - began) / len(missing)
            for passage, values in zip(missing, found, strict=True):
                append({"passage": passage.id, "stage": stage, "seconds": seconds, **values})
            print(f"{start + len(part)} passages, {stage}: {seconds:.1f} s each", flush=True)


def probes_of(passage: Passage) -> tuple[Probe, ...]:
    """The passage's questions."""
    return make_probes({passage.id: passage.questions})


def candidates_of(passage: Passage) -> list[Candidate]:
    """Its self-edits: the lines of each completion, and the passage itself, as examples."""
    made = []
    for number, completion in enumerate(passage.completions[:CANDIDATES]):
        items = [line.strip() for line in completion.splitlines() if line.strip()]
        examples = [TrainExample.whole(item, passage_id=passage.id) for item in items]
        examples += passage_examples([passage])
        candidate_id = f"{passage.id}/{number}"
        made.append(Candidate(candidate_id, passage.id, tuple(examples), probes_of(passage)))
    return made


def trials(bench: TrialBench, passages: Sequence[Passage], stage: str) -> list[dict[str, Any]]:
    """Rewards of each passage's candidates in one stage."""
    template = TrialJob(id="", examples=(), recipe=RECIPE, seed=SEED)
    repeat = 1 if stage == "repeat-1" else 0
    if stage == "trunk":
        template = replace(template, trunk_layers=TRUNK_LAYERS)
    if stage == "one-epoch":
        template = replace(template, recipe=replace(RECIPE, epochs=1))
    jobs = [c.job(repeat, template) for p in passages for c in candidates_of(p)]
    outcomes: dict[str, TrialOutcome] = {o.job_id: o for o in bench.run(jobs)}
    rows = []
    for passage in passages:
        before = mean_logprob(bench.baseline(probes_of(passage)))
        mine = [outcomes[c.job(repeat, template).id] for c in candidates_of(passage)]
        failed = [o.failure.error for o in mine if o.failure]
        if failed:
            raise SystemExit(f"a trial of {passage.id} failed: {failed[0]}")
        rewards = [mean_logprob(o.answers) - before for o in mine]
        losses = [o.metrics.losses[-1] for o in mine if o.metrics]
        seconds = [o.metrics.seconds for o in mine if o.metrics]
        tokens = [o.metrics.tokens for o in mine if o.metrics]
        rows.append(
            {"rewards": rewards, "last_loss": losses, "train_seconds": seconds, "tokens": tokens}
        )
    return rows


def mean_logprob(answers: Sequence[Answered]) -> float:
    """Log-probability of all answer tokens over their number."""
    return sum(a.score.logprob for a in answers) / sum(a.score.tokens for a in answers)


def signals(model: LanguageModel, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """What can be known of the candidates without training on them."""
    rows = []
    for passage in passages:
        probes = probes_of(passage)
        candidates = candidates_of(passage)
        items = [[e.text for e in c.examples[:-1]] for c in candidates]  # without the passage
        scores = [model.score([ScoreRequest("", text) for text in mine]) for mine in items]
        tokens = [sum(s.tokens for s in mine) for mine in scores]
        rows.append(
            {
                "answer_recall": [recall(mine, probes) for mine in items],
                "base_loss": [
                    -sum(s.logprob for s in mine) / n
                    for mine, n in zip(scores, tokens, strict=True)
                ],
                "edit_tokens": tokens,
                "edit_items": [len(mine) for mine in items],
                "gradient_alignment": gradient_alignment(
                    model, [c.examples for c in candidates], probes, RECIPE, SEED
                ),
                "gradient_alignment_edit": gradient_alignment(
                    model, [c.examples[:-1] for c in candidates], probes, RECIPE, SEED
                ),
            }
        )
    return rows


def recall(items: Sequence[str], probes: Sequence[Probe]) -> float:
    """Share of the reference answers' words that stand in the self-edit."""
    held = set(normalize_answer(" ".join(items)).split())
    words = [w for p in probes for w in normalize_answer(p.answers[0]).split()]
    return sum(w in held for w in words) / len(words)


# ---------------------------------------------------------------- the record


def read_record() -> list[dict[str, Any]]:
    """All lines so far; a last line that was cut off is left out."""
    lines = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def append(line: dict[str, Any]) -> None:
    """Adds a line."""
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# ---------------------------------------------------------------- what it says


def summarize(record: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlations within passages, reliability, and what choices are worth."""
    by_stage: dict[str, dict[str, Any]] = {}
    for line in record:
        by_stage.setdefault(line["stage"], {})[line["passage"]] = line
    whole = [p for p in by_stage["signals"] if all(p in by_stage.get(s, {}) for s in STAGES)]
    first = {p: by_stage["repeat-0"][p]["rewards"] for p in whole}
    second = {p: by_stage["repeat-1"][p]["rewards"] for p in whole}
    mean = {p: [fmean(pair) for pair in zip(first[p], second[p], strict=True)] for p in whole}
    table = {
        p: {i: list(pair) for i, pair in enumerate(zip(first[p], second[p], strict=True))}
        for p in whole
    }
    rows = {"repeat 1 (for repeat 0)": correlation(whole, second, first)}
    cheap = ["answer_recall", "base_loss", "edit_tokens", "edit_items"]
    for name in (*cheap, "gradient_alignment", "gradient_alignment_edit"):
        rows[name] = correlation(whole, {p: by_stage["signals"][p][name] for p in whole}, mean)
    rows["last training loss"] = correlation(
        whole, {p: by_stage["repeat-0"][p]["last_loss"] for p in whole}, second
    )
    for stage in ("one-epoch", "trunk"):
        rows[f"{stage}, other seed"] = correlation(
            whole, {p: by_stage[stage][p]["rewards"] for p in whole}, second
        )
        rows[f"{stage}, same seed"] = correlation(
            whole, {p: by_stage[stage][p]["rewards"] for p in whole}, first
        )
    reliability = reliability_of(table)
    return {
        "command": "python experiments/trial_signals.py SEAL_FILE",
        "passages": len(whole),
        "trials": {s: CANDIDATES * len(by_stage.get(s, {})) for s in STAGES[1:]},
        "recipe": {
            k: getattr(RECIPE, k)
            for k in ("rank", "alpha", "learning_rate", "epochs", "batch_size")
        },
        "trunk_layers": TRUNK_LAYERS,
        "spearman_within_passages": rows,
        "reliability": reliability.describe(),
        "icc_within": reliability.within.icc,
        "icc_within_mean_of_2": reliability.within.icc_mean,
        "noise_sd": reliability.noise.sd if reliability.noise else None,
        "choices": choices(whole, first, second, by_stage),
        "same_choice_as_two_trials_each": agreement(whole, first, second),
    }


def correlation(
    passages: Sequence[str], signal: dict[str, Any], reward: dict[str, Any]
) -> dict[str, float]:
    """Mean over passages of Spearman's correlation among their candidates, with its interval.

    A passage whose signal or reward is the same for all candidates counts as 0.
    """
    values = np.array([spearman(signal[p], reward[p]) for p in passages])
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return {
        "mean": round(float(values.mean()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "n": len(values),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share their mean rank; 0 where one is constant."""
    x, y = ranks(a), ranks(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Mean ranks."""
    given = np.asarray(values)
    return np.array([(given < v).sum() + ((given == v).sum() - 1) / 2 for v in given])


def choices(
    passages: Sequence[str],
    first: dict[str, Any],
    second: dict[str, Any],
    by_stage: dict[str, dict[str, Any]],
) -> dict[str, dict[str, float]]:
    """Mean reward, in the repeat that the choice has not seen, of the chosen candidate."""

    def held_out(choose: Callable[[str, int], int]) -> list[float]:
        seen = (first, second)
        return [fmean(seen[1 - r][p][choose(p, r)] for r in (0, 1)) for p in passages]

    def best(values: Sequence[float]) -> int:
        return int(np.argmax(values))

    rules: dict[str, list[float]] = {
        "random": [fmean([*first[p], *second[p]]) for p in passages],
        "one trial each": held_out(lambda p, r: best((first, second)[r][p])),
        "trunk trial each": held_out(lambda p, r: best(by_stage["trunk"][p]["rewards"])),
        "one-epoch trial each": held_out(lambda p, r: best(by_stage["one-epoch"][p]["rewards"])),
        "longest edit": held_out(lambda p, r: best(by_stage["signals"][p]["edit_tokens"])),
        "answer recall": held_out(lambda p, r: best(by_stage["signals"][p]["answer_recall"])),
        "gradient alignment": held_out(
            lambda p, r: best(by_stage["signals"][p]["gradient_alignment"])
        ),
        "lowest base loss": held_out(
            lambda p, r: best([-x for x in by_stage["signals"][p]["base_loss"]])
        ),
    }
    chance = np.array(rules["random"])
    draws = np.random.default_rng(SEED).integers(len(chance), size=(RESAMPLES, len(chance)))
    found = {}
    for name, values in rules.items():
        over = np.array(values) - chance
        low, high = np.percentile(over[draws].mean(axis=1), [2.5, 97.5])
        found[name] = {
            "reward": round(fmean(values), 4),
            "over_random": round(float(over.mean()), 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
        }
    return found


def agreement(
    passages: Sequence[str], first: dict[str, Any], second: dict[str, Any]
) -> dict[str, float]:
    """How often fewer trials choose what two of each candidate choose, over both orders."""
    once, raced = [], []
    for p in passages:
        pairs = list(zip(first[p], second[p], strict=True))
        means = [fmean(pair) for pair in pairs]
        both = int(np.argmax(means))
        for rewards in (first[p], second[p]):
            order = sorted(range(len(pairs)), key=rewards.__getitem__, reverse=True)
            once.append(order[0] == both)
            raced.append(max(order[:2], key=means.__getitem__) == both)
    return {"one trial each (5)": fmean(once), "racing (7)": fmean(raced)}


def print_tables(summary: dict[str, Any]) -> None:
    """The tables, as Markdown."""
    print(f"\n{summary['passages']} passages. {summary['reliability']}\n")
    print("| signal | Spearman within passages | 95 % |\n|---|---|---|")
    for name, row in summary["spearman_within_passages"].items():
        print(f"| {name} | {row['mean']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f} |")
    print("\n| choice by | reward of the chosen | over random | 95 % |\n|---|---|---|---|")
    for name, row in summary["choices"].items():
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        print(f"| {name} | {row['reward']:.3f} | {row['over_random']:+.3f} | {interval} |")
    print("\nSame choice as two trials each:", summary["same_choice_as_two_trials_each"])


if __name__ == "__main__":
    main()
