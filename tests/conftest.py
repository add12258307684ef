"""What holds in every test: no network, a home of its own, no settings of the developer's machine.

Sockets are blocked by pytest-socket (see ``pyproject.toml``); Unix sockets are allowed. Programs
that a test starts are not blocked, but start in the same clean environment.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path

import platformdirs
import pytest
from hypothesis import settings

HOME_VARIABLES = (
    "HOME",
    "USERPROFILE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
)
OUR_PREFIXES = ("AIOS_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "_AIOS_")
OTHER_VARIABLES = ("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "OMP_NUM_THREADS")
WHEEL_VARIABLE = "AIOS_BUNDLED_WHEEL"  # where tests of the real model may get it without a network

# Read before a test has a home of its own.
USER_MODELS = Path(platformdirs.user_cache_dir("aios")) / "models"
USER_PIP_CONFIGS = (
    Path(platformdirs.user_config_dir("pip")) / "pip.conf",
    Path.home() / ".pip" / "pip.conf",
)

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays to the end, so no collection of garbage need look at it again.

    A collection visits every object: with torch and transformers loaded, that is a quarter of a
    second each time that the torch backend gives memory back.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_environment(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """An empty home, and none of the variables that change what the program does."""
    home = tmp_path_factory.mktemp("home")
    kept = {WHEEL_VARIABLE} if request.node.get_closest_marker("model") else set()
    for name in set(os.environ) - kept:
        if name.startswith(OUR_PREFIXES) or name in OTHER_VARIABLES:
            monkeypatch.delenv(name)
    for name in HOME_VARIABLES:
        monkeypatch.setenv(name, str(home))
    if "PIP_CONFIG_FILE" not in os.environ:  # where packages come from is the machine's affair
        for path in USER_PIP_CONFIGS:
            if path.is_file():
                monkeypatch.setenv("PIP_CONFIG_FILE", str(path))


@pytest.fixture(autouse=True)
def _same_seeds() -> None:
    """The same random numbers in every run, where a test draws some without a seed."""
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The user's folder of base models, so that the bundled model is fetched once and not per test.

    For tests marked ``model``: give it as the config key ``model.cache_dir``.
    """
    return USER_MODELS
