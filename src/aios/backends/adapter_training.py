"""Training one LoRA adapter over a frozen base model (PEFT format).

Takes a `TrainingJob`, gives a `TrainingResult`. Differs from the SEAL release
(knowledge-incorporation/src/inner/TTT_server.py), which pads every sequence to 2048 tokens and
lets the padding carry loss: here a step holds real tokens only, packed, and the loss is the mean
over its label tokens.

The whole course of a training follows from the job: the order of examples from its seed, the
steps from the examples' lengths. So the state on disk is weights, optimiser moments and counters,
and a training that was killed goes on to the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from torch import Tensor

from aios.backends.adapter_files import (
    AdapterFolder,
    TrainingState,
    plain_config,
    read_adapter,
)
from aios.backends.chunked_loss import summed_cross_entropy
from aios.backends.devices import peak_memory_bytes, reset_peak_memory
from aios.backends.encoding import Encoded, encode, fill_rows, pack
from aios.backends.torch_lm import TorchLM
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    NonFiniteError,
    RunInterrupted,
)
from aios.core.events import Evaluated, StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seeds import derive
from aios.core.types import (
    AdapterRef,
    CurvePoint,
    LoraRecipe,
    TrainExample,
    TrainingJob,
    TrainingResult,
)

_TRAINED = "in-training"
_ROW_TOKENS = 512  # tokens of one packed row when training; measured best on a CPU


class TorchAdapterTrainer:
    """A `core.protocols.AdapterTrainer` on a `TorchLM`.

    Args:
        model: The base model; its weights are shared, never changed.
    """

    def __init__(self, model: TorchLM) -> None:
        self.base = model.view(None)

    def fit(
        self, job: TrainingJob, *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> TrainingResult:
        """Trains one adapter; see `core.protocols.AdapterTrainer.fit`."""
        encoded = self._encode(job.examples, job.recipe.max_seq_len)
        plan = plan_steps(encoded, job)
        learner = self._new_adapter(job.recipe, job.seed)
        try:
            training = _Training(job, encoded, plan, learner, emit, should_stop)
            return training.run()
        finally:
            self._drop(_TRAINED)

    def attach(self, adapter: AdapterRef) -> LanguageModel:
        """The base model with an adapter from disk on it."""
        if adapter.base_digest != self.base.digest:
            raise AdapterMismatchError(
                f"adapter {adapter.path} was trained on another base model "
                f"({adapter.base_digest[:12]}) than {self.base.name} ({self.base.digest[:12]})",
                "load the base model that it was trained on",
            )
        config, weights = read_adapter(adapter.path)
        name = adapter.digest[:16]
        if not isinstance(self.base.model, PeftModel) or name not in self.base.model.peft_config:
            self._add(name, LoraConfig(**config))
            set_peft_model_state_dict(self.base.model, weights, adapter_name=name)
        return self.base.view(name, adapter.digest)

    def detach(self, model: LanguageModel) -> None:
        """Frees an attached adapter."""
        if isinstance(model, TorchLM) and model.adapter is not None:
            self._drop(model.adapter)

    def _encode(self, examples: Sequence[TrainExample], longest: int) -> list[Encoded]:
        if not examples:
            raise BackendError("there is nothing to train on")
        limit = min(longest, self.base.context_length)
        encoded = []
        for example in examples:
            tokens = encode(self.base.tokenizer, example.text, example.loss_spans)
            if len(tokens.ids) > limit:
                raise BackendError(
                    f"a training text of passage {example.passage_id or '?'} has "
                    f"{len(tokens.ids)} tokens; the limit is {limit}",
                    "lower data.max_passage_tokens or raise training.max_seq_len",
                )
            if tokens.label_count:
                encoded.append(tokens)
        if not encoded:
            raise BackendError("no training text has a token that carries loss")
        return encoded

    def _new_adapter(self, recipe: LoraRecipe, seed: int) -> TorchLM:
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base.name,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "adapter"))
            self._add(_TRAINED, config)
        return self.base.view(_TRAINED)

    def _add(self, name: str, config: PeftConfig) -> None:
        if isinstance(self.base.model, PeftModel):
            self.base.model.add_adapter(name, config)
        else:
            self.base.model = get_peft_model(self.base.model, config, adapter_name=name)
        self.base.model.requires_grad_(False)
        self.base.model.eval()

    def _drop(self, name: str) -> None:
        if isinstance(self.base.model, PeftModel) and name in self.base.model.peft_config:
            if len(self.base.model.peft_config) == 1:
                self.base.model = self.base.model.unload()
            else:
                self.base.model.delete_adapter(name)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All steps of a training, known before it starts.

    Attributes:
        batches: For each step the examples in it (indices).
        tokens: Tokens trained on after each step (cumulative).
        evaluate_after: Steps (1-based) after which to evaluate; the last one is among them.
        steps_per_epoch: Steps of one pass.
    """

    batches: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    evaluate_after: frozenset[int]
    steps_per_epoch: int


