from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aios.backends.scripted import Faults, Script, ScriptedModel
from aios.core.data.readers import read_passages
from aios.core.data.splitting import split_sentences
from aios.core.errors import BackendError
from aios.core.seal.grounded import BLANK, ClozeStrategy, GroundedQAStrategy, cloze_items
from aios.core.seal.strategies import get_strategy
from aios.core.types import Completion, Passage, SamplingParams, Score, ScoreRequest

EXAMPLES = Path(__file__).parents[2] / "examples" / "passages.jsonl"
PASSAGES = list(read_passages(EXAMPLES, on_reject=lambda reject: pytest.fail(str(reject))))
TEXT = (
    "The Brellow engine was built in 1871 by Osanne Verrick. It lifts 9,200 litres a minute "
    "because of two larch floats."
)
PASSAGE = Passage.make(TEXT, id="brellow", title="Brellow engine")
SAMPLING = SamplingParams()
_ITEM = re.compile(r"Question: (.*)\nAnswer: (.*)", re.DOTALL)


def parts(item: str) -> tuple[str, str]:
    match = _ITEM.fullmatch(item)
    assert match is not None, item
    return match[1], match[2]


def edits(strategy: ClozeStrategy | GroundedQAStrategy, model: ScriptedModel) -> list[str]:
    ((completion,),) = strategy.generate(model, [PASSAGE], [(7,)], SAMPLING)
    return strategy.parse_output(completion.text, PASSAGE, finish_reason=completion.finish_reason)


# ------------------------------------------------------------ cloze


@given(st.sampled_from(PASSAGES), st.integers(0, 2**63 - 1))
def test_a_cloze_is_true_by_construction(passage: Passage, seed: int) -> None:
    sentences = split_sentences(passage.text)
    for item in cloze_items(passage.text, seed):
        question, answer = parts(item)
        assert question.count(BLANK) == 1
        assert question.replace(BLANK, answer) in sentences


@given(st.text(max_size=300), st.integers(0, 9))
@example("OF_0", 0)
def test_any_text_at_all_gives_true_items(text: str, seed: int) -> None:
    sentences = split_sentences(text)
    for item in cloze_items(text, seed):
        question, answer = parts(item)
        assert answer
        gaps = [m.start() for m in re.finditer(f"(?={BLANK})", question)]
        filled = [question[:at] + answer + question[at + len(BLANK) :] for at in gaps]
        assert any(sentence in filled for sentence in sentences)


@given(st.sampled_from(PASSAGES), st.integers(0, 2**63 - 1))
def test_the_parsed_items_are_those_that_were_made(passage: Passage, seed: int) -> None:
    strategy = ClozeStrategy("cloze")
    ((completion,),) = strategy.generate(ScriptedModel(), [passage], [(seed,)], SAMPLING)
    items = strategy.parse_output(completion.text, passage, finish_reason="stop")
    assert items == list(dict.fromkeys(cloze_items(passage.text, seed)))
    assert completion.seed == seed
    assert (completion.tokens, completion.finish_reason) == (0, "stop")


@given(st.text(max_size=200))
def test_the_parsed_items_of_any_text_are_those_that_were_made(text: str) -> None:
    passage = Passage.make(text)
    strategy = ClozeStrategy("cloze")
    ((completion,),) = strategy.generate(ScriptedModel(), [passage], [(1,)], SAMPLING)
    made = list(dict.fromkeys(cloze_items(passage.text, 1)))
    if not any("Question: " in sentence for sentence in split_sentences(text)):
        assert strategy.parse_output(completion.text, passage) == made


def test_at_most_four_blanks_a_sentence_and_facts_before_phrases() -> None:
    sentence = (
        "In 1871 Osanne Verrick and Tam Orrel brought 38 tonnes of larch through the gate of the "
        "old yard under the hill."
    )
    items = cloze_items(sentence, seed=3)
    assert len(items) == 4
    asked = {parts(item)[1] for item in items}
    assert asked > {"1871", "Osanne Verrick and Tam Orrel", "38 tonnes"}
    assert asked < {"1871", "Osanne Verrick and Tam Orrel", "38 tonnes", "larch", "gate"} | {
        "old yard",
        "hill",
    }
    assert len(cloze_items(sentence, seed=3, per_sentence=1)) == 1


def test_the_seed_chooses_the_blanks() -> None:
    long = PASSAGES[0].text
    chosen = {tuple(cloze_items(long, seed)) for seed in range(8)}
    assert len(chosen) > 1
    assert cloze_items(long, 5) == cloze_items(long, 5)


@pytest.mark.parametrize("text", ["", "Word", "the of and", "…", "x" * 3000])
def test_a_text_without_answers_gives_no_items(text: str) -> None:
    assert cloze_items(text, 0) == []
    assert ClozeStrategy("cloze").parse_output("", Passage.make(text)) == []


def test_digits_alone_become_a_blank() -> None:
    assert cloze_items("1234", 0) == [f"Question: {BLANK}\nAnswer: 1234"]


def test_a_text_in_another_script_has_its_names_and_numbers_asked_for() -> None:
    items = cloze_items("В 1871 году Москва приняла Ивана Петрова.", 0)
    assert {parts(item)[1] for item in items} == {"1871", "Москва", "Ивана Петрова"}


def test_a_very_long_text_is_handled() -> None:
    assert len(cloze_items(" ".join(p.text for p in PASSAGES) * 5, 0)) > 1000


