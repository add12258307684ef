"""Reads what a transformers model folder holds, and refuses what is not safe to load.

Takes a folder with ``config.json``, safetensors weights and a tokenizer; gives sizes, the number
of parameters, the context length and the digest. Nothing is loaded: of the weights only the
headers are read. Refused are pickled weights (loading them can run code), configurations that
name code of their own (``auto_map``), and files that are cut short.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.backends.model_files.store import FileRecord, record_file
from aios.core.errors import ModelError

DEFAULT_CONTEXT_LENGTH = 2048
_MAX_CONFIG_BYTES = 4 << 20
_MAX_TOKENIZER_BYTES = 512 << 20
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_MAX_CARD_BYTES = 1 << 20
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_len")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What a model folder holds.

    Attributes:
        files: The files that decide what the model writes, by name, sorted.
        parameters: Numbers in the weights.
        size_bytes: Bytes of these files.
        context_length: Most tokens of prompt and completion; `DEFAULT_CONTEXT_LENGTH` where the
            configuration does not say.
        licence: From the model card's front matter, or empty.
    """

    files: tuple[Path, ...]
    parameters: int
    size_bytes: int
    context_length: int
    licence: str


def inspect_folder(folder: Path) -> FolderFacts:
    """Checks a transformers folder and says what it holds.

    Raises:
        ModelError: A part is missing or cut short, the weights are pickled, or the configuration
            asks for code of its own.
    """
    try:
        config = _read_config(folder)
        _refuse_own_code(folder, config)
        weights = _weight_files(folder)
        tokenizer = _tokenizer_files(folder)
        parameters = sum(_count_parameters(path) for path in weights)
        others = [
            p for p in (folder / "config.json", folder / "generation_config.json") if p.is_file()
        ]
        files = tuple(sorted([*others, *weights, *tokenizer], key=lambda p: p.name))
        return FolderFacts(
            files=files,
            parameters=parameters,
            size_bytes=sum(path.stat().st_size for path in files),
            context_length=_context_length(config),
            licence=_card_licence(folder),
        )
    except OSError as error:
        raise ModelError(
            f"the model folder {folder} cannot be read: {error.strerror or error}",
            "check its files and their access rights",
        ) from error


def folder_digest(files: tuple[Path, ...], records: dict[str, FileRecord]) -> str:
    """Digest over names and bytes of a model's files.

    Args:
        files: The files.
        records: Checksums that are known from before, by file name. One is used again where size
            and time of the file have not changed; it is updated in place.

    Returns:
        64 hex digits.
    """
    lines = []
    for path in sorted(files, key=lambda p: p.name):
        stat = path.stat()
        known = records.get(path.name)
        if known is None or (known.size, known.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            records[path.name] = known = record_file(path)
        lines.append(f"{path.name} {known.sha256}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    size = path.stat().st_size
    if size > limit:
        raise ModelError(
            f"{path} has {size} bytes; a model's configuration has at most {limit}",
            "check that it is the file of a model",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "fetch the model again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} does not hold a JSON object", "fetch the model again")
    return data


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if path.is_file():
        return _read_json(path, _MAX_CONFIG_BYTES)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter, not a base model",
            "name the base model with --model; experts are used with `aios chat --expert`",
        )
    raise ModelError(
        f"{folder} has no config.json, so it is no transformers model folder",
        "give the folder that holds config.json, *.safetensors and the tokenizer",
    )


def _refuse_own_code(folder: Path, config: dict[str, Any]) -> None:
    named = [("config.json", config)]
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.is_file():
        named.append((tokenizer_config.name, _read_json(tokenizer_config, _MAX_TOKENIZER_BYTES)))
    for name, data in named:
        if data.get("auto_map"):
            raise ModelError(
                f"{folder / name} asks for code from the model folder (auto_map), which is never"
                " run",
                "use a model whose architecture transformers knows itself",
            )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX_NAME
    if index.is_file() and not (folder / "model.safetensors").is_file():
        return _sharded_files(folder, index)
    weights = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if weights:
        whole = [p for p in weights if p.name == "model.safetensors"]
        return whole or weights
    if any(p.suffix in _PICKLE_ENDINGS for p in folder.iterdir()):
        raise ModelError(
            f"{folder} has its weights as pickle files only, which can run code when loaded",
            "save the model again with save_pretrained (transformers writes *.safetensors), or"
            " fetch a revision that has *.safetensors",
        )
    raise ModelError(
        f"{folder} has no *.safetensors file", "fetch the model again, with its weights"
    )


def _sharded_files(folder: Path, index: Path) -> list[Path]:
    weight_map = _read_json(index, _MAX_TOKENIZER_BYTES).get("weight_map")
    names = sorted({str(n) for n in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names:
        raise ModelError(f"{index} lists no weight files", "fetch the model again")
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} names {name!r}, which is no safetensors file beside it",
                "fetch the model from a source that you trust",
            )
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} lacks {name}, which {index.name} lists", "fetch the model again"
            )
    return [index, *(folder / name for name in names)]


def _tokenizer_files(folder: Path) -> list[Path]:
    found = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    names = {path.name for path in found}
    alone = {"tokenizer.json", "tokenizer.model", "vocab.txt", "spiece.model"}
    if not (names & alone or {"vocab.json", "merges.txt"} <= names):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json)",
            "copy the tokenizer's files beside the weights",
        )
    for path in found:
        if path.stat().st_size > _MAX_TOKENIZER_BYTES:
            raise ModelError(
                f"{path} is larger than {_MAX_TOKENIZER_BYTES} bytes",
                "check that it is the file of a tokenizer",
            )
    return found


def _count_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header; also finds a file that is cut short."""
    if path.suffix != ".safetensors":
        return 0
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        tensors = [v for k, v in header.items() if k != "__metadata__"]
        end = max((int(t["data_offsets"][1]) for t in tensors), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes where its header says {8 + length + end}")
        return sum(math.prod(int(n) for n in t["shape"]) for t in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file: {error}",
            "fetch the model again; the file may have been cut short",
        ) from error


def _context_length(config: dict[str, Any]) -> int:
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, dict) else {}):
        for key in _CONTEXT_KEYS:
            value = source.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return DEFAULT_CONTEXT_LENGTH


def _card_licence(folder: Path) -> str:
    """The ``license:`` of the model card's front matter, or empty."""
    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return ""
    front = text[3:].split("\n---", 1)[0]
    match = re.search(r"^license:\s*['\"]?([\w.+-]+)", front, re.MULTILINE)
    return match.group(1) if match else ""
