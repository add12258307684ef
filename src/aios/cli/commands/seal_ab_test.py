"""``aios seal ab-test``: does training on self-edits make a better expert, and by how much?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.seal import (
    generator_option,
    model_option,
    num_edits_option,
    strategy_option,
)
from aios.cli.options import (
    INPUT_FILE,
    Command,
    Common,
    common_options,
    config_option,
    load,
    original_args,
)
from aios.core.events import Event, RunStarted

if TYPE_CHECKING:
    from aios.app.ab_tests.job import ABReport
    from aios.core.config.schemas import Config


@click.command(
    "ab-test",
    cls=Command,
    short_help="Measure whether self-edits help an expert.",
    examples=("aios seal ab-test --input passages.jsonl --seeds 3 --output results",),
)
@click.option(
    "--input",
    "--dataset",
    "input_file",
    type=INPUT_FILE,
    required=True,
    help="The file of passages, with questions about them.",
)
@click.option(
    "--questions",
    type=INPUT_FILE,
    help="A file of questions, where the passages' own file holds none.",
)
@config_option("--seeds", "ab_test.seeds", int, metavar="N", help="Trainings of each arm.")
@config_option(
    "--arms",
    "ab_test.arms",
    metavar="A,B",
    help="What is compared: base, passage, passage+edits, passage+other-edits, in-context.",
)
@config_option(
    "--match",
    "ab_test.match",
    click.Choice(["epochs", "tokens", "steps"]),
    help="What every trained arm has the same of.",
)
@config_option(
    "--max-passages", "ab_test.max_passages", int, metavar="N", help="Use only so many passages."
)
@strategy_option
@num_edits_option
@generator_option
@model_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the results, below the artifacts by default. A name ending in .json gets the "
    "numbers too, and the folder beside it has the name without the ending.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted test in that folder.")
@click.option("--verbose", is_flag=True, help="A line for each evaluation.")
@click.option("--dry-run", is_flag=True, help="Estimate the work, time and memory; train nothing.")
@common_options
def ab_test(
    common: Common,
    input_file: Path,
    questions: Path | None,
    output: Path | None,
    resume: bool,
    verbose: bool,
    dry_run: bool,
) -> None:
    """Measure whether self-edits help an expert.

    Trains experts on the passages alone, on passages with self-edits, and on passages with
    self-edits of other passages (which tells knowledge from habit of form), all with the same
    budget and several seeds. Then asks every expert the same questions, which none was trained
    on. The verdict, with a 95 % interval, may be "no difference found" or "worse". Writes
    report.html and metrics.json.
    """
    config = load(common).config
    if dry_run:
        _dry_run(common, config, input_file, questions)
        return
    folder, copy = _places(output)
    report = _run(common, config, input_file, questions, folder, resume=resume, verbose=verbose)
    _show(common, report, _copy(report.metrics_json, copy) if copy else report.metrics_json)


def _run(
    common: Common,
    config: Config,
    input_file: Path,
    questions: Path | None,
    folder: Path | None,
    *,
    resume: bool,
    verbose: bool,
) -> ABReport:
    from aios.app.ab_tests.job import run_ab_test
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress

    runs: list[str] = []  # ids, as their RunStarted events tell them

    def going_on() -> str:
        where = folder or _default_folder(config, runs)
        if where is None:
            return ""
        given = [] if folder else ["--output", str(where)]
        return resume_line(original_args(), drop=["--resume"], add=[*given, "--resume"])

    with (
        show_progress(quiet=common.quiet, verbose=verbose) as show,
        stop_on_signals(going_on) as should_stop,
    ):

        def emit(event: Event) -> None:
            if isinstance(event, RunStarted):
                runs.append(event.run)
            show(event)

        return run_ab_test(
            config,
            input_file,
            questions=questions,
            output=folder,
            resume=resume,
            emit=emit,
            should_stop=should_stop,
        )


def _show(common: Common, report: ABReport, metrics_json: Path) -> None:
    from aios.cli.ab_tables import summary_document, write_ab_tables
    from aios.cli.rendering import to_json, write_json, write_line

    if common.json_output:
        places = {"run_dir": report.run_dir, "report_html": report.report_html}
        summary = summary_document(report.metrics)
        write_json({**to_json(places), "metrics_json": metrics_json, **summary})
        return
    write_ab_tables(report.metrics)
    write_line(str(report.report_html))
    write_line(str(metrics_json))


def _default_folder(config: Config, runs: Sequence[str]) -> Path | None:
    """The folder of the run that was started without ``--output``; None if it cannot be told."""
    for run in runs[:1]:
        folder = config.paths.artifacts / "seal_experiments" / run
        if folder.is_dir():
            return folder
    return None


def _places(output: Path | None) -> tuple[Path | None, Path | None]:
    """The run's folder, and the file that gets a copy of the numbers."""
    if output is not None and output.suffix.lower() == ".json":
        return output.with_suffix(""), output
    return output, None


def _copy(metrics_json: Path, target: Path) -> Path:
    from aios.core.files import atomic_write_bytes

    atomic_write_bytes(target, metrics_json.read_bytes())
    return target


def _dry_run(common: Common, config: Config, input_file: Path, questions: Path | None) -> None:
    from aios.app.costs.plans import plan_ab_test
    from aios.cli.commands.seal import show_plan
    from aios.cli.cost_tables import forecast_document, write_forecast
    from aios.cli.progress import show_progress
    from aios.cli.rendering import to_json, write_facts, write_json, write_line

    with show_progress(quiet=common.quiet) as emit:
        plan = plan_ab_test(config, input_file, questions=questions, emit=emit)
    settings = config.ab_test
    trained = [arm for arm in settings.arms if arm not in ("base", "in-context")]
    trainings = len(trained) * settings.seeds
    if common.json_output:
        document = {"arms": settings.arms, "seeds": settings.seeds, "trainings": trainings}
        generation = to_json(plan.generation)
        document |= {"match": settings.match, "generation": generation}
        write_json({**document, **forecast_document(plan.forecast)})
        return
    write_facts(
        [
            ("arms", ", ".join(settings.arms)),
            ("seeds", str(settings.seeds)),
            (
                "trainings",
                f"{trainings} ({len(trained)} trained arms times {settings.seeds} seeds)",
            ),
            ("same for each", settings.match),
            (
                "passages used",
                f"at most {settings.max_passages:,}" if settings.max_passages else "",
            ),
        ]
    )
    write_line()
    write_forecast(plan.forecast)
    show_plan(plan.generation)
