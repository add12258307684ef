"""What holds for the program as a whole: it starts fast and imports nothing that it does not need.

The layers (who may import whom) are checked by import-linter; here is what only a run can show.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "peft", "numpy", "pydantic", "yaml", "rich", "huggingface_hub")
PROBE = """
import json, sys
from aios.cli.aios import run
code = run(sys.argv[1:])
json.dump([code, sorted({name.partition(".")[0] for name in sys.modules})], sys.stderr)
"""
HELP_SECONDS = 0.5


def imported_by(*arguments: str) -> set[str]:
    """Runs the program in a process of its own; gives the top-level modules that it loaded."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(result.stderr)
    assert code == 0
    assert result.stdout
    return set(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "seal --help",
        "seal generate --help",
        "seal ab-test --help",
        "seal cache --help",
        "hrm-hf train-expert --help",
        "models list --help",
        "config show --help",
        "doctor --help",
    ],
)
def test_help_imports_nothing_heavy(arguments: str) -> None:
    assert imported_by(*arguments.split()).isdisjoint(HEAVY)


def test_reading_the_config_needs_no_model_library() -> None:
    assert imported_by("config", "show", "seed").isdisjoint({"torch", "transformers", "peft"})


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine is not the program's
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "aios", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < HELP_SECONDS
