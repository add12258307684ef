"""The record of a tuning: an Optuna study in a journal file, and what is to be tried next.

Takes a file and a search space; gives trials to run, one after the other, and what came of those
that are done. Only this module imports Optuna (extra ``tune``).

* A process may be killed at any moment. What it had begun is begun again under the same number and
  with the same parameters, so that its run can go on; what was done is kept.
* The next trial follows from the seed, its number and the trials before it, from nothing else: a
  tuning that was killed goes on as if it had not been. (A sampler that lives as long as a process
  would draw its first numbers again.)
* No combination is tried twice: the runs have a seed, so it would come to the same.

The sampler is TPE (Bergstra et al. 2011) after a few random trials; if all combinations are to be
tried, their order is random, so that a tuning that is stopped has seen some of everything.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from aios.app.restem.tuning.space import Parameters, Space
from aios.core.errors import StorageError
from aios.core.files import guarded
from aios.core.seeds import derive

MAX_BYTES = 256 * 2**20

_NAME = "restem"
_STARTUP = 8  # random trials before TPE; the fewest from which it tells good from bad
_ATTEMPTS = 20  # suggestions of TPE that may have been tried already
_FEWEST_FOR_IMPORTANCE = 4

State = Literal["complete", "pruned", "failed", "running"]
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial of the tuning.

    Attributes:
        number: From 1.
        parameters: What was tried.
        state: ``complete``, ``pruned`` (clearly worse, stopped), ``failed``, or ``running``: begun,
            but not ended yet.
        value: Mean improvement over the baseline on the held-out passages; None unless complete.
        held_out: The same for each passage.
        rounds: For each round, from 1, the same as the run itself measured it, with the trials'
            own length.
        seconds: What it took, in the process that ended it.
        trials: Trials of self-edits behind it.
        reused: Of these, taken from an earlier trial.
        note: Why it failed or was stopped.
    """

    number: int
    parameters: Parameters
    state: State
    value: float | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)
    rounds: tuple[Mapping[str, float], ...] = ()
    seconds: float = 0.0
    trials: int = 0
    reused: int = 0
    note: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more is done for it."""
        return self.state != "running"


@dataclass(frozen=True, slots=True)
class Begun:
    """A trial that is to be run now."""

    number: int
    parameters: Parameters
    handle: Trial


class TuneStudy:
    """The study; the caller sees to it that one process at a time has it.

    Args:
        path: The journal file, made if missing.
        space: What is searched.
        seed: Of the suggestions.

    Raises:
        StorageError: The file cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path, space: Space, seed: int) -> None:
        self.path, self.space, self.seed = path, space, seed
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in space.choices.items()
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says, we say
        _mend(path)
        try:
            with guarded("open", path):
                self._study = self._open()
                self._take_up()
            self.records()
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StorageError(
                f"{path} is damaged: {type(error).__name__}: {error}",
                "restore it from a copy, or tune into another folder",
            ) from error

    def _open(self) -> optuna.Study:
        lock = JournalFileOpenLock(str(self.path))
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.path), lock_obj=lock)),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),  # not asked: trials come enqueued
            pruner=optuna.pruners.NopPruner(),
        )

    def _take_up(self) -> None:
        """Queues what a dead process had begun; the trial that it had begun counts as failed."""
        trials = self._study.trials
        waiting = {_number(t) for t in trials if t.state is TrialState.WAITING}
        for dead in (t for t in trials if t.state is TrialState.RUNNING):
            if _number(dead) not in waiting:
                self._enqueue(_number(dead), _parameters(dead))
            self._study.tell(dead.number, state=TrialState.FAIL)

    def records(self) -> list[TrialRecord]:
        """The trials by number; of one that was begun several times the last."""
        by_number = {_number(trial): self._record(trial) for trial in self._study.trials}
        return [by_number[number] for number in sorted(by_number)]

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        parameters = _parameters(trial)
        if not self.space.holds(parameters):
            raise ValueError(f"trial {_number(trial)} is not of the space {self.space.name}")
        attributes = trial.user_attrs
        state = _STATES.get(trial.state, "running")
        return TrialRecord(
            number=_number(trial),
            parameters={name: parameters[name] for name in self.space.choices},
            state=state,
            value=trial.value if state == "complete" else None,
            held_out=_values(attributes.get("held_out", {})),
            rounds=tuple(map(_values, attributes.get("rounds", ()))),
            seconds=float(attributes.get("seconds", 0.0)),
            trials=int(attributes.get("trials", 0)),
            reused=int(attributes.get("reused", 0)),
            note=str(attributes.get("note", "")),
        )

    # ------------------------------------------------------------ one trial

    def begin(self, wanted: int) -> Begun | None:
        """The next trial: one that was begun before, or a new one.

        Args:
            wanted: Trials in all; from the size of the space on, all of it is tried.

        Returns:
            None where every combination has been tried.
        """
        if not any(trial.state is TrialState.WAITING for trial in self._study.trials):
            parameters = self._suggest(wanted)
            if parameters is None:
                return None
            self._enqueue(1 + max((r.number for r in self.records()), default=0), parameters)
        with guarded("write", self.path):
            trial = self._study.ask(self._distributions)
        return Begun(int(trial.user_attrs["number"]), dict(trial.params), trial)

    def end(
        self, begun: Begun, record: TrialRecord, course: Sequence[tuple[int, float]] = ()
    ) -> None:
        """Keeps what came of a trial.

        Args:
            begun: The trial.
            record: What came of it.
            course: Mean improvement after so many held-out passages, counted over all rounds;
                the sampler ranks trials that were pruned by it.
        """
        states = {state: name for name, state in _STATES.items()}
        attributes = {
            "held_out": dict(record.held_out),
            "rounds": [dict(values) for values in record.rounds],
            "seconds": record.seconds,
            "trials": record.trials,
            "reused": record.reused,
            "note": record.note,
        }
        with guarded("write", self.path):
            for name, value in attributes.items():
                begun.handle.set_user_attr(name, value)
            for step, mean in course:
                begun.handle.report(mean, step)
            value = record.value if record.state == "complete" else None
            self._study.tell(begun.handle, value, states[record.state])

    @property
    def untrained(self) -> dict[str, float] | None:
        """What the untrained generator is worth on the held-out passages, once it is known."""
        found = self._study.user_attrs.get("untrained")
        return None if found is None else _values(found)

    def keep_untrained(self, values: Mapping[str, float]) -> None:
        """Keeps what the untrained generator is worth."""
        with guarded("write", self.path):
            self._study.set_user_attr("untrained", dict(values))

    # ------------------------------------------------------------ suggestions

    def _enqueue(self, number: int, parameters: Parameters) -> None:
        with guarded("write", self.path):
            self._study.enqueue_trial(dict(parameters), user_attrs={"number": number})

    def _suggest(self, wanted: int) -> Parameters | None:
        """A combination that has not been tried."""
        records = self.records()
        tried = [record.parameters for record in records]
        left = [one for one in self.space.grid() if one not in tried]
        if not left:
            return None
        random.Random(derive(self.seed, "tune", "grid")).shuffle(left)
        if wanted >= self.space.size:
            return left[0]
        number = 1 + max((record.number for record in records), default=0)
        scratch = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                seed=derive(self.seed, "tune", number) % 2**32, n_startup_trials=_STARTUP
            ),
        )
        ended = [
            t for t in self._study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        scratch.add_trials(sorted(ended, key=_number))
        for _ in range(_ATTEMPTS):
            found = scratch.ask(self._distributions).params
            if found not in tried:
                return found
        return left[0]

    # ------------------------------------------------------------ importance

    def importance(self) -> dict[str, float]:
        """How much each parameter decides whether a trial is among the best; they add up to 1.

        PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): how far the values of a parameter in
        the best trials differ from those in the whole space. (Compared with those in all trials,
        a parameter would lose importance as the sampler settles on its best value.) It needs no
        scikit-learn, which fANOVA and mean decrease in impurity do. The best are about five, at
        least a tenth and at most half of the complete trials. Empty with fewer than four of
        these, or if all are alike.
        """
        values = [record.value for record in self.records() if record.value is not None]
        if len(values) < _FEWEST_FOR_IMPORTANCE or min(values) == max(values):
            return {}
        share = min(0.5, max(0.1, 5 / len(values)))
        known = inspect.signature(PedAnovaImportanceEvaluator.__init__).parameters
        # What Optuna 4 calls baseline_quantile:
        name = "target_quantile" if "target_quantile" in known else "baseline_quantile"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna 4 calls it experimental
            options: dict[str, Any] = {name: share, "evaluate_on_local": False}
            evaluator = PedAnovaImportanceEvaluator(**options)
            found = get_param_importances(self._study, evaluator=evaluator)
        return {name: float(value) for name, value in found.items()}


def means_by_choice(
    space: Space, records: Iterable[TrialRecord]
) -> dict[str, list[tuple[Any, int, float]]]:
    """For each parameter and each of its values: trials that are complete, and their mean value."""
    complete = [record for record in records if record.value is not None]
    found: dict[str, list[tuple[Any, int, float]]] = {}
    for name, choices in space.choices.items():
        found[name] = []
        for choice in choices:
            values = [
                r.value for r in complete if r.value is not None and r.parameters[name] == choice
            ]
            if values:
                found[name].append((choice, len(values), fmean(values)))
    return found


def _number(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["number"])


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    """Its parameters; of one that waits or was killed at its beginning, those that it will have."""
    fixed = trial.system_attrs.get("fixed_params")
    return dict(fixed if isinstance(fixed, dict) else trial.params)


def _values(found: object) -> dict[str, float]:
    """Numbers by passage."""
    if not isinstance(found, Mapping):
        raise ValueError("the values of passages are not a JSON object")
    return {str(name): float(value) for name, value in found.items()}


def _mend(path: Path) -> None:
    """Removes what a killed process left: half a line at the end, and its lock.

    Raises:
        StorageError: The file is too large, or cannot be changed.
    """
    with guarded("open", path):
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        if not path.exists():
            return
        if path.stat().st_size > MAX_BYTES:
            raise StorageError(
                f"{path} is larger than the {MAX_BYTES} bytes allowed", "tune into another folder"
            )
        with open(path, "rb+") as handle:
            content = handle.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                handle.truncate(whole)
                handle.flush()
                os.fsync(handle.fileno())
