"""The files of passages that can be chosen on a page: uploaded, in given folders, the example.

Takes the folder of artifacts and folders to look into; gives files with ids. A choice is an id,
never a path: an id that is not in the list leads nowhere. Uploads lie in
``<artifacts>/uploads/<id>/<name>`` and appear there when they are whole. Files are only read, by
the readers of passages; none is ever run.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from aios.app.data.examples import PASSAGES, list_examples
from aios.core.data.readers import READERS
from aios.core.errors import DataError, UsageError
from aios.core.files import atomic_writer, confined, guarded, valid_id

Source: TypeAlias = Literal["uploaded", "folder", "example"]

MOST_BYTES = 64 * 2**20
ENDINGS = tuple(READERS)
_TEXTS = (".txt", ".md")
_CHUNK = 2**20
_MOST_UPLOADS = 5_000
_MOST_LISTED = 2_000  # of a folder
_MOST_LOOKED_AT = 20_000
_DEEPEST = 4
_LONGEST_NAME = 150  # bytes
_UNSAFE = re.compile(r"[^\w.-]+")
_UPLOAD = re.compile(r"upload-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of passages.

    Attributes:
        id: What it is chosen by.
        name: For people: its name, and in a folder its path there.
        path: Where it is.
        source: Where it comes from.
        place: Name of the folder it was found in; empty for an upload.
        bytes: Its size.
        modified: When it was changed last, Unix seconds.
    """

    id: str
    name: str
    path: Path
    source: Source
    place: str
    bytes: int
    modified: float


class DataFiles:
    """The files that can be chosen.

    Args:
        artifacts: Uploads are kept below it.
        folders: Folders whose files can be chosen, with those in folders below them.
        example: A file that ships with the program; None where there is none.
    """

    def __init__(
        self, artifacts: Path, folders: Sequence[Path] = (), example: Path | None = None
    ) -> None:
        self.root = artifacts / "uploads"
        self._folders = tuple(folders)
        self._example = example

    def list(self) -> tuple[DataFile, ...]:
        """All of them: uploads, the newest first, then the example, then folders by name.

        Files of records, which may hold questions, come before plain texts.

        Raises:
            StorageError: The folder of uploads cannot be read.
        """
        found = {file.id: file for file in self._uploads()}
        if self._example is not None:  # before the folders, one of which may hold it
            example = _described(self._example, "example", self._example.name, "examples")
            if example is not None:
                found[example.id] = example
        for folder in self._folders:
            for file in _files_of(folder):
                found.setdefault(file.id, file)
        return tuple(sorted(found.values(), key=_rank))

    def get(self, file_id: str) -> DataFile:
        """A file by its id.

        Raises:
            UsageError: There is none of that id.
        """
        if _UPLOAD.fullmatch(file_id):
            found = self._upload(file_id)
        else:
            found = next((file for file in self.list() if file.id == file_id), None)
        if found is None:
            raise UsageError(
                "there is no such file", "It may have been deleted; choose another at Home."
            )
        return found

    def add(self, name: str, content: BinaryIO) -> DataFile:
        """Keeps an uploaded file; it appears when it is whole.

        Args:
            name: As the sender calls it; only its last part is used, without unusual characters.
            content: What it holds.

        Raises:
            DataError: Its ending is none that can be read, it is empty or too large.
            StorageError: It cannot be written.
        """
        safe = safe_name(name)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        file_id = f"upload-{stamp}-{secrets.token_hex(3)}"
        folder = self.root / file_id
        try:
            with atomic_writer(folder / safe) as out:
                size = 0
                while block := content.read(_CHUNK):
                    size += len(block)
                    if size > MOST_BYTES:
                        raise DataError(
                            f"{safe} is larger than {MOST_BYTES // 2**20} MiB",
                            "Start the server with --data and the folder that it is in.",
                        )
                    out.write(block)
                if not size:
                    raise DataError(f"{safe} is empty", "Choose a file with passages.")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.get(file_id)

    def delete(self, file_id: str, in_use: Collection[Path] = ()) -> str:
        """Removes an upload; gives its name.

        Args:
            file_id: The upload.
            in_use: Files that jobs are reading.

        Raises:
            UsageError: There is no such file, it was not uploaded, or it is in use.
            StorageError: It cannot be removed.
        """
        file = self.get(file_id)
        if file.source != "uploaded":
            raise UsageError(
                f"{file.name} was not uploaded here", "Delete it in its folder, if it is yours."
            )
        if file.path in in_use:
            raise UsageError(f"a job is reading {file.name}", "Stop the job first, or let it end.")
        folder = file.path.parent
        with guarded("remove", folder):
            shutil.rmtree(folder)
        return file.name

    def _uploads(self) -> Iterator[DataFile]:
        with guarded("read", self.root):
            try:
                names = sorted(os.listdir(self.root), reverse=True)[:_MOST_UPLOADS]
            except FileNotFoundError:
                return
        for name in names:
            file = self._upload(name) if _UPLOAD.fullmatch(name) else None
            if file is not None:
                yield file

    def _upload(self, file_id: str) -> DataFile | None:
        if not valid_id(file_id):
            return None
        folder = confined(self.root, file_id)
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError:
            return None
        path = next((folder / name for name in names if _readable(name)), None)
        return None if path is None else _described(path, "uploaded", path.name, "", file_id)


