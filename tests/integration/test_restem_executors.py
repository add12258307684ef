"""ReST-EM with its trials in other processes or on Ray comes to what it comes to in this one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aios.app.restem import job as restem_job
from aios.app.restem import trials as restem_trials
from aios.app.trials import open_executor
from aios.backends.executors.dispatch import DEPTH
from aios.backends.executors.processes import ProcessExecutor
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_trials import ScriptedTrialBench, build_scripted_bench
from aios.core.config.schemas import Config
from aios.core.data.probes import make_probes
from aios.core.errors import RunInterrupted
from aios.core.events import Event, Notice, StageProgress, WorkFailed
from aios.core.protocols import Emit, Executor, ShouldStop, ignore, never
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import Question
from tests.test_app.scripted_jobs import make_config, stop_after, without_times, write_passages

BANK = 3
on_ray = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(240)]

pytestmark = [pytest.mark.usefixtures("quick_jobs"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the main module, which here is pytest; they need not."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)


def marked(function: Callable[..., None]) -> Callable[..., None]:
    """A test that needs a Ray instance."""
    for mark in on_ray:
        function = mark(function)
    return function


def config_of(folder: Path, executor: str) -> Config:
    return make_config(
        folder,
        seal={
            "restem_iterations": 2,
            "restem_batch_size": 4,
            "restem_candidates_per_passage": 3,
            "enable_deduplication": False,
        },
        restem={
            "estimate": False,
            "arms": ["implications", "rewrite", "self-qa"],
            "keep": "best_of_k",
            "executor": executor,
            "workers": 2,
            "repeats": 3,
            "trial_tokens": 400,
            "held_out_fraction": 0.25,
            "held_out_candidates": 3,
            "patience": 0,
            "sft_rank": 2,
            "sft_alpha": 4,
        },
    )


def run(folder: Path, executor: str = "serial", **more: Any) -> dict[str, Any]:
    """A run's result, without times."""
    data = folder / "passages.jsonl"
    if not data.exists():
        write_passages(data, 8, questions=2)
    path = folder / "run"
    config = config_of(folder, executor)
    restem_job.optimize(config, data, None, run_dir=path, **{"model": ScriptedModel(), **more})
    state = json.loads((path / "state.json").read_text())
    del state["dataset"]
    found: dict[str, Any] = {"state": without_times(state)}
    for file in sorted((path / "rounds").rglob("*.jsonl")):
        found[str(file.relative_to(path))] = file.read_text()
    return found


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = run(tmp_path_factory.mktemp("serial"))
    rounds = found["state"]["rounds"]
    assert all(r["kept"] > 0 for r in rounds[1:])
    assert len({tuple(r["improvements"]) for r in rounds}) == 3
    return found


class MortalBench(ScriptedTrialBench):
    """Notes each trial that it begins; its process is killed, once, in the midst of one of them."""

    def __init__(self, folder: Path, dies_at: str = "") -> None:
        super().__init__(ScriptedModel())
        self.folder, self.dies_at = folder, dies_at

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        def noted() -> Iterator[TrialJob]:
            for job in jobs:
                with (self.folder / "begun").open("a") as file:
                    file.write(f"{job.id}\n")
                if job.id == self.dies_at and not (self.folder / "died").exists():
                    (self.folder / "died").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield job

        return super().run(noted(), emit=emit, should_stop=should_stop)


def begun(folder: Path) -> Counter[str]:
    return Counter((folder / "begun").read_text().splitlines())


def a_trial_of_round_1(result: dict[str, Any]) -> str:
    """The first repeat of the last candidate of a passage in the midst of round 1."""
    passage = json.loads(result["rounds/1/candidates.jsonl"].splitlines()[2])
    last = passage["candidates"][-1]["edit"]
    return f"{last['passage_id']}#{last['index']}/repeat-0"


def lost_workers(events: list[Event]) -> list[str]:
    found = [e.message for e in events if isinstance(e, Notice) and "was lost" in e.message]
    assert not [e for e in events if isinstance(e, WorkFailed)]
    return found


# ------------------------------------------------------------ processes


def test_trials_in_worker_processes_come_to_the_same(
    tmp_path: Path, serial: dict[str, Any]
) -> None:
    assert run(tmp_path, "processes") == serial


