"""ReST-EM: a model learns to write better self-edits from those of its own that helped.

Takes passages with questions and a self-edit generator; gives, round by round, better generators:
adapters that write self-edits from which a model learns more. A round reads top to bottom in
`ReSTEMOptimizer.run_round`.

Sources: ReST-EM (Singh et al. 2023, arXiv 2312.06585, algorithm 1), SEAL (Zweiger et al. 2025,
arXiv 2506.10943, section 3.1 and algorithm 1).

Deviations from both:

* A self-edit is compared with training on its passage alone, not with the untrained model, by the
  answers' log-probability, and is rewarded only if it is better by more than the measured noise
  (`candidate_trials`). SEAL keeps the best of five by accuracy, whatever the difference.
* Trials are trained on the base model, not on the generator: experts are, too.
* The generator learns what was tried, the items that the quality filter left, not the raw text.
* Prompts are arms: candidates move to the strategies that pay for their tokens (`format_choice`).
* Every round starts from the base model (ReST-EM) unless told to continue (SEAL's release).
* After each round the generator is examined on passages that are never optimised on, with the same
  seeds; rounds end when these gain nothing more, and the best generator is kept, not the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from aios.core.errors import StorageError, UsageError
from aios.core.events import Notice, RoundFinished
from aios.core.protocols import (
    AdapterTrainer,
    Emit,
    Executor,
    LanguageModel,
    ShouldStop,
    ignore,
    never,
)
from aios.core.restem import HeldOut, ReSTEMState, RoundReport, TriedPassage
from aios.core.seal.candidate_trials import CandidateTrials, decide
from aios.core.seal.format_choice import deal, even_shares, next_shares
from aios.core.seal.policy_examples import policy_examples
from aios.core.seal.restem_rules import (
    Laps,
    ReSTEMSettings,
    best_round,
    check_passages,
    passages_of_round,
    why_stop,
)
from aios.core.seal.restem_store import RoundStore, UnrecordedRounds
from aios.core.seal.reward import RewardFunction
from aios.core.seal.round_report import (
    Measured,
    Proposed,
    candidate_event,
    describe_round,
    few_left,
    held_out_of,
    round_report,
)
from aios.core.seal.selection import choose
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.test_time_training import TTTTrainer
from aios.core.seeds import derive
from aios.core.stages import counting_trials, shown_stage
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.types import AdapterRef, Passage


class ReSTEMOptimizer:
    """Improves a self-edit generator by ReST-EM.

    Args:
        self_edit_generator: Writes self-edits; its model is the base model, its mix of strategies
            are the arms (their numbers do not count).
        ttt_trainer: Says how trials are trained, and has the bench that they run on.
        reward_function: Judges trials.
        num_iterations: Rounds.
        batch_size: Passages in a round.
        candidates_per_passage: Self-edits written for each passage.
        trainer: Trains the generators, and puts them on the base model.
        executor: Runs trials; by default the trainer's bench over the base model.
        settings: All else.
        emit: Told of progress, candidates and rounds.
        should_stop: Asked between and during trials and trainings.

    Raises:
        UsageError: A number is below 1.
    """

    def __init__(
        self,
        self_edit_generator: SelfEditGenerator,
        ttt_trainer: TTTTrainer,
        reward_function: RewardFunction,
        num_iterations: int = 2,
        batch_size: int = 50,
        candidates_per_passage: int = 5,
        *,
        trainer: AdapterTrainer,
        executor: Executor | None = None,
        settings: ReSTEMSettings | None = None,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> None:
        numbers = (num_iterations, batch_size, candidates_per_passage)
        for name, value in zip(
            ("num_iterations", "batch_size", "candidates"), numbers, strict=True
        ):
            if value < 1:
                raise UsageError(f"{name} is {value}", "give at least 1")
        self.generator = self_edit_generator
        self.base: LanguageModel = self_edit_generator.model
        self.strategies = {part.strategy.name: part.strategy for part in self_edit_generator.parts}
        self.num_iterations, self.batch_size, self.candidates = numbers
        self.trainer, self.reward_function = trainer, reward_function
        self.settings = settings or ReSTEMSettings()
        self.emit, self.should_stop = emit, should_stop
        self.trials = CandidateTrials(
            executor or ttt_trainer.bench_for(self.base),
            ttt_trainer,
            reward_function,
            self.base.count_tokens,
            self.settings.trials,
        )

    def optimize(
        self,
        passages: Sequence[Passage],
        held_out: Sequence[Passage] = (),
        store: RoundStore | None = None,
    ) -> ReSTEMState:
        """Runs rounds until they are done or gain nothing more.

        Args:
            passages: Passages with questions to optimise on.
            held_out: Passages with questions that generators are compared on; none of `passages`.
            store: Keeps the state and what was measured; what it holds is not done again.

        Returns:
            The last state; `ReSTEMState.best` names the round of the best generator.

        Raises:
            DataError: A passage has no question, or is on both sides.
            BackendError: Generation or training failed, or too many trials did.
            StorageError: The state cannot be kept.
            RunInterrupted: `should_stop` said so; go on with the same store.
        """
        check_passages(passages, held_out)
        store = store or UnrecordedRounds()
        state = store.load() or self._examine_untrained(held_out, store)
        if state.shares.keys() != self.strategies.keys():
            raise StorageError("the run's state is of other strategies", "start a new run")
        while not state.stopped:
            state = self.run_round(state, passages, held_out, store)
        return state

    def run_round(
        self,
        state: ReSTEMState,
        passages: Sequence[Passage],
        held_out: Sequence[Passage],
        store: RoundStore,
    ) -> ReSTEMState:
        """One round: propose, try, select, fit, commit.

        Axes: ``_P`` passages of the round, ``_K`` candidates of a passage, ``_H`` held-out
        passages.

        Args:
            state: The rounds that are done.
            passages: Passages to optimise on.
            held_out: Passages to compare generators on.
            store: Keeps what is done.

        Returns:
            The state with this round, committed.
        """
        number = state.next_round
        passages_P = passages_of_round(number, passages, self.batch_size, self.settings.seed)
        laps = Laps()
        # E-step: the current generator writes candidates, and trials say what they are worth.
        with self._policy(state, store) as policy:
            edits_PK = self._propose(policy, passages_P, state.shares, number, store)
        laps.end("propose")
        tried_PK = self._try(edits_PK, number, store)
        judged_PK, reliability = decide(tried_PK, self.reward_function, self.settings.threshold)
        chosen_PK = choose(judged_PK, self.settings.keep, self.settings.kept_per_passage)
        store.keep(number, "candidates", chosen_PK)
        laps.end("try")
        # M-step: the next generator learns from the self-edits that helped.
        fitted = self._fit(chosen_PK, passages_P, state, number, store)
        laps.end("fit")
        # The new generator on passages that nothing is learned from.
        adapter = fitted.adapter if fitted else self._adapter(state, store)
        held_out_H = self._examine(adapter, held_out, number, store)
        laps.end("held-out")
        measured = Measured(
            number,
            edits_PK,
            chosen_PK,
            reliability,
            fitted,
            held_out_H,
            state.shares,
            self._next_shares(edits_PK, chosen_PK, state.shares),
            {passage.id: passage for passage in passages_P},
            laps.seconds,
        )
        return self._commit(state, measured, store)

    # ------------------------------------------------------------ E-step

    @contextmanager
    def _policy(self, state: ReSTEMState, store: RoundStore) -> Iterator[LanguageModel]:
        """The latest generator as a model."""
        with self._attached(self._adapter(state, store)) as model:
            yield model

    def _adapter(self, state: ReSTEMState, store: RoundStore) -> AdapterRef | None:
        """The adapter of the latest generator; None for the base model."""
        report = state.rounds[-1]
        if not report.generator:
            return None
        return store.adapter(report.generator, report.digest, self.base.digest)

    @contextmanager
    def _attached(self, adapter: AdapterRef | None) -> Iterator[LanguageModel]:
        if adapter is None:
            yield self.base
            return
        model = self.trainer.attach(adapter)
        try:
            yield model
        finally:
            self.trainer.detach(model)

    def _propose(
        self,
        policy: LanguageModel,
        passages: Sequence[Passage],
        shares: Mapping[str, float],
        number: int,
        store: RoundStore,
        held_out: bool = False,
    ) -> Proposed:
        """Has candidates written; each strategy gets its share of them.

        The seeds of held-out passages are the same in every round.
        """
        count = self.settings.held_out_candidates if held_out else self.candidates
        part = "held_out" if held_out else "candidates"
        seed = derive(self.settings.seed, part, 0 if held_out else number)
        plan = deal(shares, [passage.id for passage in passages], count, seed)
        writer = self.generator.with_plan(policy, seed, self.strategies, plan)
        results = []
        show = ignore if held_out else self.emit
        with shown_stage(show, f"round {number}: write", len(passages), "passages") as done:
            for result in store.write(writer, passages, f"rounds/{number}/{part}"):
                results.append(result)
                done(len(results))
        return Proposed(tuple(results), plan)

    def _try(
        self, proposed: Proposed, number: int, store: RoundStore, held_out: bool = False
    ) -> list[TriedPassage]:
        """Runs the trials of all candidates."""
        works = proposed.works()
        notice = None if held_out else few_left(works, self.generator.sampling.temperature)
        if notice is not None:
            self.emit(notice)
        part = "held_out" if held_out else "candidates"
        stage = f"round {number}: " + ("held-out" if held_out else "try")
        tried: list[TriedPassage] = []
        with (
            shown_stage(self.emit, stage, len(works), "passages") as done,
            store.records(f"rounds/{number}/{part}") as records,
            store.records("baselines") as baselines,
        ):
            emit = counting_trials(self.emit, lambda n: done(len(tried), f"{n:.0f} trials"))
            for passage in self.trials.run(
                works, records, baselines, emit=emit, should_stop=self.should_stop
            ):
                tried.append(passage)
                for one in passage.candidates:
                    self.emit(candidate_event(number, held_out, passage, one))
                done(len(tried))
        return tried

    def _next_shares(
        self, proposed: Proposed, tried: Sequence[TriedPassage], shares: Mapping[str, float]
    ) -> dict[str, float]:
        if not self.settings.learn_format:
            return dict(shares)
        return next_shares(tried, proposed.asked, shares, floor=self.settings.floor)

    # ------------------------------------------------------------ M-step

    def _fit(
        self,
        tried: Sequence[TriedPassage],
        passages: Sequence[Passage],
        state: ReSTEMState,
        number: int,
        store: RoundStore,
    ) -> TrainingResult | None:
        """Trains the next generator on prompt → kept self-edit; None if there is nothing kept."""
        kept = [one.edit for passage in tried for one in passage.candidates if one.kept]
        examples = policy_examples(
            self.base, self.strategies, kept, {passage.id: passage for passage in passages}
        )
        longest = self.settings.recipe.max_seq_len
        fitting = [e for e in examples if self.base.count_tokens(e.text) <= longest]
        if len(fitting) < len(examples):
            left_out = len(examples) - len(fitting)
            told = f"{left_out} kept self-edits do not fit restem.sft_max_seq_len ({longest})"
            self.emit(Notice(told, "warning"))
        if not fitting:
            return None
        previous = self._adapter(state, store) if self.settings.init == "previous" else None
        fitted = self.trainer.fit(
            TrainingJob(
                examples=tuple(fitting),
                recipe=self.settings.recipe,
                seed=derive(self.settings.seed, "fit", number),
                output_dir=store.fit_folder(number),
                initial=previous,
                resume=True,
            ),
            emit=self.emit,
            should_stop=self.should_stop,
        )
        return fitted

    # ------------------------------------------------------------ held-out passages

    def _examine_untrained(self, held_out: Sequence[Passage], store: RoundStore) -> ReSTEMState:
        """Round 0: what the untrained generator is worth on the held-out passages."""
        state = ReSTEMState(shares=even_shares(tuple(self.strategies)))
        began = time.monotonic()
        found = self._examine(None, held_out, 0, store)
        report = RoundReport(0, held_out=found, seconds={"held-out": time.monotonic() - began})
        return self._announce(state.with_round(report), store)

    def _examine(
        self,
        adapter: AdapterRef | None,
        held_out: Sequence[Passage],
        number: int,
        store: RoundStore,
    ) -> HeldOut | None:
        """What a generator's self-edits are worth on the held-out passages.

        All strategies have an equal share here, in every round, so that generators differ by what
        they have learned alone.
        """
        if not held_out:
            return None
        shares = even_shares(tuple(self.strategies))
        with self._attached(adapter) as policy:
            proposed = self._propose(policy, held_out, shares, number, store, held_out=True)
        tried = self._try(proposed, number, store, held_out=True)
        judged, _ = decide(tried, self.reward_function, self.settings.threshold)
        store.keep(number, "held_out", judged)
        return held_out_of(judged)

    # ------------------------------------------------------------ commit

    def _commit(self, state: ReSTEMState, measured: Measured, store: RoundStore) -> ReSTEMState:
        """Publishes the generator, then commits the state, then says so."""
        report = round_report(measured)
        if measured.fitted is not None:
            adapter = measured.fitted.adapter
            place = store.publish(report.number, adapter, state.with_round(report))
            report = replace(report, generator=place, digest=adapter.digest)
        else:  # the generator before goes on
            last = state.rounds[-1]
            report = replace(report, generator=last.generator, digest=last.digest)
        after = state.with_round(report, shares=measured.next_shares)
        best = best_round(after)
        stopped = why_stop(after, best, self.settings.patience, self.num_iterations)
        return self._announce(replace(after, best=best, stopped=stopped), store)

    def _announce(self, state: ReSTEMState, store: RoundStore) -> ReSTEMState:
        store.commit(state)
        report = state.rounds[-1]
        self.emit(RoundFinished(report.number, describe_round(report), asdict(report)))
        return state
