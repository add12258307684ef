"""What an A/B test or an expert's training will take, told before it is started.

With the model (`foresee`, for the command line's dry runs) texts are counted in its own tokens,
and what no earlier run has measured is timed by a probe. Without it (`Forecasts`, for pages) the
characters of earlier runs' tokens are the measure, and where there is no earlier run there is no
time. Nothing is guessed: what is not measured is not told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from aios.app.ab_tests.data import read_retention
from aios.app.ab_tests.job import ab_settings
from aios.app.composition import recipe_named
from aios.app.costs.records import EarlierRuns, manner_of
from aios.app.costs.texts import (
    CountedTexts,
    count_ab_texts,
    count_expert_texts,
    look_at_passages,
)
from aios.app.kept import KeptByStamp, stamp_of
from aios.app.machine.load import free_memory
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError
from aios.core.estimates import describe_range
from aios.core.restem_workload import Span
from aios.core.training_costs import (
    WRITING,
    Paces,
    RunCosts,
    TrainingEstimate,
    estimate,
    missing,
    paces_of,
)
from aios.core.training_work import NOTHING, EditSizes, TrainingWork, ab_work, added, expert_work

Foreseen: TypeAlias = Literal["ab-test", "train-expert"]
FORESEEN: tuple[Foreseen, ...] = ("ab-test", "train-expert")

_CHARACTERS_PER_TOKEN = 4  # only to tell which passages are split
_SECTIONS = {"seed", "ab_test", "evaluation", "data", "training"}  # that counting depends on


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job will take.

    Attributes:
        work: What is to be done; None where that is not known.
        estimate: How long it takes; None where that is not known.
        basis: What that rests on, for people; empty without an estimate.
        reason: Why there is no estimate; empty with one.
        peak_bytes: Most memory of a training; None where it was not measured.
        at_least: Whether that is of a probe, which is small: a whole training takes more.
        free_bytes: Memory that is free now, of the device that a training takes it of, or else of
            the machine; None if it is not known.
        damaged: Records of earlier runs that could not be read.
        without_writing: Whether the time is that of all but writing self-edits, whose pace is not
            known: those of earlier runs came from the cache.
    """

    work: TrainingWork | None
    estimate: TrainingEstimate | None
    basis: str = ""
    reason: str = ""
    peak_bytes: int | None = None
    at_least: bool = False
    free_bytes: int | None = None
    damaged: int = 0
    without_writing: bool = False

    @property
    def fits(self) -> bool | None:
        """Whether as much memory is free as will be taken; None where one is not known."""
        if self.peak_bytes is None or self.free_bytes is None:
            return None
        return self.peak_bytes <= self.free_bytes

    @property
    def time(self) -> str:
        """The time for people, e.g. ``about 6 to 9 min``; empty without an estimate."""
        if self.estimate is None:
            return ""
        seconds = self.estimate.seconds
        return f"about {describe_range(seconds.low, seconds.high)}"

    @property
    def seed_time(self) -> str:
        """The time of one seed of all trained arms of an A/B test; empty where there is none."""
        if self.estimate is None or self.work is None:
            return ""
        arms = [arm.name for arm in self.work.arms if arm.name and arm.trained.high]
        if not arms:
            return ""
        span = added([self.estimate.arms[name] for name in arms])
        return f"about {describe_range(span.low, span.high)}"


def planned_work(
    kind: Foreseen,
    config: Config,
    recipe: ResolvedRecipe,
    texts: CountedTexts,
    written: Span,
    edits: EditSizes | None,
) -> TrainingWork | None:
    """The work of a job.

    Args:
        kind: Which job.
        config: Its config.
        recipe: The recipe in force.
        texts: Its texts, in tokens.
        written: Self-edits to write.
        edits: How much self-edits add; None where that is not known.
    """
    sizes = replace(texts.sizes, written=written)
    if kind == "train-expert":
        return expert_work(sizes, edits, recipe, use_self_edits=texts.writing > 0)
    settings = ab_settings(config, recipe)
    return ab_work(sizes, edits, settings, config.ab_test.arms, config.ab_test.seeds)


def foresee(
    kind: Foreseen,
    config: Config,
    recipe: ResolvedRecipe,
    texts: CountedTexts,
    written: Span,
    *,
    free_bytes: Callable[[str], int | None],
    probe: Callable[[bool], RunCosts],
) -> Forecast:
    """What a job will take, by earlier runs, and by a probe where they do not tell.

    Args:
        kind: Which job.
        config: Its config.
        recipe: The recipe in force.
        texts: Its texts, in tokens.
        written: Self-edits to write.
        free_bytes: Memory that was free before the model was loaded, by the kind of device.
        probe: Measures what is needed; told whether self-edits are.
    """
    manner = manner_of(config, recipe)
    earlier = EarlierRuns().of(config.paths.artifacts, manner)
    paces = paces_of([costs for _, costs in earlier.runs], manner)
    find = partial(planned_work, kind, config, recipe, texts, written)
    work, probed, by_runs = find(paces.edits), False, paces.peak_memory_bytes is not None
    if work is None or missing(work, paces):
        writes = bool(texts.writing) and (
            paces.edits is None or (written.high > 0 and WRITING not in paces.seconds)
        )
        paces = paces.filled(paces_of([probe(writes)], manner))
        work, probed = find(paces.edits), True
    found = _forecast(work, paces, earlier.damaged, free_bytes, probed=probed)
    return replace(found, at_least=probed and not by_runs)


