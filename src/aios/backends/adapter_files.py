"""Adapter folders: PEFT layout, training checkpoints, and reading them back safely.

A training's folder holds, when finished, ``adapter_config.json`` and
``adapter_model.safetensors`` (PEFT's layout, of the best checkpoint), and ``training.json`` (the
learning curve). While it runs, ``checkpoints/step-<n>/`` holds weights, optimiser moments and
counters: the newest ones and those of the best evaluation. Only safetensors and JSON are ever
read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aios.core.errors import ModelError, StorageError, UsageError
from aios.core.files import (
    atomic_write_bytes,
    atomic_write_json,
    encode_json,
    guarded,
    read_bytes,
    read_json,
)
from aios.core.folders import atomic_folder
from aios.core.trainings import CurvePoint, TrainingJob
from aios.core.types import AdapterRef, content_hash

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINING_RECORD = "training.json"
_MOMENTS = "moments.safetensors"
_STATE = "state.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_MAX_RANK = 4096
_PLAIN_NAME = re.compile(r"[\w.-]+")
_READ_KEYS = frozenset(
    "r lora_alpha target_modules use_rslora rank_pattern alpha_pattern fan_in_fan_out".split()
)
_OTHER_FORWARD = (  # with these an adapter computes something else than W + B A
    "use_dora use_qalora use_bdlora lora_bias modules_to_save layer_replication target_parameters "
    "trainable_token_indices layers_to_transform layers_pattern alora_invocation_tokens "
    "arrow_config monteclora_config velora_config kasa_config".split()
)
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others change W


@dataclass(slots=True)
class TrainingState:
    """Where a training stands.

    Attributes:
        step: Optimiser steps done.
        seconds: Training time so far.
        curve: Evaluations so far.
        best: Index in `curve` of the best.
        loss_sum: Summed loss since the last evaluation.
        loss_tokens: Label tokens that it is over.
    """

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    best: int = 0

    def add(self, point: CurvePoint) -> None:
        """Appends an evaluation; the best is the lowest validation loss, or the last without."""
        self.curve.append(point)
        self.loss_sum, self.loss_tokens = 0.0, 0
        loss, best = point.validation_loss, self.best_point().validation_loss
        if loss is None or best is None or loss < best:
            self.best = len(self.curve) - 1

    def best_point(self) -> CurvePoint:
        """The best evaluation."""
        return self.curve[self.best]


class AdapterFolder:
    """The folder of one training.

    Args:
        job: The training; a checkpoint of another job is refused.
        base_digest: Digest of the base model.
    """

    def __init__(self, job: TrainingJob, base_digest: str) -> None:
        self.root = job.output_dir
        self.base_digest = base_digest
        self.fingerprint = content_hash(
            "training",
            base_digest,
            asdict(job.recipe),
            [asdict(e) for e in job.examples],
            [asdict(v) for v in job.validation],
            job.seed,
            job.max_tokens,
            job.max_steps,
            job.evaluations_per_epoch,
            job.evaluate_every_tokens,
            job.patience,
            *([job.initial.digest] if job.initial is not None else []),
        )

    @property
    def _checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def _checkpoint(self, step: int) -> Path:
        return self._checkpoints / f"step-{step:07d}"

    def start_over(self) -> None:
        """Removes what an earlier training left here.

        Raises:
            StorageError: The folder cannot be written.
        """
        with guarded("empty", self.root):
            if self._checkpoints.exists():
                shutil.rmtree(self._checkpoints)
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING_RECORD):
                (self.root / name).unlink(missing_ok=True)

    def commit(
        self,
        state: TrainingState,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        config: dict[str, Any],
    ) -> None:
        """Writes a checkpoint, whole or not at all, and drops those no longer needed.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        with guarded("make", self._checkpoints):
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        files = {
            ADAPTER_WEIGHTS: _safetensors(weights),
            _MOMENTS: _safetensors(moments),
            ADAPTER_CONFIG: encode_json(config, indent=2),
            _STATE: encode_json({"fingerprint": self.fingerprint, **asdict(state)}, indent=2),
        }
        with atomic_folder(self._checkpoint(state.step)) as folder:
            for name, data in files.items():
                with guarded("write", folder / name):  # synced when the folder is published
                    (folder / name).write_bytes(data)
        needed = {self._checkpoint(state.step), self._checkpoint(state.best_point().step)}
        for folder in self._checkpoints.glob("step-*"):
            if folder not in needed:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)

    def restore(self) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]] | None:
        """The newest checkpoint, or None where there is none.

        Raises:
            UsageError: It belongs to a training with other data or settings.
            StorageError: It is damaged.
        """
        folders = sorted(self._checkpoints.glob("step-*"))
        if not folders:
            return None
        folder = folders[-1]
        state = self._state(folder / _STATE, read_json(folder / _STATE))
        try:
            weights = _tensors(folder / ADAPTER_WEIGHTS)
            return state, weights, _tensors(folder / _MOMENTS)
        except SafetensorError as error:
            raise _damaged(folder, error) from error

    def finish(self, state: TrainingState) -> AdapterRef:
        """Puts the best checkpoint's adapter and the learning curve into the folder.

        The checkpoints, which are no longer needed, are removed.
        """
        best = self._checkpoint(state.best_point().step)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            atomic_write_bytes(self.root / name, read_bytes(best / name, _MAX_WEIGHTS_BYTES))
        adapter = adapter_ref(self.root, self.base_digest)
        record = {
            "base_digest": self.base_digest,
            "adapter_digest": adapter.digest,
            "best_step": state.best_point().step,
            "fingerprint": self.fingerprint,
            **asdict(state),
        }
        atomic_write_json(self.root / TRAINING_RECORD, record)
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        return adapter

    def finished(self) -> tuple[TrainingState, AdapterRef] | None:
        """The outcome of this training if it ran to its end, or None.

        Raises:
            UsageError: What is there is of a training with other data or settings.
            StorageError: It is damaged.
        """
        record = read_json(self.root / TRAINING_RECORD, default=None)
        if record is None:
            return None
        state = self._state(self.root / TRAINING_RECORD, record)
        try:
            adapter = adapter_ref(self.root, self.base_digest)
        except ModelError as error:
            raise _damaged(self.root, error) from error
        if adapter.digest != record.get("adapter_digest"):
            raise _damaged(self.root, "the adapter is not the one that was trained")
        return state, adapter

    def _state(self, path: Path, record: Any) -> TrainingState:
        """The state in a record of ours, which must be of this training."""
        if not isinstance(record, dict) or record.get("fingerprint") != self.fingerprint:
            raise UsageError(
                f"what is in {path.parent} is of a training with other data or settings",
                "start over with --overwrite, or resume with the settings of before",
            )
        try:
            state = TrainingState(**{f.name: record[f.name] for f in fields(TrainingState)})
            state.curve = [CurvePoint(**point) for point in record["curve"]]
        except (TypeError, KeyError) as error:
            raise _damaged(path, error) from error
        return state


