"""What a run's generator is worth, measured as those of all other runs of a tuning.

Takes a run whose trials may have any length; gives the improvement of what its generator wrote for
the held-out passages under the trials of one config, the yardstick. Where the run was made with
these trials its own numbers are taken; else the self-edits are tried once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from aios.app.composition import recipe_for
from aios.app.restem.passages import RestemData
from aios.app.restem.records import read_rewards
from aios.app.restem.settings import settings_of
from aios.app.restem.trials import candidate_trials, executor_of
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import StorageError
from aios.core.files import guarded
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.restem import ReSTEMState, TriedPassage
from aios.core.seal.candidate_trials import TrialSettings, decide
from aios.core.seal.round_report import held_out_of
from aios.core.seal.trial_batch import Work
from aios.core.stages import counting_trials, shown_stage
from aios.core.types import content_hash
from aios.storage.journal import Journal

FOLDER = "yardstick"

_STAGE = "examine with the trials of the config"


class Yardstick:
    """Measures generators of runs by the trials of one config.

    Args:
        config: The config.
        model: The base model.
        data: Passages; those that are held out count.
        baselines: Journal of what is trained on passages alone; the same for all runs.
        emit: Shows a stage.
        should_stop: Asked between trials.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        data: RestemData,
        baselines: Path,
        *,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> None:
        self.config, self.model, self.data = config, model, data
        self.baselines = baselines
        self.emit, self.should_stop = emit, should_stop
        self.recipe = recipe_for(config, model)

    def is_that_of(self, config: Config) -> bool:
        """Whether runs of a config are made with the very trials of the yardstick."""
        theirs = _training(recipe_for(config, self.model))
        alike = self._settings(self.config) == self._settings(config)
        return alike and theirs == _training(self.recipe)

    def measure(
        self, path: Path, config: Config, state: ReSTEMState, number: int
    ) -> dict[str, float]:
        """What a round's generator is worth, by held-out passage.

        Args:
            path: The run.
            config: Of the run.
            state: Its state.
            number: The round; 0 for the untrained generator.

        Returns:
            Mean improvement of its self-edits over the baseline; no number for a passage all of
            whose trials failed.

        Raises:
            BackendError: Too many trials failed.
            StorageError: The run's records cannot be read, or the new ones not be written.
            RunInterrupted: `should_stop` said so; batches that are done are kept.
        """
        if self.is_that_of(config):
            held_out = state.rounds[number].held_out
            return dict(held_out.passages) if held_out is not None else {}
        works = self._works(path, number)
        file = path / FOLDER / f"{number}.trials.journal"
        for folder in (file.parent, self.baselines.parent):
            with guarded("make", folder):
                folder.mkdir(parents=True, exist_ok=True)
        facts = self._facts()
        settings = self._settings(self.config)
        tried: list[TriedPassage] = []
        with (
            executor_of(self.config, self.model) as executor,
            Journal(file, {**facts, "self-edits": _digest(works)}) as records,
            Journal(self.baselines, facts) as baselines,
            shown_stage(self.emit, _STAGE, len(works), "passages") as done,
        ):
            trials = candidate_trials(self.config, self.model, self.recipe, executor, settings)
            emit = counting_trials(self.emit, lambda _: None)
            for one in trials.run(
                works, records, baselines, emit=emit, should_stop=self.should_stop
            ):
                tried.append(one)
                done(len(tried))
        judged, _ = decide(tried, trials.reward, self.config.restem.threshold)
        return dict(held_out_of(judged).passages)

    def _settings(self, config: Config) -> TrialSettings:
        return settings_of(config, recipe_for(config, self.model)).trials

    def _works(self, path: Path, number: int) -> list[Work]:
        """The held-out passages with what the round's generator wrote for them."""
        passages = {passage.id: passage for passage in self.data.held_out}
        found = next((one for one in read_rewards(path) if one.number == number), None)
        if found is None or {one.passage_id for one in found.held_out} != passages.keys():
            raise StorageError(
                f"{path} lacks what round {number} came to on the held-out passages",
                "move the tuning away and start over",
            )
        return [
            Work(
                passages[one.passage_id],
                tuple(candidate.edit for candidate in one.candidates),
                one.asked,
                one.unwritten,
            )
            for one in found.held_out
        ]

    def _facts(self) -> dict[str, object]:
        """What the numbers follow from, beside the self-edits."""
        return {
            "model": self.model.digest,
            "passages": content_hash([asdict(passage) for passage in self.data.held_out]),
            "trials": asdict(self._settings(self.config)),
            "training": _training(self.recipe),
            "reward": self.config.restem.reward,
        }


def _digest(works: Sequence[Work]) -> str:
    return content_hash([asdict(work) for work in works])


def _training(recipe: ResolvedRecipe) -> list[object]:
    """What of a recipe counts for trials."""
    lora = asdict(recipe.lora)
    return [lora, recipe.loss_on, recipe.passage_copies]
