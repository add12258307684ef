"""Jobs are run dozens of times here."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quick_jobs(quick_jobs: None) -> None:
    pass
