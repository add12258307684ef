"""Executors over workers: the bookkeeping alone, and over real processes with a bench of paper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pytest

from aios.backends.executors.dispatch import DEPTH, Batch, Dispatch
from aios.backends.executors.environment import WorkerSpec, environments, worker_environment
from aios.backends.executors.pool import WorkerTraceback
from aios.backends.executors.processes import ProcessExecutor
from aios.backends.executors.worker import Ask, Cancel, Inbox, Work
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_trials import build_scripted_bench
from aios.core.errors import BackendError, ModelError, RunInterrupted, UsageError
from aios.core.events import Event, Notice, StageFinished, StageProgress, StageStarted, WorkFailed
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import LoraRecipe
from tests.contract import trial_bench
from tests.contract.trial_bench import TrialWorkbench
from tests.test_backends.executor_fakes import (
    QUESTIONS,
    EnvironmentBench,
    FakeBench,
    breaks,
    dies_at_start,
    environment_questions,
    has_no_model,
    job,
    jobs,
    never_starts,
)

Make = Callable[..., ProcessExecutor]


# --- bookkeeping


def dispatch(given: Iterable[TrialJob], bank: int = 2) -> Dispatch:
    return Dispatch(given, bank, count())


def give(bookkeeping: Dispatch, ready: Iterable[int], live: Iterable[int] | None = None) -> str:
    """Pulls and gives out one batch: ``worker:ids``, or nothing."""
    workers = list(ready)
    living = workers if live is None else list(live)
    found = bookkeeping.assign(workers, living)
    if found is None:
        bookkeeping.pull(workers)
        found = bookkeeping.assign(workers, living)
    return "" if found is None else shown(*found)


def shown(worker: int, batch: Batch) -> str:
    return f"{worker}:{','.join(job.id for job in batch.jobs)}{'!' if batch.retry else ''}"


def answer(bookkeeping: Dispatch, batch: int, *ids: str) -> None:
    for id in ids:
        bookkeeping.outcome(batch, TrialOutcome(id))


def taken(bookkeeping: Dispatch) -> list[str]:
    return [
        o.job_id if o.failure is None else f"{o.job_id}: {o.failure.error}"
        for o in bookkeeping.take_outcomes()
    ]


def test_the_worker_with_the_least_to_do_gets_the_next_batch() -> None:
    book = dispatch(jobs(*"abcdefghijk"))
    given = [give(book, [0, 1]) for _ in range(5)]
    assert given == ["0:a,b", "1:c,d", "0:e,f", "1:g,h", ""]
    answer(book, 1, "c", "d")
    book.finished(1)
    assert [give(book, [0, 1]) for _ in range(2)] == ["1:i,j", ""]
    assert taken(book) == ["c", "d"]


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    def batches(workers: int) -> list[str]:
        book = dispatch(jobs(*"abcdefg"), bank=3)
        given: list[str] = []
        while found := give(book, range(workers)):
            given.append(found.split(":")[1])
            answer(book, len(given) - 1, *given[-1].split(","))
            book.finished(len(given) - 1)
        return given

    assert batches(1) == batches(2) == batches(3) == ["a,b,c", "d,e,f", "g"]


def test_jobs_are_pulled_only_when_a_worker_has_room() -> None:
    pulled: list[int] = []

    def endless() -> Iterator[TrialJob]:
        for number in count():
            pulled.append(number)
            yield job(f"{number}")

    book = dispatch(endless(), bank=3)
    assert not book.is_done()
    assert len(pulled) == 1
    book.pull([])
    assert len(pulled) == 1
    while give(book, [0, 1]):
        pass
    assert len(pulled) == 2 * DEPTH * 3
    book.pull([0, 1])
    assert len(pulled) == 2 * DEPTH * 3


def test_it_is_done_when_every_outcome_was_taken() -> None:
    book = dispatch(jobs("a"))
    assert not book.is_done()
    give(book, [0])
    assert not book.is_done()
    answer(book, 0, "a")
    book.finished(0)
    assert not book.is_done()
    assert taken(book) == ["a"]
    assert book.is_done()
    assert dispatch([]).is_done()


def test_what_a_lost_worker_had_begun_is_tried_once_more_elsewhere_job_by_job() -> None:
    book = dispatch(jobs(*"abcde"), bank=3)
    assert [give(book, [0, 1]), give(book, [0, 1])] == ["0:a,b,c", "1:d,e"]
    answer(book, 0, "b")
    book.lost(0, "was killed")
    assert taken(book) == ["b"]
    assert give(book, [0, 1]) == ""  # 0 is where they were lost, 1 has another batch
    answer(book, 1, "d", "e")
    book.finished(1)
    assert [give(book, [0, 1]) for _ in range(2)] == ["1:a!", ""]  # a second try is alone
    book.lost(1, "ran away")
    assert taken(book) == [
        "d",
        "e",
        "a: the worker that ran it was lost, as was the one before: it ran away",
    ]
    assert give(book, [0, 1]) == "1:c!"
    answer(book, 3, "c")
    book.finished(3)
    assert taken(book) == ["c"]
    assert book.is_done()


def test_a_retry_goes_to_the_same_worker_where_there_is_no_other() -> None:
    book = dispatch(jobs("a"))
    give(book, [0, 1])
    book.lost(0, "was killed")
    assert give(book, [0], live=[0, 1]) == ""  # the other one is starting
    assert give(book, [0], live=[0]) == "0:a!"


def test_a_batch_that_was_not_begun_is_given_out_again_as_it_was() -> None:
    book = dispatch(jobs(*"abcd"))
    assert [give(book, [0]), give(book, [0])] == ["0:a,b", "0:c,d"]
    book.lost(0, "was killed")
    assert [give(book, [1, 2], live=[0, 1, 2]) for _ in range(3)] == ["1:a!", "2:b!", ""]
    answer(book, 2, "a")
    book.finished(2)
    assert give(book, [1, 2], live=[0, 1, 2]) == "1:c,d"


def test_no_new_batch_is_made_while_a_second_try_waits() -> None:
    book = dispatch(jobs(*"abcdef"))
    assert [give(book, [0]), give(book, [1])] == ["0:a,b", "1:c,d"]
    book.lost(0, "was killed")
    assert [give(book, [1]) for _ in range(2)] == ["", ""]  # e and f stay where they are
    answer(book, 1, "c", "d")
    book.finished(1)
    assert give(book, [1]) == "1:a!"


def test_the_second_loss_is_a_failure_that_may_be_tried_again() -> None:
    book = dispatch(jobs("a"))
    for worker in (0, 1):
        give(book, [worker])
        book.lost(worker, "was killed")
    (outcome,) = book.take_outcomes()
    failure = outcome.failure
    assert failure is not None
    assert (failure.boundary, failure.subject, failure.retryable) == ("train", "a", True)
    assert book.is_done()


def test_reports_of_batches_that_nobody_has_are_ignored() -> None:
    book = dispatch(jobs("a"))
    answer(book, 7, "z")
    book.finished(7)
    assert taken(book) == []


def test_a_bench_that_breaks_its_promise_is_a_bug() -> None:
    book = dispatch(jobs("a", "b"))
    give(book, [0])
    answer(book, 0, "a")
    with pytest.raises(RuntimeError, match="unexpected outcome of trial 'a'"):
        answer(book, 0, "a")
    with pytest.raises(RuntimeError, match="no outcome"):
        book.finished(0)


def test_ids_are_checked_over_the_whole_call() -> None:
    book = dispatch(jobs("a", "b", "a"))
    assert give(book, [0]) == "0:a,b"
    with pytest.raises(UsageError, match="'a'"):
        give(book, [0])


def test_a_worker_takes_questions_first_and_drops_what_is_not_wanted() -> None:
    inbox = Inbox()
    work, ask = Work(0, tuple(jobs("a"))), Ask(1, QUESTIONS, False, 16)
    for command in (work, ask, Cancel(0)):
        inbox.put(command)
    assert inbox.take() == ask
    assert inbox.take() == work
    assert (inbox.unwanted(0), inbox.unwanted(2)) == (True, False)
    inbox.end()
    assert inbox.take() is None
    assert inbox.unwanted(2)


# --- environment


def test_workers_share_the_cores_and_wait_politely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios.backends.executors.environment.usable_cores", lambda: 9)
    found = environments([WorkerSpec(), WorkerSpec(threads=3)], {})
    polite = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    assert found == [{"OMP_NUM_THREADS": "4", **polite}, {"OMP_NUM_THREADS": "3", **polite}]
    assert environments([WorkerSpec()] * 20, {})[0]["OMP_NUM_THREADS"] == "1"


def test_what_the_user_has_set_stays() -> None:
    assert "OMP_NUM_THREADS" not in worker_environment(2, {"OMP_NUM_THREADS": "7"})
    assert "GOMP_SPINCOUNT" not in worker_environment(2, {"GOMP_SPINCOUNT": "5"})
    assert worker_environment(2, {"OMP_WAIT_POLICY": "ACTIVE"}) == {"OMP_NUM_THREADS": "2"}


def test_each_worker_sees_its_own_gpu_of_those_that_are_visible() -> None:
    specs = [WorkerSpec(gpu=0), WorkerSpec(gpu=1)]
    shown = [{"CUDA_VISIBLE_DEVICES": "2, GPU-5"}, {}]
    found = [[e["CUDA_VISIBLE_DEVICES"] for e in environments(specs, each)] for each in shown]
    assert found == [["2", "GPU-5"], ["0", "1"]]
    assert "CUDA_VISIBLE_DEVICES" not in environments([WorkerSpec()], {})[0]
    for spec, given in [(WorkerSpec(gpu=1), {"CUDA_VISIBLE_DEVICES": "3"}), (WorkerSpec(-1), {})]:
        with pytest.raises(UsageError, match=f"GPU {spec.gpu}"):
            environments([spec], given)
    with pytest.raises(UsageError, match="threads"):
        environments([WorkerSpec(threads=0)], {})


# --- processes


@pytest.fixture(autouse=True)
def _light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the main module, which here is pytest; they need not."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[ProcessExecutor] = []
    fake = partial(FakeBench, tmp_path)

    def build(
        factory: Callable[[], FakeBench] | None = None, **settings: object
    ) -> ProcessExecutor:
        given = {"workers": 1, "bank": 2, **settings}
        made.append(ProcessExecutor(factory or fake, **given))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for executor in made:
        executor.close()
        executor.close()


def by_id(executor: ProcessExecutor, given: Iterable[TrialJob]) -> dict[str, TrialOutcome]:
    found = list(executor.run(given))
    outcomes = {outcome.job_id: outcome for outcome in found}
    assert len(outcomes) == len(found)
    return outcomes


def pid(outcome: TrialOutcome) -> int:
    assert outcome.metrics is not None
    return int(outcome.metrics.figures["pid"])


def error(outcome: TrialOutcome) -> str:
    assert outcome.failure is not None
    assert outcome.metrics is None
    assert outcome.failure.boundary == "train"
    assert outcome.failure.subject == outcome.job_id
    assert outcome.failure.retryable
    return outcome.failure.error


def losses(outcomes: dict[str, TrialOutcome]) -> dict[str, tuple[float, ...]]:
    return {id: o.metrics.losses for id, o in outcomes.items() if o.metrics is not None}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_failures_and_events_of_workers_reach_the_caller(make: Make, tmp_path: Path) -> None:
    executor = make()
    events: list[Event] = []
    given = jobs("a", "fails-b", "c")
    found = {o.job_id: o for o in executor.run(given, emit=events.append)}
    failed = found["fails-b"].failure
    assert failed is not None
    assert (failed.boundary, failed.error) == ("score", "the device is hot")
    assert [type(e) for e in (events[0], events[-1])] == [StageStarted, StageFinished]
    assert events.count(Notice("it is getting hot", "warning")) == 1
    assert events.count(WorkFailed("score", "fails-b", "the device is hot", True)) == 1
    assert len([e for e in events if isinstance(e, StageStarted | WorkFailed)]) == 2
    assert [e.done for e in events if isinstance(e, StageProgress)] == [1, 2, 3]
    here = {o.job_id: o for o in FakeBench(tmp_path).run(given)}
    assert losses(found) == losses(here)
    assert pid(found["a"]) == executor.process_ids[0] != os.getpid()


def test_the_baseline_is_asked_once_and_kept_here(make: Make, tmp_path: Path) -> None:
    executor = make()
    first = executor.baseline(QUESTIONS)
    assert [a.probe_id for a in first] == [q.id for q in QUESTIONS]
    assert executor.baseline([*QUESTIONS[::-1], QUESTIONS[0]]) == [*first[::-1], first[0]]
    assert FakeBench(tmp_path).notes("baseline") == ["2"]
    written = executor.baseline(QUESTIONS[:1], write_answers=True, max_answer_tokens=3)
    assert [a.text for a in written] == ["xxx"]
    running = executor.run(jobs("a", "b", "c"))
    next(running)
    assert executor.baseline(QUESTIONS[:1], write_answers=True)[0].text == "x" * 16
    assert len(list(running)) == 2
    (tmp_path / "baseline-fails").touch()
    with pytest.raises(BackendError, match="no score") as caught:
        executor.baseline(QUESTIONS, write_answers=True, max_answer_tokens=1)
    assert caught.value.retryable
    assert FakeBench(tmp_path).notes("baseline") == ["2", "1", "1", "2"]
    assert len(by_id(executor, jobs("d"))) == 1


def test_a_worker_that_dies_over_the_baseline_is_replaced(make: Make, tmp_path: Path) -> None:
    (tmp_path / "baseline-dies").touch()
    assert len(make().baseline(QUESTIONS)) == 2


def test_trials_of_a_killed_worker_are_tried_again(make: Make, tmp_path: Path) -> None:
    executor = make(bank=3)
    events: list[Event] = []
    given = jobs("a", "diesonce-b", "c", "d")
    found = {o.job_id: o for o in executor.run(given, emit=events.append)}
    assert losses(found) == losses({o.job_id: o for o in FakeBench(tmp_path).run(given)})
    assert set(found) == {"a", "diesonce-b", "c", "d"}
    assert pid(found["a"]) != pid(found["c"])
    bench = FakeBench(tmp_path)
    assert bench.notes("began-diesonce-b")[:2] == ["3", "1"]  # the second time, alone
    (notice,) = (e.message for e in events if isinstance(e, Notice))
    assert "worker 0 was lost: it was killed by SIGKILL" in notice
    assert not [e for e in events if isinstance(e, WorkFailed)]


def test_a_trial_that_kills_every_worker_fails_and_no_other_does(
    make: Make, tmp_path: Path
) -> None:
    executor = make(workers=2, bank=3)
    found = by_id(executor, jobs("a", "dies-b", "c", "d", "e"))
    assert "was killed by SIGKILL" in error(found.pop("dies-b"))
    assert set(losses(found)) == {"a", "c", "d", "e"}
    assert len(FakeBench(tmp_path).notes("began-dies-b")) == 2
    assert len(by_id(executor, jobs("f", "g", "h"))) == 3


def test_a_backend_that_gives_up_is_a_lost_worker(make: Make, tmp_path: Path) -> None:
    found = by_id(make(), jobs("gone-a", "b", "memory-c"))
    assert "the device is gone" in error(found.pop("gone-a"))
    assert set(losses(found)) == {"b", "memory-c"}
    assert FakeBench(tmp_path).notes("began-memory-c") == ["1", "1"]


def test_restarts_are_bounded(make: Make, tmp_path: Path) -> None:
    executor = make(max_restarts=2, bank=1)
    done: list[TrialOutcome] = []
    with pytest.raises(BackendError, match="no worker can be kept running") as caught:
        done.extend(executor.run(jobs("a", "dies-b", "dies-c", "d")))
    assert caught.value.remedy
    assert caught.value.retryable
    assert len(FakeBench(tmp_path).notes("began-dies-c")) == 1
    assert len(by_id(executor, jobs("e"))) == 1  # the next call begins anew


def test_a_worker_that_cannot_start_says_why(make: Make, tmp_path: Path) -> None:
    executor = make(partial(never_starts, tmp_path), max_restarts=1)
    with pytest.raises(BackendError, match="ended with: the device is taken"):
        by_id(executor, jobs("a"))
    assert len(FakeBench(tmp_path).notes("started")) == 2


def test_a_worker_that_dies_at_its_start_is_started_again(make: Make, tmp_path: Path) -> None:
    assert len(by_id(make(partial(dies_at_start, tmp_path)), jobs("a", "b"))) == 2


def test_bugs_propagate_with_the_workers_traceback(make: Make) -> None:
    executor = make()
    with pytest.raises(RuntimeError, match="ValueError: a bug of the bench") as caught:
        by_id(executor, jobs("a", "bug-b"))
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in misbehave" in str(caught.value.__cause__)
    assert len(by_id(executor, jobs("c"))) == 1
    with pytest.raises(RuntimeError, match="KeyError: 'a bug of the factory'"):
        by_id(make(breaks), jobs("a"))


def test_errors_of_the_user_arrive_as_they_are(make: Make) -> None:
    with pytest.raises(UsageError, match="not like this") as caught:
        by_id(make(), jobs("refused-a"))
    assert (type(caught.value), caught.value.remedy) == (UsageError, "but like that")
    with pytest.raises(ModelError, match="the model is missing"):
        make(has_no_model).baseline(QUESTIONS)


def test_stopping_tells_the_workers(make: Make, tmp_path: Path) -> None:
    executor = make()
    began = tmp_path / "began-waits-b"
    with pytest.raises(RunInterrupted) as caught:
        list(executor.run(jobs("a", "waits-b", "c"), should_stop=began.exists))
    assert caught.value.remedy
    before = executor.process_ids
    os.kill(before[0], signal.SIGINT)  # as a terminal does; it is the parent's to act on
    assert len(by_id(executor, jobs("d"))) == 1  # so "waits" has ended
    assert executor.process_ids == before


def test_one_call_at_a_time(make: Make) -> None:
    executor = make()
    running = executor.run(jobs(*"abcdef"))
    next(running)
    with pytest.raises(RuntimeError, match="end that call first"):
        next(executor.run(jobs("g")))
    running.close()  # type: ignore[attr-defined]
    assert set(by_id(executor, jobs("a", "g"))) == {"a", "g"}


def test_closing_leaves_no_process(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios.backends.executors.processes._END_SECONDS", 0.7)
    executor = make(workers=2, bank=1)
    running = executor.run(jobs("stuck-a", "b", "c"))
    assert next(running).job_id in {"b", "c"}
    workers = [psutil.Process(each) for each in executor.process_ids]
    assert len(workers) == 2
    executor.close()
    assert not [worker for worker in workers if worker.is_running()]
    assert (tmp_path / "closed").exists()  # the one that could has closed its bench
    assert executor.process_ids == ()
    executor.close()
    for call in (
        lambda: list(running),
        lambda: list(executor.run(jobs("d"))),
        lambda: executor.baseline(QUESTIONS),
    ):
        with pytest.raises(BackendError, match="closed"):
            call()


PARENT = """
import sys
from functools import partial
from pathlib import Path
from aios.backends.executors.processes import ProcessExecutor
from tests.test_backends.executor_fakes import FakeBench, jobs

