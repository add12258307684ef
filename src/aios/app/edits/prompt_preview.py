"""What a prompt looks like on a passage, and what the model writes to it: tried, not kept.

Takes a passage and a strategy's name, or a prompt of the user's own; gives the texts that the model
is asked with, and, where it is wanted, a few self-edits with what the quality filter says of
them. Nothing is saved, and nothing is taken from the cache. The model may be one that also writes
for people: it is borrowed for one completion at a time, so that they wait no longer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aios.app.composition import build_generator, build_prompts, recipe_for, recipe_named
from aios.app.edits.inspect_choice import Choice
from aios.app.edits.inspection import Selection, ShownPassage
from aios.app.generators import check_generator, writing_model
from aios.app.models import load_model
from aios.backends.models import ENDPOINT_PREFIX
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.data.readers import read_passages
from aios.core.data.splitting import split_passage
from aios.core.errors import UsageError
from aios.core.protocols import LanguageModel
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.prompt_templates import AUTO, PARSER_FORMATS, PromptTemplate
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.strategies import guarded_plug_in
from aios.core.seal.strategy_mix import MixPart, describe_mix, parse_mix, resolve_mix
from aios.core.streaming import Generated, collect
from aios.core.types import (
    Completion,
    GenerationRequest,
    Passage,
    SamplingParams,
    Score,
    ScoreRequest,
)

if TYPE_CHECKING:
    from aios.app.chat.assistant import Assistant

OWN = "your-prompt"
MOST_EDITS = 3
MOST_PROMPT_CHARACTERS = 20_000
MOST_SECONDS = 60.0  # of one self-edit
READ_AS: Mapping[str, str] = {
    "implications": "a list, one training text each",
    "rewrite": "rewrites, one a paragraph",
    "self-qa": "numbered questions and answers",
}
"""How what is written can be read, by the parser's name in a prompts file."""

Between = Callable[[], AbstractContextManager[LanguageModel]]


@dataclass(frozen=True, slots=True)
class OwnPrompt:
    """A prompt that was typed in.

    Attributes:
        template: The user turn; holds ``{passage}``.
        system: The system turn; may be empty.
        read_as: How what is written is read, a key of `READ_AS`.
    """

    template: str
    system: str = ""
    read_as: str = "implications"


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """What a strategy asks on a passage.

    Attributes:
        strategy: Its name.
        turns: Role and text of each turn of the chat; empty where it is no single chat.
        requests: What the model reads, one text a request; empty where the model is not asked.
        templated: Whether these are exactly what the model in memory reads; else its chat template
            is still put around the turns.
        tokens: Tokens of all requests, by the model in memory; None without one.
    """

    strategy: str
    turns: tuple[tuple[str, str], ...]
    requests: tuple[str, ...]
    templated: bool
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ChosenPassage:
    """A passage of a file.

    Attributes:
        passage: The passage.
        number: Its number in the file, from 1.
        more: Whether there is one after it.
    """

    passage: Passage
    number: int
    more: bool


def choose_passage(path: Path, number: int) -> ChosenPassage:
    """A passage of a file by its number; the last one where there are fewer.

    Raises:
        DataError: The file cannot be read, or holds no passage.
        UsageError: A Parquet file, and pyarrow is not installed.
    """
    passages = read_passages(path, on_reject=lambda _: None)
    found = next(passages), 1  # a file without passages is an error
    for place, passage in enumerate(islice(passages, max(0, number - 1)), start=2):
        found = passage, place
    return ChosenPassage(*found, more=next(passages, None) is not None)


def strategy_in_force(config: Config, strategy: str) -> str:
    """The strategy, or what ``auto`` stands for.

    Raises:
        UsageError: ``seal.generator`` is no generator.
        StorageError: It is damaged.
    """
    return recipe_named(config, config.model.name).strategy if strategy == AUTO else strategy


