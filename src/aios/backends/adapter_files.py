"""Adapter folders: PEFT layout, training checkpoints, and reading them back safely.

A training's folder holds, when finished, ``adapter_config.json`` and
``adapter_model.safetensors`` (PEFT's layout, of the best checkpoint), and ``training.json`` (the
learning curve). While it runs, ``checkpoints/step-<n>/`` holds weights, optimiser moments and
counters: the last evaluation's and the best one's. Only safetensors and JSON are ever read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from aios.core.errors import ModelError, StorageError, UsageError
from aios.core.files import atomic_write_bytes, atomic_write_json, read_bytes, read_json
from aios.core.folders import atomic_folder
from aios.core.types import AdapterRef, CurvePoint, TrainingJob, content_hash

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINING_RECORD = "training.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_CONFIG_KEYS = frozenset(
    "r lora_alpha lora_dropout target_modules task_type bias use_rslora rank_pattern "
    "alpha_pattern base_model_name_or_path".split()
)


@dataclass(slots=True)
class TrainingState:
    """Where a training stands.

    Attributes:
        step: Optimiser steps done.
        seconds: Training time so far.
        curve: Evaluations so far.
        best: Index in `curve` of the best.
    """

    step: int = 0
    seconds: float = 0.0
    curve: list[CurvePoint] = field(default_factory=list)
    best: int = 0

    def add(self, point: CurvePoint) -> None:
        """Appends an evaluation; the best is the lowest validation loss, or the last without."""
        self.curve.append(point)
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
        )

    @property
    def _checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def _checkpoint(self, step: int) -> Path:
        return self._checkpoints / f"step-{step:07d}"

    def start_over(self) -> None:
        """Removes what an earlier training left here."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING_RECORD):
            (self.root / name).unlink(missing_ok=True)

    def commit(
        self,
        state: TrainingState,
        weights: dict[str, Tensor],
        moments: dict[str, Tensor],
        config: dict[str, Any],
    ) -> None:
        """Writes a checkpoint, whole or not at all, and drops those no longer needed."""
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        with atomic_folder(self._checkpoint(state.step)) as folder:
            atomic_write_bytes(folder / ADAPTER_WEIGHTS, _tensors(weights))
            atomic_write_bytes(folder / "moments.safetensors", _tensors(moments))
            atomic_write_json(folder / ADAPTER_CONFIG, config)
            atomic_write_json(
                folder / "state.json",
                {
                    "fingerprint": self.fingerprint,
                    "step": state.step,
                    "seconds": state.seconds,
                    "curve": [asdict(p) for p in state.curve],
                    "best": state.best,
                },
            )
        needed = {self._checkpoint(state.step), self._checkpoint(state.best_point().step)}
        for folder in self._checkpoints.glob("step-*"):
            if folder not in needed:
                shutil.rmtree(folder, ignore_errors=True)

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
        record = read_json(folder / "state.json")
        if record.get("fingerprint") != self.fingerprint:
            raise UsageError(
                f"the checkpoint in {self._checkpoints} is of a training with other data or "
                "settings",
                "start over with --overwrite, or resume with the settings of before",
            )
        state = TrainingState(
            step=record["step"],
            seconds=record["seconds"],
            curve=[CurvePoint(**p) for p in record["curve"]],
            best=record["best"],
        )
        return state, _load(folder / ADAPTER_WEIGHTS), _load(folder / "moments.safetensors")

    def finish(self, state: TrainingState) -> AdapterRef:
        """Puts the best checkpoint's adapter and the learning curve into the folder."""
        best = self._checkpoint(state.best_point().step)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            atomic_write_bytes(self.root / name, read_bytes(best / name, _MAX_WEIGHTS_BYTES))
        atomic_write_json(
            self.root / TRAINING_RECORD,
            {
                "base_digest": self.base_digest,
                "fingerprint": self.fingerprint,
                "best_step": state.best_point().step,
                "curve": [asdict(p) for p in state.curve],
            },
        )
        return adapter_ref(self.root, self.base_digest)


def discard_checkpoints(output_dir: Path) -> None:
    """Removes the checkpoints of a training that is finished and needs no resuming."""
    shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)


def adapter_ref(folder: Path, base_digest: str) -> AdapterRef:
    """Describes the adapter in a folder.

    Raises:
        ModelError: There is none.
    """
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ModelError(f"there is no adapter in {folder}", f"{ADAPTER_WEIGHTS} is missing")
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
    return AdapterRef(path=folder, digest=digest.hexdigest(), base_digest=base_digest)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads an adapter from outside: only LoRA, only known keys, only safetensors.

    Returns:
        Arguments for `peft.LoraConfig`, and the weights by PEFT's names.

    Raises:
        ModelError: It is not a LoRA adapter, or is damaged.
    """
    try:
        config = read_json(folder / ADAPTER_CONFIG, max_bytes=_MAX_CONFIG_BYTES)
    except StorageError as error:
        raise ModelError(f"cannot read the adapter in {folder}: {error.message}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} does not hold a LoRA adapter", "only LoRA is supported")
    return {k: v for k, v in config.items() if k in _CONFIG_KEYS}, _load(folder / ADAPTER_WEIGHTS)


def plain_config(config: Any) -> dict[str, Any]:
    """A `peft.LoraConfig` as the JSON object that PEFT writes, sets sorted."""
    plain: dict[str, Any] = json.loads(
        json.dumps({**config.to_dict(), "inference_mode": True}, default=_json_value)
    )
    return plain


def _json_value(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _tensors(tensors: dict[str, Tensor]) -> bytes:
    data: bytes = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    return data


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is damaged or missing: {error}", "train again, or restore it from a backup"
        ) from error
    return tensors
