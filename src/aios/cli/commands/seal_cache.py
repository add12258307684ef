"""``aios seal cache``: the self-edits kept on disk, so that none is generated twice."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.seal import (
    model_option,
    num_edits_option,
    show_plan,
    strategy_option,
    temperature_option,
)
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import (
    INPUT_FILE,
    Command,
    Common,
    common_options,
    load,
    original_args,
    parsed_by,
)
from aios.core.errors import UsageError
from aios.core.sizes import parse_size

if TYPE_CHECKING:
    from aios.app.edits.cache import WarmReport
    from aios.core.seal.cache import CacheStats, PruneReport, Share

_HERE = "aios.cli.commands.seal_cache"
ENTRIES = {
    "stats": Entry(f"{_HERE}:stats", "Show what the cache holds."),
    "clear": Entry(f"{_HERE}:clear", "Delete every cached self-edit."),
    "prune": Entry(f"{_HERE}:prune", "Remove what was not used for longest."),
    "warm": Entry(f"{_HERE}:warm", "Generate self-edits into the cache."),
}
_RUNS_SHOWN = 5
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}  # of an age, in seconds
_AGE = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([mhdw])\s*", re.IGNORECASE)


@click.group("cache", cls=LazyGroup, entries=ENTRIES)
def cache() -> None:
    """Look after the self-edits on disk.

    Everything the model writes is kept under its exact prompt, model, settings and seed, so that
    a second run over the same passages generates nothing. The folder is seal.cache_dir.
    """


@click.command(
    "stats",
    cls=Command,
    short_help="Show what the cache holds.",
    examples=("aios seal cache stats",),
)
@common_options
def stats(common: Common) -> None:
    """Show what the cache holds: entries, size, age, and how often it was of use."""
    from aios.cli.rendering import to_json, write_json

    config = load(common).config
    from aios.app.edits.cache import open_cache

    with open_cache(config) as store:
        found = store.stats()
    folder = config.seal.cache_dir
    if common.json_output:
        write_json({"folder": folder, **to_json(found), "hit_rate": found.hit_rate})
    else:
        _show_stats(found, folder)


@click.command(
    "clear",
    cls=Command,
    short_help="Delete every cached self-edit.",
    examples=("aios seal cache clear --yes",),
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--set-aside", is_flag=True, help="Delete the corrupt files that were set aside, too."
)
@common_options
def clear(common: Common, yes: bool, set_aside: bool) -> None:
    """Delete every cached self-edit. They can be generated again, which takes time."""
    config = load(common).config
    from aios.app.edits.cache import open_cache

    with open_cache(config) as store:
        if not yes:
            planned = store.clear(set_aside=set_aside, dry_run=True)
            if not _confirm(planned, config.seal.cache_dir):
                click.echo("nothing was removed", err=True)
                return
        removed = store.clear(set_aside=set_aside)
    _show_removed(common, removed, config.seal.cache_dir)


def _age_value(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Option callback: the seconds of an age such as ``30d``; a bad one is a usage error."""
    if value is None:
        return None
    match = _AGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(
            f"{value!r} is not an age; write it like 90m, 12h, 30d or 8w", ctx, param
        )
    return float(match[1]) * _UNITS[match[2].lower()]


