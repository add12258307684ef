"""The packaged ``config/default.yaml``: every key with its default, as plain values.

Apart from the loader, so that who only wants the names of the keys need not build the models.
"""

from __future__ import annotations

import importlib.resources
from functools import cache
from pathlib import Path

from aios.core.config import yaml_text
from aios.core.config.yaml_text import Document
from aios.core.errors import ConfigError


@cache
def read_defaults() -> Document:
    """The packaged ``config/default.yaml``; in a checkout, the repository's.

    Raises:
        ConfigError: It is missing or damaged: the installation is broken.
    """
    packaged = importlib.resources.files("aios") / "_config" / "default.yaml"
    if packaged.is_file():
        document = yaml_text.read_text(packaged.read_text(encoding="utf-8"))
    else:
        repository = Path(__file__).resolve().parents[4]
        document = yaml_text.read_file(repository / "config" / "default.yaml")
    if document.mistakes:
        raise ConfigError(
            f"the packaged config/default.yaml: {document.mistakes[0].message}",
            "Install the package again.",
        )
    return document
