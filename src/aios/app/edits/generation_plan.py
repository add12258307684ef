"""What a generation will do and cost: counted, and timed on a few passages; nothing is kept.

Takes config and input; gives counts and an estimate of time and disk. The estimate comes from a
probe: a few passages spread over the file are generated for real, without the cache. A run that
is under way makes its own from its first passages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aios.app.composition import (
    build_generator,
    check_strategy,
    describe_strategy,
    open_cache,
    recipe_for,
)
from aios.app.edits.journal import encode_result
from aios.app.generators import check_generator, writing_model
from aios.app.models import load_model
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.edit_rows import to_row
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.estimates import (
    Estimate,
    Probe,
    ProbedPassage,
    describe_seconds,
    estimate,
    spread_indices,
)
from aios.core.events import Notice
from aios.core.files import encode_json
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.seal.cache_format import CachedCompletion, encode_entry
from aios.core.seal.passage_edits import PassageEdits, Written
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.types import Passage

PROBED = 8  # passages; most that are timed for an estimate


@dataclass(frozen=True, slots=True)
class GeneratePlan:
    """What a generation would do.

    Attributes:
        passages: Passages to read.
        rejected: Records that cannot be used.
        candidates: Self-edits to make.
        cached: How many of them the cache has.
        prompt_tokens: Tokens of all prompts.
        max_new_tokens: Most tokens that could be generated.
        strategy: Strategy in force.
        strategy_source: Where that choice comes from.
        estimate: Time, tokens and disk, from a timed probe; None where nothing was probed.
    """

    passages: int
    rejected: int
    candidates: int
    cached: int
    prompt_tokens: int
    max_new_tokens: int
    strategy: str
    strategy_source: str
    estimate: Estimate | None = None


def plan_generation(
    config: Config,
    input: Path,
    *,
    probe: bool = False,
    emit: Emit = ignore,
    model: LanguageModel | None = None,
) -> GeneratePlan:
    """Counts what a generation would do; writes nothing.

    Args:
        config: The resolved config.
        input: A file of passages.
        probe: Time a few passages for an estimate.
        emit: Shows notices.
        model: The base model; loaded from the config by default.

    Raises:
        UsageError: Input or config cannot be used.
    """
    total = check_input(input)
    check_strategy(config)
    check_generator(config)
    began = time.monotonic()
    model = model or load_model(config, emit=emit)
    once_seconds = time.monotonic() - began
    recipe = recipe_for(config, model)
    wanted = frozenset(spread_indices(total, PROBED)) if probe else frozenset()
    with writing_model(config, model, emit=emit) as writes:
        plan, chosen = _counted(config, input, writes, recipe, wanted)
        if not probe:
            return plan
        to_write = plan.cached < plan.candidates
        if to_write:
            emit(Notice(f"timing {len(chosen)} passages for an estimate"))
        fresh = build_generator(config, writes, recipe, cache=None)
        timed = _probe(fresh, chosen if to_write else [])
    return replace(plan, estimate=estimate(plan, replace(timed, once_seconds=once_seconds)))


def _counted(
    config: Config,
    input: Path,
    writes: LanguageModel,
    recipe: ResolvedRecipe,
    wanted: frozenset[int],
) -> tuple[GeneratePlan, list[Passage]]:
    """The plan without an estimate, and the passages whose numbers are wanted.

    Args:
        config: The resolved config.
        input: A file of passages.
        writes: The model that writes: the base model, or a generator on it.
        recipe: The recipe in force.
        wanted: Numbers of passages, from 0.
    """
    rejects: list[Reject] = []
    passages = cached = prompt_tokens = 0
    # Not closed, so that looking into the cache does not count as using it.
    cache = open_cache(config) if config.seal.enable_cache else None
    generator = build_generator(config, writes, recipe, cache=cache)
    chosen: list[Passage] = []
    for number, passage in enumerate(read_input(config, input, writes, rejects.append)):
        passages += 1
        cached += generator.count_cached(passage)
        prompt_tokens += generator.count_prompt_tokens(passage)
        if number in wanted:
            chosen.append(passage)
    writing = sum(part.num_edits for part in generator.parts if part.strategy.writes)
    plan = GeneratePlan(
        passages=passages,
        rejected=len(rejects),
        candidates=passages * generator.num_edits,
        cached=cached,
        prompt_tokens=prompt_tokens if writing else 0,
        max_new_tokens=max(0, passages * writing - cached) * config.seal.max_new_tokens,
        strategy=recipe.strategy,
        strategy_source=describe_strategy(recipe),
    )
    return plan, chosen


def _probe(generator: SelfEditGenerator, passages: list[Passage]) -> Probe:
    """What these passages cost, all together in one stream; nothing is kept."""
    began = time.monotonic()
    written = list(generator.stream(passages))
    seconds = time.monotonic() - began
    return Probe(tuple(_probed(generator, one) for one in written), seconds)


def _probed(generator: SelfEditGenerator, written: Written) -> ProbedPassage:
    edits = written.edits
    rows = [encode_json(to_row(edit)) for edit in edits.kept]
    rows += [encode_json(asdict(drop)) for drop in edits.drops]
    entries = [
        encode_entry(
            fresh.key, CachedCompletion(fresh.completion, fresh.strategy, generator.model.name, "")
        )
        for fresh in written.fresh
    ]
    return ProbedPassage(
        edits.seconds,
        edits.tokens,
        generator.count_prompt_tokens(edits.passage),
        output_bytes=sum(len(row) + 1 for row in rows),
        cache_bytes=sum(len(entry) for entry in entries),
        journal_bytes=len(encode_json(encode_result(edits))),
    )


class EarlyEstimate:
    """The estimate that a run makes of itself once its first passages are done.

    It goes by the passages' shares of the backend's time, as others are in flight beside them.

    Args:
        passages: All of the run's passages.
        num_edits: Candidates of each.
        once_seconds: What was done once before: loading the model, reading.
    """

    def __init__(self, passages: int, num_edits: int, once_seconds: float = 0.0) -> None:
        self._passages = passages
        self._num_edits = num_edits
        self._once_seconds = once_seconds
        self._seen = 0
        self._reused = 0
        self._cached = 0
        self._first: list[ProbedPassage] = []

    def after(self, result: PassageEdits, *, reused: bool) -> Estimate | None:
        """Takes note of a passage; the estimate of the whole run, after `PROBED` new ones."""
        self._seen += 1
        if reused:
            self._reused += 1
            return None
        self._cached += result.cached
        if result.cached < self._num_edits:
            self._first.append(ProbedPassage(result.seconds, result.tokens))
        if len(self._first) < PROBED or self._seen >= self._passages:
            return None
        return self._estimate()

    def _estimate(self) -> Estimate:
        fresh = self._passages - self._reused
        candidates = fresh * self._num_edits
        share = self._cached / ((self._seen - self._reused) * self._num_edits)
        plan = GeneratePlan(fresh, 0, candidates, int(share * candidates), 0, 0, "", "")
        seconds = sum(passage.seconds for passage in self._first)
        return estimate(plan, Probe(tuple(self._first), seconds, once_seconds=self._once_seconds))


def describe_estimate(estimated: Estimate) -> str:
    """An estimate in one line, for people."""
    low, middle, high = (
        describe_seconds(seconds)
        for seconds in (estimated.seconds_low, estimated.seconds, estimated.seconds_high)
    )
    return f"this will take about {middle} ({low} to {high}), going by {estimated.basis}"


def check_input(path: Path) -> int:
    """Reads an input once, before anything else is done; gives its passages, none split yet.

    Raises:
        DataError: It is missing, a folder, empty, of an unknown ending, or holds no passage.
    """
    return sum(1 for _ in read_passages(path, on_reject=ignore_reject))


def read_input(
    config: Config, path: Path, model: LanguageModel, on_reject: Callable[[Reject], None]
) -> Iterator[Passage]:
    """The passages of a file, long ones split as the config says."""
    return read_passages(
        path,
        on_reject=on_reject,
        count_tokens=model.count_tokens,
        max_tokens=config.data.max_passage_tokens,
    )


def ignore_reject(reject: Reject) -> None:
    """Rejects are listed by the run that uses the passages, not by a look ahead."""
