"""Looks at this machine and says what is there, what is missing, and how to get it.

Takes a `Config`; gives a list of checks. Nothing is fetched or left behind: write access is tried
with a file that is removed at once, and torch is imported in a child process, so that a broken
installation of it cannot take the doctor down.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from aios.app.composition import build_prompts
from aios.app.edits.strategies import auto_choice, list_strategies
from aios.app.machine.facts import (
    ProbeError,
    TorchProbe,
    allowed_cores,
    container_memory_left,
    cpu_flags,
    nearest_folder,
    probe_torch,
    try_to_write,
)
from aios.app.models import is_offline
from aios.backends.model_files import store as model_store
from aios.backends.models import ENDPOINT_PREFIX, ModelSource, installed_model, known_models
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, ConfigError
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.strategy_mix import resolve_mix

Status = Literal["ok", "warning", "missing", "error"]

_PYTHONS = ((3, 10), (3, 14))
_DISK_MARGIN = 500_000_000  # bytes for runs, experts and caches of a small experiment
# Bytes of the program with torch and the activations of a batch; with the bundled model the demo
# was measured to need 4.2 GB in all.
_BASE_MEMORY = 3_200_000_000
_BYTES_PER_PARAMETER = 8  # float32 weights, and as much again while they are loaded
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
_INTERNAL_EXTRAS = {"dev", "docs", "test", "all"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        status: ``ok``; ``warning``: works, but not well; ``missing``: can be had; ``error``:
            commands will fail.
        detail: What was found.
        remedy: What to do about it; empty where it is ok.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def run_doctor(config: Config, *, probe: TorchProbe | None = None) -> list[Check]:
    """Runs all checks.

    Args:
        config: The config in force.
        probe: Tells about torch: ``version``, ``cuda`` (names of devices), ``mps``, ``threads``.
            Raises `ProbeError` where it cannot be imported. By default a child process is asked.
    """
    checks = [_check_python(), *_check_torch(config, probe or probe_torch)]
    checks += [_check_cpu(), _check_threads(config), _check_memory(config)]
    checks += _check_disk(config)
    checks += [_check_model(config), _check_config(config), _check_strategies(config)]
    checks += _check_write_access(config)
    return checks + _check_extras()


def check_quickly(config: Config) -> list[Check]:
    """The checks that take milliseconds: memory, disks, and whether the model is there."""
    checks = [_check_memory(config), *_check_disk(config)]
    if not config.model.name.startswith(ENDPOINT_PREFIX):  # it would have to be asked
        checks.append(_check_model(config, checksums=False))
    return checks


def examine(load: Callable[[], Config]) -> tuple[list[Check], ConfigError | None]:
    """All checks; where the config is wrong, that is a failed check and the rest use defaults.

    Args:
        load: Gives the config in force.

    Returns:
        The checks, and what is wrong with the config; None where it is well.
    """
    try:
        return run_doctor(load()), None
    except ConfigError as error:
        broken = Check("config", "error", error.message, error.remedy)
        others = [check for check in run_doctor(Config()) if check.name != "config"]
        return [broken, *others], error


def _check_python() -> Check:
    version = platform.python_version()
    low, high = _PYTHONS
    if low <= sys.version_info[:2] < high:
        return Check("python", "ok", version)
    return Check(
        "python",
        "warning",
        f"{version}; tested are {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}",
        f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}",
    )


def _check_torch(config: Config, probe: TorchProbe) -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", "error", "not installed", "pip install torch")]
    try:
        facts = probe()
    except ProbeError as error:
        return [Check("torch", "error", f"cannot be imported: {error}", "install torch again")]
    devices = ["cpu", *facts["cuda"], *(["mps"] if facts["mps"] else [])]
    return [Check("torch", "ok", str(facts["version"])), _check_device(config, facts, devices)]


def _check_device(config: Config, facts: Mapping[str, Any], devices: list[str]) -> Check:
    wanted = config.model.device
    kind, _, number = wanted.partition(":")
    there = {"auto": True, "cpu": True, "mps": bool(facts["mps"])}.get(
        kind, int(number or 0) < len(facts["cuda"])
    )
    found = f"{', '.join(devices)} (model.device is {wanted})"
    if there:
        return Check("devices", "ok", found)
    return Check(
        "devices",
        "error",
        f"{found}: torch does not see it",
        "set model.device to auto, or install a torch build and driver for it",
    )


def _check_cpu() -> Check:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    machine = f"{platform.machine() or 'unknown'}, {cores} cores"
    flags = cpu_flags()
    if not flags:
        return Check("cpu", "ok", machine)
    fast = [name for name in _FEATURES if name in flags]
    if "x86" in platform.machine() and "avx2" not in flags:
        return Check(
            "cpu", "warning", f"{machine}, without avx2", "expect slow runs; use a newer machine"
        )
    return Check("cpu", "ok", f"{machine}: {', '.join(fast) or 'no vector features known'}")


def _check_threads(config: Config) -> Check:
    cores = allowed_cores()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = config.model.threads or (int(given) if re.fullmatch("[0-9]{1,6}", given) else cores)
    detail = f"{threads} threads on {cores} usable cores"
    if given:
        detail += f" (OMP_NUM_THREADS={given})"
    if threads > cores:
        return Check(
            "threads",
            "warning",
            f"{detail}: more threads than cores are slower",
            f"set model.threads to {cores}, or unset OMP_NUM_THREADS",
        )
    return Check("threads", "ok", detail)


def _check_memory(config: Config) -> Check:
    free = min(psutil.virtual_memory().available, container_memory_left())
    known = {m.name: m.parameters for m in known_models()}
    source, _ = _find_model(config)
    parameters = source.parameters if source else known.get(config.model.name, 0)
    needed = _BASE_MEMORY + _BYTES_PER_PARAMETER * parameters
    detail = f"{_gb(free)} free, about {_gb(needed)} needed for {config.model.name}"
    if free >= needed:
        return Check("memory", "ok", detail)
    return Check("memory", "warning", detail, "close other programs or use a smaller model")


def _check_disk(config: Config) -> list[Check]:
    disk_bytes = {m.name: m.disk_bytes for m in known_models()}.get(config.model.name, 0)
    to_fetch = 0 if _find_model(config)[0] else disk_bytes
    places = {
        "models": (model_store.models_folder(config.model.cache_dir), to_fetch),
        "artifacts": (config.paths.artifacts, _DISK_MARGIN),
        "seal cache": (config.seal.cache_dir, _DISK_MARGIN),
    }
    checks = []
    for what, (folder, needed) in places.items():
        name = f"disk for {what}"
        try:
            free = shutil.disk_usage(nearest_folder(folder)).free
        except OSError as error:
            checks.append(
                Check(name, "error", f"{folder}: {error.strerror}", f"check the disk of {folder}")
            )
            continue
        detail = f"{_gb(free)} free, about {_gb(needed)} needed at {folder}"
        if free >= needed:
            checks.append(Check(name, "ok", detail))
        else:
            checks.append(Check(name, "warning", detail, "free some space or change the folder"))
    return checks


def _find_model(config: Config) -> tuple[ModelSource | None, AIOSError | None]:
    try:
        return installed_model(config.model.name, cache_dir=config.model.cache_dir), None
    except AIOSError as error:
        return None, error


def _check_model(config: Config, *, checksums: bool = True) -> Check:
    name = "base model"
    if config.model.name.startswith(ENDPOINT_PREFIX):
        return _check_endpoint(config)
    source, error = _find_model(config)
    if error is not None:
        return Check(name, "error", error.message, error.remedy or "see `aios models list`")
    if source is None:
        pull = f"aios models pull {config.model.name}"
        if is_offline(config):
            return Check(
                name,
                "error",
                f"{config.model.name} is not on this machine, and the network is off",
                f"run `{pull}` once with a network",
            )
        return Check(
            name,
            "missing",
            f"{config.model.name} is not on this machine; the first run fetches it",
            f"run `{pull}`",
        )
    manifest = model_store.read_manifest(source.path)
    damage = model_store.find_damage(source.path, manifest, checksums=checksums) if manifest else ""
    if damage:
        return Check(
            name,
            "error",
            f"{source.name} in {source.path}: {damage}",
            f"run `aios models pull {source.name}`, which makes it again",
        )
    checked = ", checksums right" if manifest and checksums else ""
    return Check(name, "ok", f"{source.name} ({source.kind}), {source.path}{checked}")


def _check_endpoint(config: Config) -> Check:
    """Whether the endpoint answers; it is asked for its models, not for a text."""
    from aios.backends.openai_compat import EndpointModel

    once = config.endpoint.model_copy(update={"max_retries": 0, "timeout_seconds": 5.0})
    name = "base model"
    try:
        model = EndpointModel.connect(config.model.name, once, offline=is_offline(config))
    except AIOSError as error:
        return Check(name, "error", error.message, error.remedy)
    model.close()
    return Check(name, "ok", f"{config.model.name} answers at {config.endpoint.url}")


def _check_config(config: Config) -> Check:
    network = "off" if is_offline(config) else "on"
    return Check("config", "ok", f"valid; model {config.model.name}, network {network}")


def _check_strategies(config: Config) -> Check:
    """Whether the strategies of the config can be used, and those of other packages."""
    name = "strategies"
    auto = auto_choice(config)
    wanted = auto.strategy if config.seal.strategy == AUTO else config.seal.strategy
    try:
        resolve_mix(wanted, 1, build_prompts(config))
        found = list_strategies(config)
    except AIOSError as error:
        return Check(name, "error", error.message, error.remedy or "see `aios seal strategies`")
    broken = [f"{info.name} ({info.source}): {info.problem}" for info in found if info.problem]
    if broken:
        remedy = "update or remove the package; `aios seal strategies` lists what there is"
        return Check(name, "warning", "; ".join(broken), remedy)
    return Check(name, "ok", f"{len(found)} can be used; in force: {wanted}")


def _check_write_access(config: Config) -> list[Check]:
    places = {
        "artifacts": (config.paths.artifacts, "paths.artifacts"),
        "seal cache": (config.seal.cache_dir, "seal.cache_dir"),
        "models": (model_store.models_folder(config.model.cache_dir), "model.cache_dir"),
    }
    checks = []
    for what, (folder, key) in places.items():
        problem = try_to_write(folder)
        name = f"write access to {what}"
        if problem:
            remedy = f"make the folder writable, or set {key} to one that is"
            checks.append(Check(name, "error", f"{folder}: {problem}", remedy))
        else:
            checks.append(Check(name, "ok", str(folder)))
    return checks


def _check_extras() -> list[Check]:
    """One check for each optional part that the package declares for its users."""
    try:
        metadata = importlib.metadata.metadata("aios")
        requirements = importlib.metadata.requires("aios") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    extras = [str(e) for e in metadata.get_all("Provides-Extra") or []]
    checks = []
    for extra in sorted(set(extras) - _INTERNAL_EXTRAS):
        absent = [name for name in _packages(requirements, extra) if not _is_installed(name)]
        if absent:
            detail, remedy = f"not installed: {', '.join(absent)}", f"pip install 'aios[{extra}]'"
            checks.append(Check(f"optional: {extra}", "missing", detail, remedy))
        else:
            checks.append(Check(f"optional: {extra}", "ok", "installed"))
    return checks


def _packages(requirements: list[str], extra: str) -> list[str]:
    marker = re.compile(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]")
    names = [re.match(r"[\w.-]+", text) for text in requirements if marker.search(text)]
    return [match.group(0) for match in names if match]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
