"""Searches self-edits for the bundled model: which kind, how many, trained how.

    python experiments/split_seal_data.py --data seal_train100.json --output-dir artifacts/data
    python experiments/edit_search.py --data artifacts/data/choose.json --stage formats
    python experiments/edit_search.py --table

Every variant is tried as ReST-EM tries a self-edit: one temporary adapter a passage, trained on the
passage and its self-edit, the same number of training tokens for all, then asked the passage's
questions. The figure of a variant is the loss of all answer tokens over all passages. A stage names
its variants and its slice of the passages; nothing here sees the passages that results are
reported on. One JSON line a trial goes to ``results/edit_search.jsonl``; trials that are there are
skipped, so that the search can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import aios
from aios.app.composition import build_generator, open_cache, recipe_for
from aios.app.generators import writing_model
from aios.core.data.probes import Probe, make_probes
from aios.core.data.readers import read_passages
from aios.core.evaluation.ab_test import retention_requests
from aios.core.protocols import LanguageModel, TrialBench
from aios.core.seal.test_time_training import own_bench
from aios.core.seal.trainable_edits import text_items
from aios.core.seeds import derive
from aios.core.training.examples import LossOn, edit_examples, passage_examples
from aios.core.trials import Answered, TrialJob, TrialOutcome
from aios.core.types import LoraRecipe, Passage, SelfEdit

RESULTS = Path(__file__).parent / "results" / "edit_search.jsonl"
RETENTION = Path(__file__).parent.parent / "examples" / "retention.txt"
RECIPE = LoraRecipe(rank=32, alpha=64, learning_rate=1e-3, batch_size=4)
BUDGET = 1500  # training tokens of a trial
RELEASED = "qwen-7b"  # the self-edits that come with the file
RESAMPLES = 10_000


@dataclass(frozen=True)
class Variant:
    """One way to make self-edits and to train on them.

    Attributes:
        name: For people.
        strategy: A strategy or mix; `RELEASED` for those in the file; empty for none.
        edits: Self-edits of each passage that are trained on together.
        temperature: Of the sampling.
        settings: Further config overrides for the generator.
        recipe: How it is trained.
        budget: Training tokens.
        passage_copies: Times the passage stands among the examples.
        loss_on: Which part of question-answer items carries loss.
        template: What stands before the answer that is scored.
        generator: Folder of the generator that writes; empty: the untrained model does.
    """

    name: str
    strategy: str = ""
    edits: int = 1
    temperature: float = 1.0
    settings: tuple[str, ...] = ()
    recipe: LoraRecipe = RECIPE
    budget: int = BUDGET
    passage_copies: int = 1
    loss_on: LossOn = "all"
    template: str = "Question: {question}\nAnswer:"
    generator: str = ""


WRITTEN = (
    "implications",
    "implications-long",
    "implications-very-long",
    "implications-cot",
    "rewrite",
    "self-qa",
)
UNFILTERED = ("seal.enable_quality_filter=false", "seal.enable_grounding=false")


def formats() -> Iterator[Variant]:
    """Every way to make self-edits, one of each, at two temperatures; with and without filter."""
    yield Variant("passage")
    yield Variant("cloze", "cloze")
    yield Variant("self-qa-grounded", "self-qa-grounded")
    yield Variant("7B implications", RELEASED)
    for name in ("self-qa", "rewrite", "implications"):
        yield Variant(f"{name}, T 0.5, no filter", name, temperature=0.5, settings=UNFILTERED)
    for name in ("self-qa", "rewrite"):
        yield Variant(f"{name}, T 0.5", name, temperature=0.5)
        yield Variant(f"{name}, T 1", name)
    for name in WRITTEN[:4]:
        yield Variant(f"{name}, T 1", name)
        yield Variant(f"{name}, T 0.5", name, temperature=0.5)


def recipes() -> Iterator[Variant]:
    """How blanks are trained on: one thing changed at a time."""
    blanks = Variant("cloze", "cloze")
    yield Variant("passage")
    yield blanks
    yield replace(blanks, name="3000 tokens", budget=3000)
    yield replace(blanks, name="750 tokens", budget=750)
    for rate in (5e-4, 2e-3):
        recipe = replace(RECIPE, learning_rate=rate)
        yield replace(blanks, name=f"learning rate {rate:g}", recipe=recipe)
    for rank in (8, 16):
        recipe = replace(RECIPE, rank=rank, alpha=2 * rank)
        yield replace(blanks, name=f"rank {rank}", recipe=recipe)
    for size in (2, 8):
        recipe = replace(RECIPE, batch_size=size)
        yield replace(blanks, name=f"{size} texts a step", recipe=recipe)
    yield replace(blanks, name="two sets of blanks", edits=2)
    yield replace(blanks, name="without the passage", passage_copies=0)
    yield replace(blanks, name="passage twice", passage_copies=2)
    yield replace(blanks, name="loss on the answer", loss_on="answer")
    yield replace(
        blanks,
        name="rank 8, learning rate 2e-3",
        recipe=replace(RECIPE, rank=8, alpha=16, learning_rate=2e-3),
    )
    yield replace(blanks, name="asked without Question:", template="{question}\n")
    yield replace(blanks, name="cloze and implications", strategy="cloze:1,implications:1")


def confirmed() -> Iterator[Variant]:
    """What the stages before would choose, on passages that they have not seen."""
    blanks = Variant("cloze", "cloze")
    yield Variant("passage")
    yield blanks
    yield replace(blanks, name="3000 tokens", budget=3000)
    yield replace(blanks, name="two sets of blanks", edits=2)
    yield replace(blanks, name="without the passage", passage_copies=0)


STAGES: dict[str, tuple[slice, Any]] = {
    "formats": (slice(0, 12), formats),
    "recipes": (slice(0, 12), recipes),
    "confirmed": (slice(36, 48), confirmed),
}


def main() -> None:
    """Runs what is missing of a stage, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="passages to choose on")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables of all stages")
    given = parser.parse_args()
    if given.table:
        sys.stdout.write(tables(read_rows()))
        return
    if given.data is None or given.stage is None:
        parser.error("--data and --stage are needed")
    part, variants = STAGES[given.stage]
    passages = list(read_passages(given.data, on_reject=lambda reject: None))[part]
    search(given.stage, list(variants()), passages, given.seeds)