def prompts_with(config: Config, own: OwnPrompt | None) -> PromptBuilder:
    """The config's prompts, and the one that was typed in.

    Raises:
        UnknownStrategyError: It has a variable that is not known; the remedy lists those that are.
        UsageError: It is too long, does not hold ``{passage}``, or is to be read in no known way.
        ConfigError: The config's prompts file cannot be used.
    """
    prompts = build_prompts(config)
    if own is None:
        return prompts
    if max(len(own.template), len(own.system)) > MOST_PROMPT_CHARACTERS:
        raise UsageError(f"the prompt has more than {MOST_PROMPT_CHARACTERS:,} characters")
    if own.read_as not in READ_AS:
        raise UsageError(f"{own.read_as!r} is no way to read it", f"known: {', '.join(READ_AS)}")
    return prompts.with_prompt(
        PromptTemplate(
            OWN, own.template.strip(), own.system.strip(), format=PARSER_FORMATS[own.read_as]
        )
    )


def show_prompts(
    config: Config,
    passage: Passage,
    strategy: str,
    own: OwnPrompt | None = None,
    model: LanguageModel | None = None,
) -> tuple[ShownPrompt, ...]:
    """What is asked on a passage, for each strategy of a mix.

    Args:
        config: The resolved config.
        passage: The passage; one that is too long for a run is cut as there.
        strategy: A name, a mix or ``auto``; not looked at with a prompt of one's own.
        own: That prompt.
        model: The model in memory, for its chat template and tokens; None: without.

    Raises:
        UsageError: The strategy is not known, or the prompt cannot be used.
        BackendError: A strategy of another package failed.
    """
    prompts = prompts_with(config, own)
    passage = first_part(config, passage, model)
    return tuple(
        _shown(config, passage, part, prompts, model)
        for part in _parts(config, strategy, own, prompts, MOST_EDITS)
    )


def write_preview(
    config: Config,
    passage: Passage,
    strategy: str,
    *,
    num_edits: int = 1,
    own: OwnPrompt | None = None,
    assistant: Callable[[], Assistant] | None = None,
) -> PassageEdits:
    """Has a few self-edits written, as ``aios seal preview`` does; nothing is saved.

    Args:
        config: The resolved config.
        passage: The passage.
        strategy: As `show_prompts`.
        num_edits: How many, 1 to `MOST_EDITS`; of a mix, one of each of its first strategies.
        own: As `show_prompts`.
        assistant: Opens who answers people, whose model is then shared, so that it is in memory
            once. By default, and over a network, the config's model is loaded for this alone.

    Raises:
        UsageError: The strategy, the prompt or the number cannot be used.
        ModelError: The model cannot be loaded.
        BackendError: Nothing can be written.
    """
    if not 1 <= num_edits <= MOST_EDITS:
        raise UsageError(f"{num_edits} self-edits are asked for", f"ask for 1 to {MOST_EDITS}")
    prompts = prompts_with(config, own)
    check_generator(config)
    parts = _parts(config, strategy, own, prompts, num_edits)
    base, lend = _borrowed(config, assistant)
    limit = min(config.seal.max_generation_time or MOST_SECONDS, MOST_SECONDS)
    bounded = config.seal.model_copy(update={"max_generation_time": limit, "max_retries": 0})
    config = config.model_copy(update={"seal": bounded})
    recipe = replace(
        recipe_for(config, base), strategy=describe_mix(parts), num_edits_per_passage=num_edits
    )
    held = ExitStack()
    try:
        with lend():
            writes = held.enter_context(writing_model(config, base))
        generator = build_generator(
            config, TakingTurns(writes, lend), recipe, cache=None, prompts=prompts
        )
        (result,) = generator.generate([first_part(config, passage, base)])
        return result
    finally:
        with lend():
            held.close()


def first_part(config: Config, passage: Passage, model: LanguageModel | None) -> Passage:
    """The passage, or its first part where a run would split it; as it is without a model."""
    if model is None:
        return passage
    texts = split_passage(passage.text, config.data.max_passage_tokens, model.count_tokens)
    if len(texts) < 2:
        return passage
    return replace(passage, id=f"{passage.id}#1", text=texts[0])