if __name__ == "__main__":
    executor = ProcessExecutor(partial(FakeBench, Path(sys.argv[1])), 1, bank=2)
    running = executor.run(jobs("a", "waits-b"))
    next(running)
    print(*executor.process_ids, flush=True)
    next(running)
"""


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.ppid() == parent.pid
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_workers_start_in_their_environment(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = make(partial(EnvironmentBench, tmp_path), workers=[WorkerSpec(gpu=3, threads=5)])
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    answers = executor.baseline(environment_questions(*names))
    assert [answer.text for answer in answers] == ["3", "5", "1000"]


def test_what_cannot_be_run_is_refused_before_a_process_starts(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be sent"):
        make(lambda: FakeBench(tmp_path))
    wrong: list[dict[str, object]] = [{"workers": 0}, {"workers": []}, {"bank": 0}]
    for settings in wrong:
        with pytest.raises(UsageError):
            make(**settings)
    executor = make()
    with pytest.raises(UsageError, match="dropout"):
        by_id(executor, [replace(job("a"), recipe=LoraRecipe(dropout=0.5))])
    assert list(executor.run([])) == []
    assert executor.process_ids == ()


def test_executors_need_no_model_library() -> None:
    program = (
        "import sys, aios.backends.executors.processes, aios.backends.executors.ray_cluster;"
        "print(*{'torch', 'transformers', 'numpy', 'ray'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


# --- the contract


@pytest.fixture(scope="module")
def scripted() -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(build_scripted_bench, 2, bank=3)
    yield executor
    executor.close()


@pytest.mark.parametrize(
    "check",
    [c for c in trial_bench.EXECUTOR_CHECKS if c is not trial_bench.may_be_closed_twice],
    ids=lambda c: c.__name__,
)
def test_worker_processes_keep_the_contract(
    check: Callable[[TrialWorkbench], None], scripted: ProcessExecutor, tmp_path: Path
) -> None:
    check(TrialWorkbench(scripted, ScriptedModel(), tmp_path, seeds_matter=False))


def test_work_is_spread_over_the_workers(make: Make) -> None:
    executor = make(workers=2, bank=1)
    given = (job(f"{number}") for number in count())
    patience = time.monotonic() + 60
    seen: set[int] = set()
    for outcome in executor.run(given):
        seen.add(pid(outcome))
        if len(seen) == 2 or time.monotonic() > patience:
            break
    assert seen == set(executor.process_ids)
