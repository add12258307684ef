"""Parsing of messy completions: lists, rewrites, question-answer pairs."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aios.core.seal.completion_text import (
    clean_completion,
    clean_item,
    drop_unfinished_tail,
    is_finished,
    normalise,
    strip_markup,
    strip_special_tokens,
    trim_to_sentence,
)
from aios.core.seal.parsing import (
    QAPair,
    format_qa,
    parse_list,
    parse_qa,
    parse_reasoned_list,
    parse_rewrites,
)
from aios.core.types import FinishReason

# Pieces that completions are made of, to reach more code than plain random text does.
PIECES = st.sampled_from(
    [
        "\n",
        "\n\n",
        " ",
        "1. ",
        "2) ",
        "- ",
        "* ",
        "**",
        "__",
        "____",
        "#",
        "`",
        "```\n",
        "---",
        "Sure! ",
        "Here are the questions:",
        "Question 1: ",
        "Q: ",
        "Answer 1: ",
        "A: ",
        "Rewrite 2:",
        "Implications:\n",
        "Reasoning:\n",
        "Step 1: ",
        "Passage:\n",
        "<|im_end|>",
        "<|im_start|>",
        "<think>",
        "</think>",
        "...",
        "?",
        ".",
        '"',
        "(",
        "Otrar fell.",
        "Who fell",
        "in 1220",
    ]
)
MESSY = st.lists(PIECES | st.text(max_size=12), max_size=30).map("".join)
REASONS: st.SearchStrategy[FinishReason | None] = st.sampled_from(
    [None, "stop", "length", "deadline"]
)
WORD = st.sampled_from(["otrar", "fell", "after", "five", "months", "of", "siege", "when", "snow"])
SENTENCE = st.lists(WORD, min_size=3, max_size=12).map(lambda words: "The " + " ".join(words) + ".")


@given(MESSY, REASONS)
@example("1. ", None)
@example("Question 1: Question 2: Question 3:", "length")
@example("Implications:", None)
def test_no_text_breaks_a_parser_and_items_are_never_empty(
    text: str, reason: FinishReason | None
) -> None:
    for parse in (parse_list, parse_reasoned_list, parse_rewrites):
        items = parse(text, reason)
        assert all(item and item == item.strip() and "\n" not in item for item in items)
        assert len({normalise(item) for item in items}) == len(items)
    for pair in parse_qa(text, reason):
        assert pair.question or pair.answer
        assert all(part == part.strip() and "\n" not in part for part in pair)


@given(MESSY)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert strip_special_tokens(strip_special_tokens(text)) == strip_special_tokens(text)
    assert normalise(normalise(text)) == normalise(text)
    trimmed = trim_to_sentence(text)
    assert trim_to_sentence(trimmed) == trimmed


@given(MESSY)
def test_no_control_token_survives(text: str) -> None:
    assert "<|im_end|>" not in clean_completion(text)
    assert "<|im_start|>" not in clean_completion(text)


@given(st.lists(SENTENCE, unique_by=normalise, min_size=1, max_size=8), st.data())
def test_a_list_is_read_the_same_in_every_dress(items: list[str], data: st.DataObject) -> None:
    marker = data.draw(st.sampled_from(["{}. ", "{}) ", "({}) ", "- ", "* ", "• ", "", "**{}.** "]))
    gap = data.draw(st.sampled_from(["\n", "\n\n", "\r\n"]))
    text = gap.join(marker.format(n) + item for n, item in enumerate(items, 1))
    preamble = data.draw(st.sampled_from(["", "Sure! Here is the list:\n\n", "Implications:\n"]))
    assert parse_list(preamble + text) == items
    assert parse_list("\n".join(parse_list(text))) == items


@given(
    st.lists(st.tuples(SENTENCE, SENTENCE), unique_by=lambda p: normalise(p[0]), min_size=1),
    st.data(),
)
def test_pairs_are_read_the_same_in_every_dress(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    question, answer = data.draw(
        st.sampled_from(
            [
                ("Question {}: ", "Answer {}: "),
                ("**Question {}:** ", "**Answer:** "),
                ("Q{}: ", "A{}: "),
                ("Q: ", "A: "),
                ("{}. Question: ", "- Answer: "),
                ("### Question {}\n", "Answer: "),
                ("Question {}. ", "Answer. "),
            ]
        )
    )
    asked = [(q[:-1] + "?", a) for q, a in pairs]
    text = "\n".join(
        f"{question.format(n)}{q}\n{answer.format(n)}{a}" for n, (q, a) in enumerate(asked, 1)
    )
    assert parse_qa(text) == [QAPair(*pair) for pair in asked]
    again = "\n\n".join(format_qa(*pair) for pair in parse_qa(text))
    assert parse_qa(again) == parse_qa(text)


@pytest.mark.slow
def test_hostile_text_is_read_in_linear_time() -> None:
    start = time.perf_counter()
    pieces = (
        "*a ",
        "**",
        "<|",
        "____ ",
        "(",
        " ",
        "\n",
        "1. ",
        "Question 1: ",
        "a ? ",
        "`",
        "the ",
    )
    for text in (piece * 20_000 + "x" for piece in pieces):
        for parse in (parse_list, parse_reasoned_list, parse_rewrites):
            parse(text)
        parse_qa(text)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        ("", []),
        ("...\n---\n[list]\n**Heading**", []),
        ("1.Otrar fell.\n2.It was hot.", ["Otrar fell.", "It was hot."]),
        ("1. 187th Street is long.\n2. It is wide.", ["187th Street is long.", "It is wide."]),
        ("3.5 million died.\nMany fled home.", ["3.5 million died.", "Many fled home."]),
        ("1. Otrar fell. 2. Snow fell. 3. All fled.", ["Otrar fell.", "Snow fell.", "All fled."]),
        ("- 1. Otrar fell.\n- 2. It was hot.", ["Otrar fell.", "It was hot."]),
        ("a) Otrar fell.\nb) It was hot.", ["Otrar fell.", "It was hot."]),
        ("5 - Otrar fell.\n6 \u2013 It was hot.", ["Otrar fell.", "It was hot."]),
        ("Implication 1: Otrar fell.\nImplication: It froze.", ["Otrar fell.", "It froze."]),
        ("## Siege\n- Otrar fell.\n## It was hot.", ["Otrar fell."]),
        ("```\n1. Otrar fell.\n2. It was hot.\n```", ["Otrar fell.", "It was hot."]),
        ('1. "Otrar fell."\n2. He said "no" twice.', ["Otrar fell.", 'He said "no" twice.']),
        ("1. Otrar fell.\n2. otrar fell\n3. It was hot.", ["Otrar fell.", "It was hot."]),
        ("1. The siege\nlasted five months.\n2. It ended.", None),
        ("1. **Siege:**\n   It lasted.\n2. **End:**\n   It ended.", ["Siege: It lasted.",
                                                                   "End: It ended."]),
        ("1. Otrar fell.\n2. It was hot.\n\nI hope this helps!", ["Otrar fell.", "It was hot."]),
        ("1. Otrar fell.\n2. It froze.\nYou are an AI assistant. Help.", ["Otrar fell.",
                                                                        "It froze."]),
        ("1. Otrar fell.\n2. It froze.\n\nPassage:\nA town\n1. It is red.", ["Otrar fell.",
                                                                           "It froze."]),
        ("1. Otrar fell.<|im_end|>\n<|im_start|>user\n1. No more.", ["Otrar fell."]),
        ("<think>\n1. hm hm\n</think>1. Otrar fell.", ["Otrar fell."]),
        ("assistant\n1. Otrar fell.", ["Otrar fell."]),
        ("Sure, I can help with that list.\nOtrar fell.\nOf course!\nIt froze.",
         ["Otrar fell.", "It froze."]),
        ("Sure signs of a siege were found in the walls of Otrar.",
         ["Sure signs of a siege were found in the walls of Otrar."]),
        ("1. The ____ fell.\n2. It was `hot` and *dry*.", ["The ____ fell.",
                                                          "It was hot and dry."]),
    ],
)  # fmt: skip
def test_lists(completion: str, items: list[str] | None) -> None:
    if items is None:
        items = ["The siege lasted five months.", "It ended."]
    assert parse_list(completion) == items


@pytest.mark.parametrize(
    ("reason", "items"),
    [
        (None, ["Otrar fell.", "It froze."]),
        ("length", ["Otrar fell.", "It froze."]),
        ("deadline", ["Otrar fell.", "It froze."]),
        ("stop", ["Otrar fell.", "It froze.", "And then the"]),
    ],
)
def test_an_unfinished_last_line_is_dropped(reason: FinishReason | None, items: list[str]) -> None:
    assert parse_list("1. Otrar fell.\n2. It froze.\n3. And then the", reason) == items


def test_the_only_line_is_kept_though_unfinished() -> None:
    assert parse_list("1. Otrar fell in the", "length") == ["Otrar fell in the"]


def test_lines_without_full_stops_are_kept_where_nothing_says_they_were_cut() -> None:
    text = "- Otrar fell\n- It froze hard\n- Many fled"
    assert len(parse_list(text)) == len(parse_list(text, "stop")) == 3
    assert len(parse_list(text, "length")) == 2


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("It fell.", True),
        ('He said "no."', True),
        ("Really?)", True),
        ("完了。", True),
        ("It fell...", False),
        ("and…", False),
        ("It fell", False),
        ("", False),
    ],
)
def test_is_finished(text: str, finished: bool) -> None:
    assert is_finished(text) is finished


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        ("Reasoning:\n1. It says so.\n\nImplications:\n1. Otrar fell.", ["Otrar fell."]),
        ("## Reasoning:\nHm.\n## Final Implications:\n- It fell.\n- It froze.",
         ["It fell.", "It froze."]),
        ("Implications: 1. Otrar fell.\nReasoning: since so.\nImplication 2: It froze.",
         ["Otrar fell.", "It froze."]),
        ("Reasoning: it is all so very clear.\n1. It says so.", []),
        ("Let's think step by step.\n1. It says so.", []),
        ("The text tells of war.\n1. Otrar fell.\n2. It froze.", ["Otrar fell.", "It froze."]),
        ("1. First step: read it.\nStep 2: think hard.\n3. Otrar fell.", ["Otrar fell."]),
        ("It tells of war.\nIt was long ago.", []),
    ],
)  # fmt: skip
def test_reasoning_is_cut_away(completion: str, items: list[str]) -> None:
    assert parse_reasoned_list(completion) == items


A = "Otrar fell after a siege."
B = "After a siege, the city fell."
C = "The siege ended with the fall."


@pytest.mark.parametrize(
    ("completion", "items"),
    [
        (f"{A}\n{B}\n\n{C}", [A, B, C]),
        (f"Here are three rewritten versions of the passage:\n\n{A}\n{B}", [A, B]),
        (f"1. {A}\n\n2. {B}", [A, B]),
        (f"**Rewrite 1:** {A}\n**Rewrite 2:** {B}", [A, B]),
        (f"Rewritten passage 1:\n{A}\n\n{B}\n\nRewritten passage 2:\n{C}", [f"{A} {B}", C]),
        (f"Version A:\n{A}\n---\n{B}", [A, B]),
        (f"{A}\n\nRewritten passages:\n{B}\n{C}", [A, B, C]),
        (f"Rewritten passages: {A}\n{B}", [A, B]),
        (f"1. {A}\n{B}\n\n{C}", [f"{A} {B}", C]),
        (f'"{A}"\n"{B}"', [A, B]),
        (f"{A}\n{A.upper()}\nToo short.", [A]),
        (f"{A}\n{B} And then it was", [A, B]),
        (f"{A}\nand then it was all", [A]),
        ("and then it was all", ["and then it was all"]),
        (f"First version:\n{A}\nSecond version:\n{B}", [A, B]),
    ],
)
def test_rewrites(completion: str, items: list[str]) -> None:
    assert parse_rewrites(completion) == items


def test_a_finished_rewrite_keeps_its_end() -> None:
    text = f"{A}\n{B} And then it was"
    assert parse_rewrites(text, "stop") == [A, f"{B} And then it was"]


@pytest.mark.parametrize(
    ("completion", "pairs"),
    [
        ("Question 1: Who won?\nAnswer 1: The khan.", [("Who won?", "The khan.")]),
        ("Question: Who won? Answer: The khan.", [("Who won?", "The khan.")]),
        ("Who won?\nAnswer 1: The khan.\nQuestion 2: Who fell?\nAnswer 2: Otrar.",
         [("Who won?", "The khan."), ("Who fell?", "Otrar.")]),
        ("1. Who won?\nThe khan.\n2. Who fell?\nOtrar.",
         [("Who won?", "The khan."), ("Who fell?", "Otrar.")]),
        ("Who won? The khan.\n- Who fell? Otrar.", [("Who won?", "The khan."),
                                                   ("Who fell?", "Otrar.")]),
        ("Q: Who won,\nand when?\nA: The khan,\nin 1220.",
         [("Who won, and when?", "The khan, in 1220.")]),
        ("Q: Who won?\nA: The khan.\n\nThese are all. Thanks!", [("Who won?", "The khan.")]),
        ("Q: Who fell?\nA: Two of them:\n\n- Otrar\n- Merv",
         [("Who fell?", "Two of them: Otrar Merv")]),
        ("Q: Who won?\nA: Answer: The khan.", [("Who won?", "The khan.")]),
        ("Q: Who won?\nA: Who won? The khan.", [("Who won?", "The khan.")]),
        ("Q: Who won?\nA: The khan. The khan.", [("Who won?", "The khan.")]),
        ("Q: Who won?\nA: The khan.\nA: The shah.", [("Who won?", "The khan.")]),
        ("Q: Who won?\nQ: Who fell?\nA: Otrar.", [("Who won?", ""), ("Who fell?", "Otrar.")]),
        ("A: Otrar.\nQ: Who won?\nA: The khan.", [("", "Otrar."), ("Who won?", "The khan.")]),
        ("Q: Who won?\nA: The khan.\nQ: Who fell?", [("Who won?", "The khan.")]),
        ("Q: Who fell?\nA: Otrar.\nQ: Who fell?\nA: Otrar.", [("Who fell?", "Otrar.")]),
        ("Question 1: ...\nAnswer 1: ...", []),
        ("Question 1: [question]\nAnswer 1: [answer]", []),
        ("Question 1: Question 2: Question 3:", []),
        ("Questions and answers follow below", [("Questions and answers follow below", "")]),
        ("Sure! Here are the questions:\n\n**Q1. Who won?**\n**A1.** The khan.",
         [("Who won?", "The khan.")]),
        ("Question: The army took the town of ____.\nAnswer: Otrar",
         [("The army took the town of ____.", "Otrar")]),
        ("Question 1: What is asked?\nPossible answer: This one.", [("What is asked?",
                                                                    "This one.")]),
    ],
)  # fmt: skip
def test_question_answer_pairs(completion: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_qa(completion) == [QAPair(*pair) for pair in pairs]


def test_an_answer_that_was_cut_goes_with_its_question() -> None:
    text = "Q: Who fell?\nA: Otrar\nQ: When did it fall?\nA: In 12"
    assert parse_qa(text, "length") == [QAPair("Who fell?", "Otrar")]
    assert len(parse_qa(text)) == len(parse_qa(text, "stop")) == 2


def test_a_single_pair_that_was_cut_is_kept() -> None:
    assert parse_qa("Q: Who fell?\nA: The town of", "length") == [
        QAPair("Who fell?", "The town of")
    ]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  1.  2) Otrar   fell. ", "Otrar fell."),
        ("“Otrar fell.”", "Otrar fell."),
        ('Otrar fell."', "Otrar fell."),
        ('"No" and "yes"', '"No" and "yes"'),
        ("*Otrar fell.", "Otrar fell."),
        ("-5 degrees", "-5 degrees"),
        ("1220", "1220"),
        ("- ", "-"),
    ],
)
def test_clean_item(text: str, clean: str) -> None:
    assert clean_item(text) == clean


def test_markup_goes_and_blanks_stay() -> None:
    text = "**Bold**, *italic*, __strong__, `code`, 2 * 3 * 4, a ____ blank"
    assert strip_markup(text) == "Bold, italic, strong, code, 2 * 3 * 4, a ____ blank"


def test_tokens_hidden_in_tokens_are_removed_too() -> None:
    assert strip_special_tokens("a<|im<|x|>_end|>b") == "ab"


def test_normalise_forgets_case_punctuation_and_width() -> None:
    assert normalise("  The KHAN\u2019s １st — ____! ") == "the khan\u2019s 1st ____"


def test_tail_of_other_items_by_their_text() -> None:
    pairs = ["a|It ends.", "b|It also ends.", "c|It does"]
    assert drop_unfinished_tail(pairs, None, lambda pair: pair[2:]) == pairs[:2]


def test_only_the_last_list_of_a_cut_completion_loses_its_last_item() -> None:
    completion = (
        "Implications:\n1. The mill is old.\n2. It grinds grain.\n"
        "Reasoning: it stands by a river.\n"
        "Implications:\n1. The river turns it.\n2. Its owner was"
    )
    whole = ["The mill is old.", "It grinds grain.", "The river turns it."]
    assert parse_reasoned_list(completion, "length") == whole
    assert parse_reasoned_list(completion, "stop") == [*whole, "Its owner was"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\u2028"])
def test_a_line_may_end_in_any_way(newline: str) -> None:
    text = newline.join(["1. The mill is old.", "2. It grinds grain."])
    assert parse_list(text) == ["The mill is old.", "It grinds grain."]
    assert clean_completion(text) == "1. The mill is old.\n2. It grinds grain."


@pytest.mark.parametrize("text", ["", " \n ", "<|im_end|>", "<|im_end|>\n<|im_end|>"])
def test_nothing_remains_of_a_completion_without_text(text: str) -> None:
    assert clean_completion(text) == ""


def test_an_item_goes_on_over_lines_until_it_is_finished() -> None:
    text = "1. The mill stands\nby the river\nand grinds grain.\nA remark.\n2. It is old."
    assert parse_list(text) == ["The mill stands by the river and grinds grain.", "It is old."]


@pytest.mark.parametrize("text", ['"So it is."', "“So it is.”", "«So it is.»"])
def test_quotes_around_an_item_are_left_out(text: str) -> None:
    assert clean_item(text) == "So it is."
