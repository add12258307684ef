"""Training one LoRA adapter over a frozen base model (PEFT format).

Takes a `TrainingJob`, gives a `TrainingResult`. Differs from the SEAL release
(knowledge-incorporation/src/inner/TTT_server.py), which pads every sequence to 2048 tokens and
lets the padding carry loss: here a step holds real tokens only, packed, and the loss is the mean
over its label tokens.

The whole course of a training follows from the job (`training_plan`), so one that was killed goes
on to the same weights, bit for bit on a CPU (`training_run`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from aios.backends.adapter_files import ADAPTER_WEIGHTS, adapter_ref, read_adapter
from aios.backends.devices import memory_errors, release_memory
from aios.backends.encoding import Encoded, encode
from aios.backends.torch_lm import TorchLM
from aios.backends.training_plan import plan_steps
from aios.backends.training_run import TrainingRun, adapter_parameters, fill
from aios.core.errors import AdapterMismatchError, BackendError, ModelError, StorageError
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seeds import derive
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.types import AdapterRef, LoraRecipe, TrainExample


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
        """Trains one adapter; see `core.protocols.AdapterTrainer.fit`.

        Raises:
            UsageError: A budget is not positive, or the state to resume from is of another job.
            AdapterMismatchError: The adapter to start from does not fit the base model or recipe.
            ModelError: The model is of a kind that cannot be trained, or that adapter is damaged.
        """
        encoded = self._encode(job.examples, job.recipe.max_seq_len)
        usable = [tokens for tokens in encoded if tokens.label_count]
        if not usable:
            raise BackendError("there is nothing to train on: no text has a token with loss")
        if len(usable) < len(encoded):
            left_out = len(encoded) - len(usable)
            emit(Notice(f"{left_out} training texts have no token with loss", "warning"))
        plan = plan_steps(usable, job)
        initial = self._initial(job)
        adapter = self.base.new_adapter_name()
        with memory_errors("train"):
            self._new_adapter(adapter, job.recipe, job.seed)
            try:
                if job.initial is not None:
                    self._fill(adapter, job.initial, initial)
                learner = self.base.view(adapter)
                return TrainingRun(job, usable, plan, learner, emit, should_stop).run()
            finally:
                self._drop(adapter)

    def attach(self, adapter: AdapterRef) -> LanguageModel:
        """The base model with an adapter from disk on it.

        Raises:
            AdapterMismatchError: It was trained on another base model, or does not fit this one.
            ModelError: It is damaged, or of a kind that is not supported.
            StorageError: The file is not the one that its digest names.
        """
        config, weights = self._read(adapter)
        name = self.base.new_adapter_name()
        with ExitStack() as on_failure, memory_errors("attach an adapter"):
            on_failure.callback(self._drop, name)
            try:
                self._add(name, LoraConfig(**config))
            except ValueError as error:
                raise self._unfit(adapter, error) from error
            self._fill(name, adapter, weights)
            on_failure.pop_all()
        return self.base.view(name, adapter.digest)

    def detach(self, model: LanguageModel) -> None:
        """Frees an attached adapter; any other model is left as it is."""
        if isinstance(model, TorchLM) and model.adapter is not None:
            self._drop(model.adapter)

    def _read(self, adapter: AdapterRef) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights of an adapter from disk that is for this base model."""
        if adapter.base_digest != self.base.digest:
            raise AdapterMismatchError(
                f"adapter {adapter.path} was trained on another base model "
                f"({adapter.base_digest[:12]}) than {self.base.name} ({self.base.digest[:12]})",
                "load the base model that it was trained on",
            )
        config, weights = read_adapter(adapter.path)
        if adapter_ref(adapter.path, adapter.base_digest).digest != adapter.digest:
            raise StorageError(
                f"{adapter.path / ADAPTER_WEIGHTS} is not the file that was trained",
                "train the expert again, or restore the file from a copy",
            )
        return config, weights

    def _initial(self, job: TrainingJob) -> dict[str, Tensor]:
        """The weights that a training starts from; none for a new adapter."""
        if job.initial is None:
            return {}
        config, weights = self._read(job.initial)
        wanted = (job.recipe.rank, job.recipe.alpha)
        plain = not any(config.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora"))
        if not plain or (config["r"], config["lora_alpha"]) != wanted:
            raise AdapterMismatchError(
                f"adapter {job.initial.path} has rank {config['r']} and alpha "
                f"{config['lora_alpha']}; the training that is to start from it has rank "
                f"{wanted[0]} and alpha {wanted[1]}",
                "train with the same rank and alpha, or start from the base model",
            )
        return weights

    def _fill(self, name: str, adapter: AdapterRef, weights: Mapping[str, Tensor]) -> None:
        """Gives an adapter on the model the weights of one from disk."""
        try:
            fill(adapter_parameters(self.base.model, name), weights)
        except ValueError as error:
            raise self._unfit(adapter, error) from error

    def _unfit(self, adapter: AdapterRef, error: ValueError) -> AdapterMismatchError:
        return AdapterMismatchError(
            f"adapter {adapter.path} does not fit {self.base.name}: {error}",
            "load the base model that it was trained on",
        )

    def _encode(self, examples: Sequence[TrainExample], longest: int) -> list[Encoded]:
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
            encoded.append(tokens)
        return encoded

    def _new_adapter(self, name: str, recipe: LoraRecipe, seed: int) -> None:
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in self.base.model.modules()),
        )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "adapter"))
                self._add(name, config)
        except ValueError as error:
            raise ModelError(f"no adapter fits {self.base.name}: {error}") from error
        if getattr(config, "target_parameters", None):  # PEFT's choice for mixtures of experts
            self._drop(name)
            raise ModelError(
                f"{self.base.name} cannot be trained: it is a mixture of experts",
                "use a dense model",
            )

    def _add(self, name: str, config: PeftConfig) -> None:
        """Puts an adapter on the shared weights, still switched off.

        Raises:
            ValueError: The model has no layers that it fits.
        """
        try:
            if isinstance(self.base.model, PeftModel):
                self.base.model.add_adapter(name, config)
            else:
                with warnings.catch_warnings():  # PEFT asks transformers by an old name
                    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                    self.base.model = get_peft_model(self.base.model, config, adapter_name=name)
        finally:
            self.base.model.requires_grad_(False)
            self.base.model.eval()

    def _drop(self, name: str) -> None:
        model = self.base.model
        if not isinstance(model, PeftModel) or name not in model.peft_config:
            return
        others = [other for other in model.peft_config if other != name]
        if others:
            model.set_adapter(others[0])  # PEFT warns where an active adapter is deleted
            model.delete_adapter(name)
        else:
            self.base.model = model.unload()
        release_memory(self.base.device)
