"""The examination of two generators: both write, then all that they wrote is tried.

Takes the passages of a comparison and the generators' folders; gives what each came to, once a
seed. What is written and tried is in the run's journals as soon as it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aios.app.composition import Run, build_generator
from aios.app.generators import writing_model
from aios.app.restem.comparing.results import SIDES, Examined, Side, decide_together, examined
from aios.app.restem.rounds import RecordedRounds, RunFacts
from aios.app.restem.settings import one_of_each, reward_function, settings_of
from aios.app.restem.trials import candidate_trials
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.files import atomic_write_bytes, encode_json
from aios.core.protocols import Emit, Executor, LanguageModel, ShouldStop
from aios.core.restem import TriedPassage, tried_to_json
from aios.core.seal.format_choice import deal, even_shares
from aios.core.seal.restem_rules import ReSTEMSettings
from aios.core.seal.round_report import Proposed
from aios.core.seeds import derive
from aios.core.stages import counting_trials, shown_stage
from aios.core.types import Passage

KIND = "restem-compare"


@dataclass(frozen=True, slots=True)
class ComparisonJob:
    """What every step of a comparison needs.

    Attributes:
        config: The resolved config.
        run: The run.
        model: The base model.
        recipe: How trials are trained, and by which strategies generators write.
        passages: The passages, with questions.
        facts: What the run is on.
        seeds: How often each generator writes for each passage.
    """

    config: Config
    run: Run
    model: LanguageModel
    recipe: ResolvedRecipe
    passages: tuple[Passage, ...]
    facts: RunFacts
    seeds: int

    def settings(self, number: int) -> ReSTEMSettings:
        """How candidates are tried for the `number`-th time; the seed is both generators'."""
        settings = settings_of(self.config, self.recipe)
        seed = derive(self.config.seed, KIND, number)
        return replace(settings, seed=seed, trials=replace(settings.trials, seed=seed))


class Examination:
    """Has generators write, and tries what they wrote.

    Args:
        job: The comparison.
        executor: Runs the trials.
        emit: Told of progress.
        should_stop: Asked between passages and during trials.
    """

    def __init__(
        self, job: ComparisonJob, executor: Executor, emit: Emit, should_stop: ShouldStop
    ) -> None:
        self._job, self._executor = job, executor
        self._emit, self._should_stop = emit, should_stop
        self._shares = even_shares(job.recipe.generator.arms)

    def write(self, side: Side, folder: Path | None) -> list[Proposed]:
        """What a generator writes, once a seed; all strategies have an equal share.

        Completions are neither taken from the cache nor put there: the time that they take is
        part of what is compared.

        Args:
            side: Which generator.
            folder: Its folder; None for the base model.

        Raises:
            UsageError: The run's journal is of another generator.
            AdapterMismatchError: It is of another base model.
            BackendError: The backend is dead; what is done is kept.
            RunInterrupted: `should_stop` said so; what is done is kept.
        """
        job = self._job
        seal = job.config.seal.model_copy(update={"generator": folder})
        config = job.config.model_copy(update={"seal": seal})
        recipe = one_of_each(job.recipe, job.recipe.generator.arms)
        generator = build_generator(config, job.model, recipe, cache=None, emit=self._emit)
        strategies = {part.strategy.name: part.strategy for part in generator.parts}
        count, ids = config.restem.held_out_candidates, [p.id for p in job.passages]
        written = []
        with writing_model(config, job.model, emit=self._emit) as policy:
            for number in range(job.seeds):
                seed = job.settings(number).seed
                plan = deal(self._shares, ids, count, seed)
                writer = generator.with_plan(policy, seed, strategies, plan)
                edits = self._store(number).write(writer, job.passages, _place(number, side))
                results = []
                stage = f"{_stage(job, number)}{side} writes"
                with shown_stage(self._emit, stage, len(ids), "passages") as done:
                    for result in edits:
                        results.append(result)
                        done(len(results))
                written.append(Proposed(tuple(results), plan))
        return written

    def try_all(self, written: Mapping[Side, Sequence[Proposed]]) -> dict[Side, list[Examined]]:
        """Tries what both have written, and keeps the candidates in the run's directory.

        Raises:
            BackendError: Too many trials failed, or nothing more can be run.
            RunInterrupted: `should_stop` said so; what is done is kept.
        """
        job = self._job
        passages = {passage.id: passage for passage in job.passages}
        reward, threshold = reward_function(job.config), job.config.restem.threshold
        found: dict[Side, list[Examined]] = {side: [] for side in SIDES}
        for number in range(job.seeds):
            first, second = (self._try(side, written[side][number], number) for side in SIDES)
            *judged, reliability = decide_together(first, second, reward, threshold)
            for side, tried in zip(SIDES, judged, strict=True):
                lines = [encode_json(tried_to_json(passage)) + b"\n" for passage in tried]
                place = job.run.directory.path / f"{_place(number, side)}.jsonl"
                atomic_write_bytes(place, b"".join(lines))
                proposed = written[side][number]
                found[side].append(examined(proposed, tried, reliability, passages, self._shares))
        return found

    def _try(self, side: Side, proposed: Proposed, number: int) -> list[TriedPassage]:
        """Runs the trials of what a generator wrote with a seed."""
        job, store = self._job, self._store(number)
        settings = job.settings(number).trials
        trials = candidate_trials(job.config, job.model, job.recipe, self._executor, settings)
        stage = f"{_stage(job, number)}{side} is tried"
        tried: list[TriedPassage] = []
        with (
            shown_stage(self._emit, stage, len(job.passages), "passages") as done,
            store.records(_place(number, side)) as records,
            store.records(_place(number, "alone")) as baselines,
        ):
            emit = counting_trials(self._emit, lambda _: done(len(tried)))
            for passage in trials.run(
                proposed.works(), records, baselines, emit=emit, should_stop=self._should_stop
            ):
                tried.append(passage)
                done(len(tried))
        return tried

    def _store(self, number: int) -> RecordedRounds:
        """The run's directory as a store of journals."""
        job = self._job
        settings = job.settings(number)
        return RecordedRounds(
            job.config, job.run, job.model, settings, job.facts, self._should_stop
        )


def _place(number: int, part: str) -> str:
    return f"seed-{number}/{part}"


def _stage(job: ComparisonJob, number: int) -> str:
    """What begins the name of a stage."""
    return f"seed {number + 1} of {job.seeds}: " if job.seeds > 1 else ""
