"""The licences of what is installed with the program: THIRD_PARTY_LICENSES.md.

    python -m scripts.licenses           # writes it
    python -m scripts.licenses --check   # fails where it is stale; reads nothing but this machine

Takes what ``pyproject.toml`` asks for at run time (the trackers apart, whose versions are not
pinned), everything that those packages ask for in turn, on every Python and system that we run on,
the versions of ``constraints.txt``, and each package's own statement in its metadata. A package
that this environment has no use for (`ELSEWHERE`) is told by hand.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aios.core.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "THIRD_PARTY_LICENSES.md"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = ("parquet", "ray", "tune", "web")  # and, before them, what has no extra
CORE = "always"

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CNRI-Python",
        "ISC",
        "MIT",
        "MPL-2.0",
        "PSF-2.0",
        "Zlib",
    }
)
"""Licences of packages that a program under the MIT licence may ask its users to install."""

NVIDIA = "LicenseRef-NVIDIA-Proprietary"
# Licences of packages for other Pythons or other builds of torch, as their metadata states them;
# cuda-toolkit, a list of the others, states none.
ELSEWHERE: Mapping[str, str] = {
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": NVIDIA,
    "exceptiongroup": "MIT",
    "nvidia-cublas": NVIDIA,
    "nvidia-cuda-cupti": NVIDIA,
    "nvidia-cuda-nvrtc": NVIDIA,
    "nvidia-cuda-runtime": NVIDIA,
    "nvidia-cudnn-cu13": NVIDIA,
    "nvidia-cufft": NVIDIA,
    "nvidia-cufile": NVIDIA,
    "nvidia-curand": NVIDIA,
    "nvidia-cusolver": NVIDIA,
    "nvidia-cusparse": NVIDIA,
    "nvidia-cusparselt-cu13": NVIDIA,
    "nvidia-nccl-cu13": NVIDIA,
    "nvidia-nvjitlink": NVIDIA,
    "nvidia-nvshmem-cu13": NVIDIA,
    "nvidia-nvtx": "Apache-2.0",
    "tomli": "MIT",
    "triton": "MIT",
}
# Packages whose metadata says "BSD" and whose licence file says which.
BSD: Mapping[str, str] = {
    "jinja2": "BSD-3-Clause",
    "mpmath": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
}
# What older metadata says, as an SPDX identifier.
SPDX: Mapping[str, str] = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "isc license": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
ENVIRONMENTS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.1",
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
        "platform_machine": machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for version in ("3.10", "3.11", "3.12", "3.13")
    for platform, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]

_PURPOSE = "Write the list of the licences of what is installed with the program."
_HEADING = "# Third-party licences"
_TEXT = """
AI-OS SEAL is under the MIT licence (`LICENSE`). Its wheel holds nothing of others. These packages
are installed with it, with these versions where `constraints.txt` is used. Licences are SPDX
expressions, as the packages' own metadata states them.

*Needed for* says when: always, or with one of the extras of `pyproject.toml`. The trackers
(`tensorboard`, `trackio`, `mlflow`, `wandb`) are not listed: their versions are not pinned.
The bundled model, SmolLM2-135M-Instruct, is fetched when it is first used; it is under Apache-2.0.

`make licenses` writes this page, and a test checks it.
"""
_NVIDIA_TEXT = """
## Only with torch's build for NVIDIA GPUs

On Linux, torch's usual build asks for these. Those of NVIDIA are under its own terms; the build for
CPUs needs none of them.
"""
_COLUMNS = "| package | version | licence | needed for |\n|---|---|---|---|\n"
_ROW = re.compile(r"^\| (\S+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", re.MULTILINE)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; (.+))?$")
_NVIDIA_PINS = "# Needed only by torch's build for NVIDIA GPUs."


@dataclass(frozen=True)
class Row:
    """A package of the list.

    Attributes:
        version: As pinned; where older Pythons have an older one, that too.
        licence: SPDX expression.
        needed_for: Extras, or `CORE`.
    """

    version: str
    licence: str
    needed_for: str


def canonical(name: str) -> str:
    """A package's name in the spelling that all spellings come to."""
    return str(canonicalize_name(name))


def pins() -> dict[str, str]:
    """The version of each pinned package, in words."""
    return {name: version for name, (version, _) in _pinned().items()}


def gpu_packages() -> set[str]:
    """Packages that only torch's build for NVIDIA GPUs needs."""
    return {name for name, (_, gpu) in _pinned().items() if gpu}


def _pinned() -> dict[str, tuple[str, bool]]:
    found: dict[str, list[tuple[str, str]]] = {}
    text = CONSTRAINTS.read_text(encoding="utf-8")
    for line in text.splitlines():
        if match := _PIN.match(line):
            name, version, marker = match.groups()
            found.setdefault(canonical(name), []).append((version, marker or ""))
    gpu = {canonical(m[1]) for m in map(_PIN.match, text.split(_NVIDIA_PINS)[1].splitlines()) if m}
    return {name: (_in_words(versions), name in gpu) for name, versions in found.items()}