def search(
    stage: str, variants: Sequence[Variant], passages: Sequence[Passage], seeds: int
) -> None:
    """Adds the trials that the record does not have yet, a variant at a time."""
    model = aios.load_model()
    bench = own_bench(model)
    done = {(r["stage"], r["variant"], r["passage"], r["seed"]) for r in read_rows()}
    retention = retention_probes()
    for variant in variants:
        missing = [
            (p, s)
            for p in passages
            for s in range(seeds)
            if (stage, variant.name, p.id, s) not in done
        ]
        if not missing:
            continue
        began = time.monotonic()
        wanted = list(dict.fromkeys(p.id for p, _ in missing))
        edits = edits_of(model, variant, [p for p in passages if p.id in wanted])
        written = time.monotonic() - began
        rows = trials(bench, model, variant, missing, edits, retention)
        seconds = time.monotonic() - began - written
        with RESULTS.open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps({"stage": stage, "variant": variant.name, **row}) + "\n")
        losses = summary(rows)
        print(f"{variant.name}: {losses} ({written:.0f} s + {seconds:.0f} s)", flush=True)


def edits_of(
    model: LanguageModel, variant: Variant, passages: Sequence[Passage], seed: int = 0
) -> dict[str, list[SelfEdit]]:
    """The self-edits of each passage; the seed chooses among those that come with the file, too."""
    if not variant.strategy:
        return {p.id: [] for p in passages}
    if variant.strategy == RELEASED:
        return {
            p.id: [
                SelfEdit(p.id, RELEASED, n, tuple(text_items(text)))
                for n, text in enumerate(p.completions[seed : seed + variant.edits])
            ]
            for p in passages
        }
    config = aios.load_config(
        f"seal.strategy={variant.strategy}",
        *(() if ":" in variant.strategy else (f"seal.num_edits_per_passage={variant.edits}",)),
        f"seal.temperature={variant.temperature}",
        f"seed={seed}",
        "seal.max_new_tokens=384",
        "seal.batch_size=8",
        *([f"seal.generator={variant.generator}"] if variant.generator else []),
        *variant.settings,
    )
    with open_cache(config) as cache, writing_model(config, model) as writer:
        generator = build_generator(config, writer, recipe_for(config, model), cache=cache)
        return {r.passage.id: list(r.kept) for r in generator.generate(passages)}


def trials(
    bench: TrialBench,
    model: LanguageModel,
    variant: Variant,
    wanted: Sequence[tuple[Passage, int]],
    edits: dict[str, list[SelfEdit]],
    retention: Sequence[Probe],
) -> list[dict[str, Any]]:
    """One row a passage and seed."""
    jobs, rows = [], {}
    for passage, seed in wanted:
        examples = [
            *passage_examples([passage], variant.passage_copies),
            *edit_examples(edits[passage.id], variant.loss_on),
        ]
        sizes = [model.count_tokens(e.text) for e in examples]
        steps = math.ceil(variant.budget / (np.mean(sizes) * min(4, len(sizes))))
        questions = make_probes({passage.id: passage.questions}, variant.template)
        job = TrialJob(
            f"{passage.id}/{seed}",
            tuple(examples),
            replace(variant.recipe, batch_size=min(variant.recipe.batch_size, len(examples))),
            derive(seed, "edit-search", passage.id),
            (*questions, *retention),
            max_steps=math.ceil(steps * 4 / variant.recipe.batch_size),
        )
        jobs.append(job)
        before = bench.baseline(job.questions)
        rows[job.id] = {
            "passage": passage.id,
            "seed": seed,
            "items": len(examples) - variant.passage_copies,
            "edit_tokens": sum(sizes[variant.passage_copies :]),
            **scores(before, len(questions), "_before"),
        }
    for outcome in bench.run(jobs):
        row = rows[outcome.job_id]
        if outcome.failure or outcome.metrics is None:
            row["failure"] = outcome.failure.error if outcome.failure else "no metrics"
            continue
        row.update(scores(outcome.answers, len(wanted_questions(outcome, retention)), ""))
        row.update(
            tokens=outcome.metrics.tokens,
            steps=outcome.metrics.steps,
            seconds=round(outcome.metrics.seconds, 2),
        )
    return list(rows.values())


