"""Searches a training recipe for the bundled model: which self-edits help, trained how.

    python experiments/split_seal_data.py --data seal_train100.json --output-dir artifacts/data
    python experiments/recipe_search.py --data artifacts/data/choose.json
    python experiments/recipe_search.py --table

Every variant trains one expert on the first 20 passages with the same token budget and seed. One
question in three chooses the variant's best checkpoint of seven, the others give its figures.
Nothing here sees the passages that results are reported on (experiments/seal_phase1_results.md).
One JSON line a variant goes to `experiments/results/recipe_search.jsonl`; variants that are there
are skipped, so the search can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import aios
from aios.app.models import load_trainer
from aios.core.data.readers import read_passages
from aios.core.data.splitting import split_sentences
from aios.core.protocols import AdapterTrainer, LanguageModel
from aios.core.seal.answer_spans import AnswerSpan, find_answer_spans
from aios.core.seal.strategies import get_strategy
from aios.core.seeds import derive
from aios.core.training.examples import passage_examples
from aios.core.trainings import TrainingJob
from aios.core.types import LoraRecipe, Passage, SamplingParams, ScoreRequest, TrainExample

RESULTS = Path(__file__).parent / "results" / "recipe_search.jsonl"
RECIPE = LoraRecipe(rank=32, alpha=64, learning_rate=5e-4, batch_size=8)
BUDGET = 30_000
EVALUATIONS = 6
IN_PLACE = {
    "date": "when",
    "number": "how many",
    "name": "who or what",
    "clause": "what",
    "phrase": "what",
}
RANK = {"date": 0, "number": 0, "name": 0, "clause": 1, "phrase": 2}

Build = Callable[[Passage], list[TrainExample]]


def question_answer(question: str, answer: str, loss_on: str = "all") -> TrainExample:
    text = f"Question: {question}\nAnswer: {answer}"
    start = 0 if loss_on == "all" else text.rindex("\nAnswer:") + len("\nAnswer:")
    return TrainExample(text, ((start, len(text)),), "edit")


def chosen_spans(passage: Passage, sentence: str, number: int, count: int) -> list[AnswerSpan]:
    spans = find_answer_spans(sentence)
    random.Random(derive(0, passage.text[:40], number)).shuffle(spans)
    return sorted(spans, key=lambda span: RANK[span.kind])[:count]


def cloze(
    passage: Passage,
    *,
    a_sentence: int = 4,
    title: str = "never",
    in_place: bool = False,
    loss_on: str = "all",
) -> list[TrainExample]:
    """Blanks in the passage's sentences.

    `title` puts the passage's title before the sentence: `never`, `always`, or `missing` (where
    the sentence names none of its words); `in_place` asks with a question word, not a blank.
    """
    examples = []
    for number, sentence in enumerate(split_sentences(passage.text)):
        named = set(passage.title.lower().replace("_", " ").split()) & set(sentence.lower().split())
        shown = title == "always" or (title == "missing" and not named)
        head = f"{passage.title}: " if shown else ""
        for span in chosen_spans(passage, sentence, number, a_sentence):
            gap = IN_PLACE[span.kind] if in_place else "____"
            question = sentence[: span.start] + gap + sentence[span.end :]
            if in_place:
                question = question.rstrip(".") + "?"
            answer = sentence[span.start : span.end]
            examples.append(question_answer(head + question, answer, loss_on))
    return examples


class Grounded:
    """Questions that the model words for answers in the passage, made once a passage."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.made: dict[str, list[TrainExample]] = {}

    def __call__(self, passage: Passage) -> list[TrainExample]:
        if passage.id not in self.made:
            strategy = get_strategy("self-qa-grounded")
            ((completion,),) = strategy.generate(self.model, [passage], [(1,)], SamplingParams())
            items = strategy.parse_output(completion.text, passage)
            self.made[passage.id] = [TrainExample.whole(item, source="edit") for item in items]
        return self.made[passage.id]


