"""Jobs are run dozens of times here: they need not ask git for the revision, nor wait for the disk.

A power cut is not tested (a kill is: the kernel keeps what was written), so syncs may be left out.
"""

from __future__ import annotations

import os

import pytest

from aios.storage import runs


@pytest.fixture(autouse=True)
def _quick_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "git_revision", lambda folder: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