def _in_words(versions: Sequence[tuple[str, str]]) -> str:
    (newest, marker), *older = versions
    if marker == 'python_version < "3.11"':
        return f"{newest} (Python 3.10)"
    return newest + "".join(f", {version} (Python 3.10)" for version, _ in older)


def needed() -> dict[str, list[str]]:
    """All packages that the program needs at run time, and for what; from what is installed."""
    found: dict[str, list[str]] = {}
    for extra in (CORE, *EXTRAS):
        for name in _closure("aios", "" if extra == CORE else extra):
            if CORE not in found.setdefault(name, []):
                found[name].append(extra)
    return found


def _closure(package: str, extra: str) -> set[str]:
    seen: set[tuple[str, str]] = set()
    waiting = [(package, extra)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for one in _requirements(name, wanted):
            waiting += [(canonical(one.name), each) for each in ("", *sorted(one.extras))]
    return {name for name, _ in seen} - {canonical(package)}


def project() -> dict[str, Any]:
    """The table ``[project]`` of ``pyproject.toml``."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(found["project"])


def _requirements(name: str, extra: str) -> Iterator[Requirement]:
    if name == "aios":  # what is installed of it may be older than the file
        stated = project()["optional-dependencies"][extra] if extra else project()["dependencies"]
        yield from map(Requirement, stated)
        return
    try:
        stated = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return
    for one in map(Requirement, stated):
        marker = one.marker
        if marker is None:
            if not extra:
                yield one
        elif any(marker.evaluate(env | {"extra": extra}) for env in ENVIRONMENTS):
            yield one


def licence_of(name: str) -> str:
    """A package's licence as an SPDX expression.

    Raises:
        LookupError: Its metadata states none that is known here.
    """
    try:
        stated = metadata.metadata(name).json
    except metadata.PackageNotFoundError:
        return ELSEWHERE[name]
    if expression := stated.get("license_expression"):
        return str(expression)
    if name in BSD:
        return BSD[name]
    words = [str(stated.get("license", ""))]
    words += [line.rpartition(" :: ")[2] for line in stated.get("classifier", ())]
    for text in words:
        if text.casefold() in SPDX:
            return SPDX[text.casefold()]
        if all(fits(part) for part in _parts(text)):
            return text
    raise LookupError(f"{name} states its licence as {words[0][:60]!r}; add it to {__name__}")


def fits(licence: str) -> bool:
    """Whether a package under this licence, an SPDX expression, may be asked for."""
    choices = licence.split(" OR ")
    return any(all(part in ALLOWED for part in _parts(choice)) for choice in choices)


def _parts(expression: str) -> list[str]:
    return [part.strip("() ") for part in expression.split(" AND ")]


def rows() -> dict[str, Row]:
    """The list as it should be."""
    versions, gpu = pins(), gpu_packages()
    asked = needed() | {name: ["GPU"] for name in gpu}
    found = {}
    for name, extras in sorted(asked.items()):
        if name not in versions:
            raise LookupError(f"{name} is needed, and constraints.txt does not pin it")
        found[name] = Row(versions[name], licence_of(name), ", ".join(extras))
    return found


def page(listed: Mapping[str, Row]) -> str:
    """The list as Markdown."""
    gpu = gpu_packages()
    tables = [
        "".join(
            f"| {name} | {row.version} | {row.licence} | {row.needed_for} |\n"
            for name, row in listed.items()
            if (name in gpu) is for_gpu
        )
        for for_gpu in (False, True)
    ]
    return f"{_HEADING}\n{_TEXT}\n{_COLUMNS}{tables[0]}{_NVIDIA_TEXT}\n{_COLUMNS}{tables[1]}"


def read_list() -> dict[str, Row]:
    """The list as it stands on the page."""
    text = PAGE.read_text(encoding="utf-8")
    return {m[1]: Row(m[2], m[3], m[4]) for m in _ROW.finditer(text) if m[1] != "package"}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the page; the exit code tells whether all is well."""
    parser = argparse.ArgumentParser(prog="licenses", description=_PURPOSE)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    try:
        listed = rows()
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    refused = [name for name, row in listed.items() if not fits(row.licence)]
    if stray := set(refused) - gpu_packages():
        print(f"error: licences that do not fit: {sorted(stray)}", file=sys.stderr)
        return 1
    if not options.check:
        atomic_write_text(PAGE, page(listed))
    elif page(listed) != PAGE.read_text(encoding="utf-8"):
        print(f"error: {PAGE.name} is stale; `make licenses` writes it anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
