"""``aios seal inspect``: what a generation kept and dropped, and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.completing import STRATEGIES, completes
from aios.cli.options import INPUT_FILE, OUTPUT_FILE, Command, Common, common_options, load
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.edits.inspection import (
        Inspection,
        ScoreSummary,
        ShownDrop,
        ShownEdit,
        ShownPassage,
    )

IN_TERMINAL = 10
IN_PAGE = 200
MOST_PASSAGES = 2_000
BAR = 20  # characters
LISTED_WITHOUT_EDITS = 10

_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.:-=+*#"


@click.command(
    "inspect",
    cls=Command,
    short_help="Show what was kept and dropped, and why.",
    examples=(
        "aios seal inspect edits.jsonl",
        "aios seal inspect edits.jsonl --reason ungrounded --sample 20",
        "aios seal inspect edits.jsonl --input passages.md --html edits.html",
    ),
)
@click.argument("file", type=INPUT_FILE)
@click.option("--input", "input_file", type=INPUT_FILE, help="The passages, to show their texts.")
@click.option(
    "--dropped",
    "dropped_file",
    type=INPUT_FILE,
    help="The list of drops, where it is not beside FILE as NAME.dropped.jsonl.",
)
@click.option(
    "--passage", "passages", multiple=True, metavar="ID", help="Show this passage. Repeatable."
)
@click.option(
    "--reason", "reasons", multiple=True, metavar="R", help="Show drops for this one. Repeatable."
)
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    metavar="NAME",
    shell_complete=completes(STRATEGIES),
    help="Show what this one wrote. Repeatable.",
)
@click.option("--kept-only", is_flag=True, help="Show no drops.")
@click.option("--dropped-only", is_flag=True, help="Show no kept edits.")
@click.option(
    "--limit",
    type=click.IntRange(0, MOST_PASSAGES),
    metavar="N",
    help=f"Show the first N passages; {IN_TERMINAL} by default, {IN_PAGE} in a page.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, MOST_PASSAGES),
    metavar="N",
    help="Show N passages drawn at random; --seed draws others.",
)
@click.option(
    "--html", "html_file", type=OUTPUT_FILE, help="Write a page (.html) that needs nothing else."
)
@common_options
def inspect(
    common: Common,
    file: Path,
    input_file: Path | None,
    dropped_file: Path | None,
    passages: tuple[str, ...],
    reasons: tuple[str, ...],
    strategies: tuple[str, ...],
    kept_only: bool,
    dropped_only: bool,
    limit: int | None,
    sample: int | None,
    html_file: Path | None,
) -> None:
    """Show what was kept and dropped, and why.

    FILE is a .jsonl or .parquet file of `aios seal generate`. Totals are over the whole file:
    drops by reason, candidates by strategy, the spread of the scores, passages with nothing left.
    Then some passages with their self-edits; scores in the worst tenth of the file are named.
    Lines that cannot be read are counted and passed over.
    """
    if kept_only and (dropped_only or reasons):
        raise click.UsageError(f"--kept-only and {'--reason' if reasons else '--dropped-only'}")
    if limit is not None and sample is not None:
        raise click.UsageError("give --limit (the first ones) or --sample (drawn at random)")
    if html_file is not None:
        _check_page(html_file, file, input_file, dropped_file)
    seed = load(common).config.seed
    from aios.app.edits.inspect_edits import inspect_edits
    from aios.app.edits.inspection import Selection
    from aios.cli.progress import show_progress
    from aios.cli.rendering import to_json, write_json

    by_default = IN_TERMINAL if html_file is None else IN_PAGE
    selection = Selection(
        passages=passages,
        reasons=reasons,
        strategies=strategies,
        kept=not dropped_only,
        dropped=not kept_only,
        limit=next((n for n in (sample, limit) if n is not None), by_default),
        sample=sample is not None,
        seed=seed,
    )
    with show_progress(quiet=common.quiet) as emit:
        seen = inspect_edits(file, selection, dropped=dropped_file, passages=input_file, emit=emit)
    if html_file is not None:
        _write_page(seen, html_file)
    if common.json_output:
        write_json({**to_json(seen), "html": html_file})
        return
    show_totals(seen)
    if html_file is None:
        show_passages(seen)
    else:
        from aios.cli.rendering import write_line

        write_line(f"\nwritten to {html_file}")


def _check_page(html_file: Path, *inputs: Path | None) -> None:
    """Keeps what is read from being replaced by the page.

    Raises:
        UsageError: The page's name does not end in .html, or it is one of the inputs.
    """
    if html_file.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"--html {html_file}: the name of a page ends in .html", f"Name it {html_file}.html."
        )
    for path in inputs:
        if path is not None and html_file.exists() and html_file.samefile(path):
            raise UsageError(
                f"--html is the input file itself, {path}, which would be lost",
                "give the page a file of its own",
            )


def _write_page(seen: Inspection, path: Path) -> None:
    from aios.app.edits.inspect_html import render_inspection
    from aios.core.files import atomic_write_text

    title = f"Self-edits in {seen.files.edits.name}"
    atomic_write_text(path, render_inspection(seen, title=title))


def show_totals(seen: Inspection) -> None:
    """Writes what is true of the whole file."""
    from aios.cli.rendering import write_facts, write_line

    write_facts(_facts(seen))
    _show_tables(seen)
    if seen.without_edits:
        write_line("\nNothing left of")
        for passage in seen.without_edits_listed[:LISTED_WITHOUT_EDITS]:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in passage.reasons.items())
            write_line(_safe(f"  {passage.passage_id} ({reasons})"))
        if seen.without_edits > LISTED_WITHOUT_EDITS:
            write_line(f"  and {seen.without_edits - LISTED_WITHOUT_EDITS:,} more passages")
    if seen.broken:
        write_line(f"\nBroken lines, counted nowhere else: {seen.broken:,}")
        for broken in seen.broken_listed:
            write_line(_safe(f"  {broken.file}:{broken.line}: {broken.problem}"))
        if seen.broken > len(seen.broken_listed):
            write_line(f"  and {seen.broken - len(seen.broken_listed):,} more")


def _facts(seen: Inspection) -> Iterator[tuple[str, str]]:
    from aios.cli.text import format_percent

    yield "self-edits in", str(seen.files.edits)
    yield "dropped in", str(seen.files.dropped or "(no list beside it: drops are not known)")
    of_input = ""
    if seen.input_passages is not None:
        of_input = f" of {seen.input_passages:,} ({seen.untouched:,} with no edit and no drop)"
    yield "passages", f"{seen.passages:,}{of_input}"
    yield "kept", f"{seen.kept:,}"
    if seen.files.dropped is not None:
        share = "" if seen.share_dropped is None else f" ({format_percent(seen.share_dropped)})"
        items = f", and {seen.items_dropped:,} items of kept ones" if seen.items_dropped else ""
        yield "dropped", f"{seen.dropped:,}{share}{items}"
        yield "nothing left of", f"{seen.without_edits:,} passages" if seen.without_edits else ""
    for score in seen.scores:
        if score.name == "tokens":
            spread = f"median {_number(score.median)}, 90th percentile {_number(score.p90)}"
            yield "tokens of an edit", spread
    if len(seen.models) == 1 and "(none)" not in seen.models:
        yield "written by", next(iter(seen.models))
    yield "rejected input", ", ".join(f"{n:,} {reason}" for reason, n in seen.rejects.items())


def _show_tables(seen: Inspection) -> None:
    from aios.cli.rendering import write_line, write_table
    from aios.cli.text import format_percent

    if seen.reasons:
        total = sum(row.edits + row.items for row in seen.reasons)
        counts = [(row, row.edits + row.items) for row in seen.reasons]
        write_line()
        write_table(
            ("reason", "edits", "items", "share", ""),
            [
                (row.reason, f"{row.edits:,}", f"{row.items:,}", *_share(count / total))
                for row, count in counts
            ],
            title="Dropped, by reason",
            numeric=(1, 2, 3),
        )
    if seen.strategies:
        write_line()
        write_table(
            ("strategy", "kept", "dropped", "share dropped"),
            [
                (
                    row.strategy,
                    f"{row.kept:,}",
                    f"{row.dropped:,}",
                    format_percent(row.share_dropped),
                )
                for row in seen.strategies
            ],
            title="By strategy",
            numeric=(1, 2, 3),
        )
    if len(seen.models) > 1:
        write_line()
        rows = [(name, f"{count:,}") for name, count in seen.models.items()]
        write_table(("model", "kept"), rows, title="By model", numeric=(1,))
    spread = [*([seen.tokens_generated] if seen.tokens_generated else []), *seen.scores]
    if spread:
        write_line()
        write_table(
            ("score", "least", "median", "90 %", "most", "spread", "bad"),
            [_score_row(score) for score in spread],
            title="Scores of the kept edits",
            numeric=(1, 2, 3, 4),
        )


def _share(share: float) -> tuple[str, str]:
    from aios.cli.text import format_percent

    return format_percent(share, 0), ("█" if _is_unicode() else "#") * round(BAR * share)


def _score_row(score: ScoreSummary) -> tuple[str, ...]:
    ends = (_number(v) for v in (score.low, score.median, score.p90, score.high))
    return (score.name, *ends, _spark(score.bins), score.worse)


def _spark(bins: Sequence[int]) -> str:
    """The counts as a row of bars; no bar where there is nothing."""
    levels = _LEVELS if _is_unicode() else _ASCII_LEVELS
    most = max(bins)
    return "".join(
        levels[min(len(levels) - 1, count * len(levels) // (most + 1))] if count else " "
        for count in bins
    )


def _number(value: float) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1e6 else f"{value:.3g}"


def show_passages(seen: Inspection) -> None:
    """Writes the chosen passages with their edits and drops."""
    from aios.cli.rendering import write_text

    for number, passage in enumerate(seen.shown, start=1):
        write_text("\n" + "\n".join(_passage_lines(number, passage)))
    left = seen.matching - len(seen.shown)
    if not seen.shown and not left:
        write_text("\nNothing of this kind is in the file.")
    elif left:
        write_text(f"\n{left:,} more passages; --limit, --sample or --html show more.")


def _passage_lines(number: int, passage: ShownPassage) -> Iterator[str]:
    from aios.app.edits.inspection import ShownDrop

    name = f"{passage.title} ({passage.id})" if passage.title else passage.id
    yield _styled(f"── {number}. {_one_line(name)}", bold=True)
    if passage.text:
        yield from _indented(passage.text)
    for row in passage.rows():
        yield ""
        yield from _drop_lines(row) if isinstance(row, ShownDrop) else _edit_lines(row)
    if passage.more_edits or passage.more_drops:
        yield f"(left out: {passage.more_edits:,} kept, {passage.more_drops:,} dropped)"


def _edit_lines(edit: ShownEdit) -> Iterator[str]:
    bad = ", ".join(f"{name} {_number(edit.scores[name])}" for name in edit.bad)
    head = _styled(f"kept, {edit.strategy} #{edit.index}", fg="green")
    yield head + (_styled(f"  worst tenth: {bad}", fg="yellow") if bad else "")
    for item in edit.items:
        yield from _bullet(item, fg="green")
    if edit.more:
        yield f"  and {edit.more:,} more items"


def _drop_lines(drop: ShownDrop) -> Iterator[str]:
    what = "dropped" if drop.whole else "item dropped"
    detail = f" ({_one_line(drop.detail)})" if drop.detail else ""
    yield _styled(f"{what}, {drop.strategy} #{drop.index}, {drop.reason}{detail}", fg="red")
    if drop.text.strip():
        yield from _bullet(drop.text, fg="red", strikethrough=True)


def _bullet(text: str, **style: object) -> Iterator[str]:
    mark = "• " if _is_unicode() else "- "
    for line in filter(str.strip, text.splitlines()):
        yield f"  {mark}{_styled(line, **style)}".rstrip()
        mark = "  "


def _indented(text: str) -> Iterable[str]:
    return (f"  {_safe(line)}".rstrip() for line in text.splitlines())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _safe(text: str) -> str:
    """A text that no terminal obeys and every stream can write."""
    from aios.cli.text import clean

    return clean(text).encode("utf-8", "replace").decode()


def _styled(text: str, **style: object) -> str:
    """A safe text, in colour where stdout is a terminal and nothing forbids it."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return _safe(text)
    return click.style(_safe(text), **style)  # type: ignore[arg-type]


def _is_unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()