class TakingTurns:
    """A language model that is lent for one completion at a time.

    Args:
        model: The model.
        between: Lends it.
    """

    def __init__(self, model: LanguageModel, between: Between) -> None:
        self._model = model
        self._between = between

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def digest(self) -> str:
        """The model's digest."""
        return self._model.digest

    @property
    def adapter_digest(self) -> str:
        """Its adapter's digest."""
        return self._model.adapter_digest

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        return self._model.context_length

    @property
    def end_of_turn(self) -> str:
        """The text of the token that ends an answer."""
        return self._model.end_of_turn

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return self._model.count_tokens(text)

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages as a prompt."""
        return self._model.format_chat(messages)

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Each request's completions, one after the other; see `LanguageModel.stream`."""
        for index, request in enumerate(requests):
            yield self._answered(index, request)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """The completions of all requests."""
        return collect(self.stream(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities of continuations."""
        with self._between():
            return self._model.score(requests)

    def _answered(self, index: int, request: GenerationRequest) -> Generated:
        written: list[Completion] = []
        seconds, error = 0.0, None
        for seed in request.seeds:
            with self._between():
                (one,) = self._model.stream([replace(request, seeds=(seed,))])
            written += one.completions
            seconds += one.seconds
            error = error or one.error
        found = () if error is not None else tuple(written)
        return Generated(index, found, error, seconds)


def shown_result(result: PassageEdits) -> ShownPassage:
    """What was written, cut to what a page can hold."""
    choice = Choice(Selection(passages=(result.passage.id,)))
    for edit in result.kept:
        choice.edit(edit)
    choice.edits_end()
    kept = {(edit.strategy, edit.index) for edit in result.kept}
    for drop in result.drops:
        choice.drop(drop, whole=(drop.strategy, drop.index) not in kept, is_new=True)
    found = choice.passages({})
    return found[0] if found else ShownPassage(result.passage.id, "", "", (), (), 0, 0)


def _borrowed(
    config: Config, assistant: Callable[[], Assistant] | None
) -> tuple[LanguageModel, Between]:
    if assistant is None or config.model.name.startswith(ENDPOINT_PREFIX):
        own = load_model(config)
        return own, lambda: nullcontext(own)
    shared = assistant()
    return shared.model, shared.between


def _parts(
    config: Config, strategy: str, own: OwnPrompt | None, prompts: PromptBuilder, num_edits: int
) -> tuple[MixPart, ...]:
    """The strategies that are asked; of a mix, one self-edit of each."""
    text = OWN if own is not None else strategy_in_force(config, strategy)
    names = [name for name, _ in parse_mix(text)]
    if len(names) > 1:
        text = ",".join(f"{name}:1" for name in names[:num_edits])
    else:
        text = f"{names[0]}:{num_edits}"
    return resolve_mix(text, num_edits, prompts)


def _shown(
    config: Config,
    passage: Passage,
    part: MixPart,
    prompts: PromptBuilder,
    model: LanguageModel | None,
) -> ShownPrompt:
    strategy = part.strategy
    name = strategy.name
    turns: tuple[tuple[str, str], ...] = ()
    if name in prompts.strategies:
        messages = prompts.build_messages(passage, name)
        turns = tuple((message["role"], message["content"]) for message in messages)
    reader = model or ScriptedModel()  # joins the turns by blank lines
    seeds = (config.seed,)
    sampling = SamplingParams(
        config.seal.temperature, config.seal.top_p, config.seal.max_new_tokens
    )
    with guarded_plug_in(strategy, "requests"):
        asked = strategy.requests(reader, passage, seeds, sampling)
    requests = tuple(str(request.prompt) for request in asked)
    return ShownPrompt(
        strategy=name,
        turns=turns,
        requests=requests,
        templated=model is not None or not turns,
        tokens=sum(map(model.count_tokens, requests)) if model is not None else None,
    )
