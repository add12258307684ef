"""What a ReST-EM run says beforehand that it will cost, and at its end what it did cost.

The estimate is made from a timed probe when a run is started, shown, and kept in its directory.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from aios.app.composition import Run
from aios.app.restem.estimate import estimate_restem
from aios.core.config.schemas import Config
from aios.core.errors import StorageError
from aios.core.estimates import describe_seconds
from aios.core.events import Notice
from aios.core.files import atomic_write_json, read_json
from aios.core.protocols import LanguageModel
from aios.core.restem import ReSTEMState
from aios.core.restem_costs import (
    RestemEstimate,
    Throughput,
    compare_with_actual,
    estimate,
)
from aios.core.restem_workload import Workload

ESTIMATE_FILE = "estimate.json"


def foretell(config: Config, dataset: Path, model: LanguageModel, run: Run) -> None:
    """Times a probe, tells what the run will take, and keeps that.

    Raises:
        BackendError: The probe failed: the run would, too.
        StorageError: It cannot be kept.
    """
    found = estimate_restem(config, dataset, emit=run.emit, model=model).estimate
    if found is None:
        return
    low, middle, high = (
        describe_seconds(seconds)
        for seconds in (found.seconds.low, found.seconds.middle, found.seconds.high)
    )
    memory = ""
    if found.memory is not None:
        memory = f"; the trials take about {found.memory.peak_bytes / 1e9:.1f} GB of memory"
        if found.memory.fits is False:
            run.emit(
                Notice("more memory is wanted than is free: trainings are made fewer", "warning")
            )
    run.emit(Notice(f"this will take about {middle} ({low} to {high}), by a probe{memory}"))
    parts = {"workload": asdict(found.workload), "throughput": asdict(found.throughput)}
    atomic_write_json(run.directory.path / ESTIMATE_FILE, parts)


def estimate_beside_actual(path: Path, state: ReSTEMState) -> list[dict[str, Any]]:
    """What was estimated beside what was spent, as JSON rows; empty without an estimate.

    Raises:
        StorageError: The estimate is damaged.
    """
    found = kept_estimate(path)
    if found is None:
        return []
    return [asdict(row) for row in compare_with_actual(found, state.rounds)]


def kept_estimate(path: Path) -> RestemEstimate | None:
    """What a run was estimated to take when it was started; None where it was not.

    Args:
        path: The run's directory.

    Raises:
        StorageError: The estimate is damaged.
    """
    record = read_json(path / ESTIMATE_FILE, default=None)
    if record is None:
        return None
    try:
        workload = TypeAdapter(Workload).validate_python(record["workload"])
        throughput = TypeAdapter(Throughput).validate_python(record["throughput"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{path / ESTIMATE_FILE} is of another form: {error}", "remove that file"
        ) from error
    return estimate(workload, throughput)
