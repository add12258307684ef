"""Model folders: what they hold, their digest, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aios.backends.model_files import store as model_store
from aios.core.errors import ModelError
from tests.test_backends.tiny_models import get, names_in, write_folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_local_folder_is_used_where_it_is(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
    before = names_in(folder)
    source = get(str(folder), cache, offline=True)
    assert (source.kind, source.path) == ("folder", folder)
    assert (source.parameters, source.context_length) == (6, 64)
    assert source.licence == "apache-2.0"
    assert names_in(folder) == before


def test_the_digest_follows_every_file_that_matters_and_no_other(
    tmp_path: Path, cache: Path
) -> None:
    folder = write_folder(tmp_path / "mine")
    seen = {get(str(folder), cache).digest}
    (folder / "README.md").write_text("a note")
    assert {get(str(folder), cache).digest} == seen
    shutil.copytree(folder, tmp_path / "copy")
    assert {get(str(tmp_path / "copy"), cache).digest} == seen
    write_folder(folder, value=2.0)
    seen.add(get(str(folder), cache).digest)
    write_folder(folder, value=2.0, rope_theta=5.0)
    seen.add(get(str(folder), cache).digest)
    (folder / "tokenizer.json").write_text('{"version": "2.0"}')
    seen.add(get(str(folder), cache).digest)
    assert len(seen) == 4


def test_checksums_are_taken_again_only_where_size_or_time_changed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "mine")
    first = get(str(folder), cache).digest
    read: list[str] = []
    real = model_store.file_sha256

    def counting(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(model_store, "file_sha256", counting)
    assert get(str(folder), cache).digest == first
    assert read == []
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert get(str(folder), cache).digest == first
    assert read == ["model.safetensors"]
    for record in (cache / "records").glob("*.json"):
        record.write_text("{broken")
    assert get(str(folder), cache).digest == first
    assert len(read) == 4


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    assert get(str(folder), tmp_path / "file").digest == get(str(folder), tmp_path / "c").digest


def break_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def break_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_config_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def break_config_size(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": "' + "x" * (5 << 20) + '"}')


def break_deep_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def break_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def break_auto_map(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.X"}}')


def break_tokenizer_auto_map(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.X", null]}}')


def break_index_path(folder: Path) -> None:
    shard_index(folder, "../../model.safetensors")


def break_index_missing(folder: Path) -> None:
    shard_index(folder, "model-00001-of-00002.safetensors")


def break_index_empty(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def shard_index(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"w": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_pickle, "pickle"),
        (break_no_weights, r"no \*\.safetensors"),
        (break_truncated, "not a whole safetensors file"),
        (break_header, "not a whole safetensors file"),
        (break_tokenizer, "no tokenizer"),
        (break_config, "not valid JSON"),
        (break_config_kind, "JSON object"),
        (break_config_size, "at most"),
        (break_deep_config, "not valid JSON"),
        (break_no_config, r"no config\.json"),
        (break_adapter, "an adapter, not a base model"),
        (break_auto_map, "auto_map"),
        (break_tokenizer_auto_map, "auto_map"),
        (break_index_path, "no safetensors file beside it"),
        (break_index_missing, "lacks model-00001"),
        (break_index_empty, "lists no weight files"),
    ],
)
def test_a_folder_that_is_broken_or_unsafe_is_refused_with_a_remedy(
    tmp_path: Path, cache: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_folder(tmp_path / "mine")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        get(str(folder), cache)
    assert caught.value.remedy


def test_sharded_weights_are_counted_together(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shard_index(folder, names[0])
    for name in names:
        save_file({name: np.zeros((4, 5), np.float32)}, folder / name)
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert get(str(folder), cache).parameters == 40


def test_links_to_files_elsewhere_are_fine(tmp_path: Path, cache: Path) -> None:
    real = write_folder(tmp_path / "blobs")
    links = tmp_path / "links"
    links.mkdir()
    for path in real.iterdir():
        (links / path.name).symlink_to(path)
    assert get(str(links), cache).digest == get(str(real), cache).digest


def test_a_config_without_a_context_length_gets_a_modest_one(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "mine", max_position_embeddings=None)
    assert get(str(folder), cache).context_length == 2048
    write_folder(folder, max_position_embeddings=None, text_config={"n_positions": 77})
    assert get(str(folder), cache).context_length == 77