def variants(model: LanguageModel) -> dict[str, tuple[Build, LoraRecipe]]:
    """What is tried: how the training examples of a passage are built, and the recipe."""
    grounded = Grounded(model)

    def edits(build: Build) -> Build:
        return lambda passage: [*passage_examples([passage]), *build(passage)]

    def alone(passage: Passage) -> list[TrainExample]:
        return passage_examples([passage])

    blanks = edits(cloze)
    return {
        "cloze": (blanks, RECIPE),
        "cloze, batch 4": (blanks, replace(RECIPE, batch_size=4)),
        "cloze, lr 1e-3": (blanks, replace(RECIPE, learning_rate=1e-3)),
        "cloze + self-qa-grounded": (edits(lambda p: [*cloze(p), *grounded(p)]), RECIPE),
        "passage": (alone, RECIPE),
        "cloze, title where missing": (edits(lambda p: cloze(p, title="missing")), RECIPE),
        "cloze, batch 16": (blanks, replace(RECIPE, batch_size=16)),
        "self-qa-grounded": (edits(grounded), RECIPE),
        "cloze, every span": (edits(lambda p: cloze(p, a_sentence=99)), RECIPE),
        "passage, lr 1e-3": (alone, replace(RECIPE, learning_rate=1e-3)),
        "passage, batch 2": (alone, replace(RECIPE, batch_size=2)),
        "cloze without the passage": (cloze, RECIPE),
        "cloze, question word in place": (edits(lambda p: cloze(p, in_place=True)), RECIPE),
        "cloze, loss on the answer": (edits(lambda p: cloze(p, loss_on="answer")), RECIPE),
        "cloze, title before each": (edits(lambda p: cloze(p, title="always")), RECIPE),
        "cloze, 2 a sentence": (edits(lambda p: cloze(p, a_sentence=2)), RECIPE),
    }


def loss_and_greedy(model: LanguageModel, requests: Sequence[ScoreRequest]) -> dict[str, float]:
    scores = model.score(requests)
    return {
        "loss": -sum(s.logprob for s in scores) / sum(s.tokens for s in scores),
        "greedy": sum(s.greedy for s in scores) / len(scores),
        "n": len(scores),
    }


def try_variant(
    trainer: AdapterTrainer,
    examples: Sequence[TrainExample],
    recipe: LoraRecipe,
    selection: Sequence[ScoreRequest],
    report: Sequence[ScoreRequest],
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(
            examples=tuple(examples),
            recipe=recipe,
            seed=0,
            output_dir=Path(folder) / "variant",
            validation=tuple(selection),
            max_tokens=BUDGET,
            evaluate_every_tokens=BUDGET // EVALUATIONS,
        )
        result = trainer.fit(job)
        expert = trainer.attach(result.adapter)
        figures = loss_and_greedy(expert, report)
        trainer.detach(expert)
    return {
        **figures,
        "selection": result.best.validation_loss,
        "best_tokens": result.best.tokens,
        "tokens": result.tokens,
        "examples": len(examples),
        "epochs": result.curve[-1].epoch,
        "seconds": result.seconds,
        "curve": [(point.tokens, point.validation_loss) for point in result.curve],
        "recipe": asdict(recipe),
    }


def search(data: Path, count: int, only: str) -> None:
    passages = list(read_passages(data, on_reject=lambda reject: None))[:count]
    model = aios.load_model()
    trainer = load_trainer(aios.load_config(), model)
    selection: list[ScoreRequest] = []
    report: list[ScoreRequest] = []
    for passage in passages:
        for number, question in enumerate(passage.questions):
            prompt = f"Question: {question.question}\nAnswer:"
            request = ScoreRequest(prompt, f" {question.answers[0]}")
            (report if number % 3 else selection).append(request)
    done = {row["name"] for row in read_results()}
    if "base" not in done:
        keep({"name": "base", **loss_and_greedy(model, report)})
    for name, (build, recipe) in variants(model).items():
        if name in done or only not in name:
            continue
        started = time.time()
        examples = [example for passage in passages for example in build(passage)]
        row = try_variant(trainer, examples, recipe, selection, report)
        keep({"name": name, **row, "wall": time.time() - started})


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(row: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    sys.stderr.write(f"{row['name']}: loss {row['loss']:.3f}, greedy {row['greedy']:.1%}\n")


def table(path: Path) -> str:
    rows = read_results(path)
    lines = [
        "| variant | loss | against passage | greedy | best at | epochs |",
        "|---|---|---|---|---|---|",
    ]
    reference = next((row["loss"] for row in rows if row["name"] == "passage"), None)
    for row in sorted(rows, key=lambda row: -row["loss"]):
        change = f"{row['loss'] / reference - 1:+.1%}" if reference else ""
        best = f"{row['best_tokens']:,}" if "best_tokens" in row else ""
        epochs = f"{row['epochs']:.1f}" if "epochs" in row else ""
        greedy = f"{row['greedy']:.1%}"
        lines.append(
            f"| {row['name']} | {row['loss']:.3f} | {change} | {greedy} | {best} | {epochs} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="passages to choose on")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=RESULTS, help="print the results so far, or a file's"
    )
    arguments = parser.parse_args()
    if arguments.table:
        sys.stdout.write(table(arguments.table))
        return
    if arguments.data is None:
        parser.error("--data is needed")
    search(arguments.data, arguments.passages, arguments.only)


if __name__ == "__main__":
    main()
