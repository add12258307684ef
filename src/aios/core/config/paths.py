"""Paths as users write them in settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator


def _to_path(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip() or "\0" in value:
        raise ValueError("must be a path, not an empty text")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # the home directory is not known
        raise ValueError(f"cannot be expanded: {error}") from error


UserPath = Annotated[Path, BeforeValidator(_to_path)]
