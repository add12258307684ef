"""From turns to rows and ratios.

Contestants do not all run every candidate of a round (the slow ones do a part), so a round's unit
is the *average trial* of its candidates: so many tokens, so many optimiser steps. Trials an hour
are tokens a second (for the padded run, steps a second) in that unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from _results import ratios_of, row
from _trials_data import Lesson, all_candidates, padding_share
from _trials_flops import Shape, training_flops
from _trials_job import BASELINE, TRAINING, Task, Trial, Turn, answer_gains, even, odd

PADDED = "release, padded"
PEFT_FULL, PEFT_HALF = "PEFT float32", "PEFT bfloat16"
PEFT_KEPT = "PEFT float32, freed memory kept"
OURS_FULL, OURS_HALF = "aios float32", "aios bfloat16"
RACING, TRUNK = "aios bfloat16, racing", "aios bfloat16, trunk"
EVEN_REPEATS = 2  # what racing is compared with: so many trials of every candidate
HOUR = 3600


@dataclass(frozen=True, slots=True)
class Played:
    """All turns of all contestants.

    Attributes:
        tasks: One a round.
        turns: By contestant, one a round.
        peaks: The machine's square bfloat16 products, operations a second, one a round.
        padded_to: Tokens of a text of `PADDED`.
        padded_peer: The contestant that differs from `PADDED` by the padding alone.
        shape: The model's.
        trunk_layers: Of `TRUNK`.
    """

    tasks: Sequence[Task]
    turns: Mapping[str, Sequence[Turn]]
    peaks: Sequence[float]
    padded_to: int
    padded_peer: str
    shape: Shape
    trunk_layers: int

    def each(self, name: str, of: Callable[[Turn, Task], float]) -> list[float]:
        """A quantity of a contestant, round by round."""
        return [of(turn, task) for turn, task in zip(self.turns[name], self.tasks, strict=True)]


@dataclass(slots=True)
class Report:
    """What goes into the results file."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        self.rows.append(row(name, metric, unit, samples))

    def compare(
        self, what: str, ours: str, other: str, mine: Sequence[float], theirs: Sequence[float]
    ) -> None:
        self.ratios[f"{ours}/{other} ({what})"] = ratios_of(mine, theirs)


def training_rate(turn: Turn, task: Task) -> float:
    """Average trials trained in a second."""
    done = turn.tokens / task.mean_tokens if turn.tokens else turn.steps / task.mean_steps
    return done / turn.seconds[TRAINING]


def whole_rate(turn: Turn, task: Task) -> float:
    """Average trials in a second, with scoring before and after."""
    return turn.tokens / task.mean_tokens / turn.wall


def cached_rate(turn: Turn, task: Task) -> float:
    """The same if the base model had been asked a passage's questions once."""
    again = turn.seconds[BASELINE] * (1 - 1 / turn.finished)
    return turn.tokens / task.mean_tokens / (turn.wall - again)


def rest_seconds(turn: Turn, task: Task) -> float:
    """Seconds of setting up and scoring the adapter, an average trial."""
    return turn.rest / (turn.tokens / task.mean_tokens)


def decisions(turn: Turn, task: Task) -> float:
    """Passages decided in a second: by the race, or with `EVEN_REPEATS` trials a candidate."""
    if turn.chosen:
        return len(turn.chosen) / turn.wall
    candidates = len(task.lessons[0].candidates)
    return whole_rate(turn, task) / (EVEN_REPEATS * candidates)


def trial_flops(shape: Shape, task: Task, *, trunk: int = 0, padded: int | None = None) -> float:
    """Operations of training an average trial."""
    counts = []
    for _, candidate in all_candidates(task.lessons):
        lengths = [padded] * len(candidate.texts) if padded else candidate.lengths
        labels = [length - 1 for length in lengths]
        counts.append(
            training_flops(
                shape,
                lengths,
                labels,
                task.recipe.rank,
                passes=task.recipe.epochs,
                trunk_layers=trunk,
            )
        )
    return fmean(counts)


def report_speeds(report: Report, played: Played) -> None:
    """Trials, tokens and arithmetic of every contestant."""
    for name in played.turns:
        rates = played.each(name, training_rate)
        marked = " (extrapolated from single steps)" if name == PADDED else ""
        report.add(name, f"training{marked}", "trials/h", [HOUR * rate for rate in rates])
        if name != PADDED:
            whole = played.each(name, whole_rate)
            report.add(name, "whole trials", "trials/h", [HOUR * rate for rate in whole])
            decided = played.each(name, decisions)
            report.add(name, "passages decided", "passages/h", [HOUR * d for d in decided])
            report.add(name, "set-up and scoring", "s/trial", played.each(name, rest_seconds))
        tokens = [rate * task.mean_tokens for rate, task in zip(rates, played.tasks, strict=True)]
        report.add(name, f"real tokens trained{marked}", "tokens/s", tokens)
        _report_arithmetic(report, played, name, rates)
    report.add("machine", "bfloat16 matrix products, square", "GFLOP/s", _giga(played.peaks))


