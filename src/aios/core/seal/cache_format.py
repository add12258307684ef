"""What a cache file holds: the key of a completion, and the checked record stored under it.

Takes a completion and what determines it, gives bytes; takes bytes and gives the completion back,
or says why they are not what was written. `aios.core.seal.cache` keeps the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from aios.core.files import encode_json, parse_json
from aios.core.types import Completion, SamplingParams

VERSION = 1
MAX_ENTRY_BYTES = 16 * 2**20
KEY = re.compile(r"[0-9a-f]{64}")


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


def cache_key(
    *,
    model_digest: str,
    adapter_digest: str,
    prompt_text: str,
    sampling: SamplingParams,
    seed: int,
    candidate: int,
    parser_version: str | int,
    strategy: str,
) -> str:
    """The cache key of a completion: 64 hex digits that change with any of the arguments."""
    fields = {
        "version": VERSION,
        "model": model_digest,
        "adapter": adapter_digest,
        "prompt": prompt_text,
        "sampling": {
            "temperature": float(sampling.temperature),
            "top_p": float(sampling.top_p),
            "max_new_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop),
        },
        "seed": seed,
        "candidate": candidate,
        "parser": str(parser_version),
        "strategy": strategy,
    }
    return _digest(fields)


def _digest(value: object) -> str:
    """SHA-256 of the canonical JSON (sorted keys, ASCII, no spaces), as hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def encode_entry(key: str, found: CachedCompletion) -> bytes:
    """The file of a completion: version, key, completion, where it is from, and a checksum."""
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
            completion=Completion(**record["completion"]),
            strategy=record["strategy"],
            model=record["model"],
            created=record["created"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"fields are missing or wrong ({error})") from error
