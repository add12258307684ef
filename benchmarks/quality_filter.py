"""How well the quality filter tells bad self-edits from good ones, and what duplicates cost.

Takes ``experiments/labelled_completions.jsonl`` (real completions of the bundled model, every item
labelled; the rules of labelling are beside it) and the passages they were written from; prints
tables and writes ``results/quality_filter.json``. Bad is what the filter should drop, so precision
is the share of bad among the items dropped, and recall the share of the bad items that are
dropped. The passages are in two halves: limits were set on the tuning half alone, and the
reporting half is shown by default.

    python benchmarks/quality_filter.py [--half tuning|reporting] [--no-loss]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import tracemalloc
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import aios
from aios.core.data.readers import read_passages
from aios.core.protocols import LanguageModel
from aios.core.seal.quality import FilterSettings, QualityFilter
from aios.core.seal.quality_duplicates import CorpusDuplicates
from aios.core.seal.strategies import get_strategy
from aios.core.types import Passage, SamplingParams, ScoreRequest, SelfEdit

sys.path.insert(0, str(Path(__file__).parent))
from _results import print_table, write_results

ROOT = Path(__file__).resolve().parents[1]
LABELLED = ROOT / "experiments" / "labelled_completions.jsonl"
PASSAGES = ROOT / "examples" / "passages.jsonl"
RESAMPLES = 10_000
CORPUS_SIZES = (2_500, 5_000, 10_000)
CORPUS_WORDS = 100
QUESTIONS_A_PASSAGE = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled item and what the filter did with it.

    Attributes:
        group: Strategy and temperature.
        passage_id: Its passage.
        label: ``good``, or what is wrong with it.
        reason: Why the filter dropped it; empty where it was kept.
    """

    group: str
    passage_id: str
    label: str
    reason: str

    @property
    def is_bad(self) -> bool:
        """Whether it should be dropped."""
        return self.label != "good"


def load_passages() -> dict[str, Passage]:
    """The passages by id."""
    return {p.id: p for p in read_passages(PASSAGES, on_reject=lambda reject: None)}


def as_edit(row: dict[str, Any]) -> SelfEdit:
    """A labelled completion as the generator would hand it to the filter."""
    losses = (math.nan if loss is None else loss for loss in row["line_losses"])
    return SelfEdit(
        passage_id=row["passage_id"],
        strategy=row["strategy"],
        index=row["candidate"],
        items=tuple(item["text"] for item in row["items"]),
        completion=row["text"],
        line_losses=tuple(losses),
    )


def filter_labelled(half: str, quality: QualityFilter) -> list[Item]:
    """What the filter does with each item of a half; candidates of a passage come together."""
    passages = load_passages()
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for line in LABELLED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["half"] == half:
            groups[row["passage_id"], row["strategy"], row["temperature"]].append(row)
    items = []
    for (passage_id, strategy, temperature), rows in groups.items():
        result = quality.filter(passages[passage_id], [as_edit(row) for row in rows])
        kept = {edit.index: set(edit.items) for edit in result.kept}
        why = {(drop.index, drop.text): drop.reason for drop in result.drops}
        for row in rows:
            whole = why.get((row["candidate"], as_edit(row).text), "")
            for item in row["items"]:
                is_kept = item["text"] in kept.get(row["candidate"], ())
                reason = "" if is_kept else why.get((row["candidate"], item["text"]), whole)
                group = f"{strategy} T={temperature}"
                items.append(Item(group, passage_id, item["label"], reason))
    return items


def share(items: Sequence[Item], is_hit: Callable[[Item], bool]) -> tuple[float, float, float]:
    """Share of hits with a 95 % interval: the wider of Wilson's and of resampled passages."""
    hits = sum(map(is_hit, items))
    value = hits / len(items)
    z2 = 1.96**2
    centre = (hits + z2 / 2) / (len(items) + z2)
    spread = math.sqrt(hits * (1 - value) + z2 / 4) * 1.96 / (len(items) + z2)
    by_passage: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in items:
        by_passage[item.passage_id][0] += is_hit(item)
        by_passage[item.passage_id][1] += 1
    counts = np.array(list(by_passage.values()))
    draws = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    sums = counts[draws].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return value, max(0.0, min(centre - spread, float(low))), min(1.0, max(centre + spread, high))


def row(
    name: str, metric: str, items: Sequence[Item], is_hit: Callable[[Item], bool]
) -> dict[str, Any]:
    """A share as a line of the table; least and largest are the interval's bounds."""
    value, low, high = share(items, is_hit)
    numbers = {"median": round(value, 4), "min": round(low, 4), "max": round(float(high), 4)}
    return {"name": name, "metric": metric, "unit": "share", **numbers, "n": len(items)}


