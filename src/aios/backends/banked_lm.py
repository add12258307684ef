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

from aios.backends.adapter_rows import export_row
from aios.backends.lora_bank import LoraBank, Site
from aios.backends.torch_lm import TorchLM
from aios.core.errors import BackendError, UsageError
from aios.core.types import AdapterRef

if TYPE_CHECKING:
    from aios.backends.trial_bench import TorchTrialBench


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

    def release(self) -> None:
        """Frees the adapter."""
        self._row, self._layers = None, []


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