def _forecast(
    work: TrainingWork | None,
    paces: Paces,
    damaged: int,
    free_bytes: Callable[[str], int | None],
    *,
    probed: bool = False,
) -> Forecast:
    without_writing = work is not None and missing(work, paces) == (WRITING,)
    if work is None:
        found = None
    else:
        found = estimate(replace(work, written=NOTHING) if without_writing else work, paces)
    return Forecast(
        work,
        found,
        basis=_basis(paces.runs, probed=probed) if found is not None else "",
        reason="" if found is not None else _reason(work, paces, probed=probed),
        peak_bytes=paces.peak_memory_bytes,
        free_bytes=free_bytes(paces.device),
        damaged=damaged,
        without_writing=without_writing,
    )


def free_on(config: Config) -> Callable[[str], int | None]:
    """Tells how much memory is free now on a kind of device, the one that the config names."""

    def free(kind: str) -> int | None:
        wanted = config.model.device
        return free_memory(wanted if wanted.startswith(kind) else kind)

    return free


def _basis(runs: int, *, probed: bool) -> str:
    earlier = f"{runs} earlier run{'' if runs == 1 else 's'} here"
    if not probed:
        return earlier
    return f"{earlier} and a timed probe" if runs else "a timed probe"


def _reason(work: TrainingWork | None, paces: Paces, *, probed: bool) -> str:
    if not paces.runs and not probed:
        return "no earlier run here has measured it"
    lacks = "how long self-edits are" if work is None else ", ".join(missing(work, paces))
    return f"not measured by {'the probe' if probed else 'an earlier run here'}: {lacks}"


# ------------------------------------------------------------ without a model


class Forecasts:
    """Forecasts without a model; what was counted and read is kept until its file changes."""

    def __init__(self) -> None:
        self._earlier = EarlierRuns()
        self._counted: KeptByStamp[CountedTexts | None] = KeptByStamp(32)

    def of(self, kind: Foreseen, config: Config, path: Path, artifacts: Path) -> Forecast:
        """What a job on a file will take.

        Args:
            kind: Which job.
            config: Its settings.
            path: The file of passages.
            artifacts: The folder of artifacts, with earlier runs.
        """
        try:
            recipe = recipe_named(config, config.model.name)
            manner = manner_of(config, recipe)
            earlier = self._earlier.of(artifacts, manner)
            paces = paces_of([costs for _, costs in earlier.runs], manner)
            per_token = paces.characters_per_token
            if per_token is None:
                return _forecast(None, replace(paces, runs=0), earlier.damaged, free_on(config))
            texts = self._count(kind, config, path)
        except AIOSError as error:  # a file or settings that the job would refuse, too
            return Forecast(None, None, reason=error.message)
        if texts is None:
            return Forecast(None, None, reason="the file is too large to be counted here")
        texts = replace(texts, sizes=texts.sizes.divided(per_token))
        asked = float(texts.writing * recipe.num_edits_per_passage)
        written = Span(0.0 if _may_be_cached(config) else asked, asked, asked)
        work = planned_work(kind, config, recipe, texts, written, paces.edits)
        return _forecast(work, paces, earlier.damaged, free_on(config))

    def _count(self, kind: Foreseen, config: Config, path: Path) -> CountedTexts | None:
        """The texts of a job in characters; None where there are too many."""
        retention = config.training.retention_file
        files = [path] if retention is None else [path, retention]
        key: Hashable = (kind, path, config.model_dump_json(include=_SECTIONS))
        return self._counted.get(key, stamp_of(*files), partial(_counted, kind, config, path))


def _counted(kind: Foreseen, config: Config, path: Path) -> CountedTexts | None:
    most = config.data.max_passage_tokens * _CHARACTERS_PER_TOKEN
    passages = look_at_passages(path, most)
    if passages is None:
        return None
    if kind == "train-expert":
        texts = count_expert_texts(config, passages, len, use_self_edits=config.seal.enabled)
    else:
        settings = ab_settings(config, recipe_named(config, config.model.name))
        retention = read_retention(config.training.retention_file)
        texts = count_ab_texts(config, settings, passages, len, retention=retention)
    return replace(texts, passages=())


def _may_be_cached(config: Config) -> bool:
    """Whether the cache holds anything: which self-edits, only the model could tell."""
    if not config.seal.enable_cache:
        return False
    try:
        with os.scandir(config.seal.cache_dir) as entries:
            return any(entry.name.endswith(".json") for entry in entries)
    except OSError:  # not there
        return False
