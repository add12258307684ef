"""The folder of base models that were fetched or converted: locks, whole-or-nothing installs.

A model is one sub-folder with a manifest. The manifest is written last and the folder gets its
name by one rename, so a folder of that name is whole, however the process that made it ended. A
lock file beside it lets only one process make a model; the others wait and then use it. Sizes and
times are compared at every use, checksums where those changed or when asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from aios.core.errors import StorageError
from aios.core.events import Notice
from aios.core.files import atomic_write_json, guarded, read_json
from aios.core.folders import atomic_folder
from aios.core.protocols import Emit
from aios.core.types import content_hash

MANIFEST_NAME = "aios-model.json"
MANIFEST_FORMAT = 1
LOCK_WAIT_SECONDS = 3600.0
_CHUNK = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_RECORDS_BYTES = 4 << 20
_RECORDS_NAME = "records"
_WORK_NAME = ".work"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes, time of change in nanoseconds and SHA-256 of a file."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was installed in a model's folder.

    Attributes:
        name: The model's name.
        kind: ``bundled`` or ``gguf``.
        source: Where it came from, for people.
        digest: The model's digest.
        licence: SPDX id, or empty where it is not known.
        files: The model's files by name.
    """

    name: str
    kind: str
    source: str
    digest: str
    licence: str
    files: Mapping[str, FileRecord]


