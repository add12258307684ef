"""``aios seal restem estimate``: what a run would cost, and what to lower for a budget."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.seal import model_option
from aios.cli.options import (
    INPUT_FILE,
    Command,
    Common,
    common_options,
    config_option,
    load,
    parsed_by,
)
from aios.cli.restem_options import PASSAGES_HELP, iterations_option

if TYPE_CHECKING:
    from aios.app.restem.estimate import RestemEstimateReport
    from aios.core.restem_advice import Advice
    from aios.core.restem_costs import Memory, RestemEstimate
    from aios.core.restem_workload import Span

_NUMBER = r"\d{1,12}(?:\.\d{1,6})?"
_HOURS = {"s": 1 / 3600, "m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0}
_BUDGET = re.compile(rf"\s*(\$?)\s*({_NUMBER})\s*([a-z]*)\s*", re.IGNORECASE)
_PRICE = re.compile(rf"\s*({_NUMBER})\s*(?:-\s*({_NUMBER}))?\s*")
_PARAMETERS = re.compile(rf"\s*({_NUMBER})\s*([kmb]?)\s*", re.IGNORECASE)
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parse_budget(text: str) -> tuple[float | None, float | None]:
    """Hours or dollars of a budget such as ``2h``, ``30m``, ``20usd`` or ``$20``.

    Returns:
        Hours and money; one of them is None.

    Raises:
        ValueError: It is no budget.
    """
    match = _BUDGET.fullmatch(text)
    amount = float(match[2]) if match else 0.0
    unit = match[3].lower() if match else ""
    if match and amount > 0:
        if not match[1] and unit in _HOURS:
            return amount * _HOURS[unit], None
        if unit == "usd" or (match[1] and not unit):
            return None, amount
    raise ValueError(f"{text!r} is not a budget; write it like 30m, 2h, 1.5d or 20usd")


def parse_price(text: str) -> tuple[float, float]:
    """The low and the high end of a price such as ``1.5`` or ``1.5-3``.

    Raises:
        ValueError: It is no price.
    """
    match = _PRICE.fullmatch(text)
    low = float(match[1]) if match else 0.0
    high = float(match[2]) if match and match[2] else low
    if match is None or high < low or high <= 0:
        raise ValueError(f"{text!r} is not a price; write it like 1.50, or 1.50-3 for a range")
    return low, high


def parse_parameters(text: str) -> int:
    """A number of parameters such as ``7B``, ``135M`` or ``1500000``.

    Raises:
        ValueError: It is none.
    """
    match = _PARAMETERS.fullmatch(text)
    count = round(float(match[1]) * _THOUSANDS[match[2].lower()]) if match else 0
    if count < 1:
        raise ValueError(f"{text!r} is not a number of parameters; write it like 135M or 7B")
    return count


@click.command(
    "estimate",
    cls=Command,
    short_help="Tell time, memory and cost of a run beforehand.",
    examples=(
        "aios seal restem estimate --dataset passages.jsonl --budget 2h",
        "aios seal restem estimate --passages 100 --gpu L4 --model-parameters 1B",
    ),
)
@click.option("--dataset", type=INPUT_FILE, help=PASSAGES_HELP)
@click.option(
    "--passages",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of passages, where there is no file yet.",
)
@click.option(
    "--tokens-per-passage",
    type=click.IntRange(min=1, max=131_072),
    default=200,
    show_default=True,
    metavar="T",
    help="Their length, with --passages.",
)
@iterations_option
@config_option(
    "--batch-size", "seal.restem_batch_size", int, metavar="N", help="Passages of a round."
)
@config_option(
    "--candidates",
    "seal.restem_candidates_per_passage",
    int,
    metavar="K",
    help="Self-edits written and tried for each passage.",
)
@model_option
@click.option(
    "--gpu",
    metavar="NAME",
    help="Reckon for this GPU, such as A100-80GB, from its data sheet; no model is loaded.",
)
@click.option(
    "--model-parameters",
    metavar="N",
    callback=parsed_by(parse_parameters),
    help="With --gpu: the model's size, such as 7B, where the model is not here.",
)
@click.option(
    "--price-per-hour",
    metavar="X",
    callback=parsed_by(parse_price),
    help="Price of the machine in USD, or its range, such as 1.50-3.",
)
@click.option(
    "--probe/--no-probe",
    default=True,
    show_default=True,
    help="Time a few passages on this machine; not done with --gpu.",
)
@click.option("--expert", is_flag=True, help="Count the final expert too.")
@click.option(
    "--budget",
    metavar="B",
    callback=parsed_by(parse_budget),
    help="Say what to lower so that it takes at most so long or so much: 30m, 2h, 20usd.",
)
@common_options
def estimate(
    common: Common,
    dataset: Path | None,
    passages: int | None,
    tokens_per_passage: int,
    gpu: str | None,
    model_parameters: int | None,
    price_per_hour: tuple[float, float] | None,
    probe: bool,
    expert: bool,
    budget: tuple[float | None, float | None] | None,
) -> None:
    """Tell time, memory and cost of a ReST-EM run beforehand. Nothing is kept.

    Times a few passages on this machine: some self-edits are written, some short trials run, one
    step of training done. With --gpu it reckons from a data sheet instead, far less surely. Every
    figure has a range, and what is only assumed is listed.
    """
    from aios.cli.progress import show_progress
    from aios.cli.rendering import to_json, write_json
    from aios.core.restem_workload import Span

    config = load(common).config
    from aios.app.restem.estimate import estimate_restem

    price = None
    if price_per_hour is not None:
        low, high = price_per_hour
        price = Span(low, (low + high) / 2, high)
    hours, money = budget or (None, None)
    with show_progress(quiet=common.quiet) as emit:
        report = estimate_restem(
            config,
            dataset,
            passages=passages,
            tokens_per_passage=tokens_per_passage if passages is not None else None,
            gpu=gpu,
            price_per_hour=price,
            probe=probe,
            budget_hours=hours,
            budget_money=money,
            model_parameters=model_parameters,
            expert=expert,
            emit=emit,
        )
    if common.json_output:
        write_json({**to_json(report), **_peak(report.estimate)})
        return
    _show(report)


def _peak(found: RestemEstimate | None) -> dict[str, object]:
    """What of the memory is reckoned from the rest, for programs."""
    memory = found.memory if found is not None else None
    if memory is None:
        return {}
    return {"memory": {"peak_bytes": memory.peak_bytes, "fits": memory.fits}}


def _show(report: RestemEstimateReport) -> None:
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_count, format_duration

    work, found = report.workload, report.estimate
    unused = f" ({report.without_questions:,} without questions)"
    write_facts(
        [
            ("passages", f"{report.passages:,}" + (unused if report.without_questions else "")),
            (
                "rounds",
                f"{work.rounds} of {work.passages:,} passages with {work.candidates} self-edits, "
                f"{work.held_out:,} passages held out",
            ),
            ("trials", format_count(report.trials)),
        ]
    )
    write_line()
    _show_stages(report)
    write_line()
    if found is not None:
        write_facts(
            [
                ("time", _range(found.seconds, "time")),
                ("cost", _range(found.money, "usd") if found.money is not None else ""),
                ("memory", _memory(found.memory) if found.memory is not None else ""),
                ("speed from", found.throughput.source),
                (
                    "the probe took",
                    format_duration(report.probe_seconds) if report.probe_seconds else "",
                ),
            ]
        )
    else:
        write_line("No time: neither was a probe made, nor a GPU named.")
    for note in report.assumptions:
        write_line(f"assumed: {note}")
    if report.advice is not None:
        write_line()
        _show_advice(report.advice, fits=bool(report.fits))


def _show_stages(report: RestemEstimateReport) -> None:
    from aios.cli.rendering import write_table
    from aios.cli.text import format_count

    columns = ["stage", "written", "in trials", "scored", "fitted"]
    found = report.estimate
    rows = []
    for stage, tokens in report.tokens.items():
        counts = (tokens.written, tokens.trained, tokens.scored, tokens.fitted)
        if any(counts):
            cells = [format_count(round(count)) if count else "" for count in counts]
            time = [_range(found.stages[stage].seconds, "time")] if found is not None else []
            rows.append([stage, *cells, *time])
    if found is not None:
        columns.append("time")
    write_table(columns, rows, title="Tokens by stage", numeric=(1, 2, 3, 4))


def _show_advice(advice: tuple[Advice, ...], *, fits: bool) -> None:
    from aios.cli.rendering import write_line, write_table

    if not advice:
        write_line("The run fits the budget as it is.")
        return
    rows = []
    for one in advice:
        costs = [_range(one.estimate.seconds, "time")]
        if one.estimate.money is not None:
            costs.append(_range(one.estimate.money, "usd"))
        rows.append((one.setting, f"{_plain(one.before)} → {_plain(one.after)}", ", ".join(costs)))
    write_table(
        ("setting", "change", "then, with all above"),
        rows,
        title="To fit the budget, in this order",
    )
    for one in advice:
        write_line(f"{one.setting}: {one.why}")
    if not fits:
        write_line("Even so it does not fit: raise the budget, or take a faster machine.")
    elif not advice[-1].surely:
        write_line("It fits by the middle of the estimate; its upper end is above the budget.")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _range(span: Span, unit: str) -> str:
    """A figure with its range, such as ``13 min (10 min to 17 min)``."""
    from aios.core.estimates import describe_seconds

    low, middle, high = (
        describe_seconds(value) if unit == "time" else f"{value:,.2f} USD"
        for value in (span.low, span.middle, span.high)
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def _memory(memory: Memory) -> str:
    from aios.cli.text import format_bytes

    many = "training" if memory.trainings == 1 else "trainings"
    text = f"{format_bytes(memory.peak_bytes)} at the peak, {memory.trainings} {many} at a time"
    if memory.fits is None:
        return text
    there = format_bytes(memory.available_bytes)
    return f"{text}; {'there is' if memory.fits else 'there is only'} {there}"
