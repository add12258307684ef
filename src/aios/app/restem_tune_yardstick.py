"""What a run's generator is worth, measured as those of all other runs of a tuning.

Takes a run whose trials may have any length; gives the improvement of what its generator wrote for
the held-out passages under the trials of one config, the yardstick. Where the run was made with
these trials its own numbers are taken; else the self-edits are tried once more.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

from aios.app.composition import recipe_for
from aios.app.restem import RestemData, executor_of
from aios.app.restem_records import read_rewards
from aios.app.restem_settings import reward_function, settings_of
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import StorageError
from aios.core.events import StageFinished, StageProgress, StageStarted
from aios.core.files import guarded
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.restem import ReSTEMState
from aios.core.seal.candidate_trials import CandidateTrials, decide
from aios.core.seal.round_report import held_out_of
from aios.core.seal.test_time_training import TTTTrainer
from aios.core.seal.trial_batch import Work
from aios.core.types import content_hash
from aios.storage.journal import Journal

FOLDER = "yardstick"


class Yardstick:
    """Measures generators of runs by the trials of one config.

    Args:
        config: The config.
        model: The base model.
        data: Passages; those that are held out count.
        emit: Shows a stage.
        should_stop: Asked between trials.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        data: RestemData,
        *,
        emit: Emit = ignore,
        should_stop: ShouldStop = never,
    ) -> None:
        self.config, self.model, self.data = config, model, data
        self.emit, self.should_stop = emit, should_stop
        self.recipe = recipe_for(config, model)

    def is_that_of(self, config: Config) -> bool:
        """Whether runs of a config are made with the very trials of the yardstick."""
        settings = [settings_of(one).trials for one in (self.config, config)]
        return settings[0] == settings[1] and _training(self.recipe) == _training(
            recipe_for(config, self.model)
        )

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
        with guarded("make", file):
            file.parent.mkdir(parents=True, exist_ok=True)
        reward = reward_function(self.config)
        stage = "examine with the config's own trials"
        self.emit(StageStarted(stage, len(works), "passages"))
        began, tried = time.monotonic(), []
        with (
            executor_of(self.config, self.model) as executor,
            Journal(file, self._fingerprint(works)) as records,
        ):
            trainer = TTTTrainer(
                recipe=replace(self.recipe.lora, dropout=0.0),
                passage_copies=self.recipe.passage_copies,
                loss_on=self.recipe.loss_on,
                seed=self.config.seed,
            )
            settings = settings_of(self.config).trials
            trials = CandidateTrials(executor, trainer, reward, self.model.count_tokens, settings)
            for one in trials.run(works, records, emit=self.emit, should_stop=self.should_stop):
                tried.append(one)
                self.emit(StageProgress(stage, len(tried)))
        self.emit(StageFinished(stage, time.monotonic() - began))
        judged, _ = decide(tried, reward, self.config.restem.threshold)
        return dict(held_out_of(judged).passages)

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
            Work(passages[one.passage_id], tuple(c.edit for c in one.candidates), one.asked)
            for one in found.held_out
        ]

    def _fingerprint(self, works: list[Work]) -> dict[str, object]:
        return {
            "model": self.model.digest,
            "trials": asdict(settings_of(self.config).trials),
            "training": _training(self.recipe),
            "reward": self.config.restem.reward,
            "self-edits": content_hash([asdict(work) for work in works]),
        }


def _training(recipe: ResolvedRecipe) -> list[object]:
    """What of a recipe counts for trials."""
    lora = asdict(recipe.lora)
    return [lora, recipe.loss_on, recipe.passage_copies]
