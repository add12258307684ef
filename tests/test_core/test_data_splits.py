"""Near-duplicates, splits, leakage and probes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.core.data.near_duplicates import (
    _rows_per_band,
    jaccard,
    near_duplicate_groups,
    nearest,
)
from aios.core.data.probes import make_probes
from aios.core.data.splits import check_leakage, split_by_group, split_questions
from aios.core.errors import DataError, UsageError
from aios.core.types import Passage, Question, ScoreRequest


def random_words(count: int, seed: int) -> list[str]:
    stream = random.Random(seed)
    return ["".join(stream.choices("abcdefghij", k=5)) for _ in range(count)]


def edited(words: list[str], every: int) -> str:
    """The text with each `every`-th word replaced."""
    return " ".join(f"other{i}" if i % every == 1 else w for i, w in enumerate(words))


# ---------------------------------------------------------------- near-duplicates


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("one two three four", "one two three four", 1.0),
        ("One, two: THREE four!", "one two three four", 1.0),
        ("one two three four", "one two three five", 1 / 3),
        ("one two three", "four five six", 0.0),
        ("one two", "one two", 1.0),
        ("one two", "one", 0.0),
        ("", " ", 1.0),
        ("?!", "!!", 0.0),
        ("東京は大きい町", "東京は大きい村", 4 / 6),
        ("\ud800 x", "\ud800 x", 1.0),
    ],
)
def test_jaccard_of_word_shingles(a: str, b: str, expected: float) -> None:
    assert jaccard(a, b) == pytest.approx(expected)
    assert jaccard(b, a) == jaccard(a, b)


def test_groups_join_equal_and_similar_texts_and_no_others() -> None:
    base = random_words(120, 1)
    texts = [
        " ".join(base),
        " ".join(random_words(120, 2)),
        edited(base, 60),
        "  " + " ".join(base) + "\n",
        edited(base, 6),
        " ".join(random_words(120, 2)).upper(),
    ]
    assert jaccard(texts[0], texts[2]) > 0.8 > jaccard(texts[0], texts[4])
    assert near_duplicate_groups(texts) == [0, 1, 0, 0, 2, 1]


def test_groups_are_transitive() -> None:
    words = random_words(100, 3)
    texts = [" ".join(words[i : i + 90]) for i in (0, 5, 10)]
    assert jaccard(texts[0], texts[2]) < 0.82 < jaccard(texts[0], texts[1])
    assert near_duplicate_groups(texts, 0.82) == [0, 0, 0]


def test_groups_of_nothing_and_of_blank_texts() -> None:
    assert near_duplicate_groups([]) == []
    assert near_duplicate_groups(["", "a", " "]) == [0, 1, 0]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_pairs_are_grouped_exactly_by_true_similarity(threshold: float) -> None:
    texts = []
    for seed in range(30):
        words = random_words(60, seed)
        texts += [" ".join(words), edited(words, 3 + seed)]
    groups = near_duplicate_groups(texts, threshold)
    for i in range(0, len(texts), 2):
        similar = jaccard(texts[i], texts[i + 1]) >= threshold
        assert (groups[i] == groups[i + 1]) is similar
    assert groups == near_duplicate_groups(texts, threshold)


def test_long_text_is_compared_in_pieces() -> None:
    words = random_words(9000, 5)
    assert near_duplicate_groups([" ".join(words), edited(words, 500)]) == [0, 0]


def test_low_threshold_uses_single_rows() -> None:
    assert _rows_per_band(0.01) == 1
    assert _rows_per_band(1.0) == 16


def test_nearest_gives_index_and_similarity() -> None:
    base = random_words(100, 7)
    corpus = [" ".join(random_words(100, 8)), edited(base, 50), " ".join(base), " ".join(base)]
    assert nearest([" ".join(base), "something else here"], corpus) == [(2, 1.0), None]
    assert nearest(["a"], []) == [None]


@pytest.mark.parametrize("threshold", [0, -1, 1.1, float("nan")])
def test_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        near_duplicate_groups(["a"], threshold)
    with pytest.raises(UsageError, match="threshold"):
        nearest(["a"], ["b"], threshold)


# ---------------------------------------------------------------- splits


def make_passages(count: int, questions: int = 0) -> list[Passage]:
    return [
        Passage.make(
            " ".join(random_words(40, n)),
            id=f"p{n}",
            questions=tuple(Question(f"Question {n} {q}?", (f"a{q}",)) for q in range(questions)),
        )
        for n in range(count)
    ]


def test_split_draws_the_fraction_and_keeps_the_order() -> None:
    passages = make_passages(50)
    train, validation = split_by_group(passages, 0.2, 0)
    assert len(validation) == 10
    assert {*train, *validation} == set(passages)
    assert list(train) == [p for p in passages if p in train]
    assert split_by_group(passages, 0.2, 0) == (train, validation)
    assert split_by_group(passages, 0.2, 1)[1] != validation


def test_split_does_not_depend_on_the_order_of_the_file() -> None:
    passages = make_passages(30)
    _, validation = split_by_group(passages, 0.3, 0)
    _, again = split_by_group(passages[::-1], 0.3, 0)
    assert set(validation) == set(again)


def test_split_never_parts_near_duplicates() -> None:
    passages = []
    for n in range(20):
        words = random_words(80, n)
        passages += [
            Passage.make(text, id=f"{n}-{i}")
            for i, text in enumerate([" ".join(words), edited(words, 40)])
        ]
    for seed in range(5):
        train, validation = split_by_group(passages, 0.25, seed)
        sides = [{p.id.split("-")[0] for p in side} for side in (train, validation)]
        assert not sides[0] & sides[1]
        assert len(validation) == 10


def test_split_leaves_no_side_empty() -> None:
    passages = make_passages(2)
    for fraction in (0.01, 0.99):
        train, validation = split_by_group(passages, fraction, 0)
        assert len(train) == len(validation) == 1
    words = random_words(40, 1)
    twins = [Passage.make(" ".join(words), id="a"), Passage.make(" ".join(words) + ".", id="b")]
    _, validation = split_by_group([*twins, *make_passages(1)], 0.9, 0)
    assert len(validation) in (1, 2)


def test_split_of_fraction_zero_or_nothing_validates_nothing() -> None:
    passages = make_passages(3)
    assert split_by_group(passages, 0, 0) == (tuple(passages), ())
    assert split_by_group([], 0.5, 0) == ((), ())


def test_split_of_one_group_is_refused() -> None:
    with pytest.raises(DataError, match="one near-duplicate group"):
        split_by_group(make_passages(1), 0.5, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1, 2, float("nan")])
def test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="fraction"):
        split_by_group(make_passages(3), fraction, 0)
    with pytest.raises(UsageError, match="fraction"):
        split_questions(make_passages(3, 2), fraction, 0)


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=15),
    st.floats(0, 0.9),
    st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_questions_are_split_within_each_passage(
    counts: list[int], fraction: float, seed: int
) -> None:
    passages = [
        Passage(
            "text",
            id=str(n),
            questions=tuple(Question(f"Q {n} {q}?", ("a",)) for q in range(count)),
        )
        for n, count in enumerate(counts)
    ]
    selection, report = split_questions(passages, fraction, seed)
    for passage in passages:
        sides = (*selection.get(passage.id, ()), *report.get(passage.id, ()))
        assert sorted(sides, key=str) == sorted(passage.questions, key=str)
        if len(passage.questions) >= 2:
            assert report[passage.id]
    chosen = sum(map(len, selection.values()))
    assert chosen <= fraction * sum(counts) + 1
    if fraction <= 0.5:
        assert chosen >= fraction * sum(counts) - 1


def test_question_split_meets_the_fraction_over_many_passages() -> None:
    selection, report = split_questions(make_passages(40, 5), 0.3, 0)
    assert sum(map(len, selection.values())) == pytest.approx(60, abs=1)
    assert split_questions(make_passages(40, 5), 0.3, 0) == (selection, report)
    assert split_questions(make_passages(40, 5), 0.3, 1)[0] != selection


def test_single_questions_are_shared_between_the_sides() -> None:
    selection, report = split_questions(make_passages(20, 1), 0.5, 0)
    assert len(selection) == len(report) == 10


def test_same_question_asked_twice_stays_on_one_side() -> None:
    questions = (
        Question("Who won?", ("A",)),
        Question("who won", ("B",)),
        Question("Why?", ("C",)),
    )
    passage = Passage("text", id="p", questions=questions)
    for seed in range(6):
        selection, report = split_questions([passage], 0.5, seed)
        won = [q for q in report.get("p", ()) if "won" in q.question]
        assert len(won) in (0, 2)
        assert selection["p"]


# ---------------------------------------------------------------- leakage


def test_leaks_of_every_kind_are_found() -> None:
    words = random_words(80, 1)
    train = [
        "Nothing to see here at all.",
        "Question: Who designed the Brellow engine? Answer: Osanne.",
        " ".join(words),
        "The mill was built of larch in 1871.",
    ]
    validation = [
        "Who designed the Brellow engine?",
        edited(words, 40),
        "the mill was built of larch, in 1871",
        "Who built the bridge?",
        "Osanne",
        "mill was built",
        "Who?",
        "",
    ]
    leaks = check_leakage(train, validation)
    assert [leak.split(" (")[0] for leak in leaks] == [f"validation text {n}" for n in (1, 2, 3)]
    assert leaks[0].endswith("appears in training text 2")
    assert "near-duplicate (0.8" in leaks[1]
    assert leaks[1].endswith("of training text 3")
    assert leaks[2].endswith("equals training text 4")


def test_clean_sides_have_no_leak() -> None:
    passages = make_passages(30)
    train, validation = split_by_group(passages, 0.3, 0)
    assert check_leakage((p.text for p in train), (p.text for p in validation)) == []
    assert check_leakage([], ["Who?"]) == check_leakage(["a"], []) == []


def test_short_question_and_repeated_text_are_found() -> None:
    leaks = check_leakage(["He asked: Who won? Nobody knew."], ["Who won?", "Who won?"])
    assert [leak.rsplit(") ", 1)[1] for leak in leaks] == ["appears in training text 1"] * 2


# ---------------------------------------------------------------- probes


def test_probe_scores_the_first_answer() -> None:
    question = Question("Who built {it}? ", (" Orla Finn", "Finn"), "name")
    (probe,) = make_probes({"p": (question,)})
    assert probe.prompt == "Question: Who built {it}?\nAnswer:"
    assert probe.request == ScoreRequest(probe.prompt, " Orla Finn")
    assert (probe.passage_id, probe.question) == ("p", question.question)
    assert (probe.answers, probe.category) == (question.answers, "name")


def test_probe_ids_are_unique_and_stable() -> None:
    one, two = Question("Q?", ("A",)), Question("Q?", ("B",))
    probes = make_probes({"p": (one, two, one), "q": (one,)})
    assert [(p.passage_id, p.answers[0]) for p in probes] == [("p", "A"), ("p", "B"), ("q", "A")]
    assert len({p.id for p in probes}) == 3
    assert make_probes({"q": (one,)}, "Other {question}")[0].id == probes[2].id


def test_template_that_ends_in_white_space_is_followed_by_the_bare_answer() -> None:
    (probe,) = make_probes({"p": (Question("Q?", ("A",)),)}, "{question}\n")
    assert probe.request == ScoreRequest("Q?\n", "A")


def test_context_in_the_template() -> None:
    questions = {"p": (Question("Q?", ("A",)),)}
    (probe,) = make_probes(questions, "{context}\n{question}", contexts={"p": "See {question}."})
    assert probe.prompt == "See {question}.\nQ?"
    with pytest.raises(DataError, match="no context for passage 'p'"):
        make_probes(questions, "{context}\n{question}", contexts={})


@pytest.mark.parametrize(
    "template", ["Answer:", "{question} {title}", "{question} {}", "{context}{question}"]
)
def test_bad_template_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="question template") as caught:
        make_probes({}, template)
    assert "question" in caught.value.remedy


@pytest.mark.parametrize("answers", [(), (" ",)])
def test_question_without_answer_is_refused(answers: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="has no answer"):
        make_probes({"p": (Question("Q?", answers),)})


def test_the_splits_feed_the_probes(tmp_path: Path) -> None:
    selection, report = split_questions(make_passages(6, 4), 0.25, 0)
    probes = make_probes(selection), make_probes(report)
    assert [len(side) for side in probes] == [6, 18]
    assert not {p.id for p in probes[0]} & {p.id for p in probes[1]}


def test_parts_of_one_passage_stay_on_one_side() -> None:
    parts = [
        Passage.make(f"{word} text number {n}, about {word} things alone.", id=f"{word}#{n}")
        for word in ("alpha", "bravo", "cargo", "delta", "eagle")
        for n in (1, 2, 3)
    ]
    for seed in range(10):
        train, validation = split_by_group(parts, 0.3, seed)
        sides = [{p.id.split("#")[0] for p in side} for side in (train, validation)]
        assert validation
        assert not sides[0] & sides[1]
