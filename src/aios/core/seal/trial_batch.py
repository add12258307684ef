"""The trials of a few passages: their baselines, the race of their candidates, what came of it.

The part of `candidate_trials` that is run as a whole and recorded as a whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from aios.core.data.probes import Probe, make_probes
from aios.core.errors import BackendError, StorageError
from aios.core.events import WorkFailed
from aios.core.protocols import Emit, ShouldStop
from aios.core.restem import Tried, TriedPassage, thin_losses
from aios.core.seal.racing import race
from aios.core.seal.reward import reward_of_outcome
from aios.core.seal.trial_set import Candidate, PassageResult, Standing
from aios.core.training.examples import passage_examples
from aios.core.trials import Answered, Reward, TrialJob, TrialOutcome
from aios.core.types import Failure, Passage, Score, SelfEdit, TrainExample

if TYPE_CHECKING:
    from aios.core.seal.candidate_trials import CandidateTrials, Records

_BASELINE = "baseline"
Answers = Sequence[Answered]


@dataclass(frozen=True, slots=True)
class Work:
    """A passage and the self-edits that are to be tried on it.

    Attributes:
        passage: The passage, with questions.
        edits: The self-edits, maybe none; their indices differ.
        asked: Candidates that were asked for.
        unwritten: Of these, those that could not be written, or not be read.
    """

    passage: Passage
    edits: tuple[SelfEdit, ...]
    asked: int
    unwritten: int = 0


class TrialBatch:
    """The trials of a few passages.

    Args:
        trials: Executor, trainer, reward and settings.
        works: The passages.
        records: Baselines that were trained before, by passage.
    """

    def __init__(self, trials: CandidateTrials, works: Sequence[Work], records: Records) -> None:
        self._records = records
        self._executor, self._reward = trials.executor, trials.reward
        self._trainer, self._count_tokens = trials.trainer, trials.count_tokens
        self._settings = settings = trials.settings
        self._works = works
        self._template = TrialJob(
            id="",
            examples=(),
            recipe=trials.trainer.recipe,
            seed=settings.seed,
            write_answers=trials.reward.needs_text,
            max_answer_tokens=settings.max_answer_tokens,
            patience=trials.trainer.patience,
        )
        self._questions: dict[str, tuple[Probe, ...]] = {
            w.passage.id: make_probes(
                {w.passage.id: w.passage.questions}, settings.question_template
            )
            for w in works
        }
        self._untrained: dict[str, Answers] = {}
        self._baselines: dict[str, dict[int, Answers]] = {}  # by passage and repeat
        self._baseline_failures: dict[str, list[Failure]] = {}
        self._baseline_trials: Counter[str] = Counter()  # trained now
        # By job id, of trials that gave a number:
        self._rewards: dict[str, Reward] = {}
        self._right: dict[str, float] = {}
        self._failures: dict[str, Failure] = {}
        self._tokens: dict[str, int] = {}
        self._losses: dict[str, tuple[float, ...]] = {}

    def run(self, emit: Emit, should_stop: ShouldStop) -> list[TriedPassage]:
        """Untrained model, baselines, race; see `CandidateTrials.run`."""
        for passage_id, questions in self._questions.items():
            self._untrained[passage_id] = self._ask_untrained(passage_id, questions)
        self._run_baselines(emit, should_stop)
        able = [w for w in self._works if self._baselines[w.passage.id]]
        results = race(
            [(w.passage.id, [self._candidate(w, edit) for edit in w.edits]) for w in able],
            self._executor,
            self._settings.schedule(),
            self._value,
            template=self._template,
            emit=emit,
            should_stop=should_stop,
        )
        found = {result.passage_id: result for result in results}
        return [self._tried(work, found.get(work.passage.id)) for work in self._works]

    def _ask_untrained(self, passage_id: str, questions: Sequence[Probe]) -> Answers:
        try:
            return self._executor.baseline(
                questions,
                write_answers=self._template.write_answers,
                max_answer_tokens=self._template.max_answer_tokens,
            )
        except BackendError as error:
            raise BackendError(
                f"the questions about passage {passage_id} cannot be put to the model: "
                f"{error.message}",
                error.remedy or "leave the passage out, or change its questions",
                retryable=error.retryable,
            ) from error

    def _run_baselines(self, emit: Emit, should_stop: ShouldStop) -> None:
        """Trains on each passage alone, once a repeat; under ``base`` nothing is trained.

        Nor is it on a passage without a self-edit, which nothing is compared with.
        """
        repeats = range(self._settings.repeats)
        if self._settings.baseline == "base":
            for passage_id, answers in self._untrained.items():
                self._baselines[passage_id] = dict.fromkeys(repeats, answers)
            return
        jobs: dict[str, tuple[str, int, TrialJob]] = {}
        for work in self._works:
            passage_id = work.passage.id
            self._baselines[passage_id] = _decode(self._records.get(passage_id))
            self._baseline_failures[passage_id] = []
            examples = tuple(passage_examples([work.passage]))
            alone = self._budgeted(passage_id, _BASELINE, examples)
            known = self._baselines[passage_id]
            for repeat in [r for r in repeats if work.edits and r not in known]:
                job = alone.job(repeat, self._template)
                jobs[job.id] = (passage_id, repeat, job)
        wanted = [job for _, _, job in jobs.values()]
        self._baseline_trials = Counter(passage_id for passage_id, _, _ in jobs.values())
        stream = self._executor.run(wanted, emit=emit, should_stop=should_stop) if wanted else ()
        found = {outcome.job_id: outcome for outcome in stream}
        for job_id, (passage_id, repeat, job) in jobs.items():  # whichever was ready first
            outcome = found[job_id]
            judged = reward_of_outcome(self._reward, outcome, job.questions, None, 0.0)
            if isinstance(judged, Reward):
                self._baselines[passage_id][repeat] = outcome.answers
                continue
            self._baseline_failures[passage_id].append(judged)
            if outcome.failure is None:  # nobody has told of it
                emit(WorkFailed(judged.boundary, judged.subject, judged.error, judged.retryable))

    def new_baselines(self) -> dict[str, Any]:
        """The baselines that this batch has trained, by passage, as JSON values."""
        return {
            passage_id: {
                str(repeat): [asdict(answer) for answer in answers]
                for repeat, answers in self._baselines[passage_id].items()
            }
            for passage_id in self._baseline_trials
            if self._baselines[passage_id]
        }

    def _candidate(self, work: Work, edit: SelfEdit) -> Candidate:
        examples = self._trainer.examples_of(edit, work.passage)
        return self._budgeted(work.passage.id, str(edit.index), examples)

    def _budgeted(
        self, passage_id: str, name: str, examples: tuple[TrainExample, ...]
    ) -> Candidate:
        """A candidate whose trials have as many steps as come to `trial_tokens` tokens."""
        steps = None
        if self._settings.trial_tokens is not None:
            per_pass = math.ceil(len(examples) / self._template.recipe.batch_size)
            tokens = sum(self._count_tokens(example.text) for example in examples)
            steps = max(1, round(self._settings.trial_tokens * per_pass / max(1, tokens)))
        questions = self._questions[passage_id]
        return Candidate(f"{passage_id}#{name}", passage_id, examples, questions, steps)

    def _to_beat(self, passage_id: str, repeat: int) -> Answers:
        """What a trial must beat: the passage alone with its seed, or no training where better.

        A small model can be worse for having been trained on one text over and over: then
        whatever dilutes that text would look like a help.
        """
        baselines, untrained = self._baselines[passage_id], self._untrained[passage_id]
        alone = baselines.get(repeat) or baselines[min(baselines)]  # the first, for a new try
        gain = self._quantity(passage_id, alone) - self._quantity(passage_id, untrained)
        return alone if self._reward.sign * gain >= 0 else untrained

    def _value(self, job: TrialJob, outcome: TrialOutcome) -> float:
        """A trial's improvement over the baseline with its seed; NaN where it cannot be judged."""
        candidate, _, repeat = job.id.rpartition("/repeat-")
        before = self._to_beat(candidate.rpartition("#")[0], int(repeat))
        earned = reward_of_outcome(self._reward, outcome, job.questions, before, None)
        if isinstance(earned, Failure):
            self._failures[job.id] = earned
            return math.nan
        self._rewards[job.id] = earned
        self._right[job.id] = _share_right(outcome.answers)
        if outcome.metrics is not None:
            self._tokens[job.id] = outcome.metrics.tokens
            self._losses[job.id] = thin_losses(outcome.metrics.losses)
        return earned.value

    def _tried(self, work: Work, result: PassageResult | None) -> TriedPassage:
        passage_id = work.passage.id
        untrained = self._untrained[passage_id]
        lost = self._baseline_failures.get(passage_id, [])
        baselines = [self._to_beat(passage_id, n) for n in self._baselines[passage_id]]
        candidates: Sequence[Tried]
        if result is None:  # nothing to compare with: no candidate has a number
            candidates = [Tried(edit, None, failures=tuple(lost)) for edit in work.edits]
        else:
            candidates = [
                self._one(edit, standing, _share_right(untrained))
                for edit, standing in zip(work.edits, result.standings, strict=True)
            ]
        in_race = sum(len(s.failures) for s in result.standings) if result else 0
        before = self._quantity(passage_id, untrained)
        return TriedPassage(
            passage_id,
            tuple(candidates),
            asked=work.asked,
            trials=self._baseline_trials[passage_id] + (result.trials if result else 0),
            failed_trials=len(lost) + in_race,
            before=before,
            baseline=fmean(self._quantity(passage_id, answers) for answers in baselines)
            if baselines
            else before,
            unwritten=work.unwritten,
        )

    def _one(self, edit: SelfEdit, standing: Standing, right_before: float) -> Tried:
        name = standing.candidate.id
        jobs = [f"{name}/repeat-{repeat}" for repeat in standing.repeats]
        failures = tuple(self._failures.get(f.subject, f) for f in standing.failures)
        if not jobs:
            return Tried(edit, None, failures=failures)
        return Tried(
            edit,
            self._reward.combine([self._rewards[job] for job in jobs], None),
            improvements=standing.values,
            accuracy_gain=fmean(self._right[job] for job in jobs) - right_before,
            train_tokens=round(fmean(self._tokens.get(job, 0) for job in jobs)),
            failures=failures,
            losses=tuple(self._losses.get(job, ()) for job in jobs),
        )

    def _quantity(self, passage_id: str, answers: Answers) -> float:
        """The quantity (loss, …) of answers."""
        return self._reward.of(self._questions[passage_id], None, answers, 0.0).after


def _decode(record: Any) -> dict[int, Answers]:
    """Baselines of a passage from the record, by repeat.

    Raises:
        StorageError: It is of another form.
    """
    try:
        return {
            int(repeat): [Answered(a["probe_id"], Score(**a["score"]), a["text"]) for a in answers]
            for repeat, answers in (record or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the record of baselines is of another form: {error}", "start a new run"
        ) from error


def _share_right(answers: Answers) -> float:
    """Share of the reference answers that greedy decoding would give word for word."""
    return fmean(answer.score.greedy for answer in answers)
