"""The training loop: steps, evaluations, checkpoints, and going on after a kill.

The state on disk is weights, optimiser moments and counters. It is committed at every evaluation,
on a request to stop, and at least once a minute; what follows from there is the same, bit for bit
on a CPU, as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from aios.backends.adapter_files import AdapterFolder, TrainingState, plain_config
from aios.backends.chunked_loss import summed_cross_entropy
from aios.backends.devices import (
    memory_errors,
    peak_memory_bytes,
    release_memory,
    reset_peak_memory,
)
from aios.backends.encoding import Encoded, fill_rows, pack
from aios.backends.packed_forward import last_hidden_states, output_head
from aios.backends.torch_lm import TorchLM
from aios.backends.training_plan import StepPlan, learning_rate
from aios.core.errors import NonFiniteError, OutOfMemoryError, RunInterrupted, StorageError
from aios.core.events import Evaluated, Notice, StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit, ShouldStop
from aios.core.seeds import derive
from aios.core.trainings import CurvePoint, TrainingJob, TrainingResult
from aios.core.types import AdapterRef

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter
_COMMIT_SECONDS = 60.0  # a killed training loses no more than this


class TrainingRun:
    """One training of an adapter that is on the model already.

    Args:
        job: The training.
        encoded: Its examples, each with a token that carries loss.
        plan: Its steps.
        learner: The model with the adapter active.
        emit: Told of progress and evaluations.
        should_stop: Asked before each step.
    """

    def __init__(
        self,
        job: TrainingJob,
        encoded: Sequence[Encoded],
        plan: StepPlan,
        learner: TorchLM,
        emit: Emit,
        should_stop: ShouldStop,
    ) -> None:
        self.job, self.encoded, self.plan, self.learner = job, encoded, plan, learner
        self.emit, self.should_stop = emit, should_stop
        self.folder = AdapterFolder(job, learner.digest)
        self.parameters = adapter_parameters(learner.model, str(learner.adapter))
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=job.recipe.learning_rate,
            weight_decay=job.recipe.weight_decay,
            foreach=True,
        )
        self.state = TrainingState()
        self.name = job.output_dir.name
        self.row_tokens = learner.row_tokens()  # most tokens of a forward and backward pass
        self.committed_at = time.monotonic()
        self.committed_step = -1

    def run(self) -> TrainingResult:
        """Steps through the plan; evaluates, keeps the best, commits the state at evaluations."""
        reset_peak_memory(self.learner.device)
        finished = self.folder.finished() if self.job.resume else None
        if finished is not None:
            self.state, adapter = finished
            return self._result(adapter)
        self._restore()
        total = self.plan.tokens[-1]
        self.emit(StageStarted(f"train {self.name}", total, "tokens"))
        if not self.state.curve:
            self._evaluate()
        while self.state.step < len(self.plan.batches) and not self._exhausted():
            if self.should_stop():
                if self.committed_step != self.state.step:
                    self._commit()
                raise RunInterrupted(
                    f"training {self.name} stopped after step {self.state.step} of "
                    f"{len(self.plan.batches)}; its state is kept",
                    "run the same command with --resume",
                )
            self._timed_step()
            if self.state.step in self.plan.evaluate_after:
                self._evaluate()
            elif time.monotonic() - self.committed_at > _COMMIT_SECONDS:
                self._commit()
            self.emit(StageProgress(f"train {self.name}", self._tokens_done(), self._note()))
        adapter = self.folder.finish(self.state)
        self.emit(StageFinished(f"train {self.name}", self.state.seconds, self._note()))
        return self._result(adapter)

    def _result(self, adapter: AdapterRef) -> TrainingResult:
        return TrainingResult(
            adapter=adapter,
            curve=tuple(self.state.curve),
            best=self.state.best_point(),
            steps=self.state.step,
            tokens=self._tokens_done(),
            seconds=self.state.seconds,
            peak_memory_bytes=peak_memory_bytes(self.learner.device),
            stopped_early=self.state.step < len(self.plan.batches),
        )

    def _timed_step(self) -> None:
        started = time.perf_counter()
        loss, labels = self._fitting_step(
            [self.encoded[i] for i in self.plan.batches[self.state.step]]
        )
        self.state.loss_sum += loss
        self.state.loss_tokens += labels
        self.state.step += 1
        self.state.seconds += time.perf_counter() - started

    def _fitting_step(self, batch: Sequence[Encoded]) -> tuple[float, int]:
        """A step, in smaller rows where memory runs out: its gradients are accumulated over more.

        Raises:
            OutOfMemoryError: A single example is too much.
        """
        longest = max(len(example.ids) for example in batch)
        while True:
            try:
                with memory_errors("train"):
                    return self._step(batch)
            except OutOfMemoryError:
                if self.row_tokens <= longest:
                    raise
                self.row_tokens = max(longest, min(self.row_tokens, _tokens_of(batch)) // 2)
                self.optimizer.zero_grad(set_to_none=True)
                release_memory(self.learner.device)
                told = f"out of memory: going on with rows of {self.row_tokens} tokens"
                self.emit(Notice(told, "warning"))

    def _step(self, batch: Sequence[Encoded]) -> tuple[float, int]:
        """One optimiser step; the loss is the mean over the batch's label tokens.

        Returns:
            The summed loss and the number of label tokens.
        """
        labels = sum(example.label_count for example in batch)
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=self.learner.device)
        with self.learner.active() as model, self._dropout():
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            for indices in fill_rows((len(example.ids) for example in batch), self.row_tokens):
                row = pack([batch[i] for i in indices], self.learner.device)
                hidden = last_hidden_states(model, row)[row.predicting]
                loss = summed_cross_entropy(hidden, output_head(model), row.targets)
                (loss / labels).backward()
                summed += loss.detach()
        largest = self.job.recipe.grad_clip if self.job.recipe.grad_clip > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), largest)
        if not bool(torch.isfinite(summed) & torch.isfinite(norm)):
            raise NonFiniteError(
                f"the loss of training {self.name} became infinite or NaN at step "
                f"{self.state.step + 1}",
                "lower training.learning_rate",
            )
        self.optimizer.step()
        return float(summed), labels

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Switches the adapter's dropout on, with random numbers that depend on the step alone."""
        if self.job.recipe.dropout == 0:
            yield
            return
        device = self.learner.device
        layers = [
            module
            for name, module in self.learner.model.named_modules()
            if name.endswith(f".lora_dropout.{self.learner.adapter}")
        ]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.job.seed, "dropout", self.state.step))
            try:
                for layer in layers:
                    layer.train()
                yield
            finally:
                for layer in layers:
                    layer.eval()

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.job.recipe, self.state.step, len(self.plan.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _evaluate(self) -> None:
        """Scores the validation set, keeps the adapter if it is the best, commits the state."""
        validation_loss = train_loss = None
        if self.job.validation:
            scores = self.learner.score(self.job.validation)
            validation_loss = -math.fsum(s.logprob for s in scores) / sum(s.tokens for s in scores)
        if self.state.loss_tokens:
            train_loss = self.state.loss_sum / self.state.loss_tokens
        point = CurvePoint(
            step=self.state.step,
            epoch=self.state.step / self.plan.steps_per_epoch,
            tokens=self._tokens_done(),
            train_loss=train_loss,
            validation_loss=validation_loss,
            seconds=self.state.seconds,
        )
        self.state.add(point)
        self._commit()
        self.emit(Evaluated(self.name, **asdict(point)))

    def _commit(self) -> None:
        config = self.learner.model.peft_config[self.learner.adapter]
        self.folder.commit(
            self.state,
            self.parameters,
            self._moments(),
            plain_config(config, self.learner.name),
        )
        self.committed_at, self.committed_step = time.monotonic(), self.state.step

    def _tokens_done(self) -> int:
        return self.plan.tokens[self.state.step - 1] if self.state.step else 0

    def _exhausted(self) -> bool:
        """Whether patience has run out."""
        waited = len(self.state.curve) - 1 - self.state.best
        return bool(self.job.validation) and 0 < self.job.patience <= waited

    def _note(self) -> str:
        point = self.state.curve[-1]
        loss = point.validation_loss if point.validation_loss is not None else point.train_loss
        return "" if loss is None else f"loss {loss:.3f}"

    def _moments(self) -> dict[str, Tensor]:
        moments = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                moments[f"{key}:{name}"] = value
        return moments

    def _restore(self) -> None:
        restored = self.folder.restore() if self.job.resume else None
        if restored is None:
            self.folder.start_over()
            return
        self.state, weights, moments = restored
        self.committed_step = self.state.step
        try:
            fill(self.parameters, weights)
            for name, parameter in self.parameters.items():
                saved = {key: moments[f"{key}:{name}"] for key in _MOMENTS} if moments else {}
                self.optimizer.state[parameter].update(_on_device(saved, parameter))
        except (ValueError, KeyError) as error:
            raise StorageError(
                f"the checkpoint in {self.folder.root} is damaged: {error}",
                "start over with --overwrite, or restore it from a copy",
            ) from error


def _on_device(moments: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state beside its parameter; its step counter stays on the CPU, as AdamW wants."""
    return {k: v if v.ndim == 0 else v.to(parameter.device) for k, v in moments.items()}


def adapter_parameters(model: Any, adapter: str) -> dict[str, torch.nn.Parameter]:
    """An adapter's parameters by the names that PEFT gives them in files.

    Args:
        model: The PeftModel.
        adapter: The adapter's name in it.
    """
    return {
        name.replace(f".{adapter}.", "."): parameter
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name
    }


def fill(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies weights into parameters of the same names and shapes: all of them and no others.

    Raises:
        ValueError: A name or a shape differs.
    """
    odd = sorted(parameters.keys() ^ weights.keys())
    if odd:
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in parameters else 'unknown'}")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(parameter.shape)
            raise ValueError(f"{name} has the shape {found} instead of {wanted}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _tokens_of(batch: Sequence[Encoded]) -> int:
    """Tokens of a batch."""
    return sum(len(example.ids) for example in batch)
