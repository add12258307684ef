"""Diversity of a round: collapse is seen, variety is seen, and rounds of different size compare."""

from __future__ import annotations

import random

import pytest

from aios.core.restem import Diversity
from aios.core.seal.diversity import SAMPLE, WORDS, measure_diversity
from aios.core.seal.parsing import format_qa
from aios.core.types import Passage, SelfEdit

TEXT = (
    "The lamp of the tower was lit for the first time by the keeper Dorcan Yelland, who had "
    "carried it up the cliff by himself on a night without any moon."
)


def edit(text: str, *, passage: str = "p", index: int = 0) -> SelfEdit:
    return SelfEdit(passage, "rewrite", index, tuple(text.split("\n")))


def measured(edits: list[SelfEdit], **texts: str) -> Diversity:
    passages = {
        one.passage_id: Passage.make(texts.get(one.passage_id, "nothing"), id=one.passage_id)
        for one in edits
    }
    found = measure_diversity(edits, passages)
    assert found is not None
    return found


def drawn(rng: random.Random, words: int, vocabulary: int = 300) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(words))


def round_of(passages: int, candidates: int, words: int, seed: int) -> list[SelfEdit]:
    rng = random.Random(seed)
    return [
        edit(drawn(rng, words), passage=f"p{p}", index=k)
        for p in range(passages)
        for k in range(candidates)
    ]


def test_the_same_text_everywhere_is_seen_as_collapse() -> None:
    text = " ".join(f"word{n}" for n in range(50))
    found = measured([edit(text, passage=f"p{p}", index=k) for p in range(8) for k in range(5)])
    assert found.distinct_1 == pytest.approx(50 / SAMPLE, rel=1e-3)
    assert found.distinct_2 == pytest.approx(49 / SAMPLE, rel=1e-3)
    assert found.near_duplicates == 1.0
    assert found.copied == 0.0


def test_texts_that_share_nothing_are_as_diverse_as_can_be() -> None:
    edits = [
        edit(" ".join(f"w{p}x{k}x{n}" for n in range(50)), passage=f"p{p}", index=k)
        for p in range(8)
        for k in range(5)
    ]
    found = measured(edits)
    assert [found.distinct_1, found.distinct_2] == pytest.approx([1, 1])
    assert (found.near_duplicates, found.copied) == (0.0, 0.0)


def test_a_collapse_within_passages_is_seen_in_the_near_duplicates() -> None:
    rng = random.Random(1)
    edits = [
        edit(text, passage=f"p{p}", index=k)
        for p in range(8)
        for text in [drawn(rng, 50)]
        for k in range(5)
    ]
    alike, varied = measured(edits), measured(round_of(8, 5, 50, seed=1))
    assert (alike.near_duplicates, varied.near_duplicates) == (1.0, 0.0)
    assert alike.distinct_2 < varied.distinct_2


def test_rounds_of_different_size_are_comparable() -> None:
    small, large = measured(round_of(6, 3, 60, seed=1)), measured(round_of(40, 10, 60, seed=2))
    assert small.distinct_1 == pytest.approx(large.distinct_1, abs=0.03)
    assert small.distinct_2 == pytest.approx(large.distinct_2, abs=0.03)


def test_long_edits_weigh_no_more_than_others() -> None:
    edits = round_of(10, 3, WORDS, seed=3)
    loop = " ".join(["again and again"] * 2000)
    longer = [edit(f"{one.text} {loop}", passage=one.passage_id, index=one.index) for one in edits]
    assert measured(longer).distinct_1 == measured(edits).distinct_1


def test_the_average_over_draws_is_the_one_that_drawing_gives() -> None:
    edits = round_of(10, 3, 60, seed=4)
    pool = [word for one in edits for word in one.text.split()]
    rng = random.Random(0)
    draws = [len(set(rng.sample(pool, SAMPLE))) / SAMPLE for _ in range(300)]
    assert measured(edits).distinct_1 == pytest.approx(sum(draws) / len(draws), abs=0.004)


def test_near_duplicates_count_only_within_a_passage_and_both_sides() -> None:
    near = TEXT.replace("keeper", "guardian")
    apart = measured([edit(TEXT, passage="p"), edit(near, passage="q")])
    assert apart.near_duplicates == 0.0
    together = [edit(TEXT), edit("Something else stands here.", index=1), edit(near, index=2)]
    assert measured(together).near_duplicates == pytest.approx(2 / 3)
    assert measured(together[::-1]).near_duplicates == pytest.approx(2 / 3)


def test_blanks_in_two_places_of_a_sentence_are_no_near_duplicates() -> None:
    first = format_qa(TEXT.replace("Dorcan", "____"), "Dorcan")
    second = format_qa(TEXT.replace("Yelland", "____"), "Yelland")
    edits = [SelfEdit("p", "cloze", index, (item,)) for index, item in enumerate((first, second))]
    assert measured(edits).near_duplicates == 0.0


def test_copied_is_the_share_of_the_passages_own_words() -> None:
    assert measured([edit(TEXT)], p=TEXT).copied == 1.0
    assert measured([edit(TEXT.upper())], p=TEXT).copied == 1.0
    assert measured([edit("A wholly new sentence says it.")], p=TEXT).copied == 0.0
    half = measured([edit(TEXT), edit("A wholly new sentence says it.", index=1)], p=TEXT)
    assert half.copied == 0.5


def test_an_edit_of_few_words_says_nothing_about_copying() -> None:
    assert measured([edit("The lamp"), edit(TEXT, index=1)], p=TEXT).copied == 1.0
    assert measured([edit("The lamp")], p=TEXT).copied == 0.0


def test_labels_of_questions_are_no_repetition() -> None:
    items = tuple(format_qa(f"ask{n} this{n} thing{n}?", f"answer{n}") for n in range(10))
    found = measured([SelfEdit("p", "self-qa", 0, items)])
    assert [found.distinct_1, found.distinct_2] == pytest.approx([1, 1])


def test_scripts_without_spaces_have_words_too() -> None:
    found = measured([edit("京都は日本の古い都です。" * 3)], p="京都は日本の古い都です。")
    assert 0 < found.distinct_1 < 1
    assert found.copied > 0.5


def test_no_edits_have_no_diversity() -> None:
    assert measure_diversity([], {}) is None


def test_edits_without_a_word_are_taken() -> None:
    assert measured([edit("…"), edit("!!", index=1)]) == Diversity(0.0, 0.0, 0.0, 0.0)


def test_an_unknown_passage_is_an_error() -> None:
    with pytest.raises(KeyError, match="p"):
        measure_diversity([edit(TEXT)], {})


def test_words_are_counted_over_the_lines_of_an_edit() -> None:
    long = drawn(random.Random(0), WORDS - 1, 10**6)
    found = measured([edit(f"{long}\nlast\n" + "same " * 100)])
    assert found.distinct_1 == 1
    assert found == measured([edit(f"{long}\nlast")])
