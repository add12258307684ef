"""Measurements of a benchmark: a table for the reader, and ``results/NAME.json`` for machines.

A row is the median, the least and the largest of the samples of one quantity; a ratio likewise,
from samples that were measured side by side. The file also names the machine and the versions.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from aios.core.files import atomic_write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("aios", "torch", "transformers")


def row(name: str, metric: str, unit: str, samples: Sequence[float]) -> dict[str, Any]:
    """One line of the table: what was measured, which quantity of it, and its samples' spread."""
    return {"name": name, "metric": metric, "unit": unit, **spread(samples), "n": len(samples)}


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of some samples."""
    return {
        "median": _rounded(statistics.median(samples)),
        "min": _rounded(min(samples)),
        "max": _rounded(max(samples)),
    }


def ratios_of(ours: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Spread of ours/other, sample by sample: the two were measured in turns."""
    return spread([mine / theirs for mine, theirs in zip(ours, other, strict=True)])


def write_results(
    name: str,
    command: str,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Mapping[str, float]] | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``results/NAME.json``.

    Args:
        name: Of the benchmark.
        command: The line that makes these numbers again, e.g. ``make bench-cache``.
        rows: As `row` makes them.
        ratios: Spread by ``ours/other``.
        more: Further facts about the run, e.g. settings.

    Returns:
        The file.
    """
    path = RESULTS / f"{name}.json"
    document = {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **(more or {}),
        "rows": [dict(each) for each in rows],
        "ratios": {key: dict(value) for key, value in (ratios or {}).items()},
    }
    atomic_write_json(path, document)
    return path


def print_table(
    rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Prints rows and ratios as aligned columns."""
    head = ("", "metric", "unit", "median", "min", "max", "n")
    table: list[tuple[str, ...]] = [head]
    for each in rows:
        numbers = (_shown(each[key]) for key in ("median", "min", "max"))
        table.append((each["name"], each["metric"], each["unit"], *numbers, str(each["n"])))
    for key, value in (ratios or {}).items():
        table.append((key, "ratio", "×", *(_shown(value[k]) for k in ("median", "min", "max")), ""))
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for line in table:
        texts = [text.ljust(width) for text, width in zip(line[:3], widths[:3], strict=True)]
        texts += [text.rjust(width) for text, width in zip(line[3:], widths[3:], strict=True)]
        print("  ".join(texts).rstrip())


def machine() -> dict[str, Any]:
    """What the measurements were made on: processor, cores, memory, system, GPU if in use."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "ram_gb": round(psutil.virtual_memory().total / 10**9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    gpu = _gpu()
    return found | ({"gpu": gpu} if gpu else {})


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    """Cores that this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Name of the GPU, where the benchmark itself has loaded torch and there is one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
