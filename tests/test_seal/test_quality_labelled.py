"""The filter on real completions of the bundled model, every item of them labelled by a reader."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from aios.core.data.readers import read_passages
from aios.core.seal import quality_questions as questions
from aios.core.seal import quality_signals as signals
from aios.core.seal.quality import FilterSettings, QualityFilter
from aios.core.seal.quality_loss import item_loss, lines_of_item
from aios.core.seal.strategies import get_strategy
from aios.core.types import Passage, SelfEdit, content_hash

ROOT = Path(__file__).resolve().parents[2]
ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (ROOT / "experiments" / "labelled_completions.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
LABELS = {
    "good",
    "false",
    "gibberish",
    "repetition",
    "about_the_task",
    "off_topic",
    "malformed",
    "copy",
}


@pytest.fixture(scope="module")
def passages() -> dict[str, Passage]:
    path = ROOT / "examples" / "passages.jsonl"
    return {p.id: p for p in read_passages(path, on_reject=lambda reject: None)}


def labelled(*labels: str) -> list[tuple[dict[str, Any], str]]:
    return [(row, item["text"]) for row in ROWS for item in row["items"] if item["label"] in labels]


def losses_of(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(math.nan if loss is None else loss for loss in row["line_losses"])


def test_every_item_that_the_parser_finds_is_labelled(passages: dict[str, Passage]) -> None:
    assert len(ROWS) >= 200
    for row in ROWS:
        items = get_strategy(row["strategy"]).parse_output(
            row["text"], passages[row["passage_id"]], finish_reason=row["finish_reason"]
        )
        assert [item["text"] for item in row["items"]] == items
        assert all(item["label"] in LABELS and item["reason"] for item in row["items"])


def test_the_halves_go_by_the_passage() -> None:
    for row in ROWS:
        even = int(content_hash("half", row["passage_id"]), 16) % 2 == 0
        assert row["half"] == ("tuning" if even else "reporting")
    assert len({row["passage_id"] for row in ROWS if row["half"] == "tuning"}) == 14


def test_every_item_is_found_in_its_completion() -> None:
    for row in ROWS:
        assert len(row["line_losses"]) in (0, len(row["text"].split("\n")))
        for item in row["items"]:
            assert lines_of_item(item["text"], row["text"])


def test_gibberish_has_a_higher_loss_than_good_items() -> None:
    good, gibberish = (
        [item_loss(text, row["text"], losses_of(row)) for row, text in labelled(label)]
        for label in ("good", "gibberish")
    )
    known_good = sorted(loss for loss in good if loss is not None)
    known_gibberish = sorted(loss for loss in gibberish if loss is not None)
    assert known_good[len(known_good) // 2] < 1
    assert known_gibberish[len(known_gibberish) // 2] > 3


def test_text_about_the_task_is_told_from_good_items(passages: dict[str, Passage]) -> None:
    def found(label: str) -> Counter[bool]:
        return Counter(
            bool(signals.speaks_of_task(text, source(passages, row)))
            for row, text in labelled(label)
        )

    assert found("good")[True] == 0
    assert found("about_the_task")[True] >= 10


def source(passages: dict[str, Passage], row: dict[str, Any]) -> signals.Source:
    passage = passages[row["passage_id"]]
    return signals.Source.of(passage.title, passage.text)


def test_good_pairs_pass_every_signal_of_questions() -> None:
    pairs = [signals.qa_parts(text) for _, text in labelled("good")]
    known = [pair for pair in pairs if pair is not None]
    assert len(known) >= 30
    for pair in known:
        assert questions.is_question(pair.question)
        assert not questions.asks_for_nothing(pair.question)
        assert not questions.answer_in_question(pair)
        assert not questions.has_wrong_kind(pair)


def test_loops_are_told_from_good_items() -> None:
    assert all(signals.repeated_share(text) < 0.35 for _, text in labelled("good"))
    looping = [text for _, text in labelled("repetition")]
    assert sum(signals.repeated_share(signals.content(text)) > 0.35 for text in looping) >= 5


def test_the_filter_on_the_tuning_half(passages: dict[str, Passage]) -> None:
    quality = QualityFilter(FilterSettings(), lambda text: round(len(text.split()) * 1.35))
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in ROWS:
        if row["half"] == "tuning":
            groups[row["passage_id"], row["strategy"], row["temperature"]].append(row)
    seen: Counter[tuple[bool, bool]] = Counter()
    for (passage_id, *_), rows in groups.items():
        edits = [
            SelfEdit(
                passage_id,
                row["strategy"],
                row["candidate"],
                tuple(item["text"] for item in row["items"]),
                completion=row["text"],
                line_losses=losses_of(row),
            )
            for row in rows
        ]
        kept = {e.index: e.items for e in quality.filter(passages[passage_id], edits).kept}
        for row in rows:
            for item in row["items"]:
                is_dropped = item["text"] not in kept.get(row["candidate"], ())
                seen[item["label"] != "good", is_dropped] += 1
    recall = seen[True, True] / (seen[True, True] + seen[True, False])
    good_dropped = seen[False, True] / (seen[False, True] + seen[False, False])
    assert recall >= 0.78
    assert good_dropped <= 0.2
