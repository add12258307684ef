"""Strategies: how a model is asked for self-edits, and how its answer becomes training texts.

Takes passages and a language model; gives completions, and from a completion the texts to train
on. A strategy is found by its name: built in, registered by the program, defined in the user's
prompts file, or offered by another package under the entry point group ``aios.strategies``.

Source: the prompt variants of *Self-Adapting Language Models* (SEAL, arXiv 2506.10943). Deviation:
SEAL splits every completion at newlines; here each kind of completion has a parser of its own
(see `aios.core.seal.parsing`), and the reasoning of ``implications-cot`` is never trained on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from aios.core.errors import BackendError, UnknownStrategyError, UsageError
from aios.core.protocols import LanguageModel
from aios.core.seal.completion_text import normalise
from aios.core.seal.parsing import (
    format_qa,
    parse_list,
    parse_qa,
    parse_reasoned_list,
    parse_rewrites,
)
from aios.core.seal.prompts import PromptBuilder
from aios.core.types import Completion, FinishReason, GenerationRequest, Passage, SamplingParams

ENTRY_POINT_GROUP = "aios.strategies"

Factory = Callable[[str, PromptBuilder], "SelfEditStrategy"]

_QA_LABEL = re.compile(r"^(Question|Answer):", re.MULTILINE)


class SelfEditStrategy(ABC):
    """One way to have self-edits written.

    Attributes:
        name: The name it was asked for by.
        parser_version: Raised when `parse_output` changes; part of the cache key.
        samples: Whether its completions depend on the sampling settings; where they do not, those
            are not part of the cache key.
        writes: Whether the model is asked at all.
        learnable: Whether a generator can learn to write it: what `parse_output` reads is the
            model's own answer to `prompt_text`. False where the edits are put together here or
            from the answers to several requests.
        taught_as: Where it is not learnable: the strategy whose prompt asks for the same form. A
            generator can learn to write such self-edits in answer to that. Empty: none does.
        prompts: Where its prompt comes from.
    """

    name: str
    parser_version: int = 1
    samples: bool = True
    writes: bool = True
    learnable: bool = True
    taught_as: str = ""

    def __init__(self, name: str, prompts: PromptBuilder | None = None) -> None:
        self.name = name
        self.prompts = prompts or PromptBuilder()

    def prompt_text(self, model: LanguageModel, passage: Passage) -> str:
        """The whole text that the completions depend on; part of the cache key.

        Raises:
            UsageError: The passage is empty.
        """
        return model.format_chat(self.prompts.build_messages(passage, self.name))

    def requests(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[GenerationRequest]:
        """What the model is asked for a passage; nothing, where it need not write.

        Args:
            model: The generator.
            passage: The passage.
            seeds: The seeds of its K completions.
            sampling: How tokens are drawn.
            deadline_seconds: Time for each completion.

        Raises:
            UsageError: The passage is empty.
        """
        prompt = self.prompt_text(model, passage)
        return [GenerationRequest(prompt, tuple(seeds), sampling, deadline_seconds)]

    def assemble(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Completion]:
        """The K completions of a passage, from the model's answers to `requests`.

        Args:
            model: The generator, which may score here.
            passage: The passage.
            seeds: The seeds given to `requests`.
            answers: The completions of each request, in order.

        Raises:
            BackendError: Scoring failed.
        """
        return list(answers[0])

    def generate(
        self,
        model: LanguageModel,
        passages: Sequence[Passage],
        seeds: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[list[Completion]]:
        """Has the model write completions for all passages, in one call.

        Args:
            model: The generator.
            passages: The passages, P of them.
            seeds: For each passage the seeds of its K completions.
            sampling: How tokens are drawn.
            deadline_seconds: Time for each completion.

        Returns:
            P lists of K completions, in the order of passages and seeds.

        Raises:
            BackendError: Generation failed.
            UsageError: A passage is empty.
        """
        asked = [
            self.requests(model, passage, seeds_of, sampling, deadline_seconds)
            for passage, seeds_of in zip(passages, seeds, strict=True)
        ]
        answers = iter(model.generate([request for requests in asked for request in requests]))
        return [
            self.assemble(model, passage, seeds_of, [next(answers) for _ in requests])
            for passage, seeds_of, requests in zip(passages, seeds, asked, strict=True)
        ]

    @abstractmethod
    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """The training texts in a completion, in order; maybe none.

        Args:
            completion: What the model wrote.
            passage: What it was written from.
            finish_reason: Why it ended, where known; helps to tell a line that was cut.

        Returns:
            The texts.
        """

    def format_completion(self, items: Sequence[str]) -> str:
        """The completion that `parse_output` reads back as these items; what is learned from.

        Args:
            items: What `parse_output` gave for a completion, or some of it.
        """
        return "\n".join(items)


class ImplicationsStrategy(SelfEditStrategy):
    """A list of implications, one training text each (``implications`` and its variants)."""

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """The implications; without the reasoning before them in ``implications-cot``."""
        parse = parse_reasoned_list if self.name == "implications-cot" else parse_list
        items = parse(completion, finish_reason)
        return [item for item in items if normalise(item) != normalise(passage.title)]

    def format_completion(self, items: Sequence[str]) -> str:
        """A numbered list; in ``implications-cot`` below its heading, and without reasoning.

        What the model reasoned is not among the items, and none is made up for it.
        """
        heading = "Implications:\n" if self.name == "implications-cot" else ""
        lines = (f"{number}. {_in_a_line(item)}" for number, item in enumerate(items, start=1))
        return heading + "\n".join(lines)


class RewriteStrategy(SelfEditStrategy):
    """The passage in other words, one training text for each rewrite (``rewrite``)."""

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """The rewrites, without those that are the passage itself."""
        known = {normalise(passage.text), normalise(passage.title)}
        known.add(normalise(f"{passage.title} {passage.text}"))
        rewrites = parse_rewrites(completion, finish_reason)
        return [rewrite for rewrite in rewrites if normalise(rewrite) not in known]

    def format_completion(self, items: Sequence[str]) -> str:
        """One rewrite a line."""
        return "\n".join(map(_in_a_line, items))


class SelfQAStrategy(SelfEditStrategy):
    """Questions about the passage and their answers, one training text a pair (``self-qa``)."""

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """The pairs as ``Question: …`` and ``Answer: …`` on two lines; incomplete ones left out."""
        pairs = parse_qa(completion, finish_reason)
        return [format_qa(*pair) for pair in pairs if pair.question and pair.answer]

    def format_completion(self, items: Sequence[str]) -> str:
        """The pairs in the numbered form that the prompt asks for."""
        return "\n".join(
            _QA_LABEL.sub(rf"\1 {number}:", item) for number, item in enumerate(items, start=1)
        )


def _in_a_line(item: str) -> str:
    return " ".join(item.split())


# Name -> "module:factory", loaded when the strategy is first asked for; a factory takes the name
# and the prompts. This table is the place to add a strategy of our own.
_STRATEGIES: dict[str, str | Factory] = {
    "implications": "aios.core.seal.strategies:ImplicationsStrategy",
    "implications-long": "aios.core.seal.strategies:ImplicationsStrategy",
    "implications-very-long": "aios.core.seal.strategies:ImplicationsStrategy",
    "implications-cot": "aios.core.seal.strategies:ImplicationsStrategy",
    "rewrite": "aios.core.seal.strategies:RewriteStrategy",
    "self-qa": "aios.core.seal.strategies:SelfQAStrategy",
    "cloze": "aios.core.seal.grounded:ClozeStrategy",
    "self-qa-grounded": "aios.core.seal.grounded:GroundedQAStrategy",
}

# A prompt of the user's own is read by the strategy of its parser.
_BY_FORMAT: dict[str, Factory] = {
    "lines": ImplicationsStrategy,
    "rewrites": RewriteStrategy,
    "qa": SelfQAStrategy,
}

# What importing or calling someone else's code may raise; anything else is a request to stop.
PLUG_IN_FAULTS = (
    ImportError,
    AttributeError,
    SyntaxError,
    NameError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    OSError,
)


def register(name: str, factory: str | Factory) -> None:
    """Adds a strategy to this process.

    Args:
        name: Its name, which must be free.
        factory: Called with the name and a `PromptBuilder`, or ``"module:attribute"`` of such a
            callable, which is imported when the strategy is first asked for.

    Raises:
        UsageError: The name is taken.
    """
    if name in _STRATEGIES:
        raise UsageError(f"a strategy named {name!r} exists already", "choose another name")
    _STRATEGIES[name] = factory


def known_strategies(prompts: PromptBuilder | None = None) -> tuple[str, ...]:
    """Names that `get_strategy` knows; no plug-in is loaded for this.

    Args:
        prompts: Adds the names of the user's own prompts.
    """
    own = prompts.custom_strategies if prompts else ()
    return tuple(dict.fromkeys((*_STRATEGIES, *sorted(_plug_ins()), *own)))


def get_strategy(name: str, prompts: PromptBuilder | None = None) -> SelfEditStrategy:
    """Finds a strategy by its name.

    A prompt of the user's own comes first, then those of this package and process, then those of
    other packages.

    Args:
        name: The strategy's name.
        prompts: Where prompts come from; the built-in ones by default.

    Returns:
        The strategy.

    Raises:
        UnknownStrategyError: There is none of that name; the message lists the known ones.
        UsageError: A plug-in of that name cannot be loaded; the message names it.
    """
    prompts = prompts or PromptBuilder()
    if name in prompts.custom_strategies:
        return _BY_FORMAT[prompts.template(name).format](name, prompts)
    factory = _STRATEGIES.get(name)
    if factory is not None:
        return (_load(factory) if isinstance(factory, str) else factory)(name, prompts)
    plug_in = _plug_ins().get(name)
    if plug_in is not None:
        return _from_plug_in(plug_in, prompts)
    raise UnknownStrategyError(
        f"unknown strategy {name!r}", f"known: {', '.join(known_strategies(prompts))}"
    )


def _load(target: str) -> Factory:
    module, _, attribute = target.partition(":")
    factory: Factory = getattr(importlib.import_module(module), attribute)
    return factory


def _plug_ins() -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points by name; where two packages offer one name, the first found counts."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(entry_point.name, entry_point)
    return found


def registered_strategies() -> tuple[str, ...]:
    """Names of this package's strategies and of those registered by the program."""
    return tuple(_STRATEGIES)