def wanted_questions(outcome: TrialOutcome, retention: Sequence[Probe]) -> Sequence[Answered]:
    """The answers that are of questions, not of the retention text."""
    return outcome.answers[: len(outcome.answers) - len(retention)]


def scores(answers: Sequence[Any], questions: int, suffix: str) -> dict[str, Any]:
    """Sums over questions and over the retention text."""
    asked, kept = answers[:questions], answers[questions:]
    return {
        f"nll{suffix}": -sum(a.score.logprob for a in asked),
        "answer_tokens": sum(a.score.tokens for a in asked),
        f"greedy{suffix}": sum(a.score.greedy for a in asked),
        "questions": questions,
        f"retention{suffix}": -sum(a.score.logprob for a in kept)
        / sum(a.score.tokens for a in kept),
    }


def retention_probes() -> list[Probe]:
    """Unrelated text, a paragraph a probe; five of them, for their cost."""
    requests = retention_requests(RETENTION.read_text(encoding="utf-8"))[:5]
    return [Probe(f"retention-{n}", "", "", ("",), "", r) for n, r in enumerate(requests)]


def read_rows() -> list[dict[str, Any]]:
    """All rows so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Loss over all answer tokens, before and after."""
    good = [r for r in rows if "nll" in r]
    if not good:
        return "all failed"
    tokens = sum(r["answer_tokens"] for r in good)
    before, after = (sum(r[k] for r in good) / tokens for k in ("nll_before", "nll"))
    kept = np.mean([r["items"] for r in good])
    return f"loss {before:.3f} -> {after:.3f}, {kept:.1f} items, n {len(good)}"


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table a stage, best first."""
    by_stage: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "nll" in row:
            by_stage[row["stage"]][row["variant"]].append(row)
    text = ""
    for stage, variants in by_stage.items():
        text += f"\n### {stage}\n\n"
        text += "| variant | loss | against passage | 95 % | right | retention | items |"
        text += " edit tokens | training tokens | n |\n|---|---|---|---|---|---|---|---|---|---|\n"
        reference = variants.get("passage", [])
        lines = [(loss_of(rs), line(name, rs, reference)) for name, rs in variants.items()]
        text += "".join(text_of for _, text_of in sorted(lines))
    return text


def loss_of(rows: Sequence[dict[str, Any]]) -> float:
    """Loss of all answer tokens."""
    return float(sum(r["nll"] for r in rows) / sum(r["answer_tokens"] for r in rows))


def line(name: str, rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> str:
    """One variant; its change against the passage alone, with a bootstrap over passages."""
    change = interval = ""
    if reference and rows is not reference:
        change = f"{loss_of(rows) / loss_of(reference) - 1:+.1%}"
        interval = "{:+.1%} … {:+.1%}".format(*bootstrap(rows, reference))
    greedy = sum(r["greedy"] for r in rows) / sum(r["questions"] for r in rows)
    means = [np.mean([r[k] for r in rows]) for k in ("retention", "items", "edit_tokens", "tokens")]
    return (
        f"| {name} | {loss_of(rows):.3f} | {change} | {interval} | {greedy:.1%} |"
        f" {means[0]:.2f} | {means[1]:.1f} | {means[2]:.0f} | {means[3]:.0f} | {len(rows)} |\n"
    )


def bootstrap(
    rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]
) -> tuple[float, float]:
    """95 % interval of the relative change of loss, passages resampled in pairs."""
    both = sorted({r["passage"] for r in rows} & {r["passage"] for r in reference})

    def sums(table: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
        return np.array(
            [
                [sum(r[k] for r in table if r["passage"] == p) for k in ("nll", "answer_tokens")]
                for p in both
            ]
        )

    draws = np.random.default_rng(0).integers(len(both), size=(RESAMPLES, len(both)))
    ours, theirs = (sums(t)[draws].sum(axis=1) for t in (rows, reference))
    change = (ours[:, 0] / ours[:, 1]) / (theirs[:, 0] / theirs[:, 1]) - 1
    low, high = np.percentile(change, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