def rows_of(items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """The whole table: all items, by strategy, by label, by the filter's reason."""
    groups = {"all": list(items)}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    for name, some in groups.items():
        dropped = [item for item in some if item.reason]
        bad, good = ([i for i in some if i.is_bad is wanted] for wanted in (True, False))
        left = [item for item in some if not item.reason]
        yield row(name, "dropped", some, lambda item: bool(item.reason))
        yield row(name, "bad before", some, lambda item: item.is_bad)
        for metric, part, is_hit in (
            ("bad among kept", left, lambda item: item.is_bad),
            ("precision", dropped, lambda item: item.is_bad),
            ("recall", bad, lambda item: bool(item.reason)),
            ("good dropped", good, lambda item: bool(item.reason)),
        ):
            if part:
                yield row(name, metric, part, is_hit)
    for label in sorted({item.label for item in items} - {"good"}):
        some = [item for item in items if item.label == label]
        yield row(f"label {label}", "recall", some, lambda item: bool(item.reason))
    for reason in sorted({item.reason for item in items} - {""}):
        some = [item for item in items if item.reason == reason]
        yield row(f"reason {reason}", "precision", some, lambda item: item.is_bad)


def written_by_people(model: LanguageModel) -> Iterator[dict[str, Any]]:
    """Losses of good text: questions about the tuning passages, as if the model had asked them."""
    halves = {
        row["passage_id"]: row["half"]
        for row in map(json.loads, LABELLED.read_text(encoding="utf-8").splitlines())
    }
    strategy = get_strategy("self-qa")
    requests = []
    for passage in load_passages().values():
        if halves[passage.id] == "tuning":
            prompt = strategy.prompt_text(model, passage)
            for question in passage.questions[:QUESTIONS_A_PASSAGE]:
                asked, answered = f"Question 1: {question.question}", question.answers[0]
                requests.append(ScoreRequest(prompt, asked))
                requests.append(ScoreRequest(f"{prompt}{asked}\n", f"Answer 1: {answered}"))
    scores = model.score(requests)
    losses = []
    for (first, second), pair in zip(
        zip(scores[::2], scores[1::2], strict=True),
        zip(requests[::2], requests[1::2], strict=True),
        strict=True,
    ):
        lengths = [len(request.continuation) for request in pair]
        losses.append((first.loss * lengths[0] + second.loss * lengths[1]) / sum(lengths))
    spread = {"median": float(np.median(losses)), "min": min(losses), "max": max(losses)}
    rounded = {name: round(value, 3) for name, value in spread.items()}
    yield {
        "name": "pairs written by people",
        "metric": "loss",
        "unit": "nats/token",
        **rounded,
        "n": len(losses),
    }


def default_rows(model: LanguageModel) -> Iterator[dict[str, Any]]:
    """What is dropped with the default settings and strategy: one candidate for each passage."""
    passages = list(load_passages().values())
    strategy = get_strategy("cloze")
    seeds = [(0,)] * len(passages)
    completions = strategy.generate(model, passages, seeds, SamplingParams())
    quality = QualityFilter(FilterSettings(), model.count_tokens)
    items = []
    for passage, candidates in zip(passages, completions, strict=True):
        edits = [
            SelfEdit(passage.id, "cloze", n, tuple(strategy.parse_output(c.text, passage)))
            for n, c in enumerate(candidates)
        ]
        result = quality.filter(passage, edits)
        left = sum(len(edit.items) for edit in result.kept)
        reasons = ["dropped"] * (result.items - left) + [""] * left
        items += [Item("cloze", passage.id, "good", reason) for reason in reasons]
    yield row("cloze (default)", "dropped", items, lambda item: bool(item.reason))


def random_edits(count: int) -> Iterator[SelfEdit]:
    """Edits of random words, none a duplicate of another."""
    words = random.Random(0)
    for number in range(count):
        text = " ".join(f"w{words.randrange(20_000)}" for _ in range(CORPUS_WORDS))
        yield SelfEdit(str(number), "implications", 0, (text,))


def random_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings that cost nothing: what is measured is the index."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())) for text in texts]
    vectors = np.stack([rng.standard_normal(384) for rng in rows]).astype(np.float32)
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def corpus_rows() -> Iterator[dict[str, Any]]:
    """Time and memory for an edit of 100 words, in a file of so many edits."""
    for name, embedder in (("words", None), ("words and embeddings", random_vectors)):
        for size in CORPUS_SIZES:
            edits = list(random_edits(size))
            corpus = CorpusDuplicates(embedder=embedder)
            started = time.perf_counter()
            for edit in edits:
                if corpus.judge(edit) is None:
                    corpus.add(edit)
            seconds = time.perf_counter() - started
            yield figure(f"duplicates by {name}, {size} edits", "time", "ms/edit", seconds / size)
        tracemalloc.start()
        corpus = CorpusDuplicates(embedder=embedder)
        edits = list(random_edits(CORPUS_SIZES[0]))
        before = tracemalloc.get_traced_memory()[0]
        for edit in edits:
            corpus.add(edit)
        size_bytes = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        each = size_bytes / len(edits) / 1e6
        yield figure(f"duplicates by {name}", "memory", "kB/edit", each)


def figure(name: str, metric: str, unit: str, thousands: float) -> dict[str, Any]:
    """A single measurement, given in thousands of its unit."""
    value = round(thousands * 1000, 3)
    numbers = {"median": value, "min": value, "max": value}
    return {"name": name, "metric": metric, "unit": unit, **numbers, "n": 1}


def main() -> None:
    """Prints the tables and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--no-loss", action="store_true", help="without the losses of the lines")
    options = parser.parse_args()
    model = aios.load_model()
    settings = FilterSettings(max_loss=None if options.no_loss else FilterSettings().max_loss)
    rows = list(rows_of(filter_labelled(options.half, QualityFilter(settings, model.count_tokens))))
    if options.half == "tuning" or options.no_loss:
        print_table([*rows, *(written_by_people(model) if options.half == "tuning" else ())])
        return
    rows += [*default_rows(model), *corpus_rows()]
    print_table(rows)
    command = "python benchmarks/quality_filter.py"
    interval = "min and max are a 95 % interval: the wider of Wilson's and of resampled passages"
    write_results("quality_filter", command, rows, more={"intervals": interval})


if __name__ == "__main__":
    main()
