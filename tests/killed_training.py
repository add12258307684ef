"""A training that is run in a process of its own, to be killed there."""

from __future__ import annotations

from pathlib import Path

import torch

from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.torch_lm import TorchLM
from aios.core.trainings import TrainingJob
from aios.core.types import LoraRecipe, ScoreRequest, TrainExample
from tests.killed_process import Tell
from tests.tiny_model import source_of

TEXTS = (
    "The mill was built in 1871.",
    "Its wheel turns.",
    "Ada Brandt was the miller.",
    "A flood.",
)
RECIPE = LoraRecipe(
    rank=4, alpha=8, dropout=0.1, learning_rate=1e-2, epochs=8, batch_size=1, schedule="cosine"
)


def job(folder: Path, *, resume: bool) -> TrainingJob:
    """32 steps, evaluated after every second."""
    return TrainingJob(
        examples=tuple(TrainExample.whole(text) for text in TEXTS),
        recipe=RECIPE,
        seed=5,
        output_dir=folder,
        validation=(ScoreRequest("The mill was built in", " 1871"),),
        evaluations_per_epoch=2,
        resume=resume,
    )


def train(model: Path, folder: Path, resume: bool, tell: Tell) -> None:
    """Trains, and tells of every event, so that the parent knows when to kill."""
    torch.set_num_threads(1)
    lm = TorchLM.load(source_of(model), device="cpu", dtype="float32", threads=1)
    TorchAdapterTrainer(lm).fit(job(folder, resume=resume), emit=lambda _: tell())
