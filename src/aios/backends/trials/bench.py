"""The trial engine in this process: trains many temporary adapters at once and examines them.

Takes `TrialJob`s as they come, keeps as many trainings as fit the memory, and gives each one's
outcome when it is done. Jobs of one shape (rank, alpha, trunk) are trained together; those of
another wait until the first are done. What a job gives depends on its own data, recipe and seed;
the other jobs change at most the rounding of shared products.

Differs from the SEAL release (knowledge-incorporation/src/inner/TTT_server.py): no adapter is
written to disk or loaded into a server, no sequence is padded, and the untrained model is asked
each question once, not once a candidate.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from aios.backends.devices import keep_freed_memory, memory_errors, release_memory
from aios.backends.encoding import encode
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.adapter_rows import InitialRows
from aios.backends.trials.bank_memory import MemoryPlan, free_memory, plan_memory
from aios.backends.trials.bank_training import BankTrainer, Training, choose_pass
from aios.backends.trials.banked_lm import BankedLM
from aios.backends.trials.examination import Examiner
from aios.backends.trials.lora_bank import LoraBank
from aios.backends.trials.queue import TrialQueue
from aios.backends.trials.trunk import TrunkCache
from aios.core.data.probes import Probe
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    OutOfMemoryError,
    RunInterrupted,
)
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted, WorkFailed
from aios.core.protocols import Emit, ShouldStop, TemporaryExpert, ignore, never
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Failure

_STAGE = "trials"
_TRUNK_SHARE = 8  # the trunk's states may take an eighth of what is free
_LEAST_TOKENS = 64  # of a pass; with less memory than for these nothing can be asked
_Shape = tuple[int, int, int]


@dataclass(eq=False, slots=True)
class _Bench:
    """What trainings of one shape (rank, alpha, trunk layers) share."""

    shape: _Shape
    bank: LoraBank
    plan: MemoryPlan
    trainer: BankTrainer
    initial: InitialRows


class TorchTrialBench:
    """A `core.protocols.TrialBench` on a `TorchLM`.

    Args:
        model: The base model, or an expert, that adapters are trained on; never changed.
        groups: Most trainings at a time; by default as many as fit and are of use.
        pass_tokens: Most tokens of a forward and backward pass; by default the device's.
    """

    def __init__(
        self, model: TorchLM, *, groups: int | None = None, pass_tokens: int | None = None
    ) -> None:
        self.base = model
        self._groups, self._pass_tokens = groups, pass_tokens
        self._examiner = Examiner(model)
        self._bench: _Bench | None = None
        self._known: dict[tuple[str, int | None], Answered] = {}
        keep_freed_memory()

    # ------------------------------------------------------------ the seam

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        """Trains and examines; see `core.protocols.Executor.run`."""
        for bench, finished in self._finished(jobs, emit, should_stop):
            yield from self._examine(bench, finished, emit)

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[tuple[TrialJob, TemporaryExpert, TrialMetrics] | TrialOutcome]:
        """Trains adapters that are kept; see `core.protocols.TrialBench.train`."""
        for bench, finished in self._finished(jobs, emit, should_stop):
            for training in finished:
                if training.error is not None:
                    yield _failed(training.job, "train", training.error, emit)
                else:
                    expert = BankedLM(self.base, bench.bank, training.row)
                    yield training.job, expert, training.metrics()

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        """What the base makes of the questions; see `core.protocols.Executor.baseline`."""
        length = max_answer_tokens if write_answers else None
        missing = {p.id: p for p in questions if (p.id, length) not in self._known}
        if missing:
            bench = self._bench or self._make_bench((1, 1, 0))
            untrained = bench.bank.weights.new_zeros(bench.bank.length)
            probes = tuple(missing.values())
            (answered,) = self._ask(bench, [untrained], [probes], [length])
            if isinstance(answered, BackendError):
                raise answered
            self._known.update({(a.probe_id, length): a for a in answered})
        return [self._known[p.id, length] for p in questions]

    def close(self) -> None:
        """Frees the bank."""
        self._bench = None
        release_memory(self.base.device)

    # ------------------------------------------------------------ training

    def _finished(
        self, jobs: Iterable[TrialJob], emit: Emit, should_stop: ShouldStop
    ) -> Iterator[tuple[_Bench, list[Training]]]:
        """Trainings that are done, failed ones among them, as they become so."""
        queue = TrialQueue(jobs)
        began = time.monotonic()
        done = 0
        emit(StageStarted(_STAGE, len(jobs) if isinstance(jobs, Sized) else 0, _STAGE))
        bench: _Bench | None = None
        trainings: list[Training] = []
        try:
            while (bench := self._fill(queue, bench, trainings)) is not None:
                if should_stop():
                    raise RunInterrupted(
                        f"trials were stopped after {done} were done",
                        "run the same command with --resume",
                    )
                if any(not t.done for t in trainings):
                    self._pass(bench, trainings, queue, emit)
                finished = [t for t in trainings if t.done]
                for training in finished:
                    training.end()
                    trainings.remove(training)
                if finished:
                    yield bench, finished
                    done += len(finished)
                    emit(StageProgress(_STAGE, done))
        finally:
            for training in trainings:
                training.end()
        emit(StageFinished(_STAGE, time.monotonic() - began, f"{done} trials"))

    def _fill(
        self, queue: TrialQueue, bench: _Bench | None, trainings: list[Training]
    ) -> _Bench | None:
        """Takes jobs while there is room; None when nothing is left."""
        while (job := queue.peek()) is not None:
            shape = (job.recipe.rank, job.recipe.alpha, job.trunk_layers)
            if bench is None or not trainings:
                bench = self._bench_of(shape)
            if bench.shape != shape or len(trainings) >= bench.plan.groups:
                return bench
            queue.pop()
            trainings.append(self._begin(bench, job))
        return bench if trainings else None

    def _bench_of(self, shape: _Shape) -> _Bench:
        """The bench in use if it has this shape, else a new one in its place."""
        if self._bench is None or self._bench.shape != shape:
            self._bench = None
            release_memory(self.base.device)
            self._bench = self._make_bench(shape)
        return self._bench

    def _make_bench(self, shape: _Shape) -> _Bench:
        rank, alpha, trunk_layers = shape
        with self.base.active() as model:
            trunk = None
            if trunk_layers:
                room = free_memory(self.base.device) // _TRUNK_SHARE
                trunk = TrunkCache(model, trunk_layers, room)
                trunk.check()
            bank = LoraBank(model, rank, alpha, trunk_layers=trunk_layers)
        plan = plan_memory(bank, groups=self._groups, pass_tokens=self._pass_tokens)
        return _Bench(
            shape, bank, plan, BankTrainer(bank, plan.pass_tokens, trunk), InitialRows(bank)
        )

    def _begin(self, bench: _Bench, job: TrialJob) -> Training:
        """A new training; one that cannot be done has its error."""
        encoded = [encode(self.base.tokenizer, e.text, e.loss_spans) for e in job.examples]
        usable = [e for e in encoded if e.label_count]
        with memory_errors("train"):
            training = Training.begin(job, usable or encoded, self._first_row(bench, job))
        limit = min(job.recipe.max_seq_len, self.base.context_length)
        longest = max(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        if not usable:
            training.error = BackendError(
                f"trial {job.id} has nothing to train on: no text has a token with loss"
            )
        elif len(encoded[longest].ids) > limit:
            training.error = BackendError(
                f"a training text of trial {job.id} (passage "
                f"{job.examples[longest].passage_id or '?'}) has {len(encoded[longest].ids)} "
                f"tokens; the limit is {limit}",
                "lower data.max_passage_tokens or raise training.max_seq_len",
            )
        return training

    def _first_row(self, bench: _Bench, job: TrialJob) -> Tensor:
        """The weights that a training begins with; they are its own.

        Raises:
            AdapterMismatchError: ``job.initial`` is of another shape, or over another model.
        """
        if job.initial is None:
            return bench.initial(job.seed)
        if not isinstance(job.initial, BankedLM):
            raise AdapterMismatchError(
                f"trial {job.id} cannot start from an adapter of another backend",
                "start from a temporary expert of this bench",
            )
        return job.initial.copy_row(self.base, bench.bank)

    def _pass(
        self, bench: _Bench, trainings: list[Training], queue: TrialQueue, emit: Emit
    ) -> None:
        """One pass; after an out-of-memory error it is made smaller."""
        going = [t for t in trainings if not t.done]
        members = choose_pass(going, bench.trainer.pass_tokens, len(going))
        try:
            with self._installed(bench, training=True), memory_errors("train"):
                bench.trainer.take(members)
        except OutOfMemoryError as error:
            self._make_do_with_less(bench, trainings, members, queue, error, emit)

    def _make_do_with_less(
        self,
        bench: _Bench,
        trainings: list[Training],
        members: Sequence[Training],
        queue: TrialQueue,
        error: OutOfMemoryError,
        emit: Emit,
    ) -> None:
        """Halves groups and tokens; trainings beyond that begin anew later, to the same end."""
        longest = max(len(e.ids) for t in members for e in t.encoded)
        if len(trainings) == 1 and bench.trainer.pass_tokens <= longest:
            trainings[0].error = error
            return
        groups = max(1, len(trainings) // 2)
        bench.plan = replace(bench.plan, groups=groups)
        bench.trainer.pass_tokens = max(longest, bench.trainer.pass_tokens // 2)
        for training in reversed(trainings[groups:]):
            training.end()
            queue.put_back(training.job)
        del trainings[groups:]
        bench.bank.reserve(groups)
        release_memory(self.base.device)
        emit(
            Notice(
                f"out of memory: going on with {groups} trainings at a time and passes of "
                f"{bench.trainer.pass_tokens} tokens",
                "warning",
            )
        )

    # ------------------------------------------------------------ examining

    def _examine(
        self, bench: _Bench, finished: Sequence[Training], emit: Emit
    ) -> Iterator[TrialOutcome]:
        """Outcomes of trainings that ended together; their questions are one batch."""
        trained = [t for t in finished if t.error is None]
        answers = self._ask(
            bench,
            [t.row for t in trained],
            [t.job.questions for t in trained],
            [t.job.max_answer_tokens if t.job.write_answers else None for t in trained],
        )
        answered = {t.job.id: a for t, a in zip(trained, answers, strict=True)}
        for training in finished:
            job = training.job
            found = training.error or answered[job.id]
            if isinstance(found, BackendError):
                boundary = "train" if training.error else "score"
                yield _failed(job, boundary, found, emit)
            else:
                yield TrialOutcome(job.id, training.metrics(), tuple(found))

    def _ask(
        self,
        bench: _Bench,
        rows: Sequence[Tensor],
        questions: Sequence[Sequence[Probe]],
        lengths: Sequence[int | None],
    ) -> list[list[Answered] | BackendError]:
        """What the adapters make of their questions; in smaller passes where memory runs out."""
        while True:
            tokens = bench.trainer.pass_tokens
            try:
                with self._installed(bench), memory_errors("score"):
                    return self._examiner.ask(bench.bank, rows, questions, lengths, tokens)
            except OutOfMemoryError:
                if tokens <= _LEAST_TOKENS:
                    raise
                bench.trainer.pass_tokens = tokens // 2
                release_memory(self.base.device)

    @contextmanager
    def _installed(self, bench: _Bench, *, training: bool = False) -> Iterator[None]:
        """The base with the bank on it; in training, without the trunk if it is kept."""
        with ExitStack() as stack:
            stack.enter_context(self.base.active())
            stack.enter_context(bench.bank.installed())
            if training and bench.trainer.trunk is not None:
                stack.enter_context(bench.trainer.trunk.without_trunk())
            yield


def _failed(job: TrialJob, boundary: str, error: BackendError, emit: Emit) -> TrialOutcome:
    failure = Failure(boundary, job.id, error.message, error.retryable)
    emit(WorkFailed(boundary, job.id, error.message, error.retryable))
    return TrialOutcome(job.id, failure=failure)
