"""The adapters that texts are written under: read once, kept while there is room.

Takes the parts of a request (experts on disk, temporary experts in memory) and gives a *mix*:
matrices A and s·B of each with its weight, so that a linear layer gives

    y = x Wᵀ + Σ_i w_i (x A_i)(s_i B_i)

which is what PEFT's ``add_weighted_adapter`` computes with ``combination_type="cat"``. Mixes share
their adapters; nothing is concatenated. An adapter that a text needs stays; of the others the
least recently used go first.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aios.backends.adapter_files import ADAPTER_WEIGHTS, adapter_ref, read_adapter
from aios.backends.devices import memory_errors
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.banked_lm import BankedLM
from aios.backends.trials.lora_bank import Site, find_sites
from aios.core.errors import AdapterMismatchError, BackendError, ModelError, StorageError
from aios.core.serving import Part
from aios.core.types import AdapterRef

_WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_LEAST_RANK = 2  # a product with a single column has other sums alone than beside others
Matrices = dict[str, tuple[Tensor, Tensor]]


@dataclass(eq=False, slots=True)
class Adapter:
    """An adapter's matrices in memory.

    Attributes:
        key: Its digest.
        rank: r, the largest of its layers.
        matrices: A ``[in, r]`` and s·B ``[r, out]`` by the layers' names.
        bytes: Memory that they take.
        users: Mixes in use that hold it.
    """

    key: str
    rank: int
    matrices: Matrices
    bytes: int
    users: int = 0

    @classmethod
    def of(cls, key: str, pairs: Matrices) -> Adapter:
        """An adapter whose layers may have different ranks: they are padded with zeros.

        Raises:
            ModelError: A number is not finite.
        """
        rank = max([_LEAST_RANK, *(a.shape[1] for a, _ in pairs.values())])
        matrices = {}
        for name, (a, b) in pairs.items():
            more = rank - a.shape[1]
            if more:
                a = torch.cat([a, a.new_zeros(len(a), more)], dim=1)
                b = torch.cat([b, b.new_zeros(more, b.shape[1])])
            matrices[name] = a.contiguous(), b.contiguous()
        tensors = [t for pair in matrices.values() for t in pair]
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise ModelError(
                f"adapter {key[:12]} holds numbers that are not finite", "train it again"
            )
        return cls(key, rank, matrices, sum(t.numel() * t.element_size() for t in tensors))


@dataclass(eq=False, slots=True)
class Mix:
    """What writes a text: adapters with their weights, by rank and digest; none: the base model.

    Attributes:
        members: Adapters with weights.
        attached: Adapters that PEFT has on the model and that are not read yet: digest, PEFT's
            name and weight.
    """

    members: list[tuple[Adapter, float]]
    attached: list[tuple[str, str, float]]

    @property
    def key(self) -> tuple[tuple[str, float], ...]:
        """Equal keys write the same texts."""
        return tuple((adapter.key, weight) for adapter, weight in self.members)


class AdapterShelf:
    """Adapters that are in use, or were of late.

    Args:
        model: The base model.
        max_bytes: Most memory for adapters; those in use may take more.
    """

    def __init__(self, model: TorchLM, max_bytes: int) -> None:
        self._model = model.view(None)
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()
        weight = next(iter(model.model.parameters()))
        self._device, self._dtype = weight.device, weight.dtype
        self._sites: dict[str, Site] = {}
        with self._model.active() as module:
            try:
                self._sites = {site.name: site for site in find_sites(module, 1)}
            except ModelError:  # it has no layer for an adapter: it can write without
                return
        weight = next(iter(self._sites.values())).module.weight
        self._device, self._dtype = weight.device, weight.dtype

    @property
    def sites(self) -> Mapping[str, Site]:
        """The layers that adapters can be on, by name."""
        return self._sites

    @property
    def bytes(self) -> int:
        """Memory of all adapters that are kept."""
        with self._lock:
            return sum(adapter.bytes for adapter in self._kept.values())

    def take(self, parts: Sequence[Part]) -> Mix:
        """The mix of some parts, to be given back by `put_back`; from any thread.

        Raises:
            AdapterMismatchError: One is of another base model.
            ModelError: One is damaged, or of a kind that cannot be served.
            StorageError: One cannot be read, or is not the file that its digest names.
            BackendError: A temporary one was released.
        """
        mix = Mix([], [])
        try:
            for part in parts:
                if part.weight and math.isfinite(part.weight):
                    self._add_part(mix, part)
                elif part.weight:
                    raise BackendError(f"an adapter's weight is {part.weight}")
        except BaseException:
            self.put_back(mix)
            raise
        mix.members.sort(key=_order)
        return mix

    def complete(self, mix: Mix) -> None:
        """Reads what PEFT has on the model; only while nobody else uses the model.

        Raises:
            BackendError: It has been taken off.
        """
        while mix.attached:
            digest, name, weight = mix.attached.pop()
            self._join(mix, digest, weight, lambda name=name: self._attached(name))  # type: ignore[misc]
        mix.members.sort(key=_order)

    def put_back(self, mix: Mix) -> None:
        """The mix is no longer in use; from any thread, once a mix."""
        with self._lock:
            for adapter, _ in mix.members:
                adapter.users -= 1
            self._evict()

    # ------------------------------------------------------------ a part

    def _add_part(self, mix: Mix, part: Part) -> None:
        adapter = part.adapter
        if isinstance(adapter, AdapterRef):
            self._require_own(adapter)
            self._join(mix, adapter.digest, part.weight, lambda: self._read(adapter))
        elif isinstance(adapter, BankedLM) and adapter.digest == self._model.digest:
            if adapter.released:
                raise BackendError("the temporary expert has been released", "train it again")
            self._join(mix, adapter.adapter_digest, part.weight, adapter.matrices)
            if adapter.adapter is not None:
                mix.attached.append((adapter.expert_digest, adapter.adapter, part.weight))
        else:
            raise AdapterMismatchError(
                f"a temporary expert is of another model than {self._model.name}",
                "train it on the model that writes",
            )

    def _join(self, mix: Mix, key: str, weight: float, read: Callable[[], Matrices]) -> None:
        """Adds an adapter to a mix; what is in it already gets more weight."""
        for place, (adapter, before) in enumerate(mix.members):
            if adapter.key == key:
                mix.members[place] = adapter, before + weight
                return
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._use(mix, known, weight)
                return
        with memory_errors("load an adapter"):
            made = Adapter.of(key, read())
        with self._lock:  # another thread may have read it too: one stays
            self._use(mix, self._kept.setdefault(key, made), weight)
            self._evict()

    def _use(self, mix: Mix, adapter: Adapter, weight: float) -> None:
        adapter.users += 1
        self._kept.move_to_end(adapter.key)
        mix.members.append((adapter, weight))

    def _evict(self) -> None:
        total = sum(adapter.bytes for adapter in self._kept.values())
        for key in [key for key, adapter in self._kept.items() if not adapter.users]:
            if total <= self._max_bytes:
                return
            total -= self._kept.pop(key).bytes

    # ------------------------------------------------------------ reading

    def _require_own(self, adapter: AdapterRef) -> None:
        if adapter.base_digest != self._model.digest:
            raise AdapterMismatchError(
                f"adapter {adapter.path} was trained on another base model "
                f"({adapter.base_digest[:12]}) than {self._model.name} "
                f"({self._model.digest[:12]})",
                "load the base model that it was trained on",
            )

    def _read(self, adapter: AdapterRef) -> Matrices:
        """An expert's matrices from disk."""
        if not (adapter.path / ADAPTER_WEIGHTS).is_file():
            raise StorageError(
                f"there is no adapter in {adapter.path}", f"{ADAPTER_WEIGHTS} is missing"
            )
        config, weights = read_adapter(adapter.path)
        if adapter_ref(adapter.path, adapter.base_digest).digest != adapter.digest:
            raise StorageError(
                f"{adapter.path / ADAPTER_WEIGHTS} is not the file that was trained",
                "train the expert again, or restore the file from a copy",
            )
        return self._matrices(adapter.path, config, weights)

    def _matrices(
        self, path: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> Matrices:
        """The weights of an adapter folder, by layer, scaled."""
        pairs: dict[str, dict[str, Tensor]] = {}
        for name, tensor in weights.items():
            found = _WEIGHT.fullmatch(name)
            if found is None or found[1] not in self._sites:
                raise AdapterMismatchError(
                    f"adapter {path} changes {name}, where {self._model.name} takes no adapter",
                    "use an adapter of its linear layers alone, but the output layer",
                )
            pairs.setdefault(found[1], {})[found[2]] = tensor
        matrices = {}
        for name, pair in pairs.items():
            site = self._sites[name]
            rank = int(_by_pattern(config.get("rank_pattern"), name, config["r"]))
            a, b = pair.get("A"), pair.get("B")
            shapes = (None if a is None else tuple(a.shape), None if b is None else tuple(b.shape))
            if a is None or b is None or shapes != ((rank, site.inputs), (site.outputs, rank)):
                raise AdapterMismatchError(
                    f"adapter {path} does not fit {self._model.name}: {name} has matrices "
                    f"{shapes[0]} and {shapes[1]} at rank {rank}, and is {site.inputs} wide and "
                    f"{site.outputs} high",
                    "load the base model that it was trained on",
                )
            alpha = float(_by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            matrices[name] = self._placed(a, b, scale)
        return matrices

    def _attached(self, name: str) -> Matrices:
        """The matrices of an adapter that PEFT has on the model."""
        matrices = {}
        for path, module in self._model.model.named_modules():
            a, b = getattr(module, "lora_A", {}), getattr(module, "lora_B", {})
            site = path.removeprefix("base_model.model.")
            if name in a and name in b and site in self._sites:
                matrices[site] = self._placed(
                    a[name].weight.detach(), b[name].weight.detach(), module.scaling[name]
                )
        if not matrices:
            raise BackendError(
                "the adapter of a temporary expert has been taken off the model",
                "attach it again, and train the temporary expert on that",
            )
        return matrices

    def _placed(self, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """PEFT's matrices (``[r, in]``, ``[out, r]``) as ours, copied."""
        scaled = (b.float() if b.dtype.itemsize < torch.float32.itemsize else b) * scale
        return tuple(t.T.to(self._device, self._dtype, copy=True) for t in (a, scaled))  # type: ignore[return-value]


def _order(member: tuple[Adapter, float]) -> tuple[int, str]:
    return member[0].rank, member[0].key


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """A layer's own rank or alpha: that of the first pattern that its name ends with."""
    for pattern, value in (patterns or {}).items():
        if name == pattern or name.endswith(f".{pattern}"):
            return value
    return default
