"""What holds in every test: no network, a home of its own, no settings of the developer's machine.

Sockets are blocked by pytest-socket (see ``pyproject.toml``); Unix sockets are allowed. Programs
that a test starts are not blocked, but start in the same clean environment.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from hypothesis import settings

from tests import killed_process

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

MOST_WORKERS = 4  # each imports torch, and has all that it imports in its memory

# Read before a test has a home of its own.
USER_MODELS = Path(platformdirs.user_cache_dir("aios")) / "models"
USER_PIP_CONFIGS = (
    Path(platformdirs.user_config_dir("pip")) / "pip.conf",
    Path.home() / ".pip" / "pip.conf",
)

gc.disable()  # until all is imported: none of it is garbage, and looking for some takes seconds

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: a worker for each core that we may use, up to `MOST_WORKERS`."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.enable()
    if session.config.option.collectonly:
        return
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return  # the first worker begins with them; others rarely come to one
    if any("process_server" in getattr(item, "fixturenames", ()) for item in session.items):
        killed_process.start_server()  # its imports take seconds: it has them behind it when needed


@pytest.fixture(autouse=True, scope="module")
def _keep_what_is_imported() -> None:
    """What is alive between two modules stays, so no later collection of garbage looks at it.

    A collection visits every object otherwise: with torch and transformers loaded, that is a
    quarter of a second each time that the torch backend gives memory back.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _next_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives an empty folder: the one that it gave before, where nothing has been written to it."""
    folder, numbers = tmp_path_factory.mktemp("homes"), itertools.count()
    home = folder

    def next_home() -> Path:
        nonlocal home
        if home == folder or not home.is_dir() or any(home.iterdir()):
            home = folder / str(next(numbers))
            home.mkdir()
        return home

    return next_home


@pytest.fixture(autouse=True)
def _clean_environment(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    _next_home: Callable[[], Path],
) -> None:
    """An empty home, and none of the variables that change what the program does."""
    home = _next_home()
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
def _same_start(request: pytest.FixtureRequest) -> None:
    """The same random numbers in every run, where a test draws some without a seed.

    torch has one thread, since tiny tensors are slower with more; all of them where the test is
    about a model that is not tiny.
    """
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        if request.node.get_closest_marker("gpu") or torch.cuda.is_initialized():
            torch.manual_seed(0)
        else:  # the same, but nothing is put by, with a traceback, for GPUs that may come up
            torch.default_generator.manual_seed(0)
        large = request.node.get_closest_marker("model") is not None
        torch.set_num_threads(os.cpu_count() or 1 if large else 1)


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The user's folder of base models, so that the bundled model is fetched once and not per test.

    For tests marked ``model``: give it as the config key ``model.cache_dir``.
    """
    return USER_MODELS


@pytest.fixture(scope="session")
def process_server() -> None:
    """For tests that use `killed_process`: what their processes are forked from runs."""
    killed_process.start_server()


@pytest.fixture(scope="session")
def _package_versions() -> dict[str, str | None]:
    from aios.storage.runs import package_versions

    return package_versions()


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that write many files: they do not wait for the disk.

    A power cut is not tested (a kill is: the kernel keeps what was written), so syncs may be left
    out. What the layers of files and storage do when one fails is tested where they are.
    """
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def quick_jobs(
    monkeypatch: pytest.MonkeyPatch, quick_disk: None, _package_versions: dict[str, str | None]
) -> None:
    """For tests that run many jobs: what every job asks the machine for is asked once, or not.

    That is the revision of the sources, the versions of the packages, and the disk to have written
    what it was given.
    """
    from aios.app.ab_tests import job as ab_test
    from aios.storage import runs

    monkeypatch.setattr(runs, "git_revision", lambda folder: None)
    for module in (runs, ab_test):
        monkeypatch.setattr(module, "package_versions", _package_versions.copy)
