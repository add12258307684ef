"""What a ReST-EM run leaves: the best generator, the numbers, the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aios.app.restem.records import RoundRewards, read_rewards
from aios.app.restem.report import render_restem_report, restem_document
from aios.app.restem.rounds import RecordedRounds
from aios.core.files import atomic_write_bytes, atomic_write_text, encode_json, parse_json
from aios.core.restem import ReSTEMState
from aios.core.types import Passage
from aios.storage.generators import write_generator


def publish_best(rounds: RecordedRounds, state: ReSTEMState, target: Path | None) -> Path | None:
    """Puts the best round's generator into a folder of its own, with the whole run on its card.

    Args:
        rounds: The run.
        state: Its last state.
        target: The folder; None for the run's own folder.

    Returns:
        Where it is; None where the untrained generator is best.

    Raises:
        UsageError: The folder holds something else.
        StorageError: It cannot be written.
    """
    report = state.rounds[state.best]
    if not report.generator:
        return None
    adapter = rounds.adapter(report.generator, report.digest, rounds.model.digest)
    if target is None:
        return adapter.path
    return write_generator(target, adapter, rounds.card(report.number, adapter, state)).path


def write_results(
    path: Path,
    state: ReSTEMState,
    passages: Mapping[str, Passage],
    info: Mapping[str, Any],
) -> tuple[Path, Path, dict[str, Any]]:
    """Writes ``metrics.json`` and ``report.html`` into the run directory.

    Returns:
        The page, the file of numbers, and its content.

    Raises:
        StorageError: They cannot be written, or the candidates not be read.
    """
    found = {rewards.number: rewards for rewards in read_rewards(path)}
    rounds = {r.number: found.get(r.number, RoundRewards(r.number)) for r in state.rounds}
    candidates = {number: rewards.tried for number, rewards in rounds.items()}
    held_out = {number: rewards.held_out for number, rewards in rounds.items()}
    numbers = encode_json(restem_document(state, info), indent=2) + b"\n"
    page = render_restem_report(state, candidates, held_out, passages, info)
    atomic_write_bytes(path / "metrics.json", numbers)
    atomic_write_text(path / "report.html", page)
    return path / "report.html", path / "metrics.json", parse_json(numbers)
