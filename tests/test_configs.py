"""Every config file in the repository loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.core.config.loader import load_config

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for folder in ("config", "experiments")
    for ending in ("*.yaml", "*.yml")
    for path in (ROOT / folder).rglob(ending)
)


def test_the_default_config_is_among_the_files() -> None:
    assert ROOT / "config" / "default.yaml" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_file_loads(path: Path) -> None:
    load_config(config_file=path, env={})
