"""Adapter folders from elsewhere: looked at as hostile, and copied file by file.

Takes a folder with ``adapter_config.json`` and ``adapter_model.safetensors``; gives what the
adapter is, from the configuration and the header of the weights alone. Refused are symlinks,
weights as pickles, files over the limits, headers that do not describe their file, and ranks that
the weights do not have. Of the configuration only keys that a plain LoRA needs are passed on.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aios.core.errors import StorageError, UsageError
from aios.core.files import atomic_write_json, atomic_writer, guarded, parse_json

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_MAX_HEADER_BYTES = 16 << 20
_MAX_TENSORS = 100_000
_MAX_FILES = 10_000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_KEPT = "r lora_alpha lora_dropout target_modules fan_in_fan_out use_rslora".split()
_PATTERNS = ("rank_pattern", "alpha_pattern")
_REMEDY = "use a folder that PEFT's save_pretrained or `aios` has written"


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter is.

    Attributes:
        config: Its configuration, as PEFT wrote it.
        rank: LoRA rank r.
        alpha: LoRA scale numerator.
        base_name: Name or path of the base model, as the configuration says.
        modules: Modules that it changes.
        parameters: Numbers in it.
        bytes: Size of the weights.
        digest: SHA-256 of the weights' file.
        ignored: Names of other files in the folder.
    """

    config: Mapping[str, Any]
    rank: int
    alpha: float
    base_name: str
    modules: tuple[str, ...]
    parameters: int
    bytes: int
    digest: str
    ignored: tuple[str, ...]


def inspect_adapter(folder: Path) -> AdapterFacts:
    """Looks at an adapter's folder; no tensor is loaded.

    Raises:
        UsageError: It is no adapter of a kind that is taken in.
        StorageError: It cannot be read.
    """
    names = _names(folder)
    if WEIGHTS_NAME not in names:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        if pickles:
            raise UsageError(
                f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when "
                "loaded",
                "save the adapter again as safetensors: save_pretrained in a recent PEFT does",
            )
        raise UsageError(f"{folder} has no {WEIGHTS_NAME}", _REMEDY)
    config = _config(folder)
    header, size, digest = _header(folder / WEIGHTS_NAME)
    ranks = _ranks(folder, header)
    for module, rank in ranks.items():
        if rank != _rank_of(config, module):
            raise _refused(
                folder, f"{module} has rank {rank}, and {CONFIG_NAME} says {config['r']}"
            )
    return AdapterFacts(
        config=config,
        rank=config["r"],
        alpha=config["lora_alpha"],
        base_name=str(config.get("base_model_name_or_path") or ""),
        modules=tuple(ranks),
        parameters=sum(math.prod(one["shape"]) for one in header.values()),
        bytes=size,
        digest=digest,
        ignored=tuple(name for name in names if name not in (CONFIG_NAME, WEIGHTS_NAME)),
    )


def copy_adapter(folder: Path, target: Path, facts: AdapterFacts, base_name: str) -> None:
    """Copies an adapter that was looked at; of its configuration, what a plain LoRA needs.

    Args:
        folder: Its folder.
        target: An empty folder.
        facts: `inspect_adapter` of it.
        base_name: What the copy names as its base model.

    Raises:
        UsageError: The weights have changed since.
        StorageError: It cannot be read or written.
    """
    with atomic_writer(target / WEIGHTS_NAME) as copy:
        for block in weights_of(folder, facts):
            copy.write(block)
    atomic_write_json(target / CONFIG_NAME, plain_config(facts.config, base_name))


def weights_of(folder: Path, facts: AdapterFacts) -> Iterator[bytes]:
    """The weights of an adapter that was looked at, block by block.

    Raises:
        UsageError: At the end: they have changed since, so what was given is to be thrown away.
        StorageError: They cannot be read.
    """
    digest = hashlib.sha256()
    with _opened(folder / WEIGHTS_NAME) as source:
        for block in _blocks(source):
            digest.update(block)
            yield block
        if digest.hexdigest() != facts.digest:
            raise UsageError(f"{folder / WEIGHTS_NAME} was changed meanwhile", "try again")


def plain_config(config: Mapping[str, Any], base_name: str) -> dict[str, Any]:
    """An adapter's configuration with the keys of a plain LoRA and no others."""
    kept = {key: config[key] for key in (*_KEPT, *_PATTERNS) if config.get(key) is not None}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        **kept,
    }


