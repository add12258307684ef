"""What a run that is done has measured of the machine, from its results.

Takes the results of an A/B test or of an expert's training, and what the writing of self-edits
cost; gives `core.training_costs.RunCosts`. A training is cut into pieces at its evaluations, since
a single piece says nothing of how much speeds vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from aios.app.ab_tests.data import ABJob
from aios.app.costs.records import device_kind, keep_costs, manner_of
from aios.app.experts.publishing import ExpertJob
from aios.core.estimates import spread_indices
from aios.core.evaluation.ab_test import UNTRAINED, ABData
from aios.core.evaluation.comparison import ArmRun
from aios.core.seal.passage_edits import PassageEdits
from aios.core.telemetry import TelemetrySummary
from aios.core.training.auto_training_orchestrator import TrainingData
from aios.core.training.examples import edit_examples, passage_examples
from aios.core.training.expert_trainer import TrainedExpert
from aios.core.training_costs import MOST_PIECES, Manner, Pieces, RunCosts
from aios.core.trainings import CurvePoint
from aios.core.types import Passage, ScoreRequest, SelfEdit

_GROUPS = 8  # of passages, whose writing is one piece
Count = Callable[[str], int]


def keep_ab_costs(
    job: ABJob,
    data: ABData,
    results: Sequence[PassageEdits],
    arms: Mapping[str, Sequence[ArmRun]],
    seconds: float | None,
) -> None:
    """Keeps what an A/B test has measured in its run's directory.

    Args:
        job: The test.
        data: What it was run on.
        results: What generation gave for the passages that are learned.
        arms: What its arms gave.
        seconds: What it took; None where a part of it was done before.

    Raises:
        StorageError: It cannot be written.
    """
    writing = job.run.telemetry.summary()
    spent = writing.seconds + sum(map(_seconds, chain(*arms.values())))
    costs = ab_costs(
        manner_of(job.config, job.recipe),
        device_kind(job.config),
        data,
        arms.values(),
        written_pieces(results, writing),
        job.model.count_tokens,
        wrote=job.needs_edits,
        once_seconds=None if seconds is None else max(0.0, seconds - spent),
    )
    keep_costs(job.run.directory.path, costs)


def keep_expert_costs(
    job: ExpertJob, data: TrainingData, trained: TrainedExpert, seconds: float
) -> None:
    """Keeps what an expert's training has measured, which took so many seconds so far.

    Raises:
        StorageError: It cannot be written.
    """
    writing = job.run.telemetry.summary()
    spent = writing.seconds + trained.result.seconds + trained.evaluation_seconds
    costs = expert_costs(
        manner_of(job.config, job.recipe),
        device_kind(job.config),
        data,
        trained,
        written_pieces((), writing),
        job.model.count_tokens,
        wrote=job.use_self_edits,
        once_seconds=None if job.resume else max(0.0, seconds - spent),
    )
    keep_costs(job.run.directory.path, costs)


def _seconds(run: ArmRun) -> float:
    """All of an arm with one seed."""
    trained = run.train_seconds + run.evaluation_seconds
    return trained + run.examination_seconds + run.retention_seconds


def ab_costs(
    manner: Manner,
    device: str,
    data: ABData,
    arms: Iterable[Sequence[ArmRun]],
    written: Pieces,
    count: Count,
    *,
    wrote: bool,
    once_seconds: float | None,
) -> RunCosts:
    """What an A/B test has measured.

    Args:
        manner: What its speed depended on.
        device: The kind of device.
        data: What it was run on.
        arms: The runs of each arm.
        written: `written_pieces` of its self-edits.
        count: Tokens of a text.
        wrote: Whether self-edits were asked for.
        once_seconds: What was not spent on self-edits and arms; None if that is not known.
    """
    runs = [run for own in arms for run in own]
    trained = [run for run in runs if run.arm not in UNTRAINED]
    selection = _tokens(count, (probe.request for probe in data.selection))
    retention = _tokens(count, data.retention)
    scored = [
        (len(run.curve) * selection + retention, run.evaluation_seconds + run.retention_seconds)
        for run in trained
        if run.evaluation_seconds
    ]
    # An adapter slows the answers, so the untrained model's say nothing of an expert's.
    examined = trained or [run for run in runs if run.arm != "in-context"]
    answered = [(len(data.report), run.examination_seconds) for run in examined]
    return RunCosts(
        manner,
        written=written,
        trained=_chosen(piece for run in trained for piece in curve_pieces(run.curve)),
        scored=_chosen(scored),
        answered=_chosen(answered),
        once_seconds=once_seconds,
        peak_memory_bytes=max((run.peak_memory_bytes for run in trained), default=0),
        device=device,
        **_sizes(data.passages, data.edits if wrote else None, count),
    )


def expert_costs(
    manner: Manner,
    device: str,
    data: TrainingData,
    trained: TrainedExpert,
    written: Pieces,
    count: Count,
    *,
    wrote: bool,
    once_seconds: float | None,
) -> RunCosts:
    """What an expert's training has measured; takes what `ab_costs` does."""
    result = trained.result
    tokens = len(result.curve) * _tokens(count, data.validation.requests)
    return RunCosts(
        manner,
        written=written,
        trained=_chosen(curve_pieces(result.curve)),
        scored=_chosen([(tokens, trained.evaluation_seconds)]),
        once_seconds=once_seconds,
        peak_memory_bytes=result.peak_memory_bytes,
        device=device,
        **_sizes(data.passages, data.edits if wrote else None, count),
    )


