"""One trial after another with PEFT and transformers' Trainer, as the SEAL release runs them.

Follows knowledge-incorporation/src/inner/TTT_server.py: for each candidate the base model is
scored, an adapter is put on it, trained with batches of one text, scored, and thrown away. Padded,
every text is filled up to 2048 tokens and the padding carries loss, as in the release.

Where this differs from the release, for all contestants alike: adapters are on all linear layers
(the release names none, so PEFT takes query and value), answers are scored by their
log-probability and not written and graded by another model, nothing goes through files or a
server, losses are not logged at every step. The questions of a passage are scored as one batch.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from _trials_data import Candidate, Lesson
from _trials_job import BASELINE, TRAINING, Task, Trial, Turn, wait_for
from _trials_memory import peak_memory, start_watch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from aios.backends.devices import choose_device, keep_freed_memory, prepare_cpu, release_memory
from aios.backends.encoding import IGNORED, encode
from aios.core.data.probes import Probe

ALL_LINEAR = "all-linear"


class SequentialTrials:
    """PEFT and Trainer, one candidate after another.

    Args:
        folder: The model's folder.
        device: A device name.
        dtype: Of the base weights; adapters are as PEFT makes them (float32).
        autocast: Whether products are in bfloat16 where weights are not.
        threads: Of the CPU; None is torch's choice.
        candidates: How many of the first passage's candidates get trials.
        keep_memory: Whether the C library keeps freed memory, as our engine has it do.
        padded: Tokens of every text, if it is padded; then no trial is run to its end.
        steps: Optimiser steps of a turn, if padded.
        targets: Layers with adapters; None is PEFT's choice for the model.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        dtype: str,
        *,
        autocast: bool = False,
        threads: int | None = None,
        candidates: int = 1,
        keep_memory: bool = False,
        padded: int | None = None,
        steps: int = 2,
        targets: str | None = ALL_LINEAR,
    ) -> None:
        self._folder, self._device = folder, choose_device(device)
        self._dtype, self._autocast, self._threads = dtype, autocast, threads
        self._candidates, self._keep_memory = candidates, keep_memory
        self._padded, self._steps, self._targets = padded, steps, targets

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "device": self._device.type,
            "dtype": self._dtype,
            "autocast": self._autocast,
            "freed memory kept": self._keep_memory,
            "padded": self._padded,
            "adapters": self._targets or "query and value",
        }

    def load(self) -> None:
        prepare_cpu(self._threads)
        if self._keep_memory:
            keep_freed_memory()
        warnings.filterwarnings("ignore", category=FutureWarning)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.pad_token
        base: Any = AutoModelForCausalLM.from_pretrained(
            self._folder, local_files_only=True, dtype=getattr(torch, self._dtype)
        )
        self._base = base.to(self._device)
        start_watch(self._device)

    def warm_up(self, task: Task) -> None:
        lesson = task.lessons[0]
        if self._padded is None:
            self._trial(lesson, lesson.candidates[0], task, Turn(), max_steps=2)

    def turn(self, task: Task) -> Turn:
        turn = Turn()
        began = time.perf_counter()
        if self._padded is not None:
            self._padded_steps(task, turn)
        else:
            lesson = task.lessons[0]
            for candidate in lesson.candidates[: self._candidates]:
                self._trial(lesson, candidate, task, turn)
        turn.wall = time.perf_counter() - began
        release_memory(self._device)
        return turn

    def memory(self) -> int:
        return peak_memory(self._device)

    def _trial(
        self, lesson: Lesson, candidate: Candidate, task: Task, turn: Turn, max_steps: int = -1
    ) -> None:
        """A whole trial, its parts timed."""
        began = time.perf_counter()
        before = self._scores(self._base, lesson.questions)
        turn.add(BASELINE, time.perf_counter() - began)
        model, clock = self._trained(lesson, candidate, task, max_steps)
        after = self._scores(model, lesson.questions)
        model.unload()
        turn.add(TRAINING, clock.whole)
        turn.steps += clock.steps
        turn.tokens += task.recipe.epochs * candidate.tokens
        turn.finished += 1
        turn.trials.append(Trial(candidate.id, lesson.passage_id, before, after))

    def _padded_steps(self, task: Task, turn: Turn) -> None:
        """A few steps of a trial; only the steps themselves are timed."""
        lesson = task.lessons[0]
        model, clock = self._trained(lesson, lesson.candidates[0], task, self._steps)
        model.unload()
        turn.seconds[TRAINING] = clock.in_steps
        turn.steps = clock.steps

    def _trained(
        self, lesson: Lesson, candidate: Candidate, task: Task, max_steps: int
    ) -> tuple[Any, _StepClock]:
        """The base model with an adapter trained on a candidate."""
        recipe, seed = task.recipe, task.seed_of(lesson.passage_id)
        torch.manual_seed(seed)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0,
            target_modules=self._targets,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(self._base, config)
        clock = _StepClock(self._device)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=recipe.batch_size,
                    num_train_epochs=recipe.epochs,
                    max_steps=max_steps,
                    learning_rate=recipe.learning_rate,
                    lr_scheduler_type=recipe.schedule,
                    weight_decay=recipe.weight_decay,
                    max_grad_norm=recipe.grad_clip,
                    bf16=self._autocast,
                    use_cpu=self._device.type == "cpu",
                    seed=seed,
                    logging_strategy="no",
                    save_strategy="no",
                    report_to="none",
                    remove_unused_columns=False,
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=self._rows(candidate.texts),
                data_collator=default_data_collator,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            clock.start()
            trainer.train()
            clock.stop()
        model.eval()
        return model, clock

    def _rows(self, texts: Sequence[str]) -> Any:
        """The texts as tokens and labels; padding has labels, as in the release."""
        how: dict[str, Any] = {}
        if self._padded is not None:
            how = {"truncation": True, "max_length": self._padded, "padding": "max_length"}
        rows = []
        for text in texts:
            row = self._tokenizer(text, **how)
            ids, mask = list(row["input_ids"]), list(row["attention_mask"])
            rows.append({"input_ids": ids, "attention_mask": mask, "labels": list(ids)})
        return rows

    def _scores(self, model: Any, questions: Sequence[Probe]) -> tuple[float, ...]:
        """Mean log-probability of a token of each answer: one batch, padded on the right."""
        requests = [question.request for question in questions]
        rows = []
        for request in requests:
            text = request.prompt + request.continuation
            rows.append(encode(self._tokenizer, text, [(len(request.prompt), len(text))]))
        longest = max(len(row.ids) for row in rows)
        pad = self._tokenizer.pad_token_id
        ids = self._tensor([[*row.ids, *[pad] * (longest - len(row.ids))] for row in rows])
        labels = self._tensor(
            [[*row.labels, *[IGNORED] * (longest - len(row.labels))] for row in rows]
        )
        mask = self._tensor([[int(i < len(row.ids)) for i in range(longest)] for row in rows])
        model.eval()
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            wanted = labels[:, 1:]
            carries = wanted != IGNORED
            picked = torch.zeros(wanted.shape, device=self._device)
            log_probabilities = logits[carries].float().log_softmax(-1)
            picked[carries] = log_probabilities.gather(1, wanted[carries][:, None])[:, 0]
            means = picked.sum(1) / carries.sum(1)
        return tuple(means.tolist())

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self._device)


class _StepClock(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Times a training, and the steps in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.whole = self.in_steps = 0.0
        self.steps = 0

    def start(self) -> None:
        wait_for(self._device)
        self._began = time.perf_counter()

    def stop(self) -> None:
        wait_for(self._device)
        self.whole = time.perf_counter() - self._began

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait_for(self._device)
        self.in_steps += time.perf_counter() - self._step_began
        self.steps += 1