def _report_arithmetic(report: Report, played: Played, name: str, rates: Sequence[float]) -> None:
    trunk = played.trunk_layers if name == TRUNK else 0
    needs = [trial_flops(played.shape, task, trunk=trunk) for task in played.tasks]
    reached = [need * rate for need, rate in zip(needs, rates, strict=True)]
    report.add(name, "arithmetic of a trial", "GFLOP", _giga(needs))
    report.add(name, "useful arithmetic", "GFLOP/s", _giga(reached))
    report.add(name, "share of the bfloat16 products' rate", "%", _percent(reached, played.peaks))
    if name != PADDED:
        return
    length = played.padded_to
    padded = [trial_flops(played.shape, task, padded=length) for task in played.tasks]
    spent = [need * rate for need, rate in zip(padded, rates, strict=True)]
    report.add(name, "arithmetic of a trial, padding included", "GFLOP", _giga(padded))
    report.add(name, "share of that rate, padding included", "%", _percent(spent, played.peaks))
    shares = []
    for task in played.tasks:
        lengths = [n for _, c in all_candidates(task.lessons) for n in c.lengths]
        shares.append(100 * padding_share(lengths, length))
    report.add(name, "padding", "%", shares)


def report_gains(report: Report, played: Played) -> None:
    """Ratios, each for one change and then for all together, taken within a round."""

    def gain(
        what: str, of: Callable[[Turn, Task], float], pairs: Sequence[tuple[str, str]]
    ) -> None:
        for ours, other in pairs:
            if ours in played.turns and other in played.turns:
                report.compare(what, ours, other, played.each(ours, of), played.each(other, of))

    peer = played.padded_peer
    gain("training: unpadding", training_rate, [(peer, PADDED)])
    gain("training: dtype", training_rate, [(PEFT_HALF, PEFT_FULL), (OURS_HALF, OURS_FULL)])
    gain("training: freed memory kept", training_rate, [(PEFT_KEPT, PEFT_FULL)])
    gain("training: batching", training_rate, [(OURS_FULL, PEFT_FULL), (OURS_HALF, PEFT_HALF)])
    gain("training: trunk", training_rate, [(TRUNK, OURS_HALF)])
    gain("training: all", training_rate, [(OURS_HALF, PEFT_FULL), (OURS_HALF, PADDED)])
    gain("whole trials", whole_rate, [(OURS_FULL, PEFT_FULL), (OURS_HALF, PEFT_FULL)])
    gain("whole trials: trunk", whole_rate, [(TRUNK, OURS_HALF)])
    gain("passages decided: racing", decisions, [(RACING, OURS_HALF)])
    gain("passages decided: all", decisions, [(RACING, PEFT_FULL)])
    for name in (PEFT_FULL, PEFT_HALF):
        mine, theirs = played.each(name, cached_rate), played.each(name, whole_rate)
        report.compare("whole trials: baseline cache", f"{name}, cached", name, mine, theirs)
    for ours, other in ((OURS_FULL, PEFT_FULL), (OURS_HALF, PEFT_HALF)):
        mine, theirs = played.each(ours, rest_seconds), played.each(other, rest_seconds)
        report.compare("set-up and scoring: time of the other", ours, other, theirs, mine)


def report_quality(report: Report, played: Played) -> None:
    """What the chosen candidates are worth on questions that did not choose them.

    Only the first passage of each round, which every contestant in this table has tried in full.
    """
    of = {"chosen candidate": chosen_gain, "all candidates": mean_gain}
    lessons = [task.lessons[0] for task in played.tasks]
    complete = [
        name
        for name, turns in played.turns.items()
        if all(_is_complete(turn, lesson) for turn, lesson in zip(turns, lessons, strict=True))
    ]
    for which, gain in of.items():
        gains = {
            name: [gain(t, lesson) for t, lesson in zip(played.turns[name], lessons, strict=True)]
            for name in complete
        }
        for name, mine in gains.items():
            report.add(name, f"answers' gain, {which}", "nats/token", mine)
            if name != PEFT_FULL and PEFT_FULL in gains:
                more = [a - b for a, b in zip(mine, gains[PEFT_FULL], strict=True)]
                report.add(f"{name} − {PEFT_FULL}", f"answers' gain, {which}", "nats/token", more)


def chosen_gain(turn: Turn, lesson: Lesson) -> float:
    """Gain on odd questions of the candidate that is best on even ones (or that a race chose)."""
    groups = _by_candidate(turn, lesson)
    best = turn.chosen.get(lesson.passage_id)
    if best is None:
        numbers = even(len(lesson.questions))
        best = max(groups, key=lambda each: fmean(answer_gains(t, numbers) for t in groups[each]))
    return fmean(answer_gains(trial, odd(len(lesson.questions))) for trial in groups[best])


def mean_gain(turn: Turn, lesson: Lesson) -> float:
    """Gain on all questions, mean of the candidates."""
    numbers = range(len(lesson.questions))
    groups = _by_candidate(turn, lesson).values()
    return fmean(fmean(answer_gains(trial, numbers) for trial in trials) for trials in groups)


def _by_candidate(turn: Turn, lesson: Lesson) -> dict[str, list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for trial in turn.trials:
        if trial.passage_id == lesson.passage_id:
            groups.setdefault(trial.candidate_id, []).append(trial)
    return groups


def _is_complete(turn: Turn, lesson: Lesson) -> bool:
    return _by_candidate(turn, lesson).keys() == {c.id for c in lesson.candidates}


def _giga(numbers: Sequence[float]) -> list[float]:
    return [number / 1e9 for number in numbers]


def _percent(parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    return [100 * part / whole for part, whole in zip(parts, wholes, strict=True)]
