"""Searches a training recipe for a base model: which self-edits help, trained how.

    python experiments/recipe_search.py --data seal_train100.json --output experiments/results/recipe_search.jsonl

Every variant trains one expert on the first `--passages` passages of the file with the same
token budget. A third of the questions chooses each variant's best checkpoint, the other two
thirds give its figures. Only passages of the file's first half are used: results are reported on
the second half (see experiments/seal_phase1_results.md). Finished variants are skipped, so the
search can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.models import resolve_model
from aios.backends.torch_lm import TorchLM
from aios.core.protocols import ignore
from aios.core.data.splitting import split_sentences
from aios.core.seal.answer_spans import find_answer_spans
from aios.core.seeds import derive
from aios.core.seal.strategies import get_strategy
from aios.core.types import LoraRecipe, Passage, SamplingParams, ScoreRequest, TrainExample, TrainingJob

RECIPE = LoraRecipe(rank=32, alpha=64, learning_rate=5e-4, batch_size=8)
TEMPLATE = "Question: {q}\nAnswer:"


def whole(text):
    return TrainExample.whole(text)


def qa(q, a, loss="all"):
    text = f"Question: {q}\nAnswer: {a}"
    start = 0 if loss == "all" else text.rindex("\nAnswer:") + 8
    return TrainExample(text, ((start, len(text)),), "edit")


def passage(p, title=True):
    return whole(f"{p['title']}\n{p['context']}" if title else p["context"])


WH = {"date": "when", "number": "how many", "name": "who or what", "clause": "what", "phrase": "what"}
RANK = {"date": 0, "number": 0, "name": 0, "clause": 1, "phrase": 2}


def cloze(p, per=4, title=True, wh=False, loss="all", kinds=None, seed=0):
    out = []
    for i, s in enumerate(split_sentences(p["context"])):
        spans = [x for x in find_answer_spans(s) if not kinds or x.kind in kinds]
        rng = random.Random(derive(seed, p["context"][:40], i))
        rng.shuffle(spans)
        spans.sort(key=lambda x: RANK[x.kind])
        for x in spans[:per]:
            gap = WH[x.kind] if wh else "____"
            q = s[: x.start] + gap + s[x.end :]
            if wh:
                q = q.rstrip(".") + "?"
            head = f"{p['title']}: " if title else ""
            out.append(qa(head + q, s[x.start : x.end], loss))
    return out


def needs_title(s, title):
    words = {w.lower() for w in title.replace("_", " ").split()}
    return not any(w.strip(",.;").lower() in words for w in s.split())


def mixed(p, **k):
    """The title only before sentences that do not name it."""
    out = []
    for s in split_sentences(p["context"]):
        q = {**p, "context": s}
        out += cloze(q, title=needs_title(s, p["title"]), **k)
    return out


GROUNDED = {}


def grounded(p, model):
    """Questions worded by the model for answers in the passage, checked by a round trip."""
    if p["context"] not in GROUNDED:
        strategy = get_strategy("self-qa-grounded")
        passage_ = Passage.make(p["context"], title=p["title"])
        (completion,), = strategy.generate(model, [passage_], [(1,)], SamplingParams())
        GROUNDED[p["context"]] = strategy.parse_output(completion.text, passage_)
    return [TrainExample.whole(item, source="edit") for item in GROUNDED[p["context"]]]


def variants(model):
    v = {}
    def add(name, build, budget=30000, **recipe):
        v[name] = (build, replace(RECIPE, **recipe), budget)
    def cz(p, **k):
        return cloze(p, title=False, **k)
    add("passage", lambda p: [passage(p)])
    add("cloze", lambda p: [passage(p), *cloze(p)])
    add("cloze untitled", lambda p: [passage(p), *cz(p)])
    add("passage b2", lambda p: [passage(p)], batch_size=2)
    add("cz wh", lambda p: [passage(p), *cz(p, wh=True)])
    add("cz answer-loss", lambda p: [passage(p), *cz(p, loss="answer")])
    add("cz b4", lambda p: [passage(p), *cz(p)], batch_size=4)
    add("cz b16", lambda p: [passage(p), *cz(p)], batch_size=16)
    add("cz all spans", lambda p: [passage(p), *cz(p, per=99)])
    add("cz lr 1e-3", lambda p: [passage(p), *cz(p)], learning_rate=1e-3)
    add("cz+grounded", lambda p: [passage(p), *cz(p), *grounded(p, model)])
    add("grounded", lambda p: [passage(p), *grounded(p, model)])
    add("mixed title", lambda p: [passage(p), *mixed(p)])
    add("passage lr 1e-3", lambda p: [passage(p)], learning_rate=1e-3)
    add("cz edits only", lambda p: [*cz(p)])
    add("cz+wh", lambda p: [passage(p), *cz(p), *cz(p, wh=True)])
    add("cz 2 a sentence", lambda p: [passage(p), *cz(p, per=2)])
    add("passage b2 lr 2e-4", lambda p: [passage(p)], batch_size=2, learning_rate=2e-4)
    return v


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data", required=True, type=Path)
    ap.add_argument("--output", required=True, type=Path)
    ap.add_argument("--passages", type=int, default=20)
    ap.add_argument("--only", default="")
    args = ap.parse_args()
    data = json.loads(args.data.read_text())[:50][: args.passages]
    source = resolve_model("smollm2-135m-instruct", cache_dir=None, offline=False, emit=ignore)
    lm = TorchLM.load(source)
    trainer = TorchAdapterTrainer(lm)
    selection, report = [], []
    for p in data:
        for i, q in enumerate(p["questions"]):
            r = ScoreRequest(TEMPLATE.format(q=q["question"]), " " + q["answer"])
            (selection if i % 3 == 0 else report).append(r)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(l)["name"] for l in args.output.open()} if args.output.exists() else set()
    def figures(model):
        scores = model.score(report)
        return {"loss": -sum(s.logprob for s in scores) / sum(s.tokens for s in scores),
                "greedy": sum(s.greedy for s in scores) / len(scores)}
    todo = variants(lm)
    if "base" not in done:
        row = {"name": "base", **figures(lm), "n": len(report)}
        args.output.open("a").write(json.dumps(row) + "\n")
        print(row, flush=True)
    for name, (build, recipe, budget) in todo.items():
        if name in done or args.only and args.only not in name:
            continue
        t = time.time()
        examples = tuple(e for p in data for e in build(p))
        with tempfile.TemporaryDirectory() as folder:
            result = trainer.fit(TrainingJob(examples, recipe, 0, Path(folder) / "x", tuple(selection),
                max_tokens=budget, evaluate_every_tokens=budget // 6))
            model = trainer.attach(result.adapter)
            row = {"name": name, **figures(model), "selection": result.best.validation_loss,
                   "best_tokens": result.best.tokens, "tokens": result.tokens, "examples": len(examples),
                   "epochs": result.curve[-1].epoch, "seconds": result.seconds, "wall": time.time() - t,
                   "curve": [(c.tokens, c.validation_loss) for c in result.curve], "recipe": asdict(recipe)}
            trainer.detach(model)
        args.output.open("a").write(json.dumps(row) + "\n")
        print({k: v for k, v in row.items() if k not in ("recipe",)}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
