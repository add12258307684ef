"""``aios seal cache``: the self-edits kept on disk, so that none is generated twice."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from aios.cli.commands.seal import (
    model_option,
    num_edits_option,
    show_report,
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
    size_value,
)
from aios.core.errors import UsageError

_HERE = "aios.cli.commands.seal_cache"
ENTRIES = {
    "stats": Entry(f"{_HERE}:stats", "Show what the cache holds."),
    "clear": Entry(f"{_HERE}:clear", "Delete every cached self-edit."),
    "prune": Entry(f"{_HERE}:prune", "Shrink the cache to a size."),
    "warm": Entry(f"{_HERE}:warm", "Generate self-edits into the cache."),
}


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
    from aios.cli.rendering import to_json, write_facts, write_json
    from aios.cli.text import format_bytes, format_percent

    config = load(common).config
    from aios.app.cache import open_cache

    with open_cache(config) as store:
        found = store.stats()
    if common.json_output:
        folder = str(config.seal.cache_dir)
        write_json({"folder": folder, **to_json(found), "hit_rate": found.hit_rate})
        return
    lookups = found.hits + found.misses
    write_facts(
        [
            ("folder", str(config.seal.cache_dir)),
            ("self-edits", f"{found.entries:,}"),
            ("size", f"{format_bytes(found.bytes)} of {config.seal.max_cache_size_gb:g} GB"),
            ("oldest", found.oldest or ""),
            ("newest", found.newest or ""),
            ("by strategy", _counts(found.by_strategy)),
            ("by model", _counts(found.by_model)),
            ("hits", f"{format_percent(found.hit_rate)} of {lookups:,} lookups in recent runs"),
            ("unreadable", f"{found.unreadable:,}" if found.unreadable else ""),
            ("set aside as corrupt", f"{found.set_aside:,}" if found.set_aside else ""),
        ]
    )


@click.command(
    "clear",
    cls=Command,
    short_help="Delete every cached self-edit.",
    examples=("aios seal cache clear --yes",),
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def clear(common: Common, yes: bool) -> None:
    """Delete every cached self-edit. They can be generated again, which takes time."""
    config = load(common).config
    from aios.app.cache import open_cache

    with open_cache(config) as store:
        if not yes and not _confirm(store.stats().entries, config.seal.cache_dir):
            click.echo("nothing was removed", err=True)
            return
        removed = store.clear()
    _show_removed(common, removed.removed, removed.bytes_freed)


@click.command(
    "prune",
    cls=Command,
    short_help="Shrink the cache to a size.",
    examples=("aios seal cache prune --max-size 5GB",),
)
@click.option(
    "--max-size",
    callback=size_value,
    metavar="SIZE",
    help="What may stay, e.g. 500MB, 5GB or 1.5GiB; seal.max_cache_size_gb by default.",
)
@common_options
def prune(common: Common, max_size: int | None) -> None:
    """Shrink the cache to a size. What was not used for longest goes first."""
    config = load(common).config
    from aios.app.cache import open_cache

    limit = round(config.seal.max_cache_size_gb * 10**9) if max_size is None else max_size
    with open_cache(config) as store:
        removed = store.prune(limit)
    _show_removed(common, removed.removed, removed.bytes_freed)


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
@common_options
def warm(common: Common, input_file: Path) -> None:
    """Generate self-edits into the cache, so that a later training starts at once."""
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress
    from aios.cli.rendering import to_json, write_json

    config = load(common).config
    from aios.app.cache import warm_cache

    line = resume_line(original_args())  # what is in the cache already is not made again
    with (
        show_progress(quiet=common.quiet) as emit,
        stop_on_signals(lambda: line) as should_stop,
    ):
        report = warm_cache(config, input_file, emit=emit, should_stop=should_stop)
    folder = config.seal.cache_dir
    if common.json_output:
        write_json({**to_json(report), "output": folder})
    else:
        show_report(report, ("kept in", folder))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _confirm(entries: int, folder: Path) -> bool:
    """Asks on the terminal.

    Raises:
        UsageError: There is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            f"{entries:,} self-edits in {folder} would be deleted, and there is no terminal to ask",
            "add --yes to delete them without a question",
        )
    return click.confirm(f"Delete {entries:,} self-edits in {folder}?", err=True)


def _show_removed(common: Common, removed: int, freed: int) -> None:
    from aios.cli.rendering import write_json, write_line
    from aios.cli.text import format_bytes

    if common.json_output:
        write_json({"removed": removed, "bytes_freed": freed})
    else:
        write_line(f"{removed:,} self-edits removed, {format_bytes(freed)} freed")
