"""The self-edit cache as the config describes it, and filling it ahead of time."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from aios.app.composition import open_cache
from aios.app.generate import GenerateReport, generate_edits
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.protocols import Emit, ShouldStop, ignore, never

__all__ = ["open_cache", "warm_cache"]


def warm_cache(
    config: Config, input: Path, *, emit: Emit = ignore, should_stop: ShouldStop = never
) -> GenerateReport:
    """Generates the self-edits of a file into the cache, and nowhere else.

    Raises:
        UsageError: The cache is switched off, or the input cannot be used.
    """
    if not config.seal.enable_cache:
        raise UsageError("the cache is switched off", "set seal.enable_cache: true to fill it")
    with TemporaryDirectory() as folder:
        return generate_edits(
            config,
            input,
            Path(folder) / "edits.jsonl",
            resume="never",
            emit=emit,
            should_stop=should_stop,
        )
