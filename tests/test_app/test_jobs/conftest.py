"""A store of jobs in a folder of the test, whose processes are ended with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.app.jobs.store import JobStore
from aios.core.config.loader import load_config
from aios.core.config.schemas import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    given = (
        "model.name=scripted",
        f"paths.artifacts={tmp_path / 'artifacts'}",
        f"seal.cache_dir={tmp_path / 'cache'}",
    )
    return load_config(overrides=given, env={}).config


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    found = JobStore(tmp_path / "artifacts")
    yield found
    for job in found.list():
        if job.live:
            found.stop(job.id, at_once=True)
            found.wait(job.id, 5)
