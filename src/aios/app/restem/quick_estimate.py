"""What a run would take, told while it is being chosen: without loading the model.

Takes settings and a file of passages; gives the same estimate as ``aios seal restem estimate``
without a probe. Its speeds are those that the newest run of the same model on this machine has
measured when it began; where there is none, work is counted and no time is told. A run measures
anew when it begins, and says then what it will take.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aios.app.kept import KeptByStamp, stamp_of
from aios.app.restem.estimate import RestemEstimateReport, estimate_restem
from aios.app.restem.folders import restem_info
from aios.app.restem.kept_estimate import ESTIMATE_FILE, kept_estimate
from aios.app.restem.sizes import PassageCounts, approximate_tokens, count_dataset
from aios.core.config.loader import load_config
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError
from aios.core.restem_costs import Throughput

_LOOKED_AT = 20  # runs


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a run would take.

    Attributes:
        report: Counts and, where speeds are known, time.
        speeds_of: The run that has measured them; empty where none has.
    """

    report: RestemEstimateReport
    speeds_of: str


@dataclass(frozen=True, slots=True)
class _Speeds:
    """What a run has measured, and of what: model, device and processor."""

    model: tuple[str, str, str]
    throughput: Throughput


class Forecasts:
    """Estimates of runs that are being chosen; counts of files and speeds are kept."""

    def __init__(self) -> None:
        self._counts: KeptByStamp[PassageCounts] = KeptByStamp(8)
        self._speeds: KeptByStamp[_Speeds | None] = KeptByStamp(64)

    def of(self, config: Config, dataset: Path, runs: Iterable[Path]) -> Foreseen:
        """What a run with these settings on a file would take.

        Args:
            config: The settings.
            dataset: The file of passages.
            runs: Earlier runs, the newest first.

        Raises:
            UsageError: The settings cannot be used.
            DataError: The file cannot be read, or no passage has questions.
        """
        key = (dataset, config.data.max_passage_tokens, config.evaluation.question_template)
        counted = self._counts.get(
            key, stamp_of(dataset), lambda: count_dataset(config, dataset, approximate_tokens)
        )
        name, throughput = self._measured(config, runs)
        report = estimate_restem(config, dataset, probe=False, data=counted, throughput=throughput)
        return Foreseen(report, name)

    def _measured(self, config: Config, runs: Iterable[Path]) -> tuple[str, Throughput | None]:
        wanted = _kind_of(config)
        for path, _ in zip(runs, range(_LOOKED_AT), strict=False):
            found = self._speeds.get(path, stamp_of(path / ESTIMATE_FILE), partial(_speeds, path))
            if found is not None and found.model == wanted:
                return path.name, found.throughput
        return "", None


def _kind_of(config: Config) -> tuple[str, str, str]:
    return config.model.name, config.model.device, platform.machine()


def _speeds(path: Path) -> _Speeds | None:
    """What a run has measured; None where it has not, or it cannot be read."""
    try:
        estimate = kept_estimate(path)
        if estimate is None:
            return None
        info = restem_info(path)
        config = load_config(config_file=path / "config.yaml", env={}).config
    except AIOSError:  # the run's own page says what is wrong with it
        return None
    if info.get("machine") != platform.machine() or info.get("cpu_count") != os.cpu_count():
        return None  # of another machine
    return _Speeds(_kind_of(config), estimate.throughput)