def models_folder(cache_dir: Path | None) -> Path:
    """Where models are kept: `cache_dir`, or ``models`` in the user's cache for AI-OS."""
    if cache_dir is not None:
        return cache_dir.expanduser()
    return Path(platformdirs.user_cache_dir("aios")) / "models"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def record_file(path: Path) -> FileRecord:
    """Size, time and checksum of a file."""
    stat = path.stat()
    return FileRecord(stat.st_size, stat.st_mtime_ns, file_sha256(path))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an installed model, or None where there is none that can be read."""
    try:
        data = read_json(folder / MANIFEST_NAME, _MAX_MANIFEST_BYTES)
        if data["format"] != MANIFEST_FORMAT:
            return None
        files = {
            str(name): FileRecord(int(entry["size"]), int(entry["mtime_ns"]), str(entry["sha256"]))
            for name, entry in data["files"].items()
        }
        text = {k: str(data[k]) for k in ("name", "kind", "source", "digest", "licence")}
    except (StorageError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Manifest(files=files, **text)


def find_damage(folder: Path, manifest: Manifest, *, checksums: bool = False) -> str:
    """Compares an installed model with its manifest.

    Args:
        folder: The model's folder.
        manifest: Its manifest.
        checksums: Read every file whole, not only those whose time changed.

    Returns:
        The first difference found, in words; empty where there is none.
    """
    for name, record in manifest.files.items():
        path = folder / name
        try:
            stat = path.stat()
            if stat.st_size != record.size:
                return f"{name} has {stat.st_size} bytes, not {record.size}"
            changed = stat.st_mtime_ns != record.mtime_ns
            if (checksums or changed) and file_sha256(path) != record.sha256:
                return f"the checksum of {name} is wrong"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return ""


def find_installed(folder: Path, *, checksums: bool = False) -> Manifest | None:
    """The manifest of a model that is installed whole in `folder`, else None.

    Args:
        folder: The model's folder.
        checksums: As in `find_damage`.
    """
    manifest = read_manifest(folder)
    if manifest is None or find_damage(folder, manifest, checksums=checksums):
        return None
    return manifest


def load_records(path: Path) -> dict[str, FileRecord]:
    """Checksums saved by `save_records`; empty where there are none that can be read."""
    try:
        data = read_json(path, _MAX_RECORDS_BYTES)
        return {
            str(name): FileRecord(int(size), int(mtime), str(sha))
            for name, (size, mtime, sha) in data["files"].items()
        }
    except (StorageError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_records(path: Path, about: Mapping[str, str], records: Mapping[str, FileRecord]) -> None:
    """Saves checksums; where the folder cannot be written they are taken anew next time."""
    files = {name: (r.size, r.mtime_ns, r.sha256) for name, r in sorted(records.items())}
    with contextlib.suppress(StorageError):
        atomic_write_json(path, {**about, "files": files})


def record_path(path: Path, cache_dir: Path | None) -> Path:
    """Where the checksums of a model outside the cache are remembered."""
    key = content_hash("model-record", str(path.resolve()))
    return models_folder(cache_dir) / _RECORDS_NAME / f"{key}.json"


def models_used(cache_dir: Path | None) -> list[dict[str, str]]:
    """``name``, ``kind`` and ``path`` of each model outside the cache that was used before."""
    found = []
    for path in sorted((models_folder(cache_dir) / _RECORDS_NAME).glob("*.json")):
        with contextlib.suppress(StorageError, KeyError, TypeError):
            data = read_json(path, _MAX_RECORDS_BYTES)
            found.append({key: str(data[key]) for key in ("name", "kind", "path")})
    return found


def install(
    target: Path,
    describe: Callable[[Mapping[str, FileRecord]], Manifest],
    build: Callable[[Path, Path], None],
    *,
    emit: Emit,
    needs_bytes: int = 0,
    checksums: bool = False,
) -> Manifest:
    """Makes a model's folder, whole or not at all; does nothing where it is there already.

    Args:
        target: The folder to make. Its parent is made too.
        describe: Gives the manifest for the files that were built.
        build: Called with the folder to fill and a work folder that is removed afterwards.
        emit: Gets a notice where this waits for another process or replaces a damaged model.
        needs_bytes: Disk space that must be free before it starts.
        checksums: Read what is there already whole, to be sure of it.

    Returns:
        The manifest of what is now in `target`.

    Raises:
        StorageError: The folder cannot be written, the disk is full, or the lock was not freed.
        AIOSError: Whatever `build` raises.
    """
    with _one_at_a_time(target, emit):
        manifest = find_installed(target, checksums=checksums)
        if manifest is not None:
            return manifest
        _require_space(target.parent, needs_bytes)
        with atomic_folder(target) as partial, guarded("write", target):
            work = partial / _WORK_NAME
            work.mkdir()
            build(partial, work)
            shutil.rmtree(work)
            manifest = describe({p.name: record_file(p) for p in sorted(partial.iterdir())})
            _write_manifest(partial, manifest)
            if target.exists():
                emit(Notice(f"{target} is damaged and is replaced", level="warning"))
        return manifest


def _require_space(folder: Path, needs_bytes: int) -> None:
    with guarded("look at", folder):
        free = shutil.disk_usage(folder).free
    if free < needs_bytes:
        raise StorageError(
            f"preparing the model needs {needs_bytes / 1e6:.0f} MB in {folder}, and"
            f" {free / 1e6:.0f} MB are free",
            "free some disk space, or set model.cache_dir to a folder on another disk",
        )


@contextlib.contextmanager
def _one_at_a_time(target: Path, emit: Emit) -> Iterator[None]:
    """Holds the lock for making `target`; says so when it has to wait for another process."""
    lock = FileLock(target.parent / f".{target.name}.making.lock")
    with guarded("lock", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            emit(Notice(f"another process is preparing {target.name}: waiting for it"))
            try:
                lock.acquire(timeout=LOCK_WAIT_SECONDS)
            except Timeout:
                raise StorageError(
                    f"another process has been preparing {target.name} for"
                    f" {LOCK_WAIT_SECONDS / 60:.0f} minutes",
                    "wait until that process ends, or end it, then run the same command again",
                ) from None
    try:
        yield
    finally:
        lock.release()


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    path = folder / MANIFEST_NAME
    atomic_write_json(path, {"format": MANIFEST_FORMAT, **asdict(manifest)})
    mode = path.stat().st_mode & 0o777
    for other in folder.iterdir():
        other.chmod(mode)  # some writers keep their files to the user alone; follow the umask
