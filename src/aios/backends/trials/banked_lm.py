"""A language model with one temporary adapter, which lives in memory only.

It scores and writes as any `TorchLM` on the same weights; for the time of each call the base
model's linear layers add the adapter's part. Nothing is put on the base model for longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from aios.backends.torch_lm import TorchLM
from aios.backends.trials.adapter_rows import export_row
from aios.backends.trials.lora_bank import LoraBank, Site
from aios.core.errors import AdapterMismatchError, BackendError, UsageError
from aios.core.types import AdapterRef

if TYPE_CHECKING:
    from aios.backends.trials.bench import TorchTrialBench


class BankedLM(TorchLM):
    """A base model, or an expert, with a row of adapter weights over it.

    Args:
        base: What the adapter was trained on.
        bank: A bank of the adapter's shape; only its shape is used.
        row: The adapter's weights, ``[P]``.
    """

    def __init__(self, base: TorchLM, bank: LoraBank, row: Tensor) -> None:
        self.__dict__.update(base.__dict__)
        self._bank = bank
        self._row: Tensor | None = row
        self._layers = _layers(bank, row)
        self._own_digest = ""

    @property
    def adapter_digest(self) -> str:
        """Digest of the adapter's weights and of the expert's that it is over."""
        if not self._own_digest and self._row is not None:
            state = hashlib.sha256(f"{self._adapter_digest} {self._bank.scale}".encode())
            state.update(self._row.detach().cpu().numpy().tobytes())
            self._own_digest = state.hexdigest()
        return self._own_digest

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The base module with the adapter on it; must not be nested."""
        if self._row is None:
            raise BackendError("the temporary expert has been released", "train it again")
        with super().active() as model:
            for site, forward in self._layers:
                site.module.forward = forward  # type: ignore[method-assign, assignment]
            try:
                yield model
            finally:
                for site, _ in self._layers:
                    del site.module.forward  # the class's own is found again

    def trial_bench(self) -> TorchTrialBench:
        """No adapter can be trained over one that lives in memory only.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "no adapter can be trained on a temporary expert",
            "export it, attach the adapter to the base model, and train on that",
        )

    def export(self, folder: Path) -> AdapterRef:
        """Writes the adapter in PEFT layout; see `core.protocols.TemporaryExpert.export`."""
        if self._row is None:
            raise BackendError("the temporary expert has been released", "train it again")
        if self._adapter is not None:
            raise UsageError(
                "a temporary adapter over an expert cannot be exported: it needs that expert",
                "train it on the base model",
            )
        return export_row(
            self._bank, self._row, folder, base_name=self.name, base_digest=self.digest
        )

    def copy_row(self, base: TorchLM, bank: LoraBank) -> Tensor:
        """A copy of the adapter's weights, ``[P]``, for a training that starts from them.

        Args:
            base: What the training is over.
            bank: A bank of the training's shape.

        Raises:
            AdapterMismatchError: The adapter has another shape, or is over another model.
            BackendError: It has been released.
        """
        if self._row is None:
            raise BackendError("the temporary expert has been released", "train it again")
        own, wanted = _shape(self._bank), _shape(bank)
        if own != wanted or (self.digest, self._adapter) != (base.digest, base.adapter):
            raise AdapterMismatchError(
                "a training cannot start from a temporary expert of another shape or over another "
                f"model: (rank, alpha, trunk layers) {own} over {self.name}, and {wanted} over "
                f"{base.name}",
                "train with the same rank and alpha over the same model, or start anew",
            )
        return self._row.detach().clone()

    @property
    def released(self) -> bool:
        """Whether it cannot be used any more."""
        return self._row is None

    @property
    def expert_digest(self) -> str:
        """Digest of the adapter that it was trained over, PEFT's `adapter`; empty without one."""
        return self._adapter_digest

    def matrices(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapter by layer: A ``[in, r]`` and s·B ``[r, out]``, in the base model's dtype.

        What it was trained over is not in them.

        Raises:
            BackendError: It has been released.
        """
        if self._row is None:
            raise BackendError("the temporary expert has been released", "train it again")
        row = self._row.detach()[None]
        pairs = {site.name: self._bank.views(row, site, 1) for site in self._bank.sites}
        dtype, scale = self._bank.dtype, self._bank.scale
        return {name: (a[0].to(dtype), (b[0] * scale).to(dtype)) for name, (a, b) in pairs.items()}

    def release(self) -> None:
        """Frees the adapter."""
        self._row, self._layers = None, []


def _shape(bank: LoraBank) -> tuple[int, int, int]:
    return bank.rank, bank.alpha, bank.trunk_layers


def _layers(bank: LoraBank, row: Tensor) -> list[tuple[Site, Callable[[Tensor], Tensor]]]:
    """Each layer with its forward: ``y = x Wᵀ + s (x A) B``."""
    weights = row.to(bank.dtype)[None]
    made = []
    for site in bank.sites:
        a, b = (matrix[0] for matrix in bank.views(weights, site, 1))
        made.append((site, _forward(site, a, b, bank.scale)))
    return made


def _forward(site: Site, a: Tensor, b: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    ordinary = type(site.module).forward

    def forward(x: Tensor) -> Tensor:
        y: Tensor = ordinary(site.module, x)
        return y.add_((x @ a) @ b, alpha=scale)

    return forward
