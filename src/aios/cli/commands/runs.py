"""``aios runs``: what runs have recorded, given to other programs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options, load

_HERE = "aios.cli.commands.runs"
ENTRIES = {
    "export": Entry(f"{_HERE}:export", "Give a run's figures to an experiment tracker."),
}

TRACKERS = ("tensorboard", "trackio", "mlflow", "wandb")


@click.group("runs", cls=LazyGroup, entries=ENTRIES)
def runs() -> None:
    """Use what runs have recorded.

    Every run keeps its settings, events and results in a directory of its own, below
    artifacts/runs unless you say otherwise.
    """


@click.command(
    "export",
    cls=Command,
    short_help="Give a run's figures to an experiment tracker.",
    examples=("aios runs export artifacts/runs/RUN --to tensorboard",),
)
@click.argument(
    "run_dir", metavar="RUN_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--to",
    "tracker",
    type=click.Choice(TRACKERS),
    required=True,
    help="The tracker; its package must be installed, e.g. pip install 'aios[tensorboard]'.",
)
@common_options
def export(common: Common, run_dir: Path, tracker: str) -> None:
    """Give a run's figures to an experiment tracker, after the fact.

    Reads the run's record of events and writes the same metrics that the tracker would have got
    while the run went on. They stay on this machine, below artifacts/trackers, unless you have set
    the tracker's own environment variables otherwise; --offline refuses those.
    """
    from aios.cli.rendering import write_facts, write_json

    config = load(common).config
    from aios.app.trackers.choice import export_run

    report = export_run(
        run_dir,
        tracker,
        folder=config.paths.artifacts / "trackers",
        offline=config.model.offline,
        environ=os.environ,
    )
    if common.json_output:
        write_json(report)
        return
    write_facts(
        [
            ("run", report.run),
            ("events read", f"{report.events:,}"),
            ("numbers exported", f"{report.values:,}"),
            (f"{tracker} has them in", report.place),
        ]
    )
