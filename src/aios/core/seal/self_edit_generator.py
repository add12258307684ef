"""The generator: from passages to self-edits that passed the quality filter.

Takes passages and a language model; gives, for each passage, the edits kept, what was dropped and
why, and what it cost. Candidates that were made before come from the cache; the others are
written in one stream over all passages, with as many passages in flight as there is room for.
Memory does not grow with their number.

Deviations from the SEAL release (data_generation/make_squad_data.py): completions are filtered
and parsed before they are used; one failing passage does not stop the others; seeds are derived
from the passage and the candidate number, so a run can be repeated and resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aios.core.errors import BackendError, UsageError
from aios.core.events import Dropped, PassageGenerated, WorkFailed
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.seal.cache import SelfEditCache, cache_key
from aios.core.seal.edit_stream import (
    GIVE_UP_AFTER,
    EditStream,
    PartWork,
    PassageWork,
    StreamSettings,
    candidate_seeds,
)
from aios.core.seal.passage_edits import Fresh, PassageEdits, Written
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.quality import FilterSettings, QualityFilter
from aios.core.seal.quality_duplicates import Embedder
from aios.core.seal.strategies import SelfEditStrategy, guarded_plug_in
from aios.core.seal.strategy_mix import MixPart, describe_mix, resolve_mix
from aios.core.types import Completion, Failure, Passage, SamplingParams, SelfEdit

_DEFAULT_CACHE_BYTES = 10 * 10**9


class SelfEditGenerator:
    """Has a model write self-edits.

    Args:
        model: The generator.
        tokenizer: Left out; a `LanguageModel` brings its own.
        strategy: Name of a strategy, a mix such as ``rewrite:2,self-qa:2``, or a strategy.
        num_edits: Candidates for each passage, at least 1; a mix has counts of its own.
        temperature: Softmax temperature, in [0.1, 2].
        max_length: Longest completion in tokens, at least 1.
        cache_dir: Folder of the cache; None for no cache.
        cache: A cache to use instead of `cache_dir`.
        top_p: Nucleus mass.
        filter_settings: The quality filter's settings.
        embedder: Embeds texts, so that duplicates are found by meaning too; None: by words alone.
        prompts: Where prompts come from.
        batch_size: Passages that are written at the same time, at least 1.
        deadline_seconds: Time for one edit, its share where several are written at once.
        max_retries: New tries, with other seeds, for a passage that failed alone.
        seed: Seed that all candidates' seeds are derived from.
        emit: Receives `PassageGenerated`, `Dropped` and `WorkFailed` events.

    Raises:
        UnknownStrategyError: The strategy is not known.
        UsageError: `model` is not a `LanguageModel`, or a number is out of its range.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any = None,
        strategy: str | SelfEditStrategy = "implications",
        num_edits: int = 5,
        temperature: float = 1.0,
        max_length: int = 1024,
        cache_dir: Path | str | None = None,
        *,
        cache: SelfEditCache | None = None,
        top_p: float = 0.95,
        filter_settings: FilterSettings | None = None,
        embedder: Embedder | None = None,
        prompts: PromptBuilder | None = None,
        batch_size: int = 4,
        deadline_seconds: float | None = 30.0,
        max_retries: int = 3,
        seed: int = 0,
        emit: Emit = ignore,
    ) -> None:
        if tokenizer is not None or not isinstance(model, LanguageModel):
            raise UsageError(
                "SelfEditGenerator takes a LanguageModel",
                "use aios.load_model(name), or wrap a transformers pair: "
                "aios.TorchLM(model, tokenizer)",
            )
        least = {"num_edits": 1, "max_length": 1, "batch_size": 1, "max_retries": 0}
        given = (num_edits, max_length, batch_size, max_retries)
        for (name, lowest), value in zip(least.items(), given, strict=True):
            _require_at_least(name, lowest, value)
        if not 0.1 <= temperature <= 2:
            raise UsageError(f"temperature is {temperature}", "give a number from 0.1 to 2")
        self.model = model
        self.parts: tuple[MixPart, ...] = (
            resolve_mix(strategy, num_edits, prompts)
            if isinstance(strategy, str)
            else (MixPart(strategy, num_edits, 0),)
        )
        self.sampling = SamplingParams(temperature, top_p, max_length)
        self.filter_settings = filter_settings or FilterSettings()
        self.embedder = embedder
        self.quality = QualityFilter(self.filter_settings, model.count_tokens, embedder=embedder)
        if cache is None and cache_dir is not None:
            cache = SelfEditCache(Path(cache_dir), _DEFAULT_CACHE_BYTES)
        self.cache = cache
        self.batch_size = batch_size
        self.deadline_seconds = deadline_seconds
        self.max_retries = max_retries
        self.seed = seed
        self.emit = emit
        self._plan: Mapping[str, tuple[MixPart, ...]] = {}  # by passage id

    def with_plan(
        self,
        model: LanguageModel,
        seed: int,
        strategies: Mapping[str, SelfEditStrategy],
        plan: Mapping[str, Mapping[str, int]],
    ) -> SelfEditGenerator:
        """This generator with another model and seed, and a mix of its own for each passage.

        Args:
            model: The generator: the base model, or it with an adapter.
            seed: Seed that all candidates' seeds are derived from.
            strategies: By name, in an order that numbers a passage's candidates.
            plan: For each passage's id how many candidates each strategy makes.
        """
        generator = copy.copy(self)
        generator.model, generator.seed = model, seed
        generator._plan = {
            passage_id: tuple(_parts(strategies, counts)) for passage_id, counts in plan.items()
        }
        most = {name: max(counts.get(name, 0) for counts in plan.values()) for name in strategies}
        generator.parts = tuple(_parts(strategies, most))
        return generator

    def parts_of(self, passage: Passage) -> tuple[MixPart, ...]:
        """The strategies of a passage, with their numbers of candidates."""
        return self._plan.get(passage.id, self.parts)

    @property
    def strategy_name(self) -> str:
        """The strategy's name, or the mix."""
        return describe_mix(self.parts)

    @property
    def num_edits(self) -> int:
        """Candidates for each passage."""
        return sum(part.num_edits for part in self.parts)

    def generate_self_edits(self, passage: str | Passage, **overrides: Any) -> list[str]:
        """The texts of the edits kept for one passage.

        Args:
            passage: The passage, or its text.
            **overrides: `num_edits` or `seed` for this call.

        Returns:
            Training texts, in the order in which they were written; empty if all were dropped.

        Raises:
            BackendError: Generation failed, also when tried again.
            UsageError: Empty passage, unknown override, or a number of edits for a mix.
        """
        unknown = sorted(set(overrides) - {"num_edits", "seed"})
        if unknown:
            raise UsageError(f"unknown argument {unknown[0]!r}", "known: num_edits, seed")
        one = passage if isinstance(passage, Passage) else Passage.make(passage)
        if not one.text:
            raise UsageError("the passage is empty", "give a text to learn from")
        generator = copy.copy(self)
        generator.seed = overrides.get("seed", self.seed)
        if "num_edits" in overrides:
            _require_at_least("num_edits", 1, overrides["num_edits"])
            if len(self.parts) > 1:
                raise UsageError(
                    f"the mix {self.strategy_name} has its own numbers of edits",
                    "leave num_edits out",
                )
            generator.parts = (MixPart(self.parts[0].strategy, overrides["num_edits"], 0),)
        (result,) = generator.generate([one])
        if result.failure is not None:
            raise BackendError(result.failure.error, retryable=result.failure.retryable)
        return [edit.text for edit in result.kept]

    def generate(self, passages: Iterable[Passage]) -> Iterator[PassageEdits]:
        """Self-edits of many passages, in order; a passage that is ready waits for its turn.

        How many wait in memory is not bounded here, if one takes much longer than those after it.

        Args:
            passages: The passages, taken lazily.

        Yields:
            One record a passage: what was kept, dropped and failed, and what it cost.

        Raises:
            BackendError: The backend is dead: many passages failed one after the other.
        """
        ready: dict[int, PassageEdits] = {}
        following = 0
        for written in self.stream(passages):
            self.remember(written)
            ready[written.number] = written.edits
            while following in ready:
                yield ready.pop(following)
                following += 1

    def stream(self, passages: Iterable[Passage]) -> Iterator[Written]:
        """Passages as they are finished; nothing is written to the cache yet.

        The candidates of a passage depend on the passage, the settings and the seed alone, as far
        as the model's texts do (see `backends.decoding` for where that holds exactly). So a
        caller that records each passage before `remember` can be killed and resumed without a
        difference.

        Raises:
            BackendError: The backend is dead: many passages failed one after the other.
            UsageError: Another package's strategy could not read what was written for as many.
        """
        settings = StreamSettings(
            self.sampling,
            self.deadline_seconds,
            self.max_retries,
            self.batch_size * self.num_edits,
            self.seed,
        )
        works = (self._look_up(number, passage) for number, passage in enumerate(passages))
        unread = 0
        for work in EditStream(self.model, settings).run(works):
            written = self._finish(work)
            yield written
            failure = written.edits.failure
            unread = unread + 1 if failure is not None and failure.boundary == "parse" else 0
            if failure is not None and unread >= GIVE_UP_AFTER:
                raise UsageError(
                    f"{unread} passages in a row could not be read: {failure.error}",
                    "update or remove that package, or choose another strategy",
                )

    def count_cached(self, passage: Passage) -> int:
        """How many of a passage's candidates the cache has."""
        return sum(part.cached for part in self._look_up(0, passage).parts)

    def count_prompt_tokens(self, passage: Passage) -> int:
        """Tokens of a passage's prompts."""
        return sum(
            self.model.count_tokens(part.strategy.prompt_text(self.model, passage))
            for part in self.parts
        )

    def remember(self, written: Written) -> None:
        """Puts what was newly generated for a passage into the cache."""
        if self.cache is not None:
            model = model_label(self.model)
            for fresh in written.fresh:
                self.cache.put(fresh.key, fresh.completion, strategy=fresh.strategy, model=model)

    def _look_up(self, number: int, passage: Passage) -> PassageWork:
        """A passage's candidates, as far as the cache has them."""
        work = PassageWork(number, passage, [])
        for part in self.parts_of(passage):
            try:
                work.parts.append(self._look_up_part(part, passage))
            except BackendError as error:  # without a prompt a part is not begun
                work.failure = Failure("generate", passage.id, error.message, error.retryable)
        return work

    def _look_up_part(self, part: MixPart, passage: Passage) -> PartWork:
        with guarded_plug_in(part.strategy, "prompt_text"):
            prompt = part.strategy.prompt_text(self.model, passage)
        seeds = candidate_seeds(self.seed, part, passage, attempt=0)
        work = PartWork(part, [self._key(part, prompt, s, n) for n, s in enumerate(seeds)])
        if self.cache is not None:
            for number, key in enumerate(work.keys):
                hit = self.cache.get(key)
                if hit is not None:
                    work.found[number] = hit.completion
            work.cached = len(work.found)
        return work

    def _finish(self, work: PassageWork) -> Written:
        """Parses and filters the completions of a passage, and reports it."""
        failure = work.failure
        edits: list[SelfEdit] = []
        for part in work.parts:
            try:
                with guarded_plug_in(part.part.strategy, "parse_output"):
                    edits += [
                        self._parse(work.passage, part.part, n, c) for n, c in part.in_order()
                    ]
            except BackendError as error:
                failure = failure or Failure("parse", work.passage.id, error.message, True)
        filtered = self.quality.filter(work.passage, edits)
        result = PassageEdits(
            work.passage,
            filtered.kept,
            filtered.drops,
            failure,
            cached=sum(part.cached for part in work.parts),
            generated=sum(len(part.found) - part.cached for part in work.parts),
            tokens=sum(sum(part.new_tokens) for part in work.parts),
            seconds=work.seconds,
            retries=work.retries,
        )
        self._report(result, work)
        fresh = tuple(
            Fresh(part.keys[n], part.found[n], part.part.strategy.name)
            for part in work.parts
            for n in part.fresh
        )
        return Written(work.number, result, fresh)

    def _parse(
        self, passage: Passage, part: MixPart, number: int, completion: Completion
    ) -> SelfEdit:
        items: Any = part.strategy.parse_output(  # maybe another package's
            completion.text, passage, finish_reason=completion.finish_reason
        )
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise TypeError("it gives no list of texts")
        scores = {"cut_by_deadline": 1.0} if completion.finish_reason == "deadline" else {}
        return SelfEdit(
            passage_id=passage.id,
            strategy=part.strategy.name,
            index=part.first_index + number,
            items=tuple(items),
            model=model_label(self.model),
            seed=completion.seed,
            completion=completion.text,
            tokens=completion.tokens,
            scores=scores,
            line_losses=completion.line_losses,
        )

    def _report(self, result: PassageEdits, work: PassageWork) -> None:
        for drop in result.drops:
            self.emit(Dropped(drop.passage_id, drop.strategy, drop.index, drop.reason, drop.detail))
        if result.failure is not None:
            failure = result.failure
            self.emit(
                WorkFailed(failure.boundary, failure.subject, failure.error, failure.retryable)
            )
        self.emit(
            PassageGenerated(
                passage_id=result.passage.id,
                kept=len(result.kept),
                dropped=len(result.drops),
                cached=result.cached,
                generated=result.generated,
                tokens=result.tokens,
                seconds=result.seconds,
                retries=result.retries,
                edit_tokens=tuple(n for part in work.parts for n in part.new_tokens),
            )
        )

    def _key(self, part: MixPart, prompt: str, seed: int, number: int) -> str:
        strategy = part.strategy
        return cache_key(
            model_digest=self.model.digest,
            adapter_digest=self.model.adapter_digest,
            prompt_text=prompt,
            sampling=self.sampling if strategy.samples else None,
            seed=seed,
            candidate=number,
            parser_version=strategy.parser_version,
            strategy=strategy.name,
        )


def _parts(
    strategies: Mapping[str, SelfEditStrategy], counts: Mapping[str, int]
) -> Iterator[MixPart]:
    """The strategies that make any candidates, numbered through."""
    first = 0
    for name, strategy in strategies.items():
        if counts.get(name):
            yield MixPart(strategy, counts[name], first)
            first += counts[name]


def _require_at_least(name: str, lowest: int, value: int) -> None:
    if value < lowest:
        raise UsageError(f"{name} is {value}", f"give at least {lowest}")


def model_label(model: LanguageModel) -> str:
    """The model's name for people, with the adapter's digest if there is one."""
    return f"{model.name}+{model.adapter_digest[:12]}" if model.adapter_digest else model.name
