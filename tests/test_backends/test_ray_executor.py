"""Trials on Ray: the same promises as over worker processes, on one local instance."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aios.backends.executors.pool import WorkerTraceback
from aios.backends.executors.ray_cluster import RayExecutor
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_trials import build_scripted_bench
from aios.core.errors import ModelError, RunInterrupted, UsageError
from aios.core.events import Event, Notice
from aios.core.trials import TrialOutcome
from tests.contract import trial_bench
from tests.contract.trial_bench import TrialWorkbench
from tests.test_backends.executor_fakes import (
    QUESTIONS,
    EnvironmentBench,
    FakeBench,
    environment_questions,
    has_no_model,
    jobs,
)

on_ray = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(240)]
Make = Callable[..., RayExecutor]


def marked(function: Callable[..., None]) -> Callable[..., None]:
    """A test that needs a Ray instance."""
    for mark in on_ray:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def local() -> Iterator[RayExecutor]:
    """The executor that starts the module's Ray instance, and ends it."""
    ray: Any = pytest.importorskip("ray")
    executor = RayExecutor(build_scripted_bench, workers=2, bank=3)
    executor.baseline(QUESTIONS)
    assert ray.is_initialized()
    yield executor
    executor.close()
    assert not ray.is_initialized()


@pytest.fixture
def make(local: RayExecutor, tmp_path: Path) -> Iterator[Make]:
    made: list[RayExecutor] = []
    fake = partial(FakeBench, tmp_path)

    def build(factory: Callable[[], FakeBench] | None = None, **settings: object) -> RayExecutor:
        given = {"workers": 1, "bank": 2, "num_cpus": 0, **settings}
        made.append(RayExecutor(factory or fake, **given))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for executor in made:
        executor.close()


def by_id(executor: RayExecutor, *ids: str) -> dict[str, TrialOutcome]:
    found = {outcome.job_id: outcome for outcome in executor.run(jobs(*ids))}
    assert sorted(found) == sorted(ids)
    return found


@marked
@pytest.mark.parametrize(
    "check",
    [c for c in trial_bench.EXECUTOR_CHECKS if c is not trial_bench.may_be_closed_twice],
    ids=lambda c: c.__name__,
)
def test_ray_keeps_the_contract(
    check: Callable[[TrialWorkbench], None], local: RayExecutor, tmp_path: Path
) -> None:
    check(TrialWorkbench(local, ScriptedModel(), tmp_path, seeds_matter=False))


@marked
def test_trials_of_a_dead_actor_are_tried_again(make: Make, tmp_path: Path) -> None:
    events: list[Event] = []
    executor = make(bank=3)
    given = jobs("a", "diesonce-b", "c", "d")
    found = {o.job_id: o for o in executor.run(given, emit=events.append)}
    assert [found[each.id].failure for each in given] == [None] * 4
    assert FakeBench(tmp_path).notes("began-diesonce-b") == ["3", "1"]
    assert [e for e in events if isinstance(e, Notice) and "worker 0 was lost" in e.message]


@marked
def test_a_trial_that_kills_every_actor_fails_and_no_other_does(make: Make) -> None:
    found = by_id(make(workers=2, bank=3), "a", "dies-b", "c", "d")
    failure = found.pop("dies-b").failure
    assert failure is not None
    assert failure.retryable
    assert "was lost by Ray" in failure.error
    assert all(outcome.failure is None for outcome in found.values())


@marked
def test_bugs_and_errors_of_the_user_propagate(make: Make) -> None:
    executor = make()
    with pytest.raises(RuntimeError, match="ValueError: a bug of the bench") as caught:
        by_id(executor, "bug-a")
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in misbehave" in str(caught.value.__cause__)
    assert by_id(executor, "b")
    with pytest.raises(ModelError, match="the model is missing"):
        make(has_no_model).baseline(QUESTIONS)


@marked
def test_stopping_tells_the_actors(make: Make, tmp_path: Path) -> None:
    executor = make()
    began = tmp_path / "began-waits-b"
    with pytest.raises(RunInterrupted):
        list(executor.run(jobs("a", "waits-b"), should_stop=began.exists))
    assert by_id(executor, "d")  # so "waits" has ended
    executor.close()
    executor.close()


@marked
def test_actors_start_in_their_environment(make: Make, tmp_path: Path) -> None:
    names = ("GOMP_SPINCOUNT", "RAY_USAGE_STATS_ENABLED")
    answers = make(partial(EnvironmentBench, tmp_path)).baseline(environment_questions(*names))
    assert [answer.text for answer in answers] == ["1000", "0"]


def test_ray_is_needed_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="need the package ray") as caught:
        RayExecutor(build_scripted_bench, workers=1, bank=1)
    assert "aios[ray]" in caught.value.remedy


class FakeRay:
    """What is asked of Ray before there is an actor, on a machine without a GPU."""

    exceptions = SimpleNamespace(RayError=KeyError)

    def __init__(self) -> None:
        self.settings: dict[str, object] = {}
        self.running = False

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **settings: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if settings.get("address") == "nowhere:1":
            raise ConnectionError("no answer\nat all")
        self.settings, self.running = settings, True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def shutdown(self) -> None:
        self.running = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.getsignal(signal.SIGTERM)
    yield ray
    assert signal.getsignal(signal.SIGTERM) == before


def test_gpus_that_a_machine_has_not_are_not_waited_for(fake: FakeRay) -> None:
    executor = RayExecutor(build_scripted_bench, workers=2, bank=1, num_gpus_per_worker=1)
    with pytest.raises(UsageError, match="want 2 GPUs, and Ray finds 0"):
        executor.baseline(QUESTIONS)
    assert not fake.running
    assert fake.settings["include_dashboard"] is False
    assert fake.settings["address"] == "local"  # whatever RAY_ADDRESS says
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_cluster_that_does_not_answer_is_named(fake: FakeRay) -> None:
    executor = RayExecutor(build_scripted_bench, workers=2, bank=1, address="nowhere:1")
    with pytest.raises(UsageError, match="cannot be reached at nowhere:1: no answer") as e:
        list(executor.run(jobs("a")))
    assert e.value.remedy


def test_sizes_that_make_no_sense_are_refused(fake: FakeRay) -> None:
    for settings in ({"num_cpus": -1}, {"num_gpus_per_worker": -1}, {"workers": 0}, {"bank": 0}):
        with pytest.raises(UsageError):
            RayExecutor(build_scripted_bench, **{"workers": 1, "bank": 1, **settings})  # type: ignore[arg-type]
