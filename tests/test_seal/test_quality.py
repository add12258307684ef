"""The quality filter and its signals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.seal import quality_signals as signals
from aios.core.seal.parsing import QAPair, format_qa
from aios.core.seal.quality import FilterResult, FilterSettings, QualityFilter
from aios.core.seal.strategies import get_strategy
from aios.core.types import Passage, SelfEdit

PASSAGE = Passage.make(
    "In 1219 the Mongol army of Genghis Khan besieged the town of Otrar for five months. "
    "The governor, Inalchuq, had seized a caravan of 450 merchants. When the walls fell in "
    "February 1220, the citadel held out for another month.",
    title="Siege of Otrar",
)
ANY_LENGTH = FilterSettings(min_length=1)
SOURCE = signals.Source.of(PASSAGE.title, PASSAGE.text)
GOOD = (
    "The governor of Otrar had seized a caravan of merchants.",
    "The Mongol army besieged the town for five months.",
    "The citadel of the town held out longer than its walls.",
)
COMPLETIONS = Path(__file__).parent / "fixtures" / "completions.jsonl"


def count_words(text: str) -> int:
    return len(text.split())


def edit(*items: str, index: int = 0, strategy: str = "implications") -> SelfEdit:
    return SelfEdit(PASSAGE.id, strategy, index, items)


def run(
    candidates: Sequence[SelfEdit],
    *,
    settings: FilterSettings = ANY_LENGTH,
    passage: Passage = PASSAGE,
) -> FilterResult:
    return QualityFilter(settings, count_words).filter(passage, candidates)


def reasons(result: FilterResult) -> list[str]:
    return [drop.reason for drop in result.drops]


def test_good_items_are_kept_in_order_with_scores() -> None:
    result = run([edit(*GOOD)], settings=FilterSettings())
    assert [kept.items for kept in result.kept] == [GOOD]
    assert result.drops == ()
    scores = result.kept[0].scores
    assert scores["items"] == 3
    assert scores["items_dropped"] == 0
    assert scores["tokens"] == count_words("\n".join(GOOD))
    assert scores["grounded"] == 1
    assert scores["similarity"] == 0
    assert 0 < scores["overlap"] <= 1


def test_scores_that_an_edit_had_are_kept() -> None:
    (kept,) = run([replace(edit(*GOOD), scores={"logprob": -1.5})]).kept
    assert kept.scores["logprob"] == -1.5
    assert kept.items == GOOD


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("Otrar was besieged by Napoleon and the town fell.", "ungrounded"),
        ("The town of Otrar held out for seven months.", "ungrounded"),
        ("The siege of Otrar began in 1221.", "ungrounded"),
        ("Remote working has changed modern offices everywhere.", "off_topic"),
        ("Otrar fell and Otrar fell and Otrar fell and Otrar fell and", "gibberish"),
        ("siege siege siege siege of Otrar", "gibberish"),
        (
            "Otrar was a town and the town had a wall and the town fell and the town had a wall "
            "and the town was rich and the town had a wall and the town fell.",
            "gibberish",
        ),
        ("aaaa aaaa baab aaba abab baba bbaa abba aaab baaa", "gibberish"),
        ("x!$% ]]{{ %%#@ (*&^ !!!a Otrar town", "gibberish"),
        (PASSAGE.text, "too_close_to_source"),
        (PASSAGE.text.rpartition(". When")[0], "too_close_to_source"),
        ("...", "empty_item"),
        ("Question: Who besieged Otrar?\nAnswer:", "empty_answer"),
        ("Question: Who besieged Otrar?", "empty_answer"),
        ("Question: \nAnswer: Otrar", "empty_question"),
        ("Question: Which town is Otrar?\nAnswer: Otrar", "answer_in_question"),
        ("Question: Which town was besieged?\nAnswer: Paris", "ungrounded"),
        ("Question: Which town did Napoleon take?\nAnswer: Otrar", "ungrounded"),
    ],
)
def test_a_bad_item_is_dropped_with_its_reason(item: str, reason: str) -> None:
    result = run([edit(*GOOD, item)])
    assert reasons(result) == [reason]
    (drop,) = result.drops
    assert (drop.text, drop.passage_id, drop.strategy) == (item, PASSAGE.id, "implications")
    assert drop.detail
    assert [kept.items for kept in result.kept] == [GOOD]
    assert result.kept[0].scores["items_dropped"] == 1


@pytest.mark.parametrize(
    "item",
    [
        "Question: The Mongol army besieged the town of ____.\nAnswer: Otrar",
        "Question: The walls fell in February ____.\nAnswer: 1220",
        "Question: Whose army besieged the town?\nAnswer: Genghis Khan's",
        "Question: Was Otrar besieged?\nAnswer: Yes",
        "Mongols took the town.",
        "The siege lasted 5 months.",
        "Otrar's governor was the man called Inalchuq.",
        "G.K. seized it. GK was the Mongol leader of the army.",
        "Of the two sides the Mongol army won.",
        "After the siege, the Mongolian army held the town and its citadel.",
    ],
)
def test_true_items_of_many_forms_are_kept(item: str) -> None:
    assert run([edit(item)]).drops == ()


def test_duplicate_items_are_dropped_and_the_first_is_kept() -> None:
    nearly = GOOD[0].replace("The governor", "A governor")
    settings = FilterSettings(min_length=1, similarity_threshold=0.7)
    result = run([edit(GOOD[0], GOOD[0].upper(), nearly, GOOD[1])], settings=settings)
    assert reasons(result) == ["duplicate", "near_duplicate"]
    assert result.kept[0].items == (GOOD[0], GOOD[1])


def test_blanks_in_two_places_of_one_sentence_are_no_duplicates() -> None:
    sentence = PASSAGE.text.replace(". ", ", and then ")
    settings = FilterSettings(min_length=1, similarity_threshold=0.5)
    items = [
        format_qa(sentence.replace(answer, "____"), answer)
        for answer in ("Genghis Khan", "Inalchuq", "450")
    ]
    result = run([edit(*items), edit(*items[::-1], index=1)], settings=settings)
    assert result.kept[0].items == tuple(items)
    assert reasons(result) == ["near_duplicate"]


def test_duplicate_edits_of_a_passage_are_dropped() -> None:
    other = (*GOOD[:2], "When the walls fell, the citadel of the town held out.")
    result = run([edit(*GOOD), edit(*other, index=1), edit(*GOOD, index=2)])
    assert [kept.index for kept in result.kept] == [0, 1]
    assert 0 < result.kept[1].scores["similarity"] < 0.9
    (drop,) = result.drops
    assert (drop.index, drop.reason, drop.text) == (2, "duplicate", "\n".join(GOOD))


def test_an_edit_in_another_order_is_a_near_duplicate() -> None:
    assert reasons(run([edit(*GOOD), edit(*GOOD[::-1], index=1)])) == ["near_duplicate"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (FilterSettings(min_length=31), "too_short"),
        (FilterSettings(min_length=1, max_length=29), "too_long"),
    ],
)
def test_an_edit_outside_the_length_limits_is_dropped(
    settings: FilterSettings, reason: str
) -> None:
    result = run([edit(*GOOD)], settings=settings)
    assert result.kept == ()
    (drop,) = result.drops
    assert drop.reason == reason
    assert drop.detail.startswith("30 tokens")


@pytest.mark.parametrize(("low", "high"), [(30, 30), (1, 30), (30, 99)])
def test_the_length_limits_are_inclusive(low: int, high: int) -> None:
    assert run([edit(*GOOD)], settings=FilterSettings(low, high)).drops == ()


def test_an_edit_left_without_items_is_dropped_once_with_the_reason_of_most() -> None:
    bad = ("The siege began in 1221.", "Paris fell after Napoleon attacked it.", "...")
    result = run([edit(*bad), edit(*GOOD, index=1)])
    (drop,) = result.drops
    assert (drop.index, drop.reason) == (0, "ungrounded")
    assert drop.text == "\n".join(bad)
    assert drop.detail == "2 of 3 items, the first: not in the passage: 1221"
    assert [kept.index for kept in result.kept] == [1]


def test_an_edit_without_items_is_dropped() -> None:
    assert reasons(run([edit()])) == ["no_items"]


def test_no_candidates_give_an_empty_result() -> None:
    result = run([])
    assert (result.kept, result.drops) == ((), ())
    assert (result.edits, result.items) == (0, 0)


def test_edits_and_items_that_were_seen_are_counted() -> None:
    result = run([edit(*GOOD, "..."), edit("...", index=1)])
    assert (result.edits, result.items) == (2, len(GOOD) + 2)
    assert len(result.kept) == 1


def test_without_deduplication_copies_stay() -> None:
    settings = FilterSettings(min_length=1, enable_deduplication=False)
    result = run([edit(*GOOD, *GOOD), edit(*GOOD, *GOOD, index=1)], settings=settings)
    assert [kept.items for kept in result.kept] == [GOOD * 2, GOOD * 2]
    assert result.kept[1].scores["similarity"] == 1


def test_without_the_quality_filter_only_empty_items_and_copies_go() -> None:
    settings = FilterSettings(enable_quality_filter=False)
    result = run([edit("Paris fell in 1871.", "no no no no no", "?!")], settings=settings)
    assert reasons(result) == ["empty_item"]
    assert result.kept[0].items == ("Paris fell in 1871.", "no no no no no")


def test_without_grounding_false_facts_stay() -> None:
    settings = FilterSettings(min_length=1, enable_grounding=False)
    result = run([edit("Napoleon took Paris in 1871.", "no no no no no")], settings=settings)
    assert reasons(result) == ["gibberish"]


def test_one_stray_name_in_a_long_rewrite_is_borne_with() -> None:
    rewrite = (
        "For five months from 1219, Genghis Khan and his Mongol host kept Otrar under siege, since "
        "its governor Inalchuq took 450 traders captive. Its walls gave way in February 1220, but "
        "a month went by, said Juvayni, until the citadel of Otrar fell."
    )
    (kept,) = run([edit(rewrite, strategy="rewrite")]).kept
    assert kept.scores["grounded"] == pytest.approx(11 / 12)


@given(st.lists(st.lists(st.text(max_size=60), max_size=5), max_size=4))
def test_every_text_is_kept_or_dropped_with_a_reason(texts: list[list[str]]) -> None:
    candidates = [edit(*items, index=index) for index, items in enumerate(texts)]
    result = run(candidates)
    whole = {kept.index for kept in result.kept}
    for candidate in candidates:
        drops = [drop for drop in result.drops if drop.index == candidate.index]
        left = [
            item for kept in result.kept if kept.index == candidate.index for item in kept.items
        ]
        if candidate.index in whole:
            assert Counter(left) + Counter(d.text for d in drops) == Counter(candidate.items)
        else:
            assert [drop.text for drop in drops] == [candidate.text]


def test_real_completions_are_all_accounted_for() -> None:
    """Most of what the bundled model writes at temperature 1 is false, and is dropped."""
    seen: Counter[str] = Counter()
    for line in COMPLETIONS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        passage = Passage.make(row["passage"], title=row["title"])
        items = get_strategy(row["strategy"]).parse_output(row["completion"], passage)
        made = SelfEdit(passage.id, row["strategy"], 0, tuple(items))
        result = run([made], passage=passage, settings=FilterSettings())
        assert len(result.kept) + sum(drop.text == made.text for drop in result.drops) == 1
        seen.update(reasons(result))
        for kept in result.kept:
            seen["kept"] += 1
            assert kept.scores["grounded"] >= 0.8
            assert kept.scores["overlap"] >= 0.15
    assert seen["kept"] >= 10
    assert min(seen[reason] for reason in ("ungrounded", "off_topic", "too_short", "no_items")) > 0


def test_sentences_of_the_passage_itself_are_borne_out_by_it() -> None:
    for line in COMPLETIONS.read_text(encoding="utf-8").splitlines()[::20]:
        row = json.loads(line)
        source = signals.Source.of(row["title"], row["passage"])
        for sentence in row["passage"].split(". "):
            assert signals.grounding(sentence, source).missing == ()
            assert signals.topic_overlap(sentence, source) == 1


@pytest.mark.parametrize(
    ("item", "missing"),
    [
        ("Berlin fell.", ()),
        ("Then Berlin fell. Rome did not.", ("Berlin",)),
        ("What did Inalchuq do?", ()),
        ("Military History: the town fell.", ()),
        ("It cost 1,219 coins.", ()),
        ("It cost 1,219.5 coins.", ("1219.5",)),
        ("The Persian-Mongol army came.", ("Persian-Mongol",)),
        ("In the USA it is known.", ("USA",)),
        ("We know that I and He saw it.", ()),
        ("The siege took one or two days.", ()),
        ("The siege took three days.", ("3",)),
    ],
)
def test_grounding(item: str, missing: tuple[str, ...]) -> None:
    assert signals.grounding(item, SOURCE).missing == missing


def test_numbers_may_stand_in_words_on_either_side() -> None:
    source = signals.Source.of("", "It has 3 gates and two towers.")
    assert signals.grounding("It has three gates.", source).share == 1
    assert signals.grounding("There are 2 towers.", source).share == 1


def test_initials_bear_out_an_acronym() -> None:
    source = signals.Source.of("", "The Bell Law Council met in Nethrow.")
    assert signals.grounding("Now the BLC met.", source).missing == ()
    assert signals.grounding("Now the BBC met.", source).missing == ("BBC",)


def test_signals_of_empty_texts() -> None:
    assert signals.repeated_share("") == 0
    assert signals.longest_loop("") == 0
    assert signals.character_entropy("") == 0
    assert signals.non_word_share("") == 0
    assert signals.shingles("") == frozenset()
    assert signals.jaccard(frozenset(), frozenset()) == 0
    assert signals.containment(frozenset(), frozenset()) == 0
    assert signals.grounding("", SOURCE) == signals.Grounding(1.0, ())


def test_repetition_and_loops() -> None:
    assert signals.repeated_share("a b c d e f") == 0
    assert signals.repeated_share("a b c a b c a b c") == pytest.approx(4 / 7)
    assert signals.longest_loop("it is what it is") == 1
    assert signals.longest_loop("so so so it ends") == 3
    assert signals.longest_loop("the red town the red town the red town") == 3


def test_entropy_is_in_bits_per_character() -> None:
    assert signals.character_entropy("abab") == 1
    assert signals.character_entropy("abcd") == 2


def test_non_words() -> None:
    assert signals.non_word_share("Knightsbridge NATO 3.5 don't ____ über") == pytest.approx(1 / 5)
    assert signals.non_word_share("Knightsbridge lies west", frozenset({"knightsbridge"})) == 0
    assert signals.non_word_share("a" * 31) == 1
    assert signals.non_word_share("中文沒有空格" * 10) == 0


def test_topic_overlap_abstains_where_words_cannot_be_told() -> None:
    assert signals.topic_overlap("這是一個完全不同的主題 完全不同的主題 這是一個完全", SOURCE) == 1
    assert signals.topic_overlap("Short.", SOURCE) == 1


def test_jaccard_and_containment() -> None:
    left, right = signals.shingles("a b c d"), signals.shingles("b c d e")
    assert signals.jaccard(left, right) == pytest.approx(1 / 3)
    assert signals.containment(left, right) == pytest.approx(1 / 2)


def test_parts_of_a_question_answer_item() -> None:
    assert signals.qa_parts("Question: a?\nAnswer: b") == QAPair("a?", "b")
    assert signals.qa_parts("A question: a?") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", True),
        ("Conclusion", True),
        ("The World On Sunday", False),
        ("They react with water.", False),
        ("这座塔高四十一米。", False),
        ("", True),
    ],
)
def test_fragments(text: str, expected: bool) -> None:
    assert signals.is_fragment(text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "The passage highlights the importance of the law.",
        "I'll rewrite it so that it is easier to read.",
        "These sentences can be condensed to tell the story.",
        "The last two rewrites are all non-original prose.",
        "Question: What is the answer to this question?\nAnswer: Otrar",
        "As an AI I know of no Otrar.",
    ],
)
def test_texts_about_the_task(text: str) -> None:
    assert signals.speaks_of_task(text, SOURCE)
    assert reasons(run([edit(*GOOD, text)]))[0] in ("about_the_task", "no_question")


@pytest.mark.parametrize(
    "text",
    [
        "The passage of the army through the town took a day.",
        "The governor wrote a letter to the merchants.",
        "In a sentence of the court, merchants were named.",
        "The passages were walled up.",
    ],
)
def test_texts_that_only_sound_like_it(text: str) -> None:
    source = signals.Source.of("", "Two secret passages led out of the town.")
    assert not signals.speaks_of_task(text, source)


def test_a_pair_that_asks_nothing_is_dropped_as_no_question() -> None:
    for question in ("And the town fell to the Mongol army.", "What is it?"):
        result = run([edit(*GOOD, format_qa(question, "1220"))])
        assert reasons(result) == ["no_question"]


def test_scores_name_each_signal() -> None:
    (kept,) = run([edit(*GOOD)]).kept
    signal_names = {"repetition", "entropy", "non_words", "closeness", "overlap", "grounded"}
    assert signal_names <= set(kept.scores)


def test_short_names_and_initials_are_grounded_or_not() -> None:
    source = signals.Source.of("Peace", "The United Nations met in the hall of Li.")
    assert signals.grounding("Here the UN met.", source).missing == ()
    assert signals.grounding("Here the EU met.", source).missing == ("EU",)
    assert signals.grounding("Here Li met.", source).missing == ()
    assert signals.grounding("Here Bo met.", source).missing == ("Bo",)


def test_one_and_two_are_no_numbers_in_an_answer_either() -> None:
    source = signals.Source.of("Peace", "The nations met in the hall.")
    for answer, missing in (("the two nations", ()), ("the three nations", ("3",))):
        item = format_qa("Which of them met?", answer)
        assert signals.grounding(item, source).missing == missing


def test_three_words_are_enough_to_tell_the_topic() -> None:
    assert signals.topic_overlap("Remote offices everywhere.", SOURCE) == 0
    assert signals.topic_overlap("Remote offices.", SOURCE) == 1


def test_half_of_a_word_may_be_signs() -> None:
    assert signals.non_word_share("ab--") == 0
    assert signals.non_word_share("ab---") == 1


def test_a_word_that_is_not_repeated_comes_once_in_a_row() -> None:
    assert signals.longest_loop("mill") == signals.longest_loop("the mill is old") == 1
    assert signals.longest_loop("the mill the mill") == 2
    assert signals.longest_loop("...") == 0
