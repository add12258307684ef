"""Where base models come from: the bundled one, a folder, a GGUF file, or the hub.

Takes the name that the user gave; gives a `ModelSource`: a transformers folder with safetensors
weights, its digest and what is known about it. Nothing is loaded into memory here. Code that
comes with a model is never run, and pickled weights are refused.

The digest tells models apart in cache keys and adapters, so it must be the same on every machine:
for a folder (and the hub) it covers the bytes of configuration, weights and tokenizer; for a GGUF
file (and the bundled model) it covers that file and the way of converting it, since the converted
configuration differs in small things from one transformers version to the next.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aios.backends.model_files import bundled, hub
from aios.backends.model_files import folder as model_folder
from aios.backends.model_files import store as model_store
from aios.backends.model_files.bundled import BundledModel
from aios.backends.model_files.gguf_conversion import CONVERSION, check_gguf, convert_gguf
from aios.backends.model_files.store import FileRecord, Manifest
from aios.backends.scripted import SCRIPTED_NAME, ScriptedModel
from aios.core.errors import ModelError
from aios.core.events import StageFinished, StageStarted
from aios.core.protocols import Emit, ignore

ModelKind = Literal["bundled", "folder", "gguf", "hub", "scripted", "endpoint"]
ENDPOINT_PREFIX = "endpoint:"
Convert = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model that is on this machine, ready to be loaded.

    Attributes:
        name: The name the user gave.
        kind: Where it comes from.
        path: Folder with ``config.json``, safetensors weights and tokenizer (for the scripted
            model, which has no weights, the file of its program).
        digest: 64 hex digits; equal digests write the same texts.
        context_length: Most tokens of prompt and completion together.
        parameters: Numbers in the weights.
        size_bytes: Bytes on disk.
        licence: SPDX id or the model card's word for it; empty where it is not known.
        source: Where it came from, in words.
    """

    name: str
    kind: ModelKind
    path: Path
    digest: str
    context_length: int
    parameters: int
    size_bytes: int
    licence: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that AI-OS knows by name.

    Attributes:
        name: Its name.
        kind: Where it comes from.
        summary: One line about it.
        source: Where it is fetched from, in words.
        licence: SPDX id, or empty.
        parameters: Numbers in the weights.
        context_length: Most tokens of prompt and completion.
        fetch_bytes: Bytes to fetch.
        disk_bytes: Bytes needed on disk while it is made, the fetched ones included.
    """

    name: str
    kind: ModelKind
    summary: str
    source: str
    licence: str
    parameters: int
    context_length: int
    fetch_bytes: int
    disk_bytes: int


_BUNDLED: Mapping[str, BundledModel] = {m.name: m for m in (bundled.SMOLLM2_135M,)}


def known_models() -> tuple[KnownModel, ...]:
    """The models that can be named without a path, the default one first."""
    packaged = [
        KnownModel(
            name=m.name,
            kind="bundled",
            summary=m.summary,
            source=f"package {m.requirement}",
            licence=m.licence,
            parameters=m.parameters,
            context_length=m.context_length,
            fetch_bytes=m.wheel_bytes,
            disk_bytes=m.wheel_bytes + m.member_bytes + m.installed_bytes,
        )
        for m in _BUNDLED.values()
    ]
    scripted = KnownModel(
        name=SCRIPTED_NAME,
        kind="scripted",
        summary="a deterministic fake for tests and documentation; it learns nothing real",
        source="built in",
        licence="MIT",
        parameters=0,
        context_length=ScriptedModel().context_length,
        fetch_bytes=0,
        disk_bytes=0,
    )
    return (*packaged, scripted)


def resolve_model(
    name: str,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    emit: Emit = ignore,
    refresh: bool = False,
    convert: Convert = convert_gguf,
) -> ModelSource:
    """Finds a base model, fetching and converting it where that was not done before.

    Args:
        name: A known name, a folder, a ``.gguf`` file, or a hub id ``owner/name[@revision]``.
            A folder or file of that name comes before the hub.
        cache_dir: Where fetched models are kept; the user's cache folder by default.
        offline: Never use the network.
        emit: Gets stages and notices.
        refresh: Do not trust what is on this machine: read a converted model whole to compare
            its checksums, and ask the hub for a newer revision.
        convert: Turns a GGUF file into a model folder.

    Raises:
        ModelError: The name is not known, or the model is missing, broken or refused.
        StorageError: The cache folder cannot be written.
    """
    kind = kind_of(name)
    if kind == "bundled":
        return _bundled(_BUNDLED[name], cache_dir, offline, emit, refresh, convert)
    if kind == "gguf":
        return _gguf(name, cache_dir, emit, refresh, convert)
    if kind == "endpoint":
        raise ModelError(
            f"the model {name} is on a server: there is nothing to fetch, and its weights are not"
            " here",
            "choose a model that is loaded here; an endpoint can only write self-edits",
        )
    if kind == "hub" and not offline:
        if not refresh:
            with contextlib.suppress(ModelError):  # broken: fetched again, then judged
                found = installed_model(name, cache_dir=cache_dir)
                if found is not None:
                    return found
        snapshot = hub.fetch_snapshot(name, cache_dir, emit=emit)
        return _from_folder(name, "hub", snapshot, cache_dir)
    found = installed_model(name, cache_dir=cache_dir)
    if found is None:
        raise ModelError(
            f"the model {name} is not on this machine, and --offline forbids to fetch it",
            f"run `aios models pull {name}` with a network first",
        )
    return found


def installed_model(name: str, *, cache_dir: Path | None = None) -> ModelSource | None:
    """The model if it is on this machine and whole; fetches, converts and writes no model.

    Raises:
        ModelError: The name is not known, or names a folder that is broken or refused.
    """
    kind = kind_of(name)
    if kind == "endpoint":
        return None
    if kind == "scripted":
        return _scripted()
    if kind == "folder":
        return _from_folder(name, "folder", Path(name).expanduser(), cache_dir)
    if kind == "hub":
        snapshot = hub.find_snapshot(name, cache_dir)
        return None if snapshot is None else _from_snapshot(name, snapshot, cache_dir)
    folder = _installed_folder(name, kind, cache_dir)
    manifest = model_store.find_installed(folder)
    return None if manifest is None else _from_manifest(name, folder, manifest)


def kind_of(name: str) -> ModelKind:
    """Says what a model's name names.

    Raises:
        ModelError: Nothing; the message lists the known names and the close ones.
    """
    if name in _BUNDLED:
        return "bundled"
    if name == SCRIPTED_NAME:
        return "scripted"
    if name.startswith(ENDPOINT_PREFIX):
        return "endpoint"
    path = _as_path(name)
    if path.is_dir():
        return "folder"
    if path.is_file():
        check_gguf(path)
        return "gguf"
    if re.match(r"[./~\\]", name) or name.lower().endswith(".gguf") or path.is_absolute():
        raise ModelError(f"there is no model folder or GGUF file {name}", "check the path")
    if hub.parse_hub_id(name) is not None:
        return "hub"
    known = [m.name for m in known_models()]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ModelError(
        f"no model is named {name!r}",
        f"{hint}known: {', '.join(known)}; or give a folder, a .gguf file, or a hub id owner/name",
    )


def _as_path(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:  # unknown home, NUL, name too long
        raise ModelError(f"{name!r} is no model name or path: {error}", "check --model") from error
    return path


def _bundled(
    model: BundledModel,
    cache_dir: Path | None,
    offline: bool,
    emit: Emit,
    refresh: bool,
    convert: Convert,
) -> ModelSource:
    folder = _installed_folder(model.name, "bundled", cache_dir)

    def build(out: Path, work: Path) -> None:
        gguf = bundled.obtain_gguf(model, work, offline=offline, emit=emit)
        _convert(model.name, gguf, out, convert, emit)

    def describe(files: Mapping[str, FileRecord]) -> Manifest:
        digest = _conversion_digest(model.member_sha256)
        return Manifest(model.name, "bundled", model.requirement, digest, model.licence, files)

    manifest = None if refresh else model_store.find_installed(folder)
    if manifest is None:
        needs = model.wheel_bytes + model.member_bytes + model.installed_bytes
        manifest = model_store.install(
            folder, describe, build, emit=emit, needs_bytes=needs, checksums=refresh
        )
    return _from_manifest(model.name, folder, manifest)


def _gguf(
    name: str, cache_dir: Path | None, emit: Emit, refresh: bool, convert: Convert
) -> ModelSource:
    path = _as_path(name)
    folder = _installed_folder(name, "gguf", cache_dir)
    sha256 = _file_sha256(path, cache_dir)

    def build(out: Path, work: Path) -> None:
        _convert(path.name, path, out, convert, emit)

    def describe(files: Mapping[str, FileRecord]) -> Manifest:
        return Manifest(path.stem, "gguf", str(path), _conversion_digest(sha256), "", files)

    manifest = None if refresh else model_store.find_installed(folder)
    if manifest is None:
        manifest = model_store.install(folder, describe, build, emit=emit, checksums=refresh)
    return _from_manifest(name, folder, manifest)


def _convert(what: str, gguf: Path, out: Path, convert: Convert, emit: Emit) -> None:
    stage = f"convert {what}"
    emit(StageStarted(stage))
    started = time.monotonic()
    convert(gguf, out)
    model_folder.inspect_folder(out)
    emit(StageFinished(stage, seconds=time.monotonic() - started, summary="safetensors, bfloat16"))


def _installed_folder(name: str, kind: ModelKind, cache_dir: Path | None) -> Path:
    root = model_store.models_folder(cache_dir)
    if kind == "bundled":
        return root / name
    path = _as_path(name)
    stem = re.sub(r"[^\w.-]+", "-", path.stem)[:64].strip(".-") or "model"
    return root / f"{stem}-{_file_sha256(path, cache_dir)[:16]}"


def _conversion_digest(sha256: str) -> str:
    return hashlib.sha256(f"{CONVERSION} {sha256}".encode()).hexdigest()


def _from_manifest(name: str, folder: Path, manifest: Manifest) -> ModelSource:
    facts = model_folder.inspect_folder(folder)
    return ModelSource(
        name=name,
        kind="bundled" if manifest.kind == "bundled" else "gguf",
        path=folder,
        digest=manifest.digest,
        context_length=facts.context_length,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        licence=manifest.licence,
        source=manifest.source,
    )


def _from_folder(name: str, kind: ModelKind, folder: Path, cache_dir: Path | None) -> ModelSource:
    facts = model_folder.inspect_folder(folder)
    file = model_store.record_path(folder, cache_dir)
    records = model_store.load_records(file)
    before = dict(records)
    digest = model_folder.folder_digest(facts.files, records)
    if records != before:
        about = {"name": name, "kind": kind, "path": str(folder.resolve())}
        model_store.save_records(file, about, records)
    return ModelSource(
        name=name,
        kind=kind,
        path=folder,
        digest=digest,
        context_length=facts.context_length,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        licence=facts.licence,
        source="Hugging Face hub" if kind == "hub" else "local folder",
    )


def _from_snapshot(name: str, snapshot: Path, cache_dir: Path | None) -> ModelSource | None:
    """A snapshot that was fetched before; None where it lacks files, so that it is fetched."""
    whole = (snapshot / "config.json").exists() and any(snapshot.glob("*.safetensors"))
    return _from_folder(name, "hub", snapshot, cache_dir) if whole else None


def _file_sha256(path: Path, cache_dir: Path | None) -> str:
    """SHA-256 of a GGUF file, remembered while its size and time stay."""
    file = model_store.record_path(path, cache_dir)
    records = model_store.load_records(file)
    before = dict(records)
    model_folder.folder_digest((path,), records)
    if records != before:
        about = {"name": path.name, "kind": "gguf", "path": str(path.resolve())}
        model_store.save_records(file, about, records)
    return records[path.name].sha256


def _scripted() -> ModelSource:
    model = ScriptedModel()
    return ModelSource(
        name=SCRIPTED_NAME,
        kind="scripted",
        path=Path(__file__).with_name("scripted.py"),
        digest=model.digest,
        context_length=model.context_length,
        parameters=0,
        size_bytes=0,
        licence="MIT",
        source="built in",
    )
