"""Whole folders that appear under their name when they are finished, and not before.

Takes a folder that was built aside and gives it its final name, replacing an older one; a crash at
any moment leaves the old or the new one, never a mixture. Beside a published folder ``name``
there may be ``.name.new`` while it is built, ``.name.old`` while it is replaced, and
``.name.lock``, which stays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aios.core.errors import StorageError
from aios.core.files import guarded, locked, sync_folder


def _beside(final: Path, ending: str) -> Path:
    return final.parent / f".{final.name}.{ending}"


@contextmanager
def atomic_folder(final: Path, *, timeout: float = 30.0) -> Iterator[Path]:
    """Gives an empty folder that becomes `final` when the block ends without an error.

    Its files are synced before it is renamed. An older folder is moved aside and removed
    afterwards; a crash between leaves the old or the new one in place, or the old one aside, where
    `recover` and the next call find it. A second process that builds the same folder waits up to
    `timeout` seconds.

    Raises:
        StorageError: It cannot be made or renamed, or `final` is something else than a folder.
    """
    with locked(_beside(final, "lock"), timeout=timeout):
        temporary = _beside(final, "new")
        try:
            with guarded("make", temporary):
                shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
                temporary.mkdir()
            yield temporary
            _publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def recover(final: Path, *, timeout: float = 30.0) -> bool:
    """Puts back the folder that a killed process had moved aside.

    Returns:
        Whether `final` was put back; False where nothing was lost.
    """
    if not _beside(final, "old").exists():
        return False
    with locked(_beside(final, "lock"), timeout=timeout), guarded("recover", final):
        return _recover(final)


def _recover(final: Path) -> bool:
    old = _beside(final, "old")
    if not old.exists():
        return False
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        return False
    os.rename(old, final)
    sync_folder(final.parent)
    return True


def _publish(tmp: Path, final: Path) -> None:
    with guarded("publish", final):
        if final.is_symlink() or (final.exists() and not final.is_dir()):
            raise StorageError(
                f"cannot publish {final}: it exists and is not a folder", "Move it away first."
            )
        for folder, _, names in os.walk(tmp):
            for name in names:
                if os.path.islink(os.path.join(folder, name)):
                    continue
                fd = os.open(os.path.join(folder, name), os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            sync_folder(Path(folder))
        _recover(final)
        old = _beside(final, "old")
        if final.exists():
            os.rename(final, old)
        try:
            os.rename(tmp, final)
        except OSError:
            if old.exists():
                os.rename(old, final)
            raise
        sync_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)
