"""Strategies: asking a model, reading its answer, and finding a strategy by name."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from aios.backends.scripted import ScriptedModel
from aios.core.errors import UnknownStrategyError, UsageError
from aios.core.seal import strategies
from aios.core.seal.completion_text import normalise
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.strategies import (
    ImplicationsStrategy,
    RewriteStrategy,
    SelfEditStrategy,
    SelfQAStrategy,
    get_strategy,
    known_strategies,
)
from aios.core.streaming import Generated, collect
from aios.core.types import (
    Completion,
    GenerationRequest,
    Passage,
    SamplingParams,
    Score,
    ScoreRequest,
)

PASSAGE = Passage.make("Otrar fell in 1220 after a siege of five months.", title="Otrar")
COMPLETIONS = Path(__file__).parent / "fixtures" / "completions.jsonl"


class EchoModel:
    """A language model that answers with its prompt and seed, and records the calls."""

    name = digest = "echo"
    adapter_digest = end_of_turn = ""
    context_length = 1000

    def __init__(self) -> None:
        self.calls: list[list[GenerationRequest]] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        self.calls.append(list(requests))
        for index, request in enumerate(self.calls[-1]):
            texts = (f"{seed} {request.prompt}" for seed in request.seeds)
            written = zip(texts, request.seeds, strict=True)
            yield Generated(index, tuple(Completion(t, 1, "stop", seed) for t, seed in written))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        return collect(self.stream(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        raise NotImplementedError


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "_STRATEGIES", dict(strategies._STRATEGIES))


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> list[importlib.metadata.EntryPoint]:
    found: list[importlib.metadata.EntryPoint] = []

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [entry_point for entry_point in found if entry_point.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return found


def plug_in(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, "aios.strategies")


def real_completions(strategy: str) -> list[dict[str, str]]:
    rows = map(json.loads, COMPLETIONS.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["strategy"] == strategy]


def parse(row: Mapping[str, str]) -> list[str]:
    passage = Passage.make(row["passage"], title=row["title"])
    reason = row["finish_reason"]
    return get_strategy(row["strategy"]).parse_output(
        row["completion"], passage, finish_reason="stop" if reason == "stop" else "length"
    )


def subsets(items: list[str]) -> list[list[str]]:
    """All of them, each alone, every other one, and the first missing: what a filter may leave."""
    return [items, *([item] for item in items), items[::2], items[1:]]


@pytest.mark.parametrize(
    "name", [name for name in known_strategies() if get_strategy(name).learnable]
)
def test_a_formatted_completion_is_read_back_as_its_items(name: str) -> None:
    compared = 0
    for row in real_completions(name):
        passage, strategy = Passage.make(row["passage"], title=row["title"]), get_strategy(name)
        for items in filter(None, subsets(parse(row))):
            completion = strategy.format_completion(items)
            read = strategy.parse_output(completion, passage, finish_reason="stop")
            assert read == items
            assert strategy.format_completion(read) == completion == completion.strip()
            compared += 1
    assert compared >= 40


def test_a_formatted_completion_has_the_form_that_the_prompt_asks_for() -> None:
    items = ["Otrar fell in 1220.", "The siege\ntook five months."]
    pairs = ["Question: When did Otrar fall?\nAnswer: 1220", "Question: Who fell?\nAnswer: Otrar"]
    listed = "1. Otrar fell in 1220.\n2. The siege took five months."
    assert get_strategy("implications-long").format_completion(items) == listed
    cot = get_strategy("implications-cot").format_completion(items)
    assert cot == f"Implications:\n{listed}"
    assert get_strategy("rewrite").format_completion(items).splitlines() == [
        "Otrar fell in 1220.",
        "The siege took five months.",
    ]
    assert get_strategy("self-qa").format_completion(pairs) == (
        "Question 1: When did Otrar fall?\nAnswer 1: 1220\nQuestion 2: Who fell?\nAnswer 2: Otrar"
    )


def test_strategies_that_no_single_answer_holds_cannot_be_learned() -> None:
    unlearnable = {name for name in known_strategies() if not get_strategy(name).learnable}
    assert unlearnable == {"cloze", "self-qa-grounded"}


def test_all_passages_and_seeds_go_to_the_model_in_one_call() -> None:
    model = EchoModel()
    passages = [PASSAGE, Passage.make("Snow is cold.")]
    sampling = SamplingParams(temperature=0.5)
    strategy = get_strategy("implications")
    completions = strategy.generate(model, passages, [(1, 2), (3,)], sampling, 30.0)
    assert [[completion.seed for completion in row] for row in completions] == [[1, 2], [3]]
    (requests,) = model.calls
    assert requests == [
        GenerationRequest(strategy.prompt_text(model, PASSAGE), (1, 2), sampling, 30.0),
        GenerationRequest(strategy.prompt_text(model, passages[1]), (3,), sampling, 30.0),
    ]


def test_no_passages_need_no_answers() -> None:
    model = EchoModel()
    assert get_strategy("rewrite").generate(model, [], [], SamplingParams()) == []
    assert model.calls in ([], [[]])


def test_a_passage_is_one_request_for_all_its_seeds() -> None:
    model = EchoModel()
    strategy = get_strategy("self-qa")
    requests = strategy.requests(model, PASSAGE, [4, 2], SamplingParams(top_p=0.5), 3.0)
    prompt = strategy.prompt_text(model, PASSAGE)
    assert requests == [GenerationRequest(prompt, (4, 2), SamplingParams(top_p=0.5), 3.0)]
    assert model.calls == []


def test_the_answers_to_the_request_are_the_completions() -> None:
    answer = (Completion("a", 1, "stop", 4), Completion("b", 1, "length", 2))
    found = get_strategy("self-qa").assemble(EchoModel(), PASSAGE, [4, 2], [answer])
    assert found == list(answer)


@pytest.mark.parametrize("name", known_strategies())
def test_to_generate_is_to_ask_and_to_put_together(name: str) -> None:
    model, strategy = ScriptedModel(), get_strategy(name)
    passages = [PASSAGE, Passage.make("Snow is cold in 1871 and white in Norway.")]
    seeds = [(1, 2), (3,)]
    at_once = strategy.generate(model, passages, seeds, SamplingParams(), 30.0)
    one_by_one = []
    for passage, of_passage in zip(passages, seeds, strict=True):
        requests = strategy.requests(model, passage, of_passage, SamplingParams(), 30.0)
        answers = model.generate(requests)
        one_by_one.append(strategy.assemble(model, passage, of_passage, answers))
    assert at_once == one_by_one
    assert [[completion.seed for completion in row] for row in at_once] == [[1, 2], [3]]


def test_seeds_must_be_given_for_each_passage() -> None:
    with pytest.raises(ValueError, match="zip"):
        get_strategy("rewrite").generate(EchoModel(), [PASSAGE], [], SamplingParams())


def test_prompt_text_is_the_whole_chat() -> None:
    text = get_strategy("self-qa").prompt_text(EchoModel(), PASSAGE)
    assert text.startswith("system: ")
    assert PASSAGE.text in text


@pytest.mark.parametrize("name", ["implications", "implications-long", "implications-very-long"])
def test_implications_become_one_training_text_each(name: str) -> None:
    strategy = get_strategy(name)
    completion = "Here are the implications:\n\n1. Otrar fell.\n2. Otrar\n3. It was **besieged**.\n"
    assert strategy.parse_output(completion, PASSAGE) == ["Otrar fell.", "It was besieged."]


def test_the_reasoning_of_chain_of_thought_is_not_trained_on() -> None:
    completion = (
        "Reasoning: The passage tells of a siege.\n1. It took months.\n\n"
        "**Implications:**\n1. Otrar was besieged.\n2. Otrar fell in 1220.\n"
    )
    strategy = get_strategy("implications-cot")
    assert strategy.parse_output(completion, PASSAGE) == [
        "Otrar was besieged.",
        "Otrar fell in 1220.",
    ]


def test_a_rewrite_that_is_the_passage_itself_is_left_out() -> None:
    completion = (
        "otrar fell in 1220, after a siege of five months\n"
        "Otrar: Otrar fell in 1220 after a siege of five months.\n"
        "After five months of siege, Otrar fell in 1220.\n"
    )
    assert get_strategy("rewrite").parse_output(completion, PASSAGE) == [
        "After five months of siege, Otrar fell in 1220."
    ]


def test_question_answer_pairs_have_the_one_form() -> None:
    completion = "**Question 1:** When did Otrar fall?\n**Answer 1:** 1220\nQ2: Who won?\n"
    assert get_strategy("self-qa").parse_output(completion, PASSAGE) == [
        "Question: When did Otrar fall?\nAnswer: 1220"
    ]


def test_known_strategies_start_with_the_six() -> None:
    assert known_strategies()[:6] == (
        "implications",
        "implications-long",
        "implications-very-long",
        "implications-cot",
        "rewrite",
        "self-qa",
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("implications-cot", ImplicationsStrategy),
        ("rewrite", RewriteStrategy),
        ("self-qa", SelfQAStrategy),
    ],
)
def test_a_strategy_is_found_by_name(name: str, kind: type[SelfEditStrategy]) -> None:
    strategy = get_strategy(name)
    assert type(strategy) is kind
    assert strategy.name == name
    assert strategy.parser_version >= 1


def test_an_unknown_strategy_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("mine: {template: '{passage}'}")
    with pytest.raises(UnknownStrategyError, match="rewrit") as caught:
        get_strategy("rewrites", PromptBuilder(tmp_path / "p.yaml"))
    assert "implications-cot, rewrite, self-qa" in caught.value.remedy
    assert caught.value.remedy.endswith("mine")


@pytest.mark.parametrize(
    ("parser", "kind"),
    [
        ("implications", ImplicationsStrategy),
        ("rewrite", RewriteStrategy),
        ("self-qa", SelfQAStrategy),
    ],
)
def test_a_users_prompt_is_a_strategy_with_its_parser(
    tmp_path: Path, parser: str, kind: type[SelfEditStrategy]
) -> None:
    (tmp_path / "p.yaml").write_text(f"mine: {{template: 'Do {{passage}}', parser: {parser}}}")
    builder = PromptBuilder(tmp_path / "p.yaml")
    strategy = get_strategy("mine", builder)
    assert type(strategy) is kind
    assert strategy.prompt_text(EchoModel(), PASSAGE) == f"user: Do {PASSAGE.text}"
    assert known_strategies(builder)[-1] == "mine"


@pytest.mark.usefixtures("registry")
def test_a_registered_strategy_is_imported_when_asked_for() -> None:
    strategies.register("lazy", "aios.core.seal.strategies:SelfQAStrategy")
    strategies.register("direct", RewriteStrategy)
    strategies.register("broken", "no.such.module:Thing")
    assert {"lazy", "direct", "broken"} <= set(known_strategies())
    assert isinstance(get_strategy("lazy"), SelfQAStrategy)
    assert get_strategy("direct").name == "direct"
    with pytest.raises(UsageError, match="exists already"):
        strategies.register("rewrite", RewriteStrategy)


def test_another_package_adds_a_strategy(
    plug_ins: list[importlib.metadata.EntryPoint],
) -> None:
    plug_ins.append(plug_in("theirs", "aios.core.seal.strategies:RewriteStrategy"))
    plug_ins.append(plug_in("theirs", "no.such.module:Second"))
    assert "theirs" in known_strategies()
    assert get_strategy("theirs").name == "theirs"


def test_a_broken_plug_in_is_named_and_spares_the_others(
    plug_ins: list[importlib.metadata.EntryPoint],
) -> None:
    plug_ins += [
        plug_in("gone", "no.such.module:Thing"),
        plug_in("raises", "json:loads"),
        plug_in("wrong", "builtins:max"),
        plug_in("rewrite", "no.such.module:Thing"),
    ]
    with pytest.raises(UsageError, match=r"'gone' of another package \(no.such.module:Thing\)"):
        get_strategy("gone")
    with pytest.raises(UsageError, match=r"'raises'.*TypeError"):
        get_strategy("raises")
    with pytest.raises(UsageError, match=r"'wrong'.*cannot be loaded: TypeError"):
        get_strategy("wrong")
    assert isinstance(get_strategy("rewrite"), RewriteStrategy)


def test_a_plug_in_that_gives_something_else_is_refused(
    plug_ins: list[importlib.metadata.EntryPoint],
) -> None:
    plug_ins.append(plug_in("slice", "builtins:slice"))
    with pytest.raises(UsageError, match="gives a slice, not a SelfEditStrategy"):
        get_strategy("slice")


@pytest.mark.parametrize("name", known_strategies()[:6])
def test_items_of_real_completions_are_clean(name: str) -> None:
    rows = real_completions(name)
    assert len(rows) >= 10
    items = [item for row in rows for item in parse(row)]
    assert items
    for item in items:
        assert item == item.strip() != ""
        assert "**" not in item
        assert "```" not in item
        assert "<|" not in item
        assert not item.endswith(":")
        if name == "self-qa":
            question, answer = item.split("\n")
            assert question.startswith("Question: ")
            assert answer.startswith("Answer: ")
        else:
            assert "\n" not in item
            assert not item.startswith(("1. ", "- ", "* ", "Sure", "Here are"))


def test_real_completions_are_never_their_passage() -> None:
    for row in real_completions("rewrite"):
        assert normalise(row["passage"]) not in {normalise(item) for item in parse(row)}


@pytest.mark.parametrize("name", ["rewrite", "cloze", "self-qa-grounded"])
def test_a_built_in_strategy_has_the_prompts_that_are_given(name: str) -> None:
    prompts = PromptBuilder()
    assert get_strategy(name, prompts).prompts is prompts
