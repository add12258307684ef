"""``aios seal restem tune``: search the settings of ReST-EM."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.seal import model_option
from aios.cli.options import Command, Common, common_options, load, original_args, parsed_by
from aios.cli.restem_options import dataset_option, verbose_option

if TYPE_CHECKING:
    from aios.app.restem.tuning.job import TuneReport
    from aios.core.config.schemas import Config

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([a-z]+)\s*", re.IGNORECASE)


def parse_time(text: str) -> float:
    """Seconds of a time such as ``90s``, ``30m``, ``2h`` or ``1.5d``.

    Raises:
        ValueError: It is none.
    """
    match = _TIME.fullmatch(text)
    seconds = float(match[1]) * _SECONDS.get(match[2].lower(), 0) if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a time; write it like 90s, 30m, 2h or 1.5d")
    return seconds


@click.command(
    "tune",
    cls=Command,
    short_help="Search the settings of a run.",
    examples=(
        "aios seal restem tune --dataset passages.jsonl --output tuning --trials 20",
        "aios seal restem tune --dataset passages.jsonl --output tuning --resume",
    ),
)
@dataset_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the tuning: study, runs, report and best settings.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Trials in all, those of an earlier call included.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="ReST-EM rounds of a trial.",
)
@click.option(
    "--space",
    type=click.Choice(["plan", "small"]),
    help="Learning rates from 1e-5 to 1e-4, or from 1e-4 to 1e-3; by default what suits the model.",
)
@click.option(
    "--timeout",
    metavar="T",
    callback=parsed_by(parse_time),
    help="Stop after so long, e.g. 30m or 2h; --resume goes on.",
)
@click.option(
    "--confirm",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Repeat the best settings, and the present ones, with N other seeds.",
)
@model_option
@click.option("--resume", is_flag=True, help="Go on with the tuning in that folder.")
@verbose_option
@click.option("--dry-run", is_flag=True, help="Count the work; train nothing.")
@common_options
def tune(
    common: Common,
    dataset: Path,
    output: Path,
    trials: int,
    rounds: int,
    space: str | None,
    timeout: float | None,
    confirm: int,
    resume: bool,
    verbose: bool,
    dry_run: bool,
) -> None:
    """Search the settings of ReST-EM with Optuna.

    Each trial is a short run with another learning rate and rank of the generator's training,
    threshold of a reward and length of trials. It is judged by what its generator's self-edits
    bring on held-out passages. Trials share what they can; those that are clearly worse are
    stopped. The best of many is partly luck: --confirm shows what is left of it.

    Needs the extra "tune": pip install 'aios[tune]'.
    """
    config = load(common).config
    if dry_run:
        _dry_run(common, config, dataset, trials, rounds, space)
        return
    from aios.app.restem.tuning.job import tune as search
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress

    def going_on() -> str:
        return resume_line(original_args(), drop=["--resume"], add=["--resume"])

    with (
        show_progress(quiet=common.quiet, verbose=verbose) as show,
        stop_on_signals(going_on) as should_stop,
    ):
        report = search(
            config,
            dataset,
            output=output,
            trials=trials,
            rounds=rounds,
            resume=resume,
            timeout_seconds=timeout,
            space=space,
            confirm=confirm,
            emit=show,
            should_stop=should_stop,
        )
    _show(common, report)


def _show(common: Common, report: TuneReport) -> None:
    from aios.cli.rendering import to_json, write_facts, write_json, write_line

    document = report.document
    if common.json_output:
        places = {
            "folder": report.folder,
            "report_html": report.report_html,
            "tuning_json": report.tuning_json,
            "best_yaml": report.best_yaml,
        }
        write_json({**to_json(places), **to_json(dict(document))})
        return
    _show_trials(report)
    write_line()
    write_line(str(document["verdict"]))
    for note in document["notes"]:
        write_line(str(note))
    if report.importance:
        shares = sorted(report.importance.items(), key=lambda entry: -entry[1])
        write_line("importance: " + ", ".join(f"{_words(n)} {s:.0%}" for n, s in shares))
    for line in report.set_lines:
        write_line(f"  --set {line}")
    write_facts(
        [
            ("settings", str(report.best_yaml) if report.best_yaml else ""),
            ("report", str(report.report_html)),
            ("numbers", str(report.tuning_json)),
        ]
    )


def _show_trials(report: TuneReport) -> None:
    """The trials, the best first."""
    from aios.cli.rendering import write_table
    from aios.cli.text import format_duration

    ordered = sorted(report.trials, key=lambda t: (t.value is None, -(t.value or 0.0), t.number))
    names = list(ordered[0].parameters) if ordered else []
    rows = [
        (
            str(trial.number),
            *(_plain(trial.parameters[name]) for name in names),
            trial.state if trial.value is None else f"{trial.value:+.4f}",
            format_duration(trial.seconds),
        )
        for trial in ordered
    ]
    columns = ("trial", *map(_words, names), "value", "time")
    write_table(columns, rows, title="Trials", numeric=range(len(columns)))


def _dry_run(
    common: Common, config: Config, dataset: Path, trials: int, rounds: int, space: str | None
) -> None:
    from aios.app.restem.tuning.plan import plan_tuning
    from aios.cli.rendering import write_facts, write_json, write_line

    plan = plan_tuning(config, dataset, trials=trials, rounds=rounds, space=space)
    if common.json_output:
        write_json(plan)
        return
    choices = plan.space.choices.items()
    write_facts(
        [
            ("search space", f"{plan.space.name}: {plan.space.why}"),
            *((f"  {_words(name)}", ", ".join(map(_plain, values))) for name, values in choices),
            ("trials", f"{plan.trials:,} of {plan.combinations:,} combinations"),
            (
                "a trial",
                f"{plan.rounds} rounds of {plan.passages:,} passages, {plan.held_out:,} held out",
            ),
            (
                "trials of self-edits",
                f"at most {plan.edit_trials:,} ({plan.edit_trials_unshared:,} without sharing)",
            ),
        ]
    )
    write_line("This was a dry run: nothing was written.")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
