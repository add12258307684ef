"""Puts the results of the trials benchmarks into ``README.md``, between their markers.

python benchmarks/_trials_table.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from _generation_table import README, _number, _spread, _table
from _results import RESULTS

from aios.core.files import atomic_write_text

_SPEEDS = {  # metric, as it begins in the results: head of its column
    "training": "trials/h, training",
    "whole trials": "trials/h, whole",
    "passages decided": "passages decided/h",
    "real tokens trained": "real tokens/s",
    "set-up and scoring": "set-up and scoring, s/trial",
    "arithmetic of a trial": "GFLOP/trial",
    "share of the bfloat16 products' rate": "% of the machine's bfloat16 products",
    "peak memory": "peak memory, GB",
}
_GAIN = "answers' gain"
_EXTRAPOLATED = " (extrapolated from single steps)"
_COSTS = ("training", "tokens/s", "memory above the model", "memory as planned")


def markers(name: str) -> tuple[str, str]:
    """Between what the results of a benchmark stand."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def put(page: str, name: str, text: str) -> str:
    """The page with `text` between a benchmark's markers.

    Raises:
        ValueError: The page lacks them.
    """
    first, last = markers(name)
    head, begin, rest = page.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"the page has no {first} and {last}")
    return f"{head}{first}\n\n{text}\n\n{last}{tail}"


def trials_section(document: Mapping[str, Any]) -> str:
    """Speeds, gains and quality as Markdown."""
    job = document["job"]
    intro = (
        f"{_machine(document)}; {job['self-edits']}: {job['passages']} passages ×"
        f" {job['candidates']} candidates a round, {job['rounds']} rounds,"
        f" {job['epochs']} epochs; a trial has {job['tokens of a trial']} tokens in"
        f" {job['steps of a trial']} steps on average, a text {job['tokens of a text']} tokens."
        f" Median (least to largest)."
    )
    machine = ", ".join(
        f"{row['metric']} {_number(row['median'])} {row['unit']}"
        for row in document["rows"]
        if row["name"] == "machine"
    )
    gains = []
    for key, ratio in document["ratios"].items():
        pair, what = re.fullmatch(r"(.*) \((.*)\)", key, re.DOTALL).groups()  # type: ignore[union-attr]
        ours, _, other = pair.partition("/")
        gains.append((what, ours, other, f"**{_spread(ratio)}**"))
    return "\n\n".join(
        [
            intro,
            f"The machine: {machine}.",
            _speeds(document["rows"]),
            "The gains one by one, then together:",
            _table(("of", "this", "beside this", "×"), gains),
            "How much better the answers became (log-probability, nats a token):",
            _quality(document["rows"]),
        ]
    )


def costs_section(document: Mapping[str, Any]) -> str:
    """A line for each point of the curve."""
    lines = []
    for point in document["points"]:
        rows = [row for row in document["rows"] if row["name"] == point["name"]]
        by_key = {row["unit"] if row["unit"] == "tokens/s" else row["metric"]: row for row in rows}
        figures = [_number(by_key[key]["median"]) for key in _COSTS]
        lines.append((point["model"], str(point["groups"]), str(point["length"]), *figures))
    head = ("model", "at a time", "tokens of a text", "trials/h", "tokens/s", "GB above the model")
    return f"{_machine(document)}.\n\n{_table((*head, 'GB as planned'), lines)}"


def _machine(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    where = machine.get("gpu") or f"{machine['cores']} cores of {machine['cpu']}"
    return f"{document['date'][:10]}, {where}, {versions}"


def _speeds(rows: Sequence[Mapping[str, Any]]) -> str:
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        metric = row["metric"].removesuffix(_EXTRAPOLATED)
        if metric in _SPEEDS and row["name"] != "machine":
            extrapolated = "~ " if row["metric"].endswith(_EXTRAPOLATED) else ""
            single = row["n"] == 1 or row["min"] == row["max"]
            text = _number(row["median"]) if single else _spread(row)
            found.setdefault(row["name"], {})[metric] = extrapolated + text
    lines = [
        (name, *(figures.get(metric, "") for metric in _SPEEDS)) for name, figures in found.items()
    ]
    return _table(("", *_SPEEDS.values()), lines) + "\n\n~ extrapolated from single steps."


def _quality(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        (row["name"], row["metric"].removeprefix(f"{_GAIN}, "), _spread(row))
        for row in rows
        if row["metric"].startswith(_GAIN)
    ]
    return _table(("", "of the", "gain"), lines)


def main() -> None:
    page = README.read_text(encoding="utf-8")
    for name, section in (("trials", trials_section), ("trial_costs", costs_section)):
        path = RESULTS / f"{name}.json"
        if path.is_file():
            page = put(page, name, section(json.loads(path.read_text(encoding="utf-8"))))
    atomic_write_text(README, page)


if __name__ == "__main__":
    main()
