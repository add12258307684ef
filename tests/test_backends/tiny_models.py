"""Tiny models on disk, for tests: six numbers and a tokenizer that says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from aios.backends.models import ModelSource, resolve_model

GGUF_BYTES = b"GGUF" + bytes(range(256)) * 40


def write_folder(folder: Path, *, value: float = 1.0, **config: object) -> Path:
    """A tiny model folder as transformers would write it: 6 numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "llama", "max_position_embeddings": 64, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    save_file({"w": np.full((2, 3), value, np.float32)}, folder / "model.safetensors")
    return folder


def fake_convert(gguf: Path, out: Path) -> None:
    assert gguf.read_bytes() == GGUF_BYTES
    write_folder(out)


def get(name: str, cache: Path, **options: object) -> ModelSource:
    arguments: dict[str, object] = {"cache_dir": cache, "convert": fake_convert, **options}
    return resolve_model(name, **arguments)  # type: ignore[arg-type]


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))
