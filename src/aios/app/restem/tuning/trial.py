"""One trial of a tuning: a short ReST-EM run with some settings, and what its generator is worth.

Takes settings; gives the mean improvement that the self-edits of the run's last generator bring on
the held-out passages. Three things are shared between trials, since all have the same seed:

* **E-step.** The first round's candidates are written by the untrained model, and their trials
  know nothing of how the generator is trained or which candidates are kept. So a run takes the
  journals of round 0 and of the E-step of round 1 from an earlier run whose trials were as long,
  and begins with the M-step.
* **Held-out passages.** All generators are examined on the same ones with the same seeds.
* **Yardstick.** Trials of other lengths give improvements on other scales (all is larger where
  training is longer). So what a run's last generator wrote for the held-out passages is tried once
  more with the trials of the config that is tuned, and that is the value of the trial.

**Pruning.** Held-out passages are examined a few at a time. After each few the run is compared, on
the passages that it has done, with the best earlier trial whose trials were as long
(`restem_tune_pruning`), and stopped where it is worse by more than chance.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from aios.app.restem.folders import KIND
from aios.app.restem.job import optimize
from aios.app.restem.passages import RestemData
from aios.app.restem.records import read_rewards
from aios.app.restem.tuning.pruning import HeldOutWatch
from aios.app.restem.tuning.space import EPOCHS, Parameters, with_parameters
from aios.app.restem.tuning.study import TrialRecord
from aios.app.restem.tuning.yardstick import FOLDER, Yardstick
from aios.core.config.loader import dump
from aios.core.config.schemas import Config
from aios.core.errors import BackendError, RunInterrupted
from aios.core.events import Event, Notice, RunFinished, RunStarted
from aios.core.files import atomic_write_bytes, guarded, read_bytes
from aios.core.protocols import Emit, LanguageModel, ShouldStop
from aios.core.restem import TriedPassage
from aios.storage.runs import RunDirectory

RUNS = "runs"

_SHARED = tuple(
    f"rounds/{stage}.{kind}.journal"
    for stage in ("0/held_out", "1/candidates")
    for kind in ("edits", "trials")
)
_MAX_JOURNAL_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class TuneJob:
    """What every trial needs.

    Attributes:
        config: The config that is tuned; its own trials are the yardstick.
        dataset: The file of passages.
        folder: Of the tuning.
        model: The base model.
        data: The passages.
        emit: Shows what trials do.
        should_stop: Asked between and during trials.
    """

    config: Config
    dataset: Path
    folder: Path
    model: LanguageModel
    data: RestemData
    emit: Emit
    should_stop: ShouldStop

    @property
    def yardstick(self) -> Yardstick:
        """What generators are measured by."""
        return Yardstick(
            self.config,
            self.model,
            self.data,
            self.folder / FOLDER / f"baselines-{self.config.seed}.journal",
            emit=self.emit,
            should_stop=self.should_stop,
        )

    def path_of(self, name: str | int) -> Path:
        """The run directory of a trial, by its number, or of another run."""
        return self.folder / RUNS / (name if isinstance(name, str) else f"trial-{name:04d}")


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial that ended.

    Attributes:
        record: What came of it.
        untrained: What the untrained generator is worth, if that is known now.
        course: Mean improvement after so many held-out passages, for the sampler.
    """

    record: TrialRecord
    untrained: Mapping[str, float] | None
    course: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """A run and what its generators are worth.

    Attributes:
        held_out: Of the last generator, by held-out passage, by the yardstick.
        rounds: Of each round from 1, by passage, as the run measured them.
        untrained: Of the untrained generator, by passage, by the yardstick.
    """

    held_out: Mapping[str, float]
    rounds: tuple[Mapping[str, float], ...]
    untrained: Mapping[str, float]


def run_trial(
    job: TuneJob,
    number: int,
    parameters: Parameters,
    earlier: Sequence[TrialRecord],
    untrained: Mapping[str, float] | None,
) -> Ended:
    """Runs a trial, or goes on with it.

    Args:
        job: The tuning.
        number: Of the trial.
        parameters: Its settings.
        earlier: Trials before it; with one of them it is compared, from one it takes the E-step.
        untrained: What the untrained generator is worth, if that is known.

    Raises:
        RunInterrupted: `job.should_stop` said so; the trial can be gone on with.
        UsageError, StorageError: As `app.restem.job.optimize`.
    """
    began = time.monotonic()
    alike = [r for r in earlier if r.parameters.get(EPOCHS) == parameters.get(EPOCHS)]
    config = with_parameters(job.config, parameters)
    path = job.path_of(number)
    reused = _prepare(path, config, [job.path_of(r.number) for r in alike if _shares(r)])
    order = [passage.id for passage in job.data.held_out]
    best = max(
        (r for r in alike if r.value is not None), key=lambda r: r.value or 0.0, default=None
    )
    watch = HeldOutWatch(
        order, config.restem.held_out_candidates, best.rounds if best is not None else ()
    )
    record = TrialRecord(number, parameters, "failed", reused=reused)
    try:
        ran = _run(job, path, config, watch, untrained)
    except RunInterrupted:
        if not watch.worse or job.should_stop():
            raise
        ran = None
    except BackendError as error:
        seconds = time.monotonic() - began
        return Ended(replace(record, note=error.message, seconds=seconds), untrained)
    record = replace(
        record, seconds=time.monotonic() - began, trials=_trials_of(path), rounds=watch.rounds
    )
    if ran is None:
        assert best is not None
        record = replace(record, state="pruned", note=f"worse than trial {best.number}")
        return Ended(record, untrained, watch.course)
    value = fmean(ran.held_out.values())
    record = replace(
        record, state="complete", value=value, held_out=ran.held_out, rounds=ran.rounds
    )
    return Ended(record, ran.untrained, watch.course)