@click.command(
    "prune",
    cls=Command,
    short_help="Remove what was not used for longest.",
    examples=(
        "aios seal cache prune --max-size 5GB",
        "aios seal cache prune --older-than 30d --dry-run",
    ),
)
@click.option(
    "--max-size",
    callback=parsed_by(parse_size),
    metavar="SIZE",
    help="What may stay, e.g. 500MB, 5GB or 1.5GiB; seal.max_cache_size_gb by default.",
)
@click.option(
    "--older-than",
    callback=_age_value,
    metavar="AGE",
    help="Remove what was not used for so long, e.g. 12h, 30d or 8w.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@common_options
def prune(common: Common, max_size: int | None, older_than: float | None, dry_run: bool) -> None:
    """Remove what was not used for longest, by size or by age.

    Files that killed runs left unfinished go too.
    """
    config = load(common).config
    from aios.app.edits.cache import open_cache

    with open_cache(config) as store:
        limit = store.max_bytes if max_size is None else max_size
        removed = store.prune(limit, older_than=older_than, dry_run=dry_run)
    _show_removed(common, removed, config.seal.cache_dir, dry_run=dry_run)


@click.command(
    "warm",
    cls=Command,
    short_help="Generate self-edits into the cache.",
    examples=("aios seal cache warm --input passages.md",),
)
@click.option("--input", "input_file", type=INPUT_FILE, required=True, help="The file of passages.")
@strategy_option
@num_edits_option
@temperature_option
@model_option
@click.option("--dry-run", is_flag=True, help="Count the work; generate and write nothing.")
@common_options
def warm(common: Common, input_file: Path, dry_run: bool) -> None:
    """Generate self-edits into the cache, so that a later run starts at once."""
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.edits.cache import warm_cache

    if dry_run:
        from aios.app.edits.generation_plan import plan_generation

        plan = plan_generation(config, input_file)
        write_json(plan) if common.json_output else show_plan(plan)
        return
    line = resume_line(original_args())  # what is in the cache already is not made again
    with (
        show_progress(quiet=common.quiet) as emit,
        stop_on_signals(lambda: line) as should_stop,
    ):
        report = warm_cache(config, input_file, emit=emit, should_stop=should_stop)
    if common.json_output:
        write_json(report)
    else:
        _show_warmed(report)
    if (report.generated or report.failures) and not report.stored:
        click.get_current_context().exit(1)


def _show_stats(found: CacheStats, folder: Path) -> None:
    from aios.cli.rendering import write_facts, write_line, write_table
    from aios.cli.text import format_bytes, format_percent

    full = found.bytes / found.limit_bytes if found.limit_bytes else None
    size, limit = format_bytes(found.bytes), format_bytes(found.limit_bytes)
    lookups = found.hits + found.misses
    write_facts(
        [
            ("folder", str(folder)),
            ("self-edits", f"{found.entries:,}"),
            ("size", f"{size} of {limit} ({format_percent(full)})"),
            ("oldest", _minute(found.oldest)),
            ("newest", _minute(found.newest)),
            ("by strategy", _shares(found.by_strategy)),
            ("by model", _shares(found.by_model)),
            ("unreadable", f"{found.unreadable:,}" if found.unreadable else ""),
            ("set aside as corrupt", _files(found.set_aside, " in corrupt/")),
            ("unfinished", _files(found.unfinished, " of runs at work, or killed")),
            ("hits", f"{format_percent(found.hit_rate)} of {lookups:,} lookups in recent runs"),
        ]
    )
    if found.runs:
        write_line()
        write_table(
            ("run ended", "lookups", "hits", "misses", "hit rate"),
            (
                (
                    _minute(run.time),
                    f"{run.hits + run.misses:,}",
                    f"{run.hits:,}",
                    f"{run.misses:,}",
                    format_percent(run.hit_rate),
                )
                for run in found.runs[: -_RUNS_SHOWN - 1 : -1]
            ),
            numeric=(1, 2, 3, 4),
        )


def _minute(time: str | None) -> str:
    """An ISO 8601 time in UTC to the minute, as ``2025-01-31 12:00 UTC``."""
    return f"{time[:10]} {time[11:16]} UTC" if time else ""


def _shares(shares: Mapping[str, Share]) -> str:
    from aios.cli.text import format_bytes

    return ", ".join(
        f"{name} {share.entries:,} ({format_bytes(share.bytes)})" for name, share in shares.items()
    )


def _files(share: Share, where: str) -> str:
    from aios.cli.text import format_bytes

    return f"{share.entries:,} ({format_bytes(share.bytes)}){where}" if share.entries else ""


def _confirm(planned: PruneReport, folder: Path) -> bool:
    """Asks on the terminal.

    Raises:
        UsageError: There is nobody to ask.
    """
    what = f"{planned.removed:,} self-edits"
    if planned.set_aside:
        what += f" and {planned.set_aside:,} corrupt files"
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what} in {folder} would be deleted, and there is no terminal to ask",
            "add --yes to delete them without a question",
        )
    return click.confirm(f"Delete {what} in {folder}?", err=True)


def _show_removed(
    common: Common, report: PruneReport, folder: Path, *, dry_run: bool = False
) -> None:
    from aios.cli.rendering import to_json, write_json, write_line
    from aios.cli.text import format_bytes

    if common.json_output:
        write_json({"folder": folder, **to_json(report), "dry_run": dry_run})
        return
    done, freed = ("would be removed", "would be freed") if dry_run else ("removed", "freed")
    write_line(
        f"{report.removed:,} self-edits {done}, {format_bytes(report.bytes_freed)} {freed}; "
        f"{report.left:,} left, {format_bytes(report.bytes_left)}"
    )
    for count, what in (
        (report.temporaries, "unfinished files of killed runs"),
        (report.set_aside, "corrupt files"),
    ):
        if count:
            write_line(f"{count:,} {what} removed")
    if report.set_aside_left:
        write_line(
            f"{report.set_aside_left:,} corrupt files stay in {folder / 'corrupt'}; "
            "`aios seal cache clear --set-aside` deletes them too"
        )


def _show_warmed(report: WarmReport) -> None:
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_duration

    rejected = f" ({report.rejected:,} rejected)" if report.rejected else ""
    lost = report.generated - report.stored
    not_kept = f"; {lost:,} cut off by the deadline or not written" if lost else ""
    write_facts(
        [
            ("passages", f"{report.passages:,}{rejected}"),
            ("strategy", f"{report.strategy} ({report.strategy_source})"),
            ("cached before", f"{report.cached:,}"),
            ("generated", f"{report.generated:,}{not_kept}"),
            ("tokens", f"{report.tokens:,}"),
            ("time", format_duration(report.seconds)),
            ("rejects listed in", str(report.rejects_path or "")),
            ("kept in", str(report.folder)),
        ]
    )
    for failure in report.failures[:5]:
        write_line(f"failed: {failure.subject}: {failure.error}")
    if len(report.failures) > 5:
        write_line(f"failed: {len(report.failures) - 5} more passages")