def plan_steps(encoded: Sequence[Encoded], job: TrainingJob) -> StepPlan:
    """Lays out order, batches and evaluations of a training.

    Every epoch is a new permutation of all examples, seeded by the job's seed and its number.
    """
    size = job.recipe.batch_size
    per_epoch = -(-len(encoded) // size)
    batches: list[tuple[int, ...]] = []
    tokens: list[int] = []
    total = 0
    for epoch in count():
        if job.max_tokens is None and job.max_steps is None and epoch >= job.recipe.epochs:
            break
        order = list(range(len(encoded)))
        random.Random(derive(job.seed, "order", epoch)).shuffle(order)
        for start in range(0, len(order), size):
            batch = tuple(order[start : start + size])
            total += sum(len(encoded[i].ids) for i in batch)
            batches.append(batch)
            tokens.append(total)
            if total >= (job.max_tokens or float("inf")):
                break
            if len(batches) >= (job.max_steps or float("inf")):
                break
        else:
            continue
        break
    return StepPlan(
        tuple(batches), tuple(tokens), _evaluation_steps(tokens, per_epoch, job), per_epoch
    )


def _evaluation_steps(tokens: Sequence[int], per_epoch: int, job: TrainingJob) -> frozenset[int]:
    if job.evaluate_every_tokens is None:
        every = max(1, round(per_epoch / job.evaluations_per_epoch))
        return frozenset({*range(every, len(tokens) + 1, every), len(tokens)})
    marks, due = {len(tokens)}, job.evaluate_every_tokens
    for step, done in enumerate(tokens, start=1):
        if done >= due:
            marks.add(step)
            due += job.evaluate_every_tokens
    return frozenset(marks)


class _Training:
    """One run of `TorchAdapterTrainer.fit`."""

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
        learner.model.set_adapter(_TRAINED)
        self.parameters = {
            name: p for name, p in learner.model.named_parameters() if f".{_TRAINED}." in name
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=job.recipe.learning_rate,
            weight_decay=job.recipe.weight_decay,
            foreach=True,
        )
        self.state = TrainingState()
        self.name = job.output_dir.name

    def run(self) -> TrainingResult:
        """Steps through the plan; evaluates, keeps the best, commits the state at evaluations."""
        reset_peak_memory(self.learner.device)
        self._restore()
        total = self.plan.tokens[-1]
        self.emit(StageStarted(f"train {self.name}", total, "tokens"))
        if not self.state.curve:
            self._evaluate(step=0)
        losses: list[Tensor] = []
        labels = 0
        while self.state.step < len(self.plan.batches) and not self._exhausted():
            if self.should_stop():
                raise RunInterrupted(f"training {self.name} stopped at step {self.state.step}")
            started = time.perf_counter()
            loss, label_count = self._step(self.plan.batches[self.state.step])
            losses.append(loss)
            labels += label_count
            self.state.step += 1
            self.state.seconds += time.perf_counter() - started
            done = self.plan.tokens[self.state.step - 1]
            if self.state.step in self.plan.evaluate_after:
                self._evaluate(self.state.step, float(torch.stack(losses).sum()) / labels)
                losses, labels = [], 0
            self.emit(StageProgress(f"train {self.name}", done, self._note()))
        adapter = self.folder.finish(self.state)
        self.emit(StageFinished(f"train {self.name}", self.state.seconds, self._note()))
        return TrainingResult(
            adapter=adapter,
            curve=tuple(self.state.curve),
            best=self.state.best_point(),
            steps=self.state.step,
            tokens=self.plan.tokens[self.state.step - 1] if self.state.step else 0,
            seconds=self.state.seconds,
            peak_memory_bytes=peak_memory_bytes(self.learner.device),
            stopped_early=self.state.step < len(self.plan.batches),
        )

    def _step(self, batch: Sequence[int]) -> tuple[Tensor, int]:
        """One optimiser step; the loss is the mean over the batch's label tokens.

        Returns:
            The summed loss and the number of label tokens.
        """
        members = [self.encoded[i] for i in batch]
        labels = sum(e.label_count for e in members)
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=self.learner.device)
        with self.learner.active():
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            for indices in fill_rows((len(e.ids) for e in members), _ROW_TOKENS):
                row = pack([members[i] for i in indices], self.learner.device)
                hidden = self.learner.hidden_states(row)[row.predicting]
                loss = summed_cross_entropy(hidden, self.learner.output_head(), row.targets)
                (loss / labels).backward()
                summed += loss.detach()
        if not bool(torch.isfinite(summed)):
            raise NonFiniteError(
                f"the loss of training {self.name} became NaN at step {self.state.step + 1}",
                "lower training.learning_rate",
            )
        if self.job.recipe.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.job.recipe.grad_clip)
        self.optimizer.step()
        return summed, labels

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.job.recipe, self.state.step, len(self.plan.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _evaluate(self, step: int, train_loss: float | None = None) -> None:
        """Scores the validation set, keeps the adapter if it is the best, commits the state."""
        loss = None
        if self.job.validation:
            scores = self.learner.score(self.job.validation)
            loss = -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)
        point = CurvePoint(
            step=step,
            epoch=step / self.plan.steps_per_epoch,
            tokens=self.plan.tokens[step - 1] if step else 0,
            train_loss=train_loss,
            validation_loss=loss,
            seconds=self.state.seconds,
        )
        self.state.add(point)
        config = plain_config(self.learner.model.peft_config[_TRAINED])
        self.folder.commit(self.state, self._weights(), self._moments(), config)
        self.emit(
            Evaluated(
                self.name, step, point.epoch, point.tokens, train_loss, loss, point.seconds
            )
        )

    def _exhausted(self) -> bool:
        """Whether patience has run out."""
        waited = len(self.state.curve) - 1 - self.state.best
        return bool(self.job.validation) and 0 < self.job.patience <= waited

    def _note(self) -> str:
        point = self.state.curve[-1]
        loss = point.validation_loss if point.validation_loss is not None else point.train_loss
        return "" if loss is None else f"loss {loss:.3f}"

    def _weights(self) -> dict[str, Tensor]:
        """The adapter under PEFT's file names."""
        return {n.replace(f".{_TRAINED}.", "."): p.detach() for n, p in self.parameters.items()}

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
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name.replace(f".{_TRAINED}.", ".")])
        for name, parameter in self.parameters.items():
            saved: dict[str, Any] = {
                key.split(":", 1)[0]: value
                for key, value in moments.items()
                if key.split(":", 1)[1] == name
            }
            if saved:
                self.optimizer.state[parameter] = saved


def learning_rate(recipe: LoraRecipe, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) out of `steps`: linear warm-up, then the schedule."""
    warmup = round(recipe.warmup_ratio * steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    left = 1 - (step - warmup) / max(1, steps - warmup)
    if recipe.schedule == "linear":
        return recipe.learning_rate * left
    cosine = 0.5 * (1 - float(torch.cos(torch.tensor(torch.pi * left))))
    return recipe.learning_rate * cosine
