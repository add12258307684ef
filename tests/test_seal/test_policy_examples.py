"""What a generator learns from: the prompt as context, the kept self-edit as the answer."""

from __future__ import annotations

import pytest

from aios.backends.scripted import ScriptedModel
from aios.core.errors import BackendError
from aios.core.seal.policy_examples import policy_examples
from aios.core.seal.strategies import SelfEditStrategy, get_strategy
from aios.core.types import FinishReason, Passage, SelfEdit, TrainExample

PASSAGE = Passage.make("Otrar fell in 1220 after a siege of five months.", title="Otrar")
PASSAGES = {PASSAGE.id: PASSAGE}
ITEMS = ("Otrar fell in 1220.", "The siege of Otrar took five months.")


class EndingModel(ScriptedModel):
    """A model with a token that ends its answers."""

    @property
    def end_of_turn(self) -> str:
        return "<|end|>"


def edit(strategy: str = "implications", *items: str, completion: str = "") -> SelfEdit:
    return SelfEdit(PASSAGE.id, strategy, 0, items or ITEMS, completion=completion)


def learned(example: TrainExample) -> str:
    ((start, end),) = example.loss_spans
    return example.text[start:end]


def test_the_prompt_is_context_and_the_items_are_learned_with_the_end_of_turn() -> None:
    model, strategy = EndingModel(), get_strategy("implications")
    (example,) = policy_examples(model, {"implications": strategy}, [edit()], PASSAGES)
    assert example.text == strategy.prompt_text(model, PASSAGE) + learned(example)
    assert learned(example) == f"1. {ITEMS[0]}\n2. {ITEMS[1]}<|end|>"
    assert (example.source, example.passage_id) == ("implications", PASSAGE.id)


def test_without_an_end_of_turn_the_answer_ends_with_its_last_item() -> None:
    strategies = {"rewrite": get_strategy("rewrite")}
    (example,) = policy_examples(ScriptedModel(), strategies, [edit("rewrite")], PASSAGES)
    assert learned(example) == "\n".join(ITEMS)


def test_what_the_model_wrote_besides_the_items_is_not_learned() -> None:
    wrote = edit(completion="Sure, here is the list:\n1. Otrar fell in 1220.\n2. It is in Spain.")
    strategies = {"implications": get_strategy("implications")}
    (example,) = policy_examples(EndingModel(), strategies, [wrote], PASSAGES)
    assert "Sure" not in example.text
    assert "Spain" not in example.text


def test_edits_that_cannot_be_learned_and_empty_ones_are_left_out() -> None:
    names = ("implications", "cloze", "self-qa-grounded")
    strategies = {name: get_strategy(name) for name in names}
    edits = [edit("cloze"), edit(), edit("self-qa-grounded"), SelfEdit(PASSAGE.id, names[0], 1, ())]
    examples = policy_examples(EndingModel(), strategies, edits, PASSAGES)
    assert [example.source for example in examples] == ["implications"]


def test_a_strategy_that_asks_no_model_is_never_learned() -> None:
    class Silent(SelfEditStrategy):
        writes = False

        def parse_output(
            self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
        ) -> list[str]:
            return [completion]

    edits = [edit("silent")]
    assert policy_examples(EndingModel(), {"silent": Silent("silent")}, edits, PASSAGES) == ()


def test_a_failure_in_another_packages_strategy_names_it() -> None:
    class Odd(SelfEditStrategy):
        def parse_output(
            self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
        ) -> list[str]:
            return [completion]

        def prompt_text(self, model: object, passage: Passage) -> str:
            raise ValueError("no prompt today")

    with pytest.raises(BackendError, match="no prompt today"):
        policy_examples(EndingModel(), {"odd": Odd("odd")}, [edit("odd")], PASSAGES)


def test_a_failure_in_another_packages_strategy_names_its_method() -> None:
    class Odd(SelfEditStrategy):
        def parse_output(
            self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
        ) -> list[str]:
            return [completion]

        def prompt_text(self, model: object, passage: Passage) -> str:
            raise ValueError("no prompt today")

    class Mute(Odd):
        def prompt_text(self, model: object, passage: Passage) -> str:
            return "Write."

        def format_completion(self, items: object) -> str:
            raise ValueError("no format today")

    for strategy, method in ((Odd("odd"), "prompt_text"), (Mute("odd"), "format_completion")):
        with pytest.raises(BackendError, match=rf"\b{method}\b"):
            policy_examples(EndingModel(), {"odd": strategy}, [edit("odd")], PASSAGES)


def test_what_cannot_be_learned_is_learned_as_the_strategy_that_it_is_taught_as() -> None:
    strategies = {name: get_strategy(name) for name in ("self-qa-grounded", "self-qa")}
    item = "Question: When did Otrar fall?\nAnswer: 1220"
    (example,) = policy_examples(
        EndingModel(), strategies, [edit("self-qa-grounded", item)], PASSAGES
    )
    assert example.source == "self-qa"
    assert example.text.startswith(strategies["self-qa"].prompt_text(EndingModel(), PASSAGE))
