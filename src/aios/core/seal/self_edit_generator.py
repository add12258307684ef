"""The generator: from passages to self-edits that passed the quality filter.

Takes passages and a language model; gives, for each passage, the edits kept, what was dropped and
why, and what it cost. Candidates that were made before come from the cache. Works in batches of
passages and streams: memory does not grow with their number.

Deviations from the SEAL release (data_generation/make_squad_data.py): completions are filtered
and parsed before they are used; one failing passage does not stop the others; seeds are derived
from the passage and the candidate number, so a run can be repeated and resumed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aios.core.errors import BackendError, UsageError
from aios.core.events import Dropped, PassageGenerated, WorkFailed
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.seal.cache import SelfEditCache, cache_key
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.quality import FilterSettings, QualityFilter
from aios.core.seal.strategies import SelfEditStrategy, get_strategy
from aios.core.seeds import derive
from aios.core.types import Completion, Drop, Failure, Passage, SamplingParams, SelfEdit

_DEFAULT_CACHE_BYTES = 10 * 10**9


@dataclass(frozen=True, slots=True)
class PassageEdits:
    """What generation gave for one passage.

    Attributes:
        passage: The passage.
        kept: Edits that passed the filter.
        drops: What did not, with reasons.
        failure: Why nothing was generated, or None.
        cached: Candidates that came from the cache.
        generated: Candidates that were made now.
        tokens: Tokens generated now.
        seconds: Time for it; a batch's time is shared equally by its passages.
        retries: How often it was tried again.
    """

    passage: Passage
    kept: tuple[SelfEdit, ...] = ()
    drops: tuple[Drop, ...] = ()
    failure: Failure | None = None
    cached: int = 0
    generated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class EditBatch:
    """The edits of one batch of passages, and what of it belongs into the cache."""

    passages: tuple[PassageEdits, ...]
    fresh: tuple[tuple[str, Completion], ...] = ()


@dataclass(slots=True)
class _Candidates:
    """The candidates of one passage while they are being collected."""

    passage: Passage
    keys: list[str]
    found: dict[int, Completion] = field(default_factory=dict)
    cached: int = 0
    failure: Failure | None = None
    retries: int = 0
    tokens: int = 0
    seconds: float = 0.0


class SelfEditGenerator:
    """Has a model write self-edits.

    Args:
        model: The generator.
        tokenizer: Left out; a `LanguageModel` brings its own.
        strategy: Name of a strategy, or one.
        num_edits: Candidates for each passage, at least 1.
        temperature: Softmax temperature, in [0.1, 2].
        max_length: Longest completion in tokens, at least 1.
        cache_dir: Folder of the cache; None for no cache.
        cache: A cache to use instead of `cache_dir`.
        top_p: Nucleus mass.
        filter_settings: The quality filter's settings.
        prompts: Where prompts come from.
        batch_size: Passages in one batch, at least 1.
        deadline_seconds: Time for one edit, averaged over the edits of a batch.
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
        if isinstance(strategy, str):
            strategy = get_strategy(strategy, prompts)
        self.strategy = strategy
        self.num_edits = num_edits
        self.sampling = SamplingParams(temperature, top_p, max_length)
        if cache is None and cache_dir is not None:
            cache = SelfEditCache(Path(cache_dir), _DEFAULT_CACHE_BYTES)
        self.cache = cache
        self.filter_settings = filter_settings or FilterSettings()
        self.quality = QualityFilter(self.filter_settings, model.count_tokens)
        self.batch_size = batch_size
        self.deadline_seconds = deadline_seconds
        self.max_retries = max_retries
        self.seed = seed
        self.emit = emit

    def generate_self_edits(self, passage: str | Passage, **overrides: Any) -> list[str]:
        """The texts of the edits kept for one passage.

        Args:
            passage: The passage, or its text.
            **overrides: `num_edits` or `seed` for this call.

        Raises:
            BackendError: Generation failed, also when tried again.
            UsageError: Empty passage or unknown override.
        """
        unknown = sorted(set(overrides) - {"num_edits", "seed"})
        if unknown:
            raise UsageError(f"unknown argument {unknown[0]!r}", "known: num_edits, seed")
        one = passage if isinstance(passage, Passage) else Passage.make(passage)
        if not one.text:
            raise UsageError("the passage is empty", "give a text to learn from")
        generator = copy.copy(self)
        generator.num_edits = overrides.get("num_edits", self.num_edits)
        generator.seed = overrides.get("seed", self.seed)
        _require_at_least("num_edits", 1, generator.num_edits)
        (result,) = generator.generate([one])
        if result.failure is not None:
            raise BackendError(result.failure.error, retryable=result.failure.retryable)
        return [edit.text for edit in result.kept]

    def generate(self, passages: Iterable[Passage]) -> Iterator[PassageEdits]:
        """Self-edits of many passages, as they are ready, in order."""
        for group in batched(passages, self.batch_size):
            batch = self.generate_batch(group)
            self.remember(batch)
            yield from batch.passages

    def generate_batch(self, passages: Sequence[Passage]) -> EditBatch:
        """Self-edits of one batch; nothing is written to the cache yet.

        What comes out depends on the batch (its passages, settings, seed and what the cache held)
        alone, so a caller that keeps its batches and records each one before `remember` can be
        killed and resumed without a difference.
        """
        work = [self._look_up(p) for p in passages]
        missing = [c for c in work if len(c.found) < self.num_edits]
        fresh = self._fill(missing) if missing else []
        results = tuple(self._finish(c) for c in work)
        for result in results:
            self._report(result)
        return EditBatch(results, tuple(fresh))

    def count_cached(self, passage: Passage) -> int:
        """How many of a passage's candidates the cache has."""
        return self._look_up(passage).cached

    def count_prompt_tokens(self, passage: Passage) -> int:
        """Tokens of a passage's prompt."""
        return self.model.count_tokens(self.strategy.prompt_text(self.model, passage))

    def remember(self, batch: EditBatch) -> None:
        """Puts what a batch has newly generated into the cache."""
        if self.cache is not None:
            model = model_label(self.model)
            for key, completion in batch.fresh:
                self.cache.put(key, completion, strategy=self.strategy.name, model=model)

    def _look_up(self, passage: Passage) -> _Candidates:
        prompt = self.strategy.prompt_text(self.model, passage)
        seeds = self._seeds(passage, attempt=0)
        candidates = _Candidates(passage, [self._key(prompt, s, n) for n, s in enumerate(seeds)])
        if self.cache is not None:
            for number, key in enumerate(candidates.keys):
                hit = self.cache.get(key)
                if hit is not None:
                    candidates.found[number] = hit.completion
            candidates.cached = len(candidates.found)
        return candidates

    def _fill(self, missing: Sequence[_Candidates]) -> list[tuple[str, Completion]]:
        """Generates what the cache did not have.

        Where a batch fails, each of its passages is tried alone: first with its own seeds, as
        what failed may be the passage beside it, then with new ones.
        """
        try:
            return self._ask(missing, attempt=0)
        except BackendError as error:
            first = error
        tried = 1 if len(missing) == 1 else 0
        fresh: list[tuple[str, Completion]] = []
        for candidates in missing:
            last = first
            for attempt in range(tried, self.max_retries + 1):
                candidates.retries = attempt
                try:
                    fresh += self._ask([candidates], attempt)
                    break
                except BackendError as error:
                    last = error
            else:
                candidates.failure = Failure(
                    "generate", candidates.passage.id, last.message, last.retryable
                )
        return fresh

    def _ask(self, work: Sequence[_Candidates], attempt: int) -> list[tuple[str, Completion]]:
        """One call of the strategy for the missing candidates of some passages."""
        wanted = [[n for n in range(self.num_edits) if n not in c.found] for c in work]
        seeds = [
            tuple(self._seeds(c.passage, attempt)[n] for n in numbers)
            for c, numbers in zip(work, wanted, strict=True)
        ]
        started = time.perf_counter()
        try:
            answers = self.strategy.generate(
                self.model, [c.passage for c in work], seeds, self.sampling, self.deadline_seconds
            )
        finally:  # what failed has taken its time too
            seconds = time.perf_counter() - started
            for candidates in work:
                candidates.seconds += seconds / len(work)
        fresh = []
        for candidates, numbers, completions in zip(work, wanted, answers, strict=True):
            for number, completion in zip(numbers, completions, strict=True):
                candidates.found[number] = completion
                candidates.tokens += completion.tokens
                if attempt == 0 and completion.finish_reason != "deadline":
                    fresh.append((candidates.keys[number], completion))
        return fresh

    def _finish(self, candidates: _Candidates) -> PassageEdits:
        """Parses and filters the completions of a passage."""
        passage = candidates.passage
        edits = [self._parse(passage, n, c) for n, c in sorted(candidates.found.items())]
        filtered = self.quality.filter(passage, edits)
        return PassageEdits(
            passage,
            filtered.kept,
            filtered.drops,
            candidates.failure,
            cached=candidates.cached,
            generated=len(candidates.found) - candidates.cached,
            tokens=candidates.tokens,
            seconds=candidates.seconds,
            retries=candidates.retries,
        )

    def _parse(self, passage: Passage, number: int, completion: Completion) -> SelfEdit:
        items = self.strategy.parse_output(
            completion.text, passage, finish_reason=completion.finish_reason
        )
        scores = {"cut_by_deadline": 1.0} if completion.finish_reason == "deadline" else {}
        return SelfEdit(
            passage_id=passage.id,
            strategy=self.strategy.name,
            index=number,
            items=tuple(items),
            model=model_label(self.model),
            seed=completion.seed,
            completion=completion.text,
            tokens=completion.tokens,
            scores=scores,
        )

    def _report(self, result: PassageEdits) -> None:
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
            )
        )

    def _seeds(self, passage: Passage, attempt: int) -> list[int]:
        name = self.strategy.name
        return [
            derive(self.seed, "self-edit", passage.id, name, number, attempt)
            for number in range(self.num_edits)
        ]

    def _key(self, prompt: str, seed: int, number: int) -> str:
        return cache_key(
            model_digest=self.model.digest,
            adapter_digest=self.model.adapter_digest,
            prompt_text=prompt,
            sampling=self.sampling,
            seed=seed,
            candidate=number,
            parser_version=self.strategy.parser_version,
            strategy=self.strategy.name,
        )


def _require_at_least(name: str, lowest: int, value: int) -> None:
    if value < lowest:
        raise UsageError(f"{name} is {value}", f"give at least {lowest}")


def model_label(model: LanguageModel) -> str:
    """The model's name for people, with the adapter's digest if there is one."""
    return f"{model.name}+{model.adapter_digest[:12]}" if model.adapter_digest else model.name


def batched(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    """Groups of `size` passages, in order; the last may be smaller."""
    iterator = iter(passages)
    while group := list(islice(iterator, size)):
        yield group