def _names(folder: Path) -> tuple[str, ...]:
    """The names in a folder.

    Raises:
        UsageError: It is no folder, holds a symlink or too many files.
    """
    with guarded("read", folder):
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}", "check the path")
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise UsageError(
                        f"{folder / entry.name} is a symlink, which is not followed",
                        "copy the file itself into the folder",
                    )
                names.append(entry.name)
                if len(names) > _MAX_FILES:
                    raise UsageError(f"{folder} holds more than {_MAX_FILES:,} files", _REMEDY)
    return tuple(sorted(names))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file of this very name, no symlink and no device."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with guarded("read", path), open(os.open(path, flags), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise UsageError(f"{path} is not a regular file", _REMEDY)
        yield stream


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    size = 0
    while block := stream.read(1 << 20):
        size += len(block)
        if size > _MAX_WEIGHTS_BYTES:
            raise UsageError("the weights of the adapter are larger than 8 GiB", _REMEDY)
        yield block


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        with _opened(path) as stream:
            data = stream.read(_MAX_CONFIG_BYTES + 1)
    except StorageError as error:
        raise UsageError(error.message, _REMEDY) from error
    try:
        config = parse_json(data) if len(data) <= _MAX_CONFIG_BYTES else None
    except ValueError as error:
        raise _refused(folder, f"{CONFIG_NAME} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise _refused(folder, f"{CONFIG_NAME} is larger than 1 MiB, or no JSON object")
    if config.get("peft_type") != "LORA":
        raise _refused(folder, f"it is of the kind {config.get('peft_type')!r:.40}, and not LORA")
    if config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise _refused(folder, "it has biases or whole modules besides its low-rank matrices")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= 4096 or type(alpha) not in (int, float):
        raise _refused(folder, f"{CONFIG_NAME} gives no rank and scale (r, lora_alpha)")
    return config


def _header(path: Path) -> tuple[dict[str, Any], int, str]:
    """Tensors by name, size and SHA-256 of a safetensors file.

    The tensors must lie one after the other and fill the file.
    """
    digest = hashlib.sha256()
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _MAX_WEIGHTS_BYTES:
            raise _refused(path.parent, f"{path.name} is larger than 8 GiB")
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise _refused(path.parent, f"{path.name} is no safetensors file")
        text = stream.read(length)
        for block in (start, text):
            digest.update(block)
        for block in _blocks(stream):
            digest.update(block)
    try:
        header = parse_json(text)
        header.pop("__metadata__", None)
        _check_layout(header, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refused(path.parent, f"{path.name} has a damaged header: {error}") from error
    return header, size, digest.hexdigest()


def _check_layout(header: Mapping[str, Any], size: int) -> None:
    """Checks that tensors of two dimensions fill the file; `ValueError` where they do not."""
    if not 1 <= len(header) <= _MAX_TENSORS:
        raise ValueError(f"{len(header)} tensors")
    spans = []
    for name, tensor in header.items():
        shape, (begin, end) = tensor["shape"], tensor["data_offsets"]
        if len(shape) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in shape):
            raise ValueError(f"{name:.80} has the shape {shape!r:.80}")
        if end - begin != math.prod(shape) * _BYTES[tensor["dtype"]]:
            raise ValueError(f"{name:.80} has another size than its shape")
        spans.append((begin, end))
    spans.sort()
    if [begin for begin, _ in spans] != [0, *(end for _, end in spans[:-1])]:
        raise ValueError("tensors overlap, or have gaps between them")
    if spans[-1][1] != size:
        raise ValueError("the file is cut short, or longer than its tensors")


def _ranks(folder: Path, header: Mapping[str, Any]) -> dict[str, int]:
    """The rank of each module, by its name in the base model."""
    sides: dict[str, dict[str, int]] = {}
    for name, tensor in header.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        if side not in ("lora_A", "lora_B") or not module:
            raise _refused(folder, f"{WEIGHTS_NAME} holds {name[:80]!r}, which is no part of LoRA")
        sides.setdefault(module.removeprefix("base_model.model."), {})[side] = tensor["shape"][
            0 if side == "lora_A" else 1
        ]
    for module, found in sides.items():
        if len(found) < 2 or found["lora_A"] != found["lora_B"]:
            raise _refused(folder, f"the two matrices of {module[:80]} do not go together")
    return {module: found["lora_A"] for module, found in sides.items()}


def _rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that the configuration gives a module."""
    pattern = config.get("rank_pattern")
    for name, rank in pattern.items() if isinstance(pattern, dict) else ():
        if module == name or module.endswith(f".{name}"):
            return int(rank) if type(rank) is int else 0
    return int(config["r"])


def _refused(folder: Path, reason: str) -> UsageError:
    return UsageError(f"the adapter in {folder} cannot be used: {reason}", _REMEDY)