def run_once(job: TuneJob, name: str, parameters: Parameters) -> float:
    """The value of some settings under the job's own seed; a run that is done is not done again.

    Raises:
        BackendError: It failed.
        RunInterrupted: `job.should_stop` said so.
        UsageError, StorageError: As `app.restem.job.optimize`.
    """
    config = with_parameters(job.config, parameters)
    path = job.path_of(name)
    _prepare(path, config, [])
    watch = HeldOutWatch([p.id for p in job.data.held_out], config.restem.held_out_candidates, ())
    ran = _run(job, path, config, watch, {})
    assert ran is not None
    return fmean(ran.held_out.values())


def tidy(job: TuneJob, number: int) -> None:
    """Removes the checkpoints of an ended run; its generators are kept.

    Raises:
        StorageError: They cannot be removed.
    """
    folder = job.path_of(number) / "checkpoints"
    with guarded("remove", folder):
        for one in folder.glob("generator-*"):
            shutil.rmtree(one)


# ---------------------------------------------------------------- the run


def _run(
    job: TuneJob,
    path: Path,
    config: Config,
    watch: HeldOutWatch,
    untrained: Mapping[str, float] | None,
) -> Ran | None:
    """Runs ReST-EM and measures its last generator; None where it is clearly worse.

    Raises:
        BackendError: The run failed, or no held-out passage has a number.
        RunInterrupted: As `optimize`; also where the watch said so.
    """
    report = optimize(
        config,
        job.dataset,
        None,
        run_dir=path,
        resume=True,
        emit=_listening(job.emit, watch),
        should_stop=lambda: watch.worse or job.should_stop(),
        model=job.model,
    )
    state, yardstick = report.state, job.yardstick
    if watch.worse and not yardstick.is_that_of(config):  # else all is known, and costs nothing
        return None
    found = yardstick.measure(path, config, state, state.rounds[-1].number)
    if not found:
        raise BackendError(
            "no held-out passage has a number: all trials of their self-edits failed",
            "see the events of the run",
        )
    rounds = tuple(dict(r.held_out.passages) for r in state.rounds[1:] if r.held_out is not None)
    if untrained is None:
        untrained = yardstick.measure(path, config, state, 0)
    return Ran(found, rounds, untrained)


def _listening(show: Emit, watch: HeldOutWatch) -> Emit:
    """Shows a run's events but its beginning, end and remarks, and has them watched."""

    def emit(event: Event) -> None:
        watch(event)
        remark = isinstance(event, Notice) and event.level != "warning"
        if not remark and not isinstance(event, (RunStarted, RunFinished)):
            show(event)

    return emit


def _prepare(path: Path, config: Config, donors: Sequence[Path]) -> int:
    """Makes a run directory, with the E-step of the first donor that has one.

    Returns:
        Trials of self-edits that need not be run.
    """
    if not (path / "run.json").exists():
        RunDirectory.create(
            path.parent, KIND, run_id=path.name, config_yaml=dump(config), seed=config.seed
        ).close()
    donor = next((one for one in donors if all((one / name).is_file() for name in _SHARED)), None)
    if donor is None:
        return 0
    if not (path / "plan.json").exists():  # else it has begun, with what it was given then
        for name in _SHARED:
            with guarded("make", path / name):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path / name, read_bytes(donor / name, _MAX_JOURNAL_BYTES))
    return sum(passage.trials for passage in _first_passages(donor))


def _shares(record: TrialRecord) -> bool:
    """Whether another run may take its E-step: it came to an end without a failure."""
    return record.state in ("complete", "pruned")


def _first_passages(path: Path) -> Iterator[TriedPassage]:
    """What stands in the journals that are shared."""
    for found in read_rewards(path):
        if found.number == 0:
            yield from found.held_out
        elif found.number == 1:
            yield from found.tried


def _trials_of(path: Path) -> int:
    """Trials of self-edits of the stages that a run has done, those that it was given included."""
    return sum(p.trials for found in read_rewards(path) for p in (*found.tried, *found.held_out))
