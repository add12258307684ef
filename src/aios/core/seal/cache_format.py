"""What a cache file holds: the key of a completion, and the checked record stored under it.

Takes a completion and what determines it, gives bytes; takes bytes and gives the completion back,
or says why they are not what was written. `aios.core.seal.cache` keeps the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aios.core.files import encode_json, parse_json
from aios.core.types import Completion, SamplingParams

VERSION = 1
MAX_ENTRY_BYTES = 16 * 2**20
HEAD_BYTES = 4096  # of a file, in which all but the completion and the checksum is found
KEY = re.compile(r"[0-9a-f]{64}")

# Before it stand only texts, in which a quote is escaped: so this is where the head ends.
_END_OF_HEAD = b',"completion":'


@dataclass(frozen=True, slots=True)
class CachedCompletion:
    """A completion as it was cached.

    Attributes:
        completion: What the model wrote.
        strategy: The strategy that asked for it.
        model: Name of the model that wrote it.
        created: When, ISO 8601 in UTC.
    """

    completion: Completion
    strategy: str
    model: str
    created: str


@dataclass(frozen=True, slots=True)
class EntryHead:
    """What a cache file says before the completion; see `CachedCompletion`."""

    strategy: str
    model: str
    created: str


def cache_key(
    *,
    model_digest: str,
    adapter_digest: str,
    prompt_text: str,
    sampling: SamplingParams | None,
    seed: int,
    candidate: int,
    parser_version: str | int,
    strategy: str,
) -> str:
    """The cache key of a completion: 64 hex digits that change with any of the arguments.

    Args:
        model_digest: Digest of the base model.
        adapter_digest: Digest of the adapter, or empty.
        prompt_text: The whole prompt.
        sampling: How tokens are drawn; None where the completion does not depend on it.
        seed: Seed of the completion.
        candidate: Number of the candidate.
        parser_version: Version of the strategy's parser.
        strategy: Name of the strategy.
    """
    fields = {
        "version": VERSION,
        "model": model_digest,
        "adapter": adapter_digest,
        "prompt": prompt_text,
        "sampling": None if sampling is None else _sampling_fields(sampling),
        "seed": seed,
        "candidate": candidate,
        "parser": str(parser_version),
        "strategy": strategy,
    }
    return _digest(fields)


def _sampling_fields(sampling: SamplingParams) -> dict[str, object]:
    return {
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "max_new_tokens": sampling.max_new_tokens,
        "stop": list(sampling.stop),
    }


def _digest(value: object) -> str:
    """SHA-256 of the canonical JSON (sorted keys, ASCII, no spaces), as hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def encode_entry(key: str, found: CachedCompletion) -> bytes:
    """The file of a completion: version, key, where it is from, completion, and a checksum.

    Raises:
        StorageError: A line's loss is NaN or infinite.
    """
    entry = {
        "version": VERSION,
        "key": key,
        "strategy": found.strategy,
        "model": found.model,
        "created": found.created,
        "completion": asdict(found.completion),
    }
    return encode_json({**entry, "checksum": _digest(entry)}) + b"\n"


def decode_entry(data: bytes, key: str) -> CachedCompletion | None:
    """The completion in a file's bytes; None if another version wrote it.

    Raises:
        ValueError: The bytes are not what `encode_entry` made under that key.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise ValueError("larger than any entry")
    record = parse_json(data)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    checksum = record.pop("checksum", None)
    if checksum != _digest(record):
        raise ValueError("checksum does not match")
    if record.get("version") != VERSION:
        return None
    if record.get("key") != key:
        raise ValueError("made for another key")
    try:
        return CachedCompletion(
            completion=_completion(record["completion"]),
            strategy=_text(record["strategy"]),
            model=_text(record["model"]),
            created=_text(record["created"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"fields are missing or wrong ({error})") from error


def decode_head(data: bytes) -> EntryHead:
    """Reads a file's head; what follows, and the checksum over all, is not looked at.

    Args:
        data: The file's first `HEAD_BYTES` bytes, or more.

    Raises:
        ValueError: It is not the head of an entry.
    """
    head, found, _ = data.partition(_END_OF_HEAD)
    if not found:
        raise ValueError("no completion in the head of the file")
    record = parse_json(head + b"}")
    try:
        return EntryHead(
            _text(record["strategy"]), _text(record["model"]), _text(record["created"])
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"fields are missing or wrong ({error})") from error


def _completion(record: Mapping[str, Any]) -> Completion:
    """The completion of a record; `line_losses` may be missing, as older files have none."""
    finish_reason = record["finish_reason"]
    if finish_reason not in ("stop", "length"):
        raise TypeError(f"finish_reason is {finish_reason!r}")
    return Completion(
        text=_text(record["text"]),
        tokens=_integer(record["tokens"]),
        finish_reason=finish_reason,
        seed=_integer(record["seed"]),
        line_losses=tuple(_number(loss) for loss in record.get("line_losses", ())),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