def bundled_example() -> Path | None:
    """The example passages that ship with the program; None where they were removed."""
    return next((one.path for one in list_examples() if one.name == PASSAGES), None)


def safe_name(name: str) -> str:
    """A file's name as it can be kept: its last part, of letters, digits, ``. _ -``.

    Raises:
        DataError: Its ending is none that can be read.
    """
    last = re.split(r"[/\\]", name)[-1]
    stem, dot, ending = last.rpartition(".")
    ending = f".{ending.lower()}" if dot else ""
    if ending not in READERS:
        raise DataError(
            f"files ending in {ending[:20]!r} cannot be read"
            if ending
            else "the file has no ending",
            f"Known endings: {', '.join(READERS)}.",
        )
    stem = _UNSAFE.sub("-", stem).strip(".-_") or "passages"
    stem = stem.encode()[: _LONGEST_NAME - len(ending)].decode("utf-8", "ignore")
    return f"{stem}{ending}"


def _rank(file: DataFile) -> tuple[int, bool]:
    order = ("uploaded", "example", "folder").index(file.source)
    return order, file.source == "folder" and file.path.suffix.lower() in _TEXTS


def _readable(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in READERS


def _files_of(folder: Path) -> Iterator[DataFile]:
    """The data files in a folder and those below it, by name; links are not followed."""
    looked = listed = 0
    root = folder.absolute()
    for place, folders, names in os.walk(root):
        here = Path(place)
        deep = len(here.relative_to(root).parts)
        below = sorted(name for name in folders if not name.startswith("."))
        folders[:] = below if deep < _DEEPEST else []
        for name in sorted(names):
            looked += 1
            if looked > _MOST_LOOKED_AT or listed >= _MOST_LISTED:
                return
            if name.startswith(".") or not _readable(name):
                continue
            path = here / name
            file = _described(path, "folder", str(path.relative_to(root)), root.name)
            if file is not None:
                listed += 1
                yield file


def _described(
    path: Path, source: Source, name: str, place: str, file_id: str = ""
) -> DataFile | None:
    """A regular file's facts; None for a link and for what cannot be looked at."""
    try:
        if path.is_symlink() or not path.is_file():
            return None
        facts = path.stat()
    except OSError:
        return None
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return DataFile(
        id=file_id or f"file-{digest[:24]}",
        name=name,
        path=path.absolute(),
        source=source,
        place=place,
        bytes=facts.st_size,
        modified=facts.st_mtime,
    )