def curve_pieces(curve: Sequence[CurvePoint]) -> Pieces:
    """Tokens and seconds of a training from each evaluation to the next."""
    return _chosen((b.tokens - a.tokens, b.seconds - a.seconds) for a, b in pairwise(curve))


def written_pieces(results: Sequence[PassageEdits], telemetry: TelemetrySummary) -> Pieces:
    """Self-edits that were written, with their seconds, some passages together.

    Several passages are in flight at once, so their times are scaled to add up to the wall time.

    Args:
        results: Passages, all or some.
        telemetry: What the writing of all passages cost.
    """
    fresh = [result for result in results if result.generated and result.seconds > 0]
    spread = telemetry.passage_seconds
    if not fresh or spread is None or not spread.mean:  # nothing, or in no time to speak of
        return _chosen([(telemetry.generated, telemetry.seconds)])
    passages = telemetry.passages * telemetry.generated / (telemetry.generated + telemetry.cached)
    scale = telemetry.seconds / (spread.mean * max(passages, 1.0))
    ends = [i * len(fresh) // _GROUPS for i in range(_GROUPS + 1)]
    groups = [fresh[a:b] for a, b in pairwise(ends) if b > a]
    return _chosen(
        (sum(one.generated for one in group), scale * sum(one.seconds for one in group))
        for group in groups
    )


def _sizes(
    passages: Sequence[Passage], edits: Sequence[SelfEdit] | None, count: Count
) -> dict[str, Any]:
    """How long tokens are, and how much self-edits add, from some of the passages."""
    chosen = [passages[i] for i in spread_indices(len(passages), MOST_PIECES)]
    texts = {one.passage_id: one.text for one in passage_examples(chosen)}
    tokens = {passage_id: count(text) for passage_id, text in texts.items()}
    whole = sum(tokens.values())
    if not whole:
        return {}
    sizes: dict[str, Any] = {"characters_per_token": sum(map(len, texts.values())) / whole}
    if edits is not None:
        written = dict.fromkeys(texts, 0)
        items = dict.fromkeys(texts, 0)
        for example in edit_examples(edit for edit in edits if edit.passage_id in texts):
            written[example.passage_id] += count(example.text)
            items[example.passage_id] += 1
        sizes["edit_tokens"] = tuple(written[i] / tokens[i] for i in texts if tokens[i])
        sizes["edit_items"] = tuple(float(items[i]) for i in texts if tokens[i])
    return sizes


def _tokens(count: Count, requests: Iterable[ScoreRequest]) -> int:
    return sum(count(one.prompt) + count(one.continuation) for one in requests)


def _chosen(pieces: Iterable[tuple[float, float]]) -> Pieces:
    """The pieces that hold anything, at most as many as are kept, evenly chosen."""
    found = [(float(units), float(seconds)) for units, seconds in pieces]
    found = [piece for piece in found if piece[0] > 0 and piece[1] > 0]
    return tuple(found[i] for i in spread_indices(len(found), MOST_PIECES))
