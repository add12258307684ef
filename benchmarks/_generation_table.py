"""Puts the results of the generation benchmark into ``README.md``, between its two markers.

python benchmarks/_generation_table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _results import RESULTS

from aios.core.files import atomic_write_text

README = RESULTS.parent / "README.md"
BEGIN, END = "<!-- generation: begin -->", "<!-- generation: end -->"
OURS = "aios"


def section(document: Mapping[str, Any]) -> str:
    """The results as Markdown: speeds and ratios, limits and parts, what the search tried."""
    job, machine = document["job"], document["machine"]
    intro = (
        f"{document['date'][:10]}, {machine['cores']} cores of {machine['cpu']},"
        f" {', '.join(f'{name} {version}' for name, version in document['versions'].items())};"
        f" {job['passages']} passages × {job['candidates']} completions of at most"
        f" {job['sampling']['max_new_tokens']} tokens, {job['prompt_tokens']} prompt tokens,"
        f" {job['rounds']} rounds; median (least to largest)."
    )
    parts = [intro, _speeds(document), "What the machine allows, and our loop beside it:"]
    parts.append(_limits(document["rows"]))
    search = document.get("search, tokens/s on a small job", {})
    if search:
        parts += ["The search, on a smaller job (its tokens/s compare with one another only):"]
        parts.append(_search(search))
    if "left_out" in document:
        parts.append(f"Left out: {document['left_out']}.")
    return "\n\n".join(parts)


def put(readme: str, text: str) -> str:
    """The page with `text` between the markers.

    Raises:
        ValueError: The page lacks the markers.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"


def _speeds(document: Mapping[str, Any]) -> str:
    rows = {(row["name"], row["metric"]): row for row in document["rows"]}
    lines = []
    for name, settings in document["settings"].items():
        ratio = document["ratios"].get(f"{OURS}/{name}")
        lines.append(
            (
                name,
                _spread(rows[name, "generated tokens"]),
                _spread(rows[name, "completions"]),
                f"**{_spread(ratio)}**" if ratio else "",
                ", ".join(f"{key} {value}" for key, value in settings.items() if value),
            )
        )
    return _table(("", "tokens/s", "completions/s", "ours / this", "with"), lines)


def _limits(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [row for row in rows if row["name"] in ("machine", "aios, observed")]
    lines = [(r["name"], r["metric"], f"{_number(r['median'])} {r['unit']}") for r in shown]
    return _table(("", "what", "measured"), lines)


def _search(search: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        (name, what, _number(speed))
        for name, tried in search.items()
        for what, speed in tried.items()
    ]
    return _table(("", "tried", "tokens/s"), lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _spread(value: Mapping[str, float]) -> str:
    median, least, largest = (_number(value[key]) for key in ("median", "min", "max"))
    return f"{median} ({least} to {largest})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    document = json.loads((RESULTS / "generation.json").read_text(encoding="utf-8"))
    page = put(README.read_text(encoding="utf-8"), section(document))
    atomic_write_text(README, page)


if __name__ == "__main__":
    main()