@pytest.mark.slow
def test_a_run_may_go_on_where_its_trials_were_not_run_before(
    tmp_path: Path, serial: dict[str, Any]
) -> None:
    with pytest.raises(RunInterrupted):
        run(tmp_path, "serial", should_stop=stop_after(60))
    assert run(tmp_path, "processes", resume=True) == serial


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_round_costs_its_batch_a_retry_and_nothing_else(
    tmp_path: Path, serial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fatal = a_trial_of_round_1(serial)

    def mortal(config: Config, kind: str, **more: Any) -> Executor:
        return ProcessExecutor(partial(MortalBench, tmp_path, fatal), 2, bank=BANK)

    monkeypatch.setattr(restem_trials, "open_executor", mortal)
    events: list[Event] = []
    assert run(tmp_path, "processes", emit=events.append) == serial
    (lost,) = lost_workers(events)
    assert "was killed by SIGKILL" in lost
    check_retries(tmp_path, fatal, serial, batches=1)


def check_retries(folder: Path, fatal: str, serial: dict[str, Any], *, batches: int) -> None:
    """No trial was begun again but those of so many batches of one worker, and each once."""
    counted = begun(folder)
    expected = trials_of(serial)
    again = counted - expected
    assert not expected - counted
    assert again[fatal] == 1
    assert set(again.values()) == {1}
    assert again.total() <= batches * BANK


def trials_of(result: dict[str, Any]) -> Counter[str]:
    """The trials that a run without a loss consists of, by their ids."""
    ids: Counter[str] = Counter()
    known: set[str] = set()
    for name in sorted(result, key=lambda n: (n.split("/")[1:2], "held_out" in n)):
        if name == "state":
            continue
        for passage in map(json.loads, result[name].splitlines()):
            of = passage["passage_id"]
            if of not in known and passage["candidates"]:
                known.add(of)
                ids.update(f"{of}#baseline/repeat-{k}" for k in range(3))
            for one in passage["candidates"]:
                repeats = range(len(one["improvements"]))
                ids.update(f"{of}#{one['edit']['index']}/repeat-{k}" for k in repeats)
    return ids


@pytest.mark.slow
def test_workers_that_are_killed_from_outside_change_nothing(
    tmp_path: Path, serial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    executors: list[ProcessExecutor] = []

    def kept(*given: Any, **more: Any) -> Executor:
        executor = open_executor(*given, **more)
        assert isinstance(executor, ProcessExecutor)
        executors.append(executor)
        return executor

    monkeypatch.setattr(restem_trials, "open_executor", kept)
    killed: list[str] = []  # one a round: a trial that loses its second worker, too, has failed
    events: list[Event] = []

    def kill(event: Event) -> None:
        events.append(event)
        if not isinstance(event, StageProgress) or not event.stage.endswith(": try"):
            return
        if event.note and event.stage not in killed and len(executors[0].process_ids) == 2:
            os.kill(executors[0].process_ids[len(killed) % 2], signal.SIGKILL)
            killed.append(event.stage)

    assert run(tmp_path, "processes", emit=kill) == serial
    assert killed
    assert 1 <= len(lost_workers(events)) <= len(killed)
    assert executors[0].process_ids == ()  # closed with the run


# ------------------------------------------------------------ Ray


@pytest.fixture(scope="module")
def on_local_ray() -> Iterator[None]:
    """A Ray instance for the module: starting one takes many seconds."""
    ray: Any = pytest.importorskip("ray")
    from aios.backends.executors.ray_cluster import RayExecutor

    executor = RayExecutor(build_scripted_bench, workers=2, bank=BANK, num_cpus=0)
    executor.baseline(make_probes({"p": (Question("Who?", ("Ada",)),)}))
    yield
    executor.close()
    assert not ray.is_initialized()


@marked
@pytest.mark.usefixtures("on_local_ray")
def test_trials_on_ray_come_to_the_same(tmp_path: Path, serial: dict[str, Any]) -> None:
    assert run(tmp_path, "ray") == serial


@marked
@pytest.mark.usefixtures("on_local_ray")
def test_an_actor_that_is_killed_in_a_round_costs_its_batches_a_retry_and_nothing_else(
    tmp_path: Path, serial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from aios.backends.executors.ray_cluster import RayExecutor

    fatal = a_trial_of_round_1(serial)

    def mortal(config: Config, kind: str, **more: Any) -> Executor:
        bench = partial(MortalBench, tmp_path, fatal)
        return RayExecutor(bench, workers=2, bank=BANK, num_cpus=0)

    monkeypatch.setattr(restem_trials, "open_executor", mortal)
    events: list[Event] = []
    assert run(tmp_path, "ray", emit=events.append) == serial
    assert len(lost_workers(events)) == 1
    # what it had said and had not yet arrived is lost too: here, of the batch before at most
    check_retries(tmp_path, fatal, serial, batches=DEPTH)
