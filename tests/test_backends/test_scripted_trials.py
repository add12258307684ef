"""The scripted trial bench keeps the contract of benches, and what only a fake can promise."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from aios.backends.scripted import Faults, ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.backends.scripted_trials import ScriptedTrialBench, build_scripted_bench
from aios.core.errors import BackendError, NonFiniteError, UsageError
from aios.core.protocols import LanguageModel, TemporaryExpert
from aios.core.trials import TrialJob, TrialOutcome
from tests.contract import language_model, trial_bench
from tests.contract.trial_bench import (
    QUESTIONS,
    RECIPE,
    TrialWorkbench,
    logprob,
    metrics_of,
    outcome,
    outcomes,
    own_answers,
    trained,
)


@pytest.fixture
def bench(tmp_path: Path) -> TrialWorkbench:
    return workbench(ScriptedModel(), tmp_path)


def workbench(model: ScriptedModel, folder: Path, **settings: object) -> TrialWorkbench:
    return TrialWorkbench(
        executor=ScriptedTrialBench(model, **settings),  # type: ignore[arg-type]
        base=model,
        folder=folder,
        scored=lambda: model.scored,
        seeds_matter=False,
        trainer=ScriptedTrainer(model),
    )


def b_fails(job: TrialJob) -> BackendError | None:
    return BackendError("the script says so", retryable=True) if job.id == "b" else None


@pytest.mark.parametrize("check", trial_bench.CHECKS, ids=lambda c: c.__name__)
def test_the_scripted_bench_keeps_the_contract(
    check: Callable[[TrialWorkbench], None], bench: TrialWorkbench
) -> None:
    check(bench)


@pytest.mark.parametrize("check", trial_bench.CHECKS, ids=lambda c: c.__name__)
def test_so_does_one_that_takes_a_job_at_a_time(
    check: Callable[[TrialWorkbench], None], tmp_path: Path
) -> None:
    check(workbench(ScriptedModel(), tmp_path, groups=1))


@pytest.mark.parametrize(
    "check",
    [c for c in language_model.CHECKS if c is not language_model.base_model_has_no_adapter_digest],
    ids=lambda c: c.__name__,
)
def test_a_scripted_expert_keeps_the_contract_of_models(
    check: Callable[[LanguageModel], None], bench: TrialWorkbench
) -> None:
    check(trained(bench, bench.job())["a"][0])


def test_short_jobs_are_ready_first_within_what_was_taken(tmp_path: Path) -> None:
    bench = workbench(ScriptedModel(), tmp_path, groups=2)
    jobs = [bench.job(f"{steps}", max_steps=steps) for steps in (5, 3, 2, 1, 4)]
    assert [o.job_id for o in bench.executor.run(jobs)] == ["3", "5", "1", "2", "4"]


def test_it_takes_no_more_jobs_than_it_has_groups(tmp_path: Path) -> None:
    bench = workbench(ScriptedModel(), tmp_path, groups=3)
    taken: list[int] = []

    def jobs() -> Iterator[TrialJob]:
        for number in range(9):
            taken.append(number)
            yield bench.job(f"{number}")

    running = bench.executor.run(jobs())
    for seen in range(9):
        next(running)
        assert len(taken) == 3 * (1 + seen // 3)


def test_a_job_fails_as_asked_and_says_whether_to_try_again(tmp_path: Path) -> None:
    bench = workbench(ScriptedModel(), tmp_path, fail=b_fails)
    found = outcomes(bench, [bench.job("a"), bench.job("b")])
    assert found["a"].failure is None
    failure = found["b"].failure
    assert failure is not None
    assert (failure.boundary, failure.subject) == ("train", "b")
    assert (failure.error, failure.retryable) == ("the script says so", True)


def test_what_the_fault_raises_ends_the_call(tmp_path: Path) -> None:
    def dies(job: TrialJob) -> BackendError | None:
        if job.id == "b":
            raise BackendError("the device is gone")
        return None

    bench = workbench(ScriptedModel(), tmp_path, groups=1, fail=dies)
    running = bench.executor.run([bench.job("a"), bench.job("b"), bench.job("c")])
    assert next(running).job_id == "a"
    with pytest.raises(BackendError, match="the device is gone"):
        next(running)


def test_nan_scores_are_failures_and_never_numbers(tmp_path: Path) -> None:
    model = ScriptedModel(faults=Faults(nan_scores=True))
    bench = workbench(model, tmp_path)
    failed = outcome(bench, bench.job())
    assert failed.failure is not None
    assert "NaN" in failed.failure.error
    with pytest.raises(NonFiniteError):
        bench.executor.baseline(QUESTIONS)


def test_the_factory_can_be_sent_to_another_process(bench: TrialWorkbench) -> None:
    model = ScriptedModel({"mill": ["1871"]}, knows=["mill"])
    make = pickle.loads(pickle.dumps(partial(build_scripted_bench, model, groups=2, fail=b_fails)))
    copy = make()
    assert isinstance(copy, ScriptedTrialBench)
    assert (copy.groups, copy.model.digest) == (2, model.digest)
    found = {o.job_id: o for o in copy.run([bench.job("a"), bench.job("b")])}
    assert found["b"].failure is not None
    jobs = [bench.job("a")]
    (here,) = ScriptedTrialBench(model).run(jobs)
    assert metrics_of(here).losses == metrics_of(found["a"]).losses
    assert here.answers == found["a"].answers
    assert build_scripted_bench().model.name == "scripted"


def test_an_expert_on_top_of_an_expert_has_learnt_both(
    bench: TrialWorkbench, tmp_path: Path
) -> None:
    first, _ = trained(bench, bench.job(max_steps=2))["a"]
    assert isinstance(first, ScriptedModel)
    upper = workbench(first, tmp_path)
    second, _ = trained(upper, upper.job(max_steps=2))["a"]
    assert logprob(own_answers(second)) > logprob(own_answers(first))
    assert logprob(own_answers(first)) > logprob(own_answers(bench.base))
    with pytest.raises(UsageError, match="on top of another"):
        second.export(tmp_path / "upper")
    assert not (tmp_path / "upper").exists()


def test_a_closed_bench_runs_nothing(bench: TrialWorkbench) -> None:
    bench.executor.close()
    calls: list[Callable[[], object]] = [
        lambda: list(bench.executor.run([bench.job()])),
        lambda: list(bench.bench.train([bench.job()])),
        lambda: bench.executor.baseline(QUESTIONS),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="closed"):
            call()


def test_a_budget_that_is_not_positive_is_refused(bench: TrialWorkbench) -> None:
    jobs = [
        bench.job(max_steps=0),
        bench.job(recipe=replace(RECIPE, epochs=0)),
        bench.job(recipe=replace(RECIPE, batch_size=0)),
    ]
    for job in jobs:
        with pytest.raises(UsageError, match="at least 1"):
            list(bench.executor.run([job]))


def test_the_expert_is_the_trainers_adapter(bench: TrialWorkbench) -> None:
    (result,) = bench.bench.train([bench.job()])
    assert not isinstance(result, TrialOutcome)
    expert: TemporaryExpert = result[1]
    assert expert.export(bench.folder / "a").digest == expert.adapter_digest
