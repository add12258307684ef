"""Duplicates within a passage and across a file."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from aios.core.data.near_duplicates import Buckets, NearDuplicateIndex, jaccard, shingles
from aios.core.errors import UsageError
from aios.core.seal.parsing import format_qa
from aios.core.seal.quality import FilterSettings, QualityFilter, drop_repeats
from aios.core.seal.quality_duplicates import CorpusDuplicates, KnownTexts, edit_hashes
from aios.core.types import Passage, SelfEdit

BUILT = "The tower is built of basalt blocks without mortar."
CONSTRUCTED = "Blocks of basalt, and no mortar, were what they constructed the tower from."
LAMP = "Its lamp was lit for the first time by the keeper Dorcan Yelland."


def edit(*items: str, index: int = 0, passage: str = "p") -> SelfEdit:
    return SelfEdit(passage, "implications", index, items)


class BagOfStems:
    """Embeds a text by the stems it holds, so that paraphrases are alike."""

    stems = ("tower", "basalt", "mortar", "lamp", "keeper", "lit")

    def __init__(self) -> None:
        self.texts = 0

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        rows = [[float(stem in text.casefold()) for stem in self.stems] for text in texts]
        vectors = np.array(rows, dtype=np.float32) + 1e-6
        scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return scaled


def sentences(count: int, words: int = 40, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(5000)}" for _ in range(words)) for _ in range(count)]


def with_a_word_changed(text: str, position: int = 20) -> str:
    words = text.split()
    return " ".join([*words[:position], "changed", *words[position + 1 :]])


def test_known_texts_go_from_equal_words_to_near_words_to_nothing() -> None:
    known = KnownTexts(0.5)
    assert known.compare((BUILT,)) == (0.0, None)
    known.keep()
    same = known.compare((BUILT.upper(),))
    assert same.verdict is not None
    assert (same.similarity, same.verdict.reason) == (1.0, "duplicate")
    near = known.compare((BUILT.replace("blocks", "bricks"),))
    assert near.verdict is None
    assert 0 < near.similarity < 0.5
    near = known.compare((BUILT.replace("The tower", "A tower"),))
    assert near.verdict is not None
    assert near.verdict.reason == "near_duplicate"


def test_what_was_compared_and_not_kept_is_not_known() -> None:
    known = KnownTexts(0.5)
    known.compare((BUILT,))
    assert known.compare((BUILT,)).verdict is None


def test_a_paraphrase_is_a_near_duplicate_by_meaning_only() -> None:
    by_words, by_meaning = KnownTexts(0.9), KnownTexts(0.9, BagOfStems(), 0.97)
    for known in (by_words, by_meaning):
        known.compare((BUILT,))
        known.keep()
    assert by_words.compare((CONSTRUCTED,)).verdict is None
    verdict = by_meaning.compare((CONSTRUCTED,)).verdict
    assert verdict is not None
    assert verdict.reason == "near_duplicate"
    assert verdict.detail.endswith("in meaning")
    assert by_meaning.compare((LAMP,)).verdict is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The tower of basalt is 41 metres tall.", "A basalt tower, 43 metres in height."),
        (format_qa("Is the tower basalt?", "yes"), format_qa("Was the tower of basalt?", "no")),
    ],
    ids=["numbers", "answers"],
)
def test_other_numbers_or_answers_are_another_meaning(first: str, second: str) -> None:
    embedder = BagOfStems()
    known = KnownTexts(0.9, embedder, 0.5)
    known.compare((first,))
    known.keep()
    assert known.compare((second,)).verdict is None
    assert embedder.texts == 0


def test_the_filter_uses_meaning_for_items_and_edits() -> None:
    story = " The flash is green since nearby fires confused pilots on their way along the reef."
    passage = Passage.make(f"{BUILT} {LAMP} {story * 2}", title="Skarrow Light")
    quality = QualityFilter(FilterSettings(min_length=1), len, embedder=BagOfStems())
    plain = BUILT.replace("is built", "was built up")
    result = quality.filter(passage, [edit(BUILT, plain, LAMP), edit(plain, LAMP, index=1)])
    assert [kept.items for kept in result.kept] == [(BUILT, LAMP)]
    assert [drop.reason for drop in result.drops] == ["near_duplicate", "near_duplicate"]
    settings = FilterSettings(min_length=1, enable_deduplication=False)
    embedder = BagOfStems()
    all_kept = QualityFilter(settings, len, embedder=embedder).filter(passage, [edit(BUILT, plain)])
    assert len(all_kept.kept[0].items) == 2
    assert embedder.texts == 0


def test_equal_and_nearly_equal_edits_of_two_passages_are_found() -> None:
    first, second, third = sentences(3)
    corpus = CorpusDuplicates(0.7)
    kept, drops = drop_repeats([edit(first), edit(second, index=1)], corpus)
    assert (len(kept), drops, len(corpus)) == (2, (), 2)
    nearly = with_a_word_changed(second)
    kept, drops = drop_repeats(
        [edit(first.upper(), passage="q"), edit(nearly, index=1, passage="q"), edit(third)], corpus
    )
    assert [e.text for e in kept] == [third]
    assert [(d.passage_id, d.index, d.reason) for d in drops] == [
        ("q", 0, "duplicate"),
        ("q", 1, "near_duplicate"),
    ]
    assert drops[0].detail == "the same as edit 1 of the file"
    assert drops[1].detail == f"{jaccard(second, nearly):.2f} like edit 2 of the file"


def test_a_file_gone_on_with_finds_what_a_whole_run_would() -> None:
    texts = sentences(4)
    corpus = CorpusDuplicates()
    for text in texts:
        corpus.add(edit(text))
    verdict = corpus.judge(edit(texts[2]))
    assert verdict is not None
    assert verdict.detail == "the same as edit 3 of the file"


def test_meaning_across_a_file() -> None:
    corpus = CorpusDuplicates(embedder=BagOfStems())
    corpus.add(edit(LAMP))
    corpus.add(edit(BUILT))
    verdict = corpus.judge(edit(CONSTRUCTED))
    assert verdict is not None
    assert verdict.detail == "1.00 like edit 2 of the file in meaning"
    assert corpus.judge(edit("The tower and its lamp.")) is None
    assert corpus.judge(edit("A tower of basalt, no mortar, 9 metres.")) is None


def test_blanks_in_two_places_of_a_sentence_share_no_shingle() -> None:
    first = format_qa(BUILT.replace("basalt", "____"), "basalt")
    second = format_qa(BUILT.replace("mortar", "____"), "mortar")
    assert not np.intersect1d(edit_hashes((first,)), edit_hashes((second,))).size
    assert edit_hashes((first, second)).size == edit_hashes((second, first)).size > 0


def test_an_edit_without_items_can_be_judged() -> None:
    corpus = CorpusDuplicates(embedder=BagOfStems())
    assert corpus.judge(edit()) is None
    corpus.add(edit())
    assert corpus.judge(edit()) is not None


@pytest.mark.slow
def test_the_index_agrees_with_comparing_all_pairs() -> None:
    texts = [*sentences(30), *map(with_a_word_changed, sentences(30)), *sentences(30, seed=1)]
    index = NearDuplicateIndex(0.8)
    for number, text in enumerate(texts):
        found = index.find(shingles(text))
        best = max((jaccard(text, other) for other in texts[:number]), default=0.0)
        if best >= 0.8:
            assert found is not None
            assert found[1] == pytest.approx(best)
        else:
            assert found is None
        assert index.add(shingles(text)) == number
    assert len(index) == len(texts)


def test_the_index_refuses_a_threshold_out_of_range() -> None:
    with pytest.raises(UsageError, match="threshold"):
        NearDuplicateIndex(0)


def test_a_bucket_gives_its_last_members_only() -> None:
    buckets = Buckets(1)
    for _ in range(1000):
        buckets.add([b"same"])
    assert buckets.find([b"same"]) == list(range(1000 - 64, 1000))
    assert buckets.find([b"other"]) == []


def test_a_look_up_compares_with_few_edits_of_a_large_file(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    index = NearDuplicateIndex(0.9)
    for text in sentences(300):
        index.add(shingles(text))
    monkeypatch.setattr(
        "aios.core.data.near_duplicates._are_similar",
        lambda a, b, threshold: bool(compared.append(b)),  # type: ignore[func-returns-value]
    )
    for text in sentences(20, seed=2):
        assert index.find(shingles(text)) is None
    assert len(compared) < 20
