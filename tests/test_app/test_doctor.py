"""The doctor tells what is there, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import pytest

from aios.app.machine import doctor
from aios.app.machine import facts as machine
from aios.app.machine.doctor import Check, run_doctor
from aios.app.machine.facts import ProbeError
from aios.backends import models
from aios.backends.model_files import store as model_store
from aios.backends.model_files.store import Manifest
from aios.core.config.schemas import Config, ModelConfig, PathsConfig
from aios.core.config.seal_schema import SealConfig

TORCH = {"version": "2.13.0", "cuda": [], "mps": False, "threads": 2}
NAME = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor, "container_memory_left", lambda: sys.maxsize)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


def make_config(root: Path, **model: Any) -> Config:
    return Config(
        model=ModelConfig(cache_dir=root / "models", **model),
        seal=SealConfig(cache_dir=root / "artifacts" / "seal_cache"),
        paths=PathsConfig(artifacts=root / "artifacts"),
    )


def examine(config: Config, torch: Mapping[str, Any] | None = None) -> dict[str, Check]:
    facts = {**TORCH, **(torch or {})}
    return {check.name: check for check in run_doctor(config, probe=lambda: facts)}


def install_model(config: Config) -> Path:
    """An installed bundled model, as `install` leaves it."""
    root = config.model.cache_dir
    assert root is not None

    def build(out: Path, work: Path) -> None:
        (out / "config.json").write_text('{"n_ctx": 64}')
        (out / "tokenizer.json").write_text("{}")
        (out / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    model_store.install(
        root / NAME,
        lambda files: Manifest(NAME, "bundled", "package", "d" * 64, "MIT", files),
        build,
        emit=lambda event: None,
    )
    return root / NAME


def test_every_check_that_is_not_ok_has_a_remedy_and_names_are_unique(config: Config) -> None:
    checks = run_doctor(config, probe=lambda: TORCH)
    assert len({check.name for check in checks}) == len(checks)
    assert {"python", "torch", "devices", "memory", "base model", "config"} <= {
        check.name for check in checks
    }
    for check in checks:
        assert check.detail
        assert bool(check.remedy) == (check.status != "ok")


def test_nothing_is_left_behind(config: Config, tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    examine(config)
    assert [p.name for p in tmp_path.rglob("*")] == ["artifacts"]


def test_a_missing_base_model_is_missing_and_offline_an_error(tmp_path: Path) -> None:
    check = examine(make_config(tmp_path))["base model"]
    assert (check.status, check.remedy) == ("missing", f"run `aios models pull {NAME}`")
    check = examine(make_config(tmp_path, offline=True))["base model"]
    assert check.status == "error"
    assert "with a network" in check.remedy


def test_an_installed_base_model_is_ok_until_a_byte_of_it_changes(config: Config) -> None:
    folder = install_model(config)
    check = examine(config)["base model"]
    assert (check.status, check.detail) == ("ok", f"{NAME} (bundled), {folder}, checksums right")
    changed = folder / "config.json"
    stat = changed.stat()
    changed.write_text('{"n_ctx": 65}')
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # seen by its checksum alone
    check = examine(config)["base model"]
    assert check.status == "error"
    assert "the checksum of config.json is wrong" in check.detail
    assert check.remedy == f"run `aios models pull {NAME}`, which makes it again"


def test_a_wrong_model_name_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    check = examine(make_config(tmp_path, name="smolm2-135m"))["base model"]
    assert check.status == "error"
    assert NAME in check.remedy


def test_torch_that_is_absent_or_broken_is_an_error(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Mapping[str, Any]:
        raise ProbeError("ImportError: libgomp.so.1")

    check = {c.name: c for c in run_doctor(config, probe=broken)}["torch"]
    assert (check.status, "libgomp" in check.detail) == ("error", True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check = {c.name: c for c in run_doctor(config, probe=broken)}["torch"]
    assert (check.detail, check.remedy) == ("not installed", "pip install torch")


def test_the_probe_runs_in_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    monkeypatch.setattr(machine, "_PROBE", 'print("noise"); print(\'{"version": "9"}\')')
    assert machine.probe_torch() == {"version": "9"}
    for code, message in (
        ("raise ImportError('no libgomp')", "no libgomp"),
        ("raise SystemExit(4)", "exit code 4"),
        ("print('hello')", "unexpected output"),
        ("pass", "unexpected output"),
    ):
        monkeypatch.setattr(machine, "_PROBE", code)
        with pytest.raises(ProbeError, match=message):
            machine.probe_torch()
    monkeypatch.setattr(machine, "_PROBE", "import time; time.sleep(30)")
    monkeypatch.setattr(machine, "_TORCH_SECONDS", 0.1)
    with pytest.raises(ProbeError, match="timed out"):
        machine.probe_torch()
    assert "torch" not in set(sys.modules) - before


@pytest.mark.parametrize(
    ("device", "torch", "status"),
    [
        ("auto", {}, "ok"),
        ("cpu", {}, "ok"),
        ("cuda", {}, "error"),
        ("cuda", {"cuda": ["A100"]}, "ok"),
        ("cuda:0", {"cuda": ["A100"]}, "ok"),
        ("cuda:1", {"cuda": ["A100"]}, "error"),
        ("mps", {}, "error"),
        ("mps", {"mps": True}, "ok"),
    ],
)
def test_a_device_that_torch_does_not_see_is_an_error(
    tmp_path: Path, device: str, torch: dict[str, Any], status: str
) -> None:
    check = examine(make_config(tmp_path, device=device), torch)["devices"]
    assert check.status == status
    assert device in check.detail


def test_little_memory_is_a_warning(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(config)["memory"].status in ("ok", "warning")
    monkeypatch.setattr(doctor, "container_memory_left", lambda: 10**9)
    check = examine(config)["memory"]
    assert check.status == "warning"
    assert check.detail.startswith("1.0 GB free, about 4.3 GB needed")


def test_a_container_limit_counts_as_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert machine.container_memory_left(tmp_path) == sys.maxsize
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert machine.container_memory_left(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.container_memory_left(tmp_path) == sys.maxsize


def test_a_full_disk_is_a_warning_for_what_is_still_to_come(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 10**6))
    checks = examine(config)
    assert checks["disk for models"].status == "warning"
    assert checks["disk for artifacts"].status == "warning"
    monkeypatch.undo()
    install_model(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 10**6))
    assert examine(config)["disk for models"].status == "ok"


def test_a_disk_that_cannot_be_asked_is_an_error(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fails)
    assert examine(config)["disk for artifacts"].status == "error"


def test_a_folder_that_cannot_be_written_is_an_error_with_its_key(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    config = Config(
        model=ModelConfig(cache_dir=tmp_path), paths=PathsConfig(artifacts=in_the_way / "x")
    )
    checks = examine(config)
    assert checks["write access to artifacts"].status == "error"
    assert "paths.artifacts" in checks["write access to artifacts"].remedy
    assert checks["write access to models"].status == "ok"


def test_more_threads_than_cores_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "allowed_cores", lambda: 2)
    assert examine(make_config(tmp_path))["threads"].status == "ok"
    check = examine(make_config(tmp_path, threads=8))["threads"]
    assert (check.status, "model.threads to 2" in check.remedy) == ("warning", True)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert examine(make_config(tmp_path))["threads"].status == "warning"
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert examine(make_config(tmp_path))["threads"].status == "ok"


def test_a_container_quota_counts_as_cores(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    everything = machine.allowed_cores(quota)
    assert everything >= 1
    quota.write_text("100000 100000\n")
    assert machine.allowed_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert machine.allowed_cores(quota) == everything


def test_cpu_features_are_read_where_linux_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert machine.cpu_flags(path) == frozenset()
    path.write_text("model name\t: X\nflags\t\t: fpu avx2 amx_tile\n\nflags\t\t: fpu\n")
    assert machine.cpu_flags(path) == {"fpu", "avx2", "amx_tile"}
    path.write_text("model name\t: X\n")
    assert machine.cpu_flags(path) == frozenset()


def test_a_cpu_without_vector_units_is_a_warning(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    for flags, status in (({"fpu"}, "warning"), ({"avx2", "avx512_bf16"}, "ok"), ((), "ok")):
        monkeypatch.setattr(doctor, "cpu_flags", lambda flags=flags: frozenset(flags))
        check = examine(config)["cpu"]
        assert check.status == status
    monkeypatch.setattr(doctor, "cpu_flags", lambda: frozenset({"avx2", "avx512_bf16"}))
    assert examine(config)["cpu"].detail == "x86_64, 4 cores: avx2, avx512_bf16"


def test_another_python_is_a_warning(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(config)["python"].status == "ok"
    monkeypatch.setattr(doctor, "_PYTHONS", ((4, 0), (4, 2)))
    check = examine(config)["python"]
    assert (check.status, check.remedy) == ("warning", "use Python 4.0 to 4.1")


def test_optional_parts_are_those_that_the_package_declares(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = Message()
    for extra in ("web", "parquet", "dev"):
        declared["Provides-Extra"] = extra
    requirements = [
        "click>=8",
        "no-such-package-here>=1; extra == 'web'",
        'pytest>=8 ; python_version > "3" and extra == "parquet"',
        "no-such-tool; extra == 'dev'",
    ]
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: declared)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    found = {k: v for k, v in examine(config).items() if k.startswith("optional")}
    assert set(found) == {"optional: web", "optional: parquet"}
    assert found["optional: web"].status == "missing"
    assert found["optional: web"].remedy == "pip install 'aios[web]'"
    assert found["optional: parquet"].status == "ok"


def test_a_source_tree_without_metadata_declares_no_optional_parts(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    assert not [name for name in examine(config) if name.startswith("optional")]


def test_the_config_check_names_the_model_and_the_network(tmp_path: Path) -> None:
    assert examine(make_config(tmp_path))["config"].detail.endswith("network on")
    assert examine(make_config(tmp_path, offline=True))["config"].detail.endswith("network off")


def test_the_doctor_fetches_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(models, "_bundled", forbidden)
    monkeypatch.setattr("subprocess.Popen", forbidden)
    assert examine(config)["base model"].status == "missing"
