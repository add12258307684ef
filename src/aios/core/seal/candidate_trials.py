"""Trials of self-edits: is training on a candidate better than training on the passage alone?

Takes passages with their candidates; gives a `TriedPassage` each. For each passage first the
*baseline* is trained, an adapter on the passage alone, then the candidates are raced: each trains
an adapter on passage and self-edit, and both are asked the passage's questions. Where the passage
alone makes the model worse than it was, the untrained model is the baseline. All trainings of
a passage have the same number of tokens, and the k-th trial of each has the same seed (common
random numbers), so that what is compared is the self-edit and nothing else.

Deviations from the paper (SEAL, Zweiger et al. 2025, arXiv 2506.10943, section 3.1): there the
baseline is the untrained model, which nearly every text about the passage beats (``base`` here);
trials have epochs, so longer self-edits are trained longer; and an adapter is trained on the
current generator's weights, where ours is always trained on the base model, as experts are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from aios.core.data.probes import QUESTION_TEMPLATE
from aios.core.errors import BackendError, StorageError
from aios.core.protocols import Emit, Executor, ShouldStop, ignore, never
from aios.core.restem import TriedPassage, tried_from_json, tried_to_json
from aios.core.seal.racing import EvenSchedule, RacingSchedule, Schedule
from aios.core.seal.reliability import Reliability, estimate_noise, report
from aios.core.seal.reward import RewardFunction, Threshold
from aios.core.seal.test_time_training import TTTTrainer
from aios.core.seal.trial_batch import TrialBatch, Work
from aios.core.trials import Reward

_JUDGED_FROM = 8  # failed trials before their share can stop a round


class Records(Protocol):
    """What has been measured before, by key; `storage.journal.Journal` is one."""

    def get(self, key: str) -> Any:
        """The JSON value, or None."""
        ...

    def append(self, key: str, value: object) -> None:
        """Keeps a value; it is on disk when this returns."""
        ...


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """How candidates are tried.

    Attributes:
        baseline: ``passage``: an adapter trained on the passage alone, or no training where that is
            better; ``base``: no training.
        racing: One trial each, then the rest of `repeats` for the two best; else `repeats` each.
        repeats: Most trials of a candidate; at least 1.
        trial_tokens: Training tokens of every trial; None for the recipe's epochs.
        batch: Passages whose trials are run together.
        question_template: What stands before an answer.
        max_answer_tokens: Longest answer that is written, where the reward reads answers.
        max_failed_share: Share of the trials that may fail.
        seed: Seed of all trials.
    """

    baseline: Literal["passage", "base"] = "passage"
    racing: bool = True
    repeats: int = 2
    trial_tokens: int | None = 1500
    batch: int = 4
    question_template: str = QUESTION_TEMPLATE
    max_answer_tokens: int = 16
    max_failed_share: float = 0.5
    seed: int = 0

    def schedule(self) -> Schedule:
        """Who gets how many repeats."""
        if self.racing and self.repeats > 1:
            return RacingSchedule(first=1, more=self.repeats - 1, finalists=2)
        return EvenSchedule(self.repeats)


class CandidateTrials:
    """Tries self-edits; see the module's head.

    Args:
        executor: Runs the trials.
        trainer: Says what a self-edit is trained on, and how (`TTTTrainer.recipe`).
        reward: Judges them; its own noise estimate is not used.
        count_tokens: Number of tokens of a text.
        settings: How.
    """

    def __init__(
        self,
        executor: Executor,
        trainer: TTTTrainer,
        reward: RewardFunction,
        count_tokens: Callable[[str], int],
        settings: TrialSettings | None = None,
    ) -> None:
        self.executor, self.trainer, self.reward = executor, trainer, reward
        self.count_tokens = count_tokens
        self.settings = settings or TrialSettings()

    def run(
        self,
        works: Sequence[Work],
        records: Records,
        baselines: Records,
        *,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> Iterator[TriedPassage]:
        """Tries the candidates of all passages, `settings.batch` passages at a time.

        A batch is recorded as a whole, with the trials of it that failed, unless too many have: it
        is run again when the run goes on. One that is run again consists of the same trials in
        the same order, and so, in one process, comes to the same numbers.

        Args:
            works: Passages and candidates; a passage is there once.
            records: Batches that are done, by their first passage and its place.
            baselines: Baselines that are trained, by passage: later rounds meet them again.
            emit: Told of trials.
            should_stop: Asked while training.

        Yields:
            The passages in order. A candidate's reward is its improvement; nothing is decided.

        Raises:
            BackendError: Too many trials failed, or nothing more can be run.
            RunInterrupted: `should_stop` said so; batches that are done are kept.
        """
        spent = failed = 0
        measured = False  # whether any candidate has a number
        for start in range(0, len(works), self.settings.batch):
            members = works[start : start + self.settings.batch]
            key = f"{start}:{members[0].passage.id}"
            record = records.get(key)
            if record is None:
                batch = TrialBatch(self, members, baselines)
                tried, trained = batch.run(emit, should_stop), batch.new_baselines()
            else:
                tried, trained = _decode(record, members)
            spent += sum(passage.trials for passage in tried)
            failed += sum(passage.failed_trials for passage in tried)
            measured = measured or any(one.reward for p in tried for one in p.candidates)
            in_vain = not measured and start + len(members) == len(works)
            if failed >= _JUDGED_FROM or in_vain:
                self._refuse_too_many(failed, spent, tried)
            if record is None:
                passages = [tried_to_json(passage) for passage in tried]
                records.append(key, {"passages": passages, "baselines": trained})
            for passage_id, answers in trained.items():
                if baselines.get(passage_id) != answers:  # a kill may have come between
                    baselines.append(passage_id, answers)
            yield from tried

    def _refuse_too_many(self, failed: int, spent: int, tried: Sequence[TriedPassage]) -> None:
        share = self.settings.max_failed_share
        if failed <= share * spent:
            return
        errors = [f.error for p in tried for one in p.candidates for f in one.failures]
        raise BackendError(
            f"{failed} of {spent} trials failed, more than restem.max_failed_share ({share:g});"
            f" the last: {errors[-1] if errors else 'see the events'}",
            "see to the reason, then resume",
        )


def decide(
    passages: Sequence[TriedPassage], reward: RewardFunction, threshold: Threshold
) -> tuple[list[TriedPassage], Reliability | None]:
    """Rewards of candidates, 0 or 1, from all that was measured in a round.

    Under ``auto`` an improvement must exceed the noise of a trial as these very repeats show it
    (`reliability.estimate_noise`), and where nothing was repeated, the standard error over the
    questions.

    Args:
        passages: What the trials said.
        reward: The reward function; its ``z`` counts.
        threshold: ``auto``, or a number that the improvement over the baseline must exceed.

    Returns:
        The passages with decided rewards, and how reliable these are; None without a reward.
    """
    table = {
        passage.passage_id: {one.edit.index: one.improvements for one in passage.candidates}
        for passage in passages
    }
    if not any(values for candidates in table.values() for values in candidates.values()):
        return list(passages), None
    noise = estimate_noise(table)

    def decided(earned: Reward) -> Reward:
        margin: float | None
        if threshold != "auto":
            margin = float(threshold or 0.0)
        elif noise is not None:
            margin = reward.z * noise.sd / math.sqrt(earned.repeats)
        else:
            error = earned.standard_error
            margin = None if error is None else reward.z * error
        gain = earned.improvement
        return replace(
            earned,
            value=float(margin is not None and gain is not None and gain > margin),
            threshold=margin,
            rule="auto" if threshold == "auto" else "number",
        )

    judged = [
        replace(
            passage,
            candidates=tuple(
                one if one.reward is None else replace(one, reward=decided(one.reward))
                for one in passage.candidates
            ),
        )
        for passage in passages
    ]
    return judged, report(table)


def _decode(
    record: Any, members: Sequence[Work]
) -> tuple[list[TriedPassage], dict[str, dict[str, Any]]]:
    """The passages of a batch, and the baselines that were trained in it."""
    try:
        tried = [tried_from_json(passage) for passage in record["passages"]]
        trained = {name: dict(answers) for name, answers in dict(record["baselines"]).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the record of trials is of another form: {error}", "start a new run"
        ) from error
    if [t.passage_id for t in tried] != [w.passage.id for w in members]:
        raise StorageError("the record of trials is of other passages", "start a new run")
    return tried, trained
