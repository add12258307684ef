"""Test-time adaptation: a small adapter learns what was said in a conversation.

Takes an expert (or the base model) and the conversation so far; gives the expert with a rank-4
adapter over it that was trained for a few steps on statements of the conversation and self-edits
made of them, or the expert as it was, where that adapter would do harm. It lives in memory only.

Adaptations build on each other: what this class has adapted may be given to it again, and its
adapter is trained further over the same expert. Passages that it has not learned come first; where
there is room, some that it has learned are repeated, so that they are not forgotten.

An adapter is dropped, and the one before stays, where the loss on unrelated text or on the last
turns rises by more than a tolerance, or where the training fails. On unrelated text it is compared
with the expert without any adaptation, so that many small rises do not add up.

Deviation from the SEAL paper (Zweiger et al. 2025, arXiv 2506.10943, section 3.1), whose inner loop
trains on passages given as such: rank, rate and steps are far smaller here (AI-OS's plan, 15.1), it
goes on from the adapter before, and what was said is taken by rules (`conversation_passages`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import cast
from weakref import WeakKeyDictionary

from aios.core.errors import BackendError, UsageError
from aios.core.protocols import LanguageModel, ShouldStop, TemporaryExpert, TrialBench, never
from aios.core.seal.adaptation_guard import (
    Breaks,
    LossChange,
    default_retention,
    example_requests,
    mean_loss,
    turn_requests,
)
from aios.core.seal.conversation_passages import PASSAGE_TOKENS, conversation_passages
from aios.core.seal.quality_signals import qa_parts
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.test_time_training import own_bench
from aios.core.seeds import derive
from aios.core.training.examples import LossOn, edit_examples, passage_examples
from aios.core.trials import TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import LoraRecipe, Passage, ScoreRequest, SelfEdit, TrainExample

NOTHING_NEW = "nothing new that is worth learning was said"
_EXAMPLE_TOKENS = 256  # of a training text, at most; longer ones are left out
_STEP_TOKENS = 384  # of a training step: longer texts make smaller batches
_KNOWN_LOSSES = 64  # experts whose loss on unrelated text is remembered
_HARM = {"retention": "unrelated text", "turns": "the last turns"}


@dataclass(frozen=True, slots=True)
class AdaptationSettings:
    """How adaptations are made.

    Attributes:
        rank: LoRA rank r.
        alpha: LoRA scale numerator.
        learning_rate: AdamW's rate, constant.
        batch_size: Training texts of a step; fewer where they are long, so that a step stays short.
        max_passages: Passages of the conversation learned at a time.
        max_examples: Training texts of an adaptation, passages among them.
        tolerance: Most by which a loss of the guard may rise, in nats a token.
        roles: Whose statements are learned.
        loss_on: Which part of question-answer items carries loss.
        as_turns: Question-answer items are trained on as turns of a conversation, with loss on the
            answer, and not as texts.
    """

    rank: int = 4
    alpha: int = 8
    learning_rate: float = 1e-3
    batch_size: int = 4
    max_passages: int = 4
    max_examples: int = 32
    tolerance: float = 0.02
    roles: tuple[str, ...] = ("user",)
    loss_on: LossOn = "all"
    as_turns: bool = False


@dataclass(frozen=True, slots=True)
class AdaptationRecord:
    """An adaptation that was tried: what it learned, what it did to the losses, if it was kept.

    Attributes:
        expert: Digest of the expert's adapter that it is over; empty: the base model.
        kept: Whether the adapter is in use from then on.
        reason: Why it is not kept; empty where it is.
        failed: Whether an error is why.
        passages: Ids of the passages that it was trained on, the new ones first.
        texts: What these passages say, in the same order.
        new: How many of them had not been learned before.
        examples: Training texts.
        steps: Optimiser steps done.
        tokens: Tokens trained on.
        seconds: Time for it, without that in which it gave way to others.
        examples_loss: Loss on the training texts.
        retention_loss: Loss on unrelated text; before: of the expert without any adaptation.
        turns_loss: Loss on the last turns.
    """

    expert: str
    kept: bool
    reason: str = ""
    failed: bool = False
    passages: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    new: int = 0
    examples: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    examples_loss: LossChange | None = None
    retention_loss: LossChange | None = None
    turns_loss: LossChange | None = None


@dataclass(frozen=True, slots=True)
class _Origin:
    """What an adapted expert was made of: the expert itself, and the passages learned so far."""

    expert: LanguageModel
    learned: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Attempt:
    """An adaptation in the making, and what is known of it so far."""

    origin: _Origin
    current: LanguageModel  # what is in use so far: the expert, or an adapted one
    passages: tuple[Passage, ...]
    history: Sequence[Mapping[str, str]]
    examples: tuple[TrainExample, ...] = ()
    metrics: TrialMetrics | None = None
    losses: dict[str, LossChange] = field(default_factory=dict)
    failed: bool = False

    def record(self, seconds: float, reason: str) -> AdaptationRecord:
        """What to tell of it; `reason` is why it is not kept."""
        return AdaptationRecord(
            expert=self.origin.expert.adapter_digest,
            kept=not reason,
            reason=reason,
            failed=self.failed,
            passages=tuple(passage.id for passage in self.passages),
            texts=tuple(passage.text for passage in self.passages),
            new=sum(passage.id not in self.origin.learned for passage in self.passages),
            examples=len(self.examples),
            steps=self.metrics.steps if self.metrics else 0,
            tokens=self.metrics.tokens if self.metrics else 0,
            seconds=seconds,
            examples_loss=self.losses.get("examples"),
            retention_loss=self.losses.get("retention"),
            turns_loss=self.losses.get("turns"),
        )


class TestTimeAdaptation:
    """Adapts experts to conversations; for one thread at a time.

    Args:
        generator: Writes the self-edits of passages. Where its strategy asks no model (``cloze``),
            nothing is generated.
        settings: How adaptations are made.
        bench_for: Gives the bench that trains over an expert; by default the model's own.
        retention: Unrelated text that must not become less likely; a few paragraphs by default.
        seed: Seed of initialisation and order.

    Raises:
        UsageError: A setting is out of its range.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(
        self,
        generator: SelfEditGenerator,
        settings: AdaptationSettings | None = None,
        *,
        bench_for: Callable[[LanguageModel], TrialBench] = own_bench,
        retention: Sequence[ScoreRequest] | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings or AdaptationSettings()
        _check(self.settings)
        self._generator = generator
        self._bench_for = bench_for
        self._retention = tuple(default_retention() if retention is None else retention)
        self._seed = seed
        self._origins: WeakKeyDictionary[LanguageModel, _Origin] = WeakKeyDictionary()
        self._known_losses: dict[tuple[str, str], float | None] = {}

    def adapt_to_context(
        self,
        expert: LanguageModel,
        conversation_history: Sequence[Mapping[str, str]],
        adaptation_steps: int = 5,
        *,
        exclude: Collection[str] = (),
        should_stop: ShouldStop = never,
    ) -> tuple[LanguageModel, AdaptationRecord]:
        """Trains a small adapter on what was said; nothing that is given is changed.

        Args:
            expert: An expert, a base model, or what an earlier call gave: then its adapter is
                trained further.
            conversation_history: Messages with ``role`` and ``content``, oldest first.
            adaptation_steps: Optimiser steps.
            exclude: Ids of passages that are not to be learned.
            should_stop: Asked before each step and each few hundred tokens that are scored. It may
                take its time; meanwhile the model is free for others.

        Returns:
            The adapted expert (a `TemporaryExpert`), or `expert` itself where nothing is new or
            the adaptation was dropped; and the record. An adapted expert is freed by `release`, or
            when nobody refers to it any more.

        Raises:
            UsageError: The number of steps is below 1, or nothing can be trained over the model.
            AdapterMismatchError: `expert` was adapted with another rank or alpha.
            RunInterrupted: `should_stop` said so.
        """
        if adaptation_steps < 1:
            raise UsageError(f"adaptation_steps is {adaptation_steps}", "give 1 or more")
        origin = self._origins.get(expert) or _Origin(expert)
        passages = self._passages(origin, conversation_history, exclude)
        attempt = _Attempt(origin, expert, passages, conversation_history)
        if all(passage.id in origin.learned for passage in passages):
            return expert, replace(attempt.record(0.0, NOTHING_NEW), passages=(), texts=())
        began, breaks = time.monotonic(), Breaks(should_stop)
        adapted: TemporaryExpert | None = None
        try:
            adapted, reason = self._try(attempt, adaptation_steps, breaks)
        except BackendError as error:  # out of memory, a loss that is no number, …
            attempt.failed, reason = True, f"it failed: {error.message}"
        record = attempt.record(time.monotonic() - began - breaks.waited, reason)
        if adapted is None:
            return expert, record
        learned = origin.learned.union(record.passages)
        self._origins[adapted] = _Origin(origin.expert, learned)
        return adapted, record

    def _passages(
        self, origin: _Origin, messages: Sequence[Mapping[str, str]], exclude: Collection[str]
    ) -> tuple[Passage, ...]:
        return conversation_passages(
            messages,
            self.settings.max_passages,
            count_tokens=origin.expert.count_tokens,
            learned=origin.learned,
            exclude=exclude,
            roles=self.settings.roles,
            max_tokens=min(PASSAGE_TOKENS, max(1, origin.expert.context_length // 4)),
        )

    def _try(
        self, attempt: _Attempt, steps: int, breaks: Breaks
    ) -> tuple[TemporaryExpert | None, str]:
        """Trains, and compares; gives the adapted expert, or None and why there is none.

        Raises:
            BackendError: The training failed, or a loss cannot be had.
            RunInterrupted: It is to stop.
        """
        attempt.examples = tuple(self._examples(attempt.passages, breaks))
        checks = {
            "examples": example_requests(attempt.examples),
            "retention": self._retention,
            "turns": turn_requests(attempt.history, attempt.origin.expert),
        }
        before = {
            "examples": mean_loss(attempt.current, checks["examples"], breaks.check),
            "retention": self._loss_of_expert(attempt.origin.expert, breaks),
            "turns": mean_loss(attempt.current, checks["turns"], breaks.check),
        }
        adapted, attempt.metrics = self._train(attempt, steps, breaks)
        with ExitStack() as unless_kept:
            unless_kept.callback(adapted.release)
            for name, requests in checks.items():
                was, now = before[name], mean_loss(adapted, requests, breaks.check)
                if was is not None and now is not None:
                    attempt.losses[name] = LossChange(was, now)
            harm = self._harm(attempt.losses)
            if harm:
                return None, harm
            unless_kept.pop_all()
        return adapted, ""

    def _harm(self, losses: Mapping[str, LossChange]) -> str:
        """What has become worse by more than the tolerance; empty where nothing has."""
        limit = self.settings.tolerance
        found = [
            f"the loss on {text} rose by {losses[name].rise:.3f} nats a token (limit {limit:g})"
            for name, text in _HARM.items()
            if name in losses and losses[name].rise > limit
        ]
        return "; ".join(found)

    def _loss_of_expert(self, expert: LanguageModel, breaks: Breaks) -> float | None:
        """Loss on unrelated text of an expert without adaptation; taken once for each."""
        key = (expert.digest, expert.adapter_digest)
        if key not in self._known_losses:
            if len(self._known_losses) >= _KNOWN_LOSSES:
                self._known_losses.pop(next(iter(self._known_losses)))
            self._known_losses[key] = mean_loss(expert, self._retention, breaks.check)
        return self._known_losses[key]

    # ------------------------------------------------------------ training

    def _examples(self, passages: Sequence[Passage], breaks: Breaks) -> list[TrainExample]:
        """Training texts: the passages, then the items of their self-edits by turns."""
        edited: list[list[TrainExample]] = []
        for passage in passages:
            breaks.check()  # a strategy that asks a model holds it for one passage at a time
            made = self._generator.generate([passage])
            kept = [edit for edits in made for edit in edits.kept]
            edited.append(list(self._edit_examples(kept)))
        by_turns = [e for row in zip_longest(*edited) for e in row if e is not None]
        model = self._generator.model
        limit = min(_EXAMPLE_TOKENS, model.context_length)
        texts = [
            example
            for example in (*passage_examples(passages), *by_turns)
            if model.count_tokens(example.text) <= limit
        ]
        return texts[: self.settings.max_examples]

    def _edit_examples(self, edits: Sequence[SelfEdit]) -> Iterator[TrainExample]:
        model = self._generator.model
        for example in edit_examples(edits, self.settings.loss_on):
            pair = qa_parts(example.text) if self.settings.as_turns else None
            if pair is None:
                yield example
                continue
            prompt = model.format_chat([{"role": "user", "content": pair.question}])
            text = prompt + pair.answer + model.end_of_turn
            yield replace(example, text=text, loss_spans=((len(prompt), len(text)),))

    def _train(
        self, attempt: _Attempt, steps: int, breaks: Breaks
    ) -> tuple[TemporaryExpert, TrialMetrics]:
        """Trains the adapter further, or a new one.

        Raises:
            BackendError: The training failed.
            RunInterrupted: It is to stop.
        """
        origin, settings = attempt.origin, self.settings
        longest = max(origin.expert.count_tokens(e.text) for e in attempt.examples)
        current = attempt.current
        job = TrialJob(
            id="adaptation",
            examples=attempt.examples,
            recipe=LoraRecipe(
                rank=settings.rank,
                alpha=settings.alpha,
                learning_rate=settings.learning_rate,
                epochs=1,
                batch_size=max(1, min(settings.batch_size, _STEP_TOKENS // max(1, longest))),
            ),
            seed=derive(self._seed, "adaptation", *(passage.id for passage in attempt.passages)),
            max_steps=steps,
            initial=None if current is origin.expert else cast(TemporaryExpert, current),
        )
        (result,) = self._bench_for(origin.expert).train([job], should_stop=breaks)
        if isinstance(result, TrialOutcome):
            assert result.failure is not None  # a bench that only trains has no other outcomes
            raise BackendError(result.failure.error, retryable=result.failure.retryable)
        _, adapted, metrics = result
        return adapted, metrics


def _check(settings: AdaptationSettings) -> None:
    """Refuses settings that nothing can be trained by."""
    for name in ("rank", "alpha", "batch_size", "max_passages", "max_examples"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} is {getattr(settings, name)}", "give 1 or more")
    if not 0 < settings.learning_rate < float("inf"):
        raise UsageError(f"learning_rate is {settings.learning_rate}", "give a number above 0")
    if not settings.tolerance >= 0:
        raise UsageError(f"tolerance is {settings.tolerance}", "give 0 or more")
