"""Flags become config overrides; sizes are parsed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aios.cli.aios import run
from aios.cli.options import Common, load, overrides, user_config_file
from aios.core.errors import ConfigError
from aios.core.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("5GB", 5 * 10**9),
        ("500MB", 500 * 10**6),
        ("500 mb", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("2k", 2000),
        ("1TiB", 2**40),
        ("7B", 7),
    ],
)
def test_sizes_are_understood(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 bananas", "1e3", "nan", "5GBs", "1,5GB"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write it like 500MB, 5GB or 1\.5GiB"):
        parse_size(text)


def test_a_bad_size_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["seal", "cache", "prune", "--max-size", "much"]) == 2
    assert "'much' is not a size" in capsys.readouterr().err


def test_a_flag_beats_set_and_set_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\nseal:\n  temperature: 0.3\n  top_p: 0.5\n", encoding="utf-8")
    common = Common(
        config_file=file,
        overrides=("seal.temperature=0.4", "seal.strategy=rewrite"),
        seed=9,
        flags={"seal.strategy": "self-qa"},
    )
    config = load(common).config
    assert (config.seed, config.seal.temperature, config.seal.top_p) == (9, 0.4, 0.5)
    assert config.seal.strategy == "self-qa"


def test_offline_reaches_the_model_section() -> None:
    assert load(Common(offline=True)).config.model.offline is True


@pytest.mark.parametrize(
    "name", ["a b", "null", "12", "yes: no", "models/größe", 'with "quotes"', "C:\\models\\x", "#1"]
)
def test_a_flag_s_text_reaches_the_config_as_typed(name: str) -> None:
    assert load(Common(flags={"model.name": name})).config.model.name == name


def test_the_seed_is_an_override_like_any_other() -> None:
    assert overrides(Common(overrides=("seed=1",), seed=2)) == ["seed=1", "seed=2"]


def test_the_user_file_is_read_from_the_config_home(monkeypatch: pytest.MonkeyPatch) -> None:
    path = user_config_file()
    assert path.name == "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("seed: 41\n", encoding="utf-8")
    assert load(Common()).config.seed == 41


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "AIOS_SEAL__STRATEGY", "rewrite")
    assert load(Common()).config.seal.strategy == "rewrite"


def test_a_flag_out_of_range_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"training\.rank = 0"):
        load(Common(flags={"training.rank": 0}))


def test_notes_of_the_config_are_shown_unless_quiet(
    app: Any, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["seal", "preview", "--input", str(passages), "--set", "seal.max_length=100"]
    assert run(line) == 0
    assert "note: seal.max_length is the longest edit" in capsys.readouterr().err
    assert run([*line, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
