from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.errors import BackendError, RunInterrupted
from aios.core.events import Evaluated, Event
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.training.auto_training_orchestrator import TrainingData, Validation
from aios.core.training.expert_trainer import log_dataset_stats, train_expert
from aios.core.trainings import CurvePoint, TrainingJob, TrainingResult
from aios.core.types import AdapterRef, Passage, ScoreRequest, TrainExample

PASSAGE = TrainExample.whole("The mill of Arn has four stones.", passage_id="p")
PAIR = TrainExample("Question: Who?\nAnswer: Tove", ((22, 27),), "cloze", "p")
DATA = TrainingData(
    passages=(Passage.make(PASSAGE.text, id="p"),),
    original=(PASSAGE,),
    augmented=(PASSAGE, PAIR, PAIR),
    edits=(),
    drops=(),
    failures=(),
    validation=Validation("questions", (ScoreRequest("Question: Who?\nAnswer:", " Tove"),)),
    rejects=(),
)


class Recorder:
    """A trainer that notes its job."""

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    def fit(
        self, job: TrainingJob, *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> TrainingResult:
        self.jobs.append(job)
        point = CurvePoint(0, 0.0, 0, None, None, 0.0)
        return TrainingResult(AdapterRef(job.output_dir, "a", "b"), (point,), point, 0, 0, 0.0, 1)

    def attach(self, adapter: AdapterRef) -> LanguageModel:
        raise NotImplementedError

    def detach(self, model: LanguageModel) -> None:
        raise NotImplementedError


def recipe(**training: Any) -> ResolvedRecipe:
    return resolve_recipe(Config.model_validate({"training": training}), "scripted")


def fit(trainer: Any, tmp_path: Path, **options: Any) -> Any:
    settings = {"recipe": recipe(), "seed": 3, "output_dir": tmp_path / "out", **options}
    return train_expert(DATA, trainer=trainer, **settings)


def test_the_job_is_what_recipe_and_data_say(tmp_path: Path) -> None:
    recorder = Recorder()
    chosen = recipe(rank=4, max_tokens=500, evaluations_per_epoch=3, patience=2, epochs=7)
    fit(recorder, tmp_path, recipe=chosen, resume=True)
    assert recorder.jobs == [
        TrainingJob(
            examples=DATA.augmented,
            recipe=chosen.lora,
            seed=3,
            output_dir=tmp_path / "out",
            validation=DATA.validation.requests,
            max_tokens=500,
            evaluations_per_epoch=3,
            patience=2,
            resume=True,
        )
    ]
    assert (chosen.lora.rank, chosen.lora.epochs) == (4, 7)


def test_without_self_edits_the_passages_alone_are_trained_on(tmp_path: Path) -> None:
    recorder = Recorder()
    trained = fit(recorder, tmp_path, use_self_edits=False)
    assert recorder.jobs[0].examples == DATA.original
    assert recorder.jobs[0].max_tokens is None
    assert trained.dataset_stats["growth"] == 1.0


def test_a_training_learns_what_it_is_trained_on(tmp_path: Path) -> None:
    events: list[Event] = []
    trainer = ScriptedTrainer(ScriptedModel())
    trained = fit(trainer, tmp_path, recipe=recipe(epochs=2, batch_size=2), emit=events.append)
    first, best = trained.result.curve[0], trained.result.best
    assert best.validation_loss < first.validation_loss
    assert (trained.result.adapter.path / "adapter_model.safetensors").is_file()
    assert sum(isinstance(event, Evaluated) for event in events) == len(trained.result.curve)
    assert trained.dataset_stats["by_source"] == {"passage": 1, "cloze": 2}


def test_a_stopped_training_goes_on_to_the_same_result(tmp_path: Path) -> None:
    model = ScriptedModel()
    settings = recipe(epochs=3, batch_size=1)
    whole = fit(ScriptedTrainer(model), tmp_path / "whole", recipe=settings)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    with pytest.raises(RunInterrupted):
        fit(ScriptedTrainer(model), tmp_path, recipe=settings, should_stop=stop)
    resumed = fit(ScriptedTrainer(model), tmp_path, recipe=settings, resume=True)
    assert resumed.result.adapter.digest == whole.result.adapter.digest
    losses = [[p.validation_loss for p in r.result.curve] for r in (whole, resumed)]
    assert losses[0] == losses[1]


def test_a_failure_of_the_trainer_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="fail at step 1"):
        fit(ScriptedTrainer(ScriptedModel(), fail_at_step=1), tmp_path)


def test_statistics_count_what_self_edits_add(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        stats = log_dataset_stats(DATA.original, DATA.augmented)
    assert stats["original"] == {"examples": 1, "characters": 32, "mean_characters": 32.0}
    assert stats["augmented"]["examples"] == 3
    assert stats["augmented"]["characters"] == 32 + 2 * len(PAIR.text)
    assert stats["by_source"] == {"passage": 1, "cloze": 2}
    assert stats["growth"] == pytest.approx((32 + 2 * len(PAIR.text)) / 32)
    assert "1 examples from passages, 3 with self-edits" in caplog.text


def test_statistics_of_nothing_hold_no_nan() -> None:
    stats = log_dataset_stats((), ())
    assert stats["growth"] is None
    assert stats["augmented"]["mean_characters"] == 0.0
    assert log_dataset_stats((), (replace(PASSAGE),))["growth"] is None