def _from_plug_in(
    entry_point: importlib.metadata.EntryPoint, prompts: PromptBuilder
) -> SelfEditStrategy:
    where = f"the strategy {entry_point.name!r} of another package ({entry_point.value})"
    remedy = "update or remove that package, or choose another strategy"
    try:
        strategy = entry_point.load()(entry_point.name, prompts)
    except PLUG_IN_FAULTS as error:
        raise UsageError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}", remedy
        ) from error
    if not isinstance(strategy, SelfEditStrategy):
        raise UsageError(
            f"{where} gives a {type(strategy).__name__}, not a SelfEditStrategy", remedy
        )
    if getattr(strategy, "name", None) != entry_point.name:
        raise UsageError(f"{where} does not have that name: it must keep the one it gets", remedy)
    try:
        inspect.signature(strategy.parse_output).bind("", None, finish_reason=None)
    except TypeError as error:
        message = f"{where} has a parse_output that does not fit: {error}"
        raise UsageError(message, remedy) from error
    return strategy


def is_ours(strategy: SelfEditStrategy) -> bool:
    """Whether a strategy is this package's: then what goes wrong in it is a bug of ours."""
    return type(strategy).__module__.split(".")[0] == __name__.split(".")[0]


@contextmanager
def guarded_plug_in(strategy: SelfEditStrategy, method: str) -> Iterator[None]:
    """Turns what another package's strategy may raise in a method into an error that names it.

    Raises:
        BackendError: The strategy is another package's, and failed.
    """
    try:
        yield
    except PLUG_IN_FAULTS as error:
        if is_ours(strategy):
            raise
        where = f"{type(strategy).__module__}.{type(strategy).__qualname__}.{method}"
        raise BackendError(
            f"the strategy {strategy.name!r} of another package failed in {where}: "
            f"{type(error).__name__}: {error}",
            "update or remove that package, or choose another strategy",
        ) from error
