"""What this machine has: torch and its devices, cores, memory, folders that can be written in."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_TORCH_SECONDS = 120.0
_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda else [],
    "mps": torch.backends.mps.is_available(),
    "threads": torch.get_num_threads(),
}))
"""

TorchProbe = Callable[[], Mapping[str, Any]]


class ProbeError(Exception):
    """torch could not be imported; the message is its last line."""


def probe_torch() -> Mapping[str, Any]:
    """Imports torch in a child process and says what it sees.

    Raises:
        ProbeError: It failed or took longer than two minutes.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeError(str(error)) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ProbeError(lines[-1] if lines else f"exit code {done.returncode}")
    try:
        facts: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise ProbeError(f"unexpected output {done.stdout[-200:]!r}") from error
    return facts


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature names of the first CPU as Linux lists them; empty elsewhere."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def allowed_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may run on, a container's quota included."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup, or "max"
        return cores


def container_memory_left(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a container's limit leaves; as good as endless without a limit."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup, or "max"
        return sys.maxsize
    return max(0, limit - used)


def try_to_write(folder: Path) -> str:
    """Writes and removes a small file in a folder, or in the one that it would be made in.

    Returns:
        Why it failed; empty where it worked.
    """
    path = nearest_folder(folder) / f".aios-doctor-{secrets.token_hex(4)}"
    try:
        with path.open("xb") as stream:
            stream.write(b"aios\n")
        path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    path = folder.expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
