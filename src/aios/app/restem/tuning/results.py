"""What a tuning came to: the best settings, how sure that is, and the files that say so.

Takes the trials; gives one JSON document. The value of a trial is a mean over few held-out
passages, so the largest of many values is partly luck: beside the best stands how many other
settings cannot be told from it, and, where the best was repeated with other seeds, what it came to
then and what the present settings did with the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from aios.app.restem.generator_gain import Unit, mean_interval, unit_of
from aios.app.restem.tuning.report import render_tuning
from aios.app.restem.tuning.space import (
    Space,
    describe,
    set_lines,
    settings_of_parameters,
    yaml_text,
)
from aios.app.restem.tuning.study import TrialRecord, means_by_choice
from aios.core.config.schemas import Config
from aios.core.files import atomic_write_bytes, atomic_write_text, encode_json
from aios.core.restem import HeldOut

TRIALS_FILE, NUMBERS_FILE = "trials.jsonl", "tuning.json"
PAGE_FILE, SETTINGS_FILE = "report.html", "best.yaml"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The best settings and the present ones with another seed.

    Attributes:
        seed: The seed; it decides the split of the passages too.
        best: Value of the best settings.
        present: Value of the config as it is.
    """

    seed: int
    best: float
    present: float


@dataclass(frozen=True, slots=True)
class Found:
    """All that a tuning came to.

    Attributes:
        config: The config that is tuned.
        space: What was searched.
        records: The trials.
        untrained: Of the untrained generator, by held-out passage; None while it is not known.
        importance: By parameter.
        confirmations: Repetitions of the best.
        info: The set-up.
        notes: What a reader must know.
    """

    config: Config
    space: Space
    records: Sequence[TrialRecord]
    untrained: Mapping[str, float] | None
    importance: Mapping[str, float]
    confirmations: Sequence[Confirmation]
    info: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def best(self) -> TrialRecord | None:
        """The trial with the highest value, the first of equal ones; None without any."""
        complete = [record for record in self.records if record.value is not None]
        return max(complete, key=lambda r: (r.value or 0.0, -r.number), default=None)

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings as config keys; empty where there are none."""
        best = self.best
        return settings_of_parameters(self.config, best.parameters) if best is not None else {}

    @property
    def unit(self) -> Unit:
        """How values are written."""
        return unit_of(self.config.restem.reward)


def document_of(found: Found) -> dict[str, Any]:
    """The content of ``tuning.json``."""
    best = found.best
    untrained = fmean(found.untrained.values()) if found.untrained else None
    return {
        "verdict": verdict_of(found),
        "best": None if best is None else trial_document(best, best, found.untrained),
        "settings": found.settings,
        "set": set_lines(found.settings),
        "untrained": untrained,
        "not_told_from_best": len(alike(found)),
        "importance": dict(found.importance),
        "by_choice": {
            name: [{"choice": c, "trials": n, "mean": mean} for c, n, mean in rows]
            for name, rows in means_by_choice(found.space, found.records).items()
        },
        "confirmation": [asdict(one) for one in found.confirmations],
        "space": {"name": found.space.name, "why": found.space.why, "size": found.space.size}
        | {"choices": {name: list(values) for name, values in found.space.choices.items()}},
        "notes": list(found.notes),
        "info": dict(found.info),
        "trials": [trial_document(record, best, found.untrained) for record in found.records],
    }


def trial_document(
    record: TrialRecord, best: TrialRecord | None, untrained: Mapping[str, float] | None
) -> dict[str, Any]:
    """A trial as a JSON object: a line of ``trials.jsonl``.

    ``gain`` is its value less that of the untrained generator, ``behind`` that of the best trial
    less its own, each with a 95 % interval from a bootstrap over held-out passages.
    """
    plain = asdict(record)
    plain["rounds"] = [dict(values) for values in record.rounds]
    gain, gain_ci = _difference(record.held_out, untrained or {})
    behind, behind_ci = (None, None)
    if best is not None and record.number != best.number:
        behind, behind_ci = _difference(best.held_out, record.held_out)
    return {
        **plain,
        "gain": gain,
        "gain_ci95": gain_ci,
        "behind": behind,
        "behind_ci95": behind_ci,
    }


def alike(found: Found) -> list[TrialRecord]:
    """Complete trials but the best that cannot be told from it."""
    best, others = found.best, []
    for record in found.records:
        if best is None or record.value is None or record.number == best.number:
            continue
        _, ends = _difference(best.held_out, record.held_out)
        if ends is None or ends[0] <= 0:
            others.append(record)
    return others


def verdict_of(found: Found) -> str:
    """The result in a sentence or two."""
    best, unit = found.best, found.unit
    if best is None:
        return "No trial is complete, so nothing is known of any setting."
    count = sum(record.value is not None for record in found.records)
    words = [f"Best of {count} complete {_plural(count, 'trial')}: {describe(best.parameters)}."]
    if found.untrained:
        gain, ends = _difference(best.held_out, found.untrained)
        assert gain is not None
        side = "more" if gain >= 0 else "less"
        told = "" if ends is not None and ends[0] > 0 else "; that may be chance"
        words.append(
            f"Its generator gains {unit.signed(best.value)} on the held-out passages, "
            f"{unit.size(abs(gain))} {side} than the untrained one{told}."
        )
    others = len(alike(found))
    if others:
        words.append(
            f"{others} other {_plural(others, 'setting')} cannot be told from it by these passages."
        )
    if found.confirmations:
        ours = fmean(one.best for one in found.confirmations)
        theirs = fmean(one.present for one in found.confirmations)
        seeds = len(found.confirmations)
        words.append(
            f"With {seeds} other {_plural(seeds, 'seed')} it gains {unit.signed(ours)}, "
            f"the present settings {unit.signed(theirs)}."
        )
    elif count > 1:
        words.append("The best of several is too high by chance; --confirm repeats it.")
    return " ".join(words)


def write_tuning(folder: Path, found: Found) -> dict[str, Any]:
    """Writes numbers, trials, page and settings into the tuning's folder.

    Returns:
        The content of ``tuning.json``.

    Raises:
        StorageError: They cannot be written.
    """
    document = document_of(found)
    lines = [encode_json(one) + b"\n" for one in document["trials"]]
    atomic_write_bytes(folder / TRIALS_FILE, b"".join(lines))
    atomic_write_bytes(folder / NUMBERS_FILE, encode_json(document, indent=2) + b"\n")
    if found.settings:
        heading = f"Found by `aios seal restem tune`. {document['verdict']}"
        atomic_write_text(folder / SETTINGS_FILE, yaml_text(found.settings, heading))
    atomic_write_text(folder / PAGE_FILE, render_tuning(document, found.unit))
    return document


def _difference(
    ours: Mapping[str, float], theirs: Mapping[str, float]
) -> tuple[float | None, list[float] | None]:
    """Mean paired difference and its 95 % interval; None where it cannot be told."""
    differences = {name: ours[name] - theirs[name] for name in ours if name in theirs}
    if not differences:
        return None, None
    ends = mean_interval(HeldOut(differences, {}, 0.0))
    return fmean(differences.values()), None if ends is None else list(ends)


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