def test_a_cloze_asks_no_model() -> None:
    model = ScriptedModel()
    assert edits(ClozeStrategy("cloze"), model)
    assert (model.requests, model.scored) == ([], 0)


def test_the_prompt_text_follows_the_passage() -> None:
    strategy = get_strategy("cloze")
    texts = {
        strategy.prompt_text(ScriptedModel(), Passage.make(text, title=title))
        for text in ("One.", "Two.")
        for title in ("", "Title")
    }
    assert len(texts) == 4


# ------------------------------------------------------------ self-qa-grounded

QUESTIONS: Script = {
    "Answer: 1871\nQuestion:": ["When was the Brellow engine built?"],
    "Answer: Osanne Verrick\nQuestion:": ["Who was Osanne Verrick?"],  # gives its answer away
    "Answer: 9,200 litres\nQuestion:": ["How much does it lift"],  # unfinished
}


def test_the_model_words_the_questions_and_the_passage_gives_the_answers() -> None:
    model = ScriptedModel(QUESTIONS, knows=["1871"])
    assert edits(GroundedQAStrategy("self-qa-grounded"), model) == [
        "Question: When was the Brellow engine built?\nAnswer: 1871"
    ]


def test_a_pair_whose_answer_is_not_found_again_is_left_out() -> None:
    class Forgetful(ScriptedModel):
        def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
            assert all(TEXT in request.prompt for request in requests)
            return [Score(-9.0, 2, False) for _ in requests]

    assert edits(GroundedQAStrategy("self-qa-grounded"), Forgetful(QUESTIONS)) == []


def test_a_greedy_answer_counts_as_found_whatever_its_loss() -> None:
    class Certain(ScriptedModel):
        def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
            return [Score(-9.0, 2, True) for _ in requests]

    assert len(edits(GroundedQAStrategy("self-qa-grounded"), Certain(QUESTIONS))) == 1


def test_each_wording_has_its_own_seed_and_its_share_of_the_deadline() -> None:
    model = ScriptedModel(QUESTIONS)
    strategy = GroundedQAStrategy("self-qa-grounded")
    strategy.generate(model, [PASSAGE], [(1, 2)], SAMPLING, deadline_seconds=30.0)
    seeds = [seed for request in model.requests for seed in request.seeds]
    assert len(set(seeds)) == len(seeds)
    half = len(model.requests) // 2
    assert {request.deadline_seconds for request in model.requests} == {30.0 / half}


def test_each_candidate_is_put_together_of_its_own_answers() -> None:
    model = ScriptedModel(QUESTIONS, knows=["1871"])
    strategy = GroundedQAStrategy("self-qa-grounded")
    both = strategy.requests(model, PASSAGE, [7, 8], SAMPLING, 30.0)
    for_one, for_other = (
        strategy.requests(model, PASSAGE, [seed], SAMPLING, 30.0) for seed in (7, 8)
    )
    assert both == [*for_one, *for_other]
    assert all(len(request.seeds) == 1 for request in both)
    answers = model.generate(both)
    split = len(for_one)
    assert strategy.assemble(model, PASSAGE, [7, 8], answers) == [
        *strategy.assemble(model, PASSAGE, [7], answers[:split]),
        *strategy.assemble(model, PASSAGE, [8], answers[split:]),
    ]


def test_the_wordings_do_not_follow_the_sampling_settings() -> None:
    model = ScriptedModel()
    strategy = GroundedQAStrategy("self-qa-grounded")
    cool, hot = (
        strategy.requests(model, PASSAGE, [7], SamplingParams(temperature=t), None)
        for t in (0.2, 1.5)
    )
    assert cool == hot
    assert not strategy.samples
    assert not ClozeStrategy("cloze").samples


def test_nothing_is_scored_where_no_question_was_worded() -> None:
    model = ScriptedModel({"": ["no question"]})
    assert edits(GroundedQAStrategy("self-qa-grounded"), model) == []
    assert model.scored == 0


def test_a_candidate_is_marked_where_a_wording_was_late() -> None:
    slow = ScriptedModel(QUESTIONS, faults=Faults(hang_seconds=5.0), sleep=lambda seconds: None)
    strategy = GroundedQAStrategy("self-qa-grounded")
    ((late,),) = strategy.generate(slow, [PASSAGE], [(1,)], SAMPLING, deadline_seconds=1.0)
    assert late.finish_reason == "deadline"
    ((fine,),) = strategy.generate(ScriptedModel(QUESTIONS), [PASSAGE], [(1,)], SAMPLING, 60.0)
    assert fine.finish_reason == "stop"
    assert fine.tokens > 0


def test_a_passage_without_answers_asks_nothing() -> None:
    model = ScriptedModel()
    strategy = GroundedQAStrategy("self-qa-grounded")
    assert strategy.generate(model, [Passage.make("the of and")], [(1,)], SAMPLING) == [
        [Completion("", 0, "stop", 1)]
    ]
    assert model.requests == []


def test_a_failing_model_fails_the_strategy() -> None:
    with pytest.raises(BackendError, match="the script says to fail"):
        edits(GroundedQAStrategy("self-qa-grounded"), ScriptedModel(faults=Faults(fail_times=1)))


def test_the_prompt_holds_the_passage_and_differs_from_that_of_the_cloze() -> None:
    text = get_strategy("self-qa-grounded").prompt_text(ScriptedModel(), PASSAGE)
    assert TEXT in text
    assert text != get_strategy("cloze").prompt_text(ScriptedModel(), PASSAGE)
