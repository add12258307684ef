"""The examples that ship with the program: passages with questions, and settings to try them with.

Takes the folder that they are packaged in, in a checkout the repository's ``examples``; gives
their paths, and copies for people to try and change. The commands in the documentation name
``examples/passages.jsonl``, which is where a copy lies by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import aios
from aios.core.errors import StorageError, UsageError
from aios.core.files import atomic_write_bytes, guarded, read_bytes

PASSAGES = "passages.jsonl"
EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        PASSAGES: "28 short passages with 200 questions, all about things that do not exist",
        "retention.txt": "ordinary English on other subjects: has a training done damage?",
        "demo.yaml": "settings of an A/B test that takes minutes on two cores",
        "README.md": "what the files hold, and how to write one of your own",
    }
)
"""Their names, and what they are."""

Copied: TypeAlias = Literal["written", "replaced", "unchanged"]

_MOST_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Example:
    """A file that ships with the program.

    Attributes:
        name: Its name.
        description: What it is.
        path: Where it is; not to be changed there.
    """

    name: str
    description: str
    path: Path


def list_examples() -> tuple[Example, ...]:
    """All examples, what one would try first at the head; those that were removed are left out."""
    folder = _folder()
    listed = (Example(name, words, folder / name) for name, words in EXAMPLES.items())
    return tuple(example for example in listed if example.path.is_file())


def copy_examples(target: Path, *, replace: bool = False) -> dict[str, Copied]:
    """Copies the examples into a folder; gives what was done with each.

    Args:
        target: The folder, made where it is missing.
        replace: Whether files of these names that hold something else may be replaced.

    Raises:
        UsageError: There are such files and they must not be replaced; nothing was written.
        StorageError: The examples are not there, or a file cannot be read or written.
    """
    examples = list_examples()
    if not examples:
        raise StorageError(f"the examples are not in {_folder()}", "Install the package again.")
    contents = {one.name: read_bytes(one.path, _MOST_BYTES) for one in examples}
    done = {name: _compared(target / name, data) for name, data in contents.items()}
    changed = [name for name, state in done.items() if state == "replaced"]
    if changed and not replace:
        raise UsageError(
            f"{target} has other files of the same name: {', '.join(changed)}",
            "Choose another folder, or replace them with --replace.",
        )
    with guarded("make", target):
        target.mkdir(parents=True, exist_ok=True)
    for name, state in done.items():
        if state != "unchanged":
            atomic_write_bytes(target / name, contents[name])
    return done


def _folder() -> Path:
    package = Path(aios.__file__).resolve().parent
    packaged = package / "_examples"
    return packaged if packaged.is_dir() else package.parents[1] / "examples"


def _compared(path: Path, data: bytes) -> Copied:
    """What writing the data there would do."""
    with guarded("read", path):
        if not path.exists():
            return "written"
        same = path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
    return "unchanged" if same else "replaced"