def adapter_ref(folder: Path, base_digest: str) -> AdapterRef:
    """Describes the adapter in a folder.

    Raises:
        ModelError: There is none.
    """
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ModelError(f"there is no adapter in {folder}", f"{ADAPTER_WEIGHTS} is missing")
    state = hashlib.sha256()
    with guarded("read", weights), weights.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return AdapterRef(path=folder, digest=state.hexdigest(), base_digest=base_digest)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads an adapter, maybe one from outside: only LoRA, only known keys, only safetensors.

    Returns:
        Arguments for `peft.LoraConfig`, and the weights by PEFT's names.

    Raises:
        ModelError: It is not a LoRA adapter of a kind that can be attached, or is damaged.
    """
    try:
        config = read_json(folder / ADAPTER_CONFIG, max_bytes=_MAX_CONFIG_BYTES)
        weights = _tensors(folder / ADAPTER_WEIGHTS)
    except (StorageError, SafetensorError) as error:
        raise ModelError(
            f"cannot read the adapter in {folder}: {getattr(error, 'message', error)}",
            "train it again, or restore it from a copy",
        ) from error
    return _checked_config(folder, config), weights


def _checked_config(folder: Path, config: Any) -> dict[str, Any]:
    """The keys of an adapter's configuration that we read, all of a plain kind."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} does not hold a LoRA adapter", "only LoRA is supported")
    odd = [key for key in _OTHER_FORWARD if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        odd.append("init_lora_weights")
    if odd:
        raise ModelError(
            f"the adapter in {folder} uses {', '.join(odd)}, which is not supported",
            "use a plain LoRA adapter",
        )
    read = {key: value for key, value in config.items() if key in _READ_KEYS}
    targets = read.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets
    ranks, scales = (read.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    plain = (
        isinstance(names, list)
        and isinstance(ranks, dict)
        and isinstance(scales, dict)
        and all(_is_plain(name) for name in (*names, *ranks, *scales))
        and all(type(r) is int and 1 <= r <= _MAX_RANK for r in (read.get("r"), *ranks.values()))
        and all(type(a) in (int, float) for a in (read.get("lora_alpha"), *scales.values()))
    )
    if not plain:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} holds ranks, scales or module names of an unknown kind",
            "use an adapter that PEFT or AI-OS has saved",
        )
    return {**read, "task_type": "CAUSAL_LM"}


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def plain_config(config: Any, base_name: str) -> dict[str, Any]:
    """A `peft.LoraConfig` as the JSON object that PEFT writes, sets sorted.

    Args:
        config: The configuration.
        base_name: The base model's name, in place of the path that it was loaded from.
    """
    values = {
        **config.to_dict(),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values, default=_json_value))
    return plain


def _json_value(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _damaged(path: Path, reason: object) -> StorageError:
    return StorageError(
        f"the training in {path} is damaged: {reason}",
        "start over with --overwrite, or restore it from a copy",
    )


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    data: bytes = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    return data


def _tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        SafetensorError: It is damaged.
        StorageError: It is missing or too large.
    """
    tensors: dict[str, Tensor] = load(read_bytes(path, _MAX_WEIGHTS_BYTES))
    return tensors
