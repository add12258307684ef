"""What racing is worth, on the log of the SEAL release's first round.

    python experiments/racing_on_release_log.py seal_rank_iter0.json

The log has 50 passages, 5 self-edits of each and 3 repeats of train-and-evaluate of each
self-edit. Every schedule is run by the real `aios.core.seal.racing.race` over an executor that
answers from the log, once for each order in which the repeats of each self-edit could have come
(orders that show the same values count once, with their weight). The table is printed and written
to `experiments/results/racing_release_log.json`. See experiments/racing.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aios.core.data.probes import Probe
from aios.core.evaluation.statistics import Interval, Ratio, difference_interval, paired_bootstrap
from aios.core.protocols import Emit, Executor, ShouldStop, ignore, never
from aios.core.seal.racing import EvenSchedule, RacingSchedule, Schedule, race
from aios.core.seal.reliability import NoiseEstimate, estimate_noise, report
from aios.core.seal.trial_set import Candidate, PassageResult, PassageState, Standing, ranked
from aios.core.seeds import derive
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import LoraRecipe, TrainExample

RESULTS = Path(__file__).parent / "results" / "racing_release_log.json"
REPEATS = 3  # of each candidate in the log
LEAST_RACES = 1200  # of a passage, its candidates in a new order in each
COPIES = 4  # of each order of the repeats, at least
SPLITS = 10  # most halves of a passage's questions
TEMPLATE = TrialJob(id="", examples=(), recipe=LoraRecipe(), seed=0)
EXAMPLES = (TrainExample.whole("-"),)

Repeats = tuple[float, ...]  # the share of right answers of each repeat of a candidate


@dataclass(frozen=True)
class Logged:
    """A passage of the log: verdicts after training, ``[candidate][repeat][question]``."""

    name: str
    verdicts: np.ndarray

    def shares(self, questions: Sequence[int]) -> list[Repeats]:
        """The share of these questions that each repeat of each candidate answered rightly."""
        means = self.verdicts[:, :, list(questions)].mean(axis=2)
        return [tuple(float(value) for value in row) for row in means]

    @property
    def all_questions(self) -> list[int]:
        return list(range(self.verdicts.shape[2]))


@dataclass(frozen=True)
class Scenario:
    """One way in which a passage's trials could have come out, and how many ways are like it."""

    passage: int
    order: tuple[int, ...]  # candidates as the race gets them
    values: tuple[Repeats, ...]  # of the candidates, in the log's order of candidates
    weight: float


class Replay(Executor):
    """Answers trials from scenarios; it knows the scenario from the id of the job."""

    def __init__(self) -> None:
        self.open: dict[str, Scenario] = {}

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        for job in jobs:
            name, number, repeat = job.id.split("/")
            values = self.open[name].values[int(number)]
            share = values[int(repeat.removeprefix("repeat-"))]
            yield TrialOutcome(job.id, TrialMetrics((), 0, 0, 0.0, figures={"accuracy": share}))

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        return []

    def close(self) -> None:
        self.open.clear()


def accuracy(job: TrialJob, outcome: TrialOutcome) -> float:
    assert outcome.metrics is not None
    return outcome.metrics.figures["accuracy"]


@dataclass(frozen=True)
class AllTiedRacing:
    """`RacingSchedule` in which all that tie with the last finalist are finalists too."""

    more: int = 1
    finalists: int = 2

    def next(self, state: PassageState) -> list[tuple[Candidate, int]]:
        if state.stage == 0:
            return [(standing.candidate, 1) for standing in state.standings]
        if state.stage > 1:
            return []
        best = ranked(state.standings)
        border = _mean(best[: self.finalists][-1]) - 1e-9
        return [(one.candidate, self.more) for one in best if _mean(one) >= border]


@dataclass(frozen=True)
class ConfidenceRacing:
    """One repeat more, up to `most`, for each candidate whose interval meets the best one's.

    The interval is the mean ± z sd / sqrt(n), with the noise of a single reward.
    """

    noise: NoiseEstimate
    most: int
    z: float = 1.0

    def next(self, state: PassageState) -> list[tuple[Candidate, int]]:
        if state.stage == 0:
            return [(standing.candidate, 1) for standing in state.standings]
        lower = max(_mean(one) - self._margin(one) for one in state.standings)
        able = [one for one in state.standings if _mean(one) + self._margin(one) >= lower]
        if len(able) < 2:
            return []
        return [(one.candidate, 1) for one in able if len(one.values) < self.most]

    def _margin(self, standing: Standing) -> float:
        return self.z * self.noise.sd / math.sqrt(len(standing.values))


def _mean(standing: Standing) -> float:
    assert standing.mean is not None
    return standing.mean


def read_log(path: Path) -> list[Logged]:
    """The passages of the release's file, with the questions of each repeat in the same order."""
    passages = []
    for number, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["articles"]):
        rows = []
        for completion in article["completions"]:
            by_repeat: list[list[tuple[str, bool]]] = [[] for _ in range(REPEATS)]
            for asked in completion["questions"]:
                by_repeat[asked["rep"]].append((asked["question"], asked["adapter_correct"]))
            questions = [[text for text, _ in repeat] for repeat in by_repeat]
            if any(texts != questions[0] for texts in questions):
                raise SystemExit(f"{path}: article {number}: repeats with different questions")
            rows.append([[right for _, right in repeat] for repeat in by_repeat])
        passages.append(Logged(f"p{number}", np.asarray(rows, dtype=np.float64)))
    return passages


def orders_of(values: Repeats) -> Counter[Repeats]:
    """All orders in which the repeats can come, and how many permutations give each."""
    return Counter(itertools.permutations(values))


def scenarios(
    passage: int, shares: Sequence[Repeats], *, copies: int, least: int, part: int = 0
) -> Iterator[Scenario]:
    """Every order of every candidate's repeats; the candidates' own order is drawn anew each time.

    Equal rewards are common (most passages have 3 to 5 questions), and a race breaks ties by the
    order of the candidates. That order means nothing in the log, so it is drawn.
    """
    choices = [list(orders_of(values).items()) for values in shares]
    ways = math.prod(len(choice) for choice in choices)
    copies = max(copies, math.ceil(least / ways))
    rng = random.Random(derive(0, "candidate order", passage, part))
    total = math.factorial(REPEATS) ** len(shares) * copies
    order = list(range(len(shares)))
    for combination in itertools.product(*choices):
        weight = math.prod(count for _, count in combination) / total
        values = tuple(repeats for repeats, _ in combination)
        for _ in range(copies):
            rng.shuffle(order)
            yield Scenario(passage, tuple(order), values, weight)


def by_quality(passage: int, shares: Sequence[Repeats]) -> Iterator[Scenario]:
    """As `scenarios`, but the candidates are in the order of what the log says of them in all.

    Ties are then broken in favour of the candidate that is to win: this looks ahead.
    """
    best_first = sorted(range(len(shares)), key=lambda c: (-round(np.mean(shares[c]), 9), c))
    total = math.factorial(REPEATS) ** len(shares)
    for combination in itertools.product(*(orders_of(values).items() for values in shares)):
        weight = math.prod(count for _, count in combination) / total
        yield Scenario(passage, tuple(best_first), tuple(v for v, _ in combination), weight)


def races(
    every: Iterable[Scenario], schedule: Schedule
) -> Iterator[tuple[Scenario, PassageResult]]:
    """Runs a race for each scenario, all in one stream."""
    executor = Replay()

    def passages() -> Iterator[tuple[str, list[Candidate]]]:
        for number, scenario in enumerate(every):
            name = f"s{number}"
            executor.open[name] = scenario
            yield name, [Candidate(f"{name}/{c}", name, EXAMPLES) for c in scenario.order]

    for result in race(passages(), executor, schedule, accuracy, template=TEMPLATE):
        yield executor.open.pop(result.passage_id), result


@dataclass
class Tally:
    """Weighted sums of one schedule by passage, ``[P]``."""

    trials: np.ndarray
    unused: np.ndarray
    in_all: np.ndarray
    finalist_in_all: np.ndarray
    without_unused: float = 0.0

    @classmethod
    def of(cls, size: int) -> Tally:
        return cls(np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size))


def chosen_numbers(result: PassageResult) -> tuple[int, int, int]:
    """The candidate chosen, the repeats it had, and the best among those with the most repeats."""
    assert result.chosen is not None
    most = max(len(standing.values) for standing in result.standings)
    finalist = ranked(one for one in result.standings if len(one.values) == most)[0].candidate
    used = next(len(s.values) for s in result.standings if s.candidate.id == result.chosen.id)
    number, finalist_number = (int(c.id.split("/")[1]) for c in (result.chosen, finalist))
    return number, used, finalist_number


def tally(every: Iterable[Scenario], schedule: Schedule, size: int) -> Tally:
    """Races all scenarios of all passages; `unused` is NaN where no unused repeat is left."""
    sums = Tally.of(size)
    for scenario, result in races(every, schedule):
        chosen, used, finalist = chosen_numbers(result)
        p, weight, values = scenario.passage, scenario.weight, scenario.values[chosen]
        sums.trials[p] += weight * result.trials
        sums.in_all[p] += weight * np.mean(values)
        sums.finalist_in_all[p] += weight * np.mean(scenario.values[finalist])
        if used < REPEATS:
            sums.unused[p] += weight * np.mean(values[used:])
        else:
            sums.without_unused += weight / size
    if sums.without_unused > 0:
        sums.unused[:] = math.nan
    return sums


def other_questions(log: Sequence[Logged], schedule: Schedule) -> np.ndarray:
    """Choice on one half of a passage's questions, accuracy on the other half, ``[P]``.

    The chosen candidate is judged by all its repeats. Both halves take turns.
    """
    found = np.zeros(len(log))
    for p, passage in enumerate(log):
        halves = halves_of(passage.all_questions, p)
        for part, (asked, held) in enumerate(halves):
            shares, quality = passage.shares(asked), passage.shares(held)
            every = scenarios(p, shares, copies=1, least=LEAST_RACES // SPLITS, part=part + 1)
            for scenario, result in races(every, schedule):
                chosen, _, _ = chosen_numbers(result)
                found[p] += scenario.weight * np.mean(quality[chosen]) / len(halves)
    return found


def halves_of(questions: Sequence[int], passage: int) -> list[tuple[list[int], list[int]]]:
    """Splits into two halves, each way round; at most `SPLITS`, drawn if there are more."""
    smaller = len(questions) // 2
    splits = []
    for chosen in itertools.combinations(questions, smaller):
        rest = [question for question in questions if question not in chosen]
        splits += [(list(chosen), rest), (rest, list(chosen))]
    if len(splits) <= SPLITS:
        return splits
    return random.Random(derive(0, "halves", passage)).sample(splits, SPLITS)


def interval(values: np.ndarray, names: Sequence[str]) -> list[float]:
    """Mean over passages with its 95 % bootstrap interval; passages are resampled."""
    one = Ratio.mean(np.ones_like(values))
    return rounded(paired_bootstrap(Ratio.mean(values), one, names, lambda ours, _: ours))


def rounded(found: Interval) -> list[float]:
    return [round(number, 4) for number in (found.estimate, found.low, found.high)]


def study(log: Sequence[Logged], schedule: Schedule | None) -> dict[str, np.ndarray]:
    """All columns of the table for one schedule (None: a candidate at random), ``[P]`` each."""
    everything = [passage.shares(passage.all_questions) for passage in log]
    if schedule is None:
        plain = np.asarray([np.mean(shares) for shares in everything])
        return {"trials": np.zeros(len(log)), "unused": plain, "others": plain, "in_all": plain}
    drawn = (
        scenario
        for p, shares in enumerate(everything)
        for scenario in scenarios(p, shares, copies=COPIES, least=LEAST_RACES)
    )
    peeking = (
        scenario for p, shares in enumerate(everything) for scenario in by_quality(p, shares)
    )
    honest, looks_ahead = tally(drawn, schedule, len(log)), tally(peeking, schedule, len(log))
    return {
        "trials": honest.trials,
        "unused": honest.unused,
        "others": other_questions(log, schedule),
        "in_all": honest.in_all,
        "peeking": looks_ahead.in_all,
        "peeking_finalists": looks_ahead.finalist_in_all,
    }


def schedules(noise: NoiseEstimate) -> dict[str, Schedule | None]:
    return {
        "random candidate": None,
        "1 each": EvenSchedule(1),
        "2 each": EvenSchedule(2),
        "3 each": EvenSchedule(3),
        "1 each, 1 more for best 2": RacingSchedule(1, 1, 2),
        "1 each, 2 more for best 2": RacingSchedule(1, 2, 2),
        "1 each, 1 more for best 3": RacingSchedule(1, 1, 3),
        "1 each, 1 more for best 2 and ties": AllTiedRacing(1, 2),
        "by confidence, up to 2": ConfidenceRacing(noise, 2),
        "by confidence, up to 3": ConfidenceRacing(noise, 3),
    }


def differences(
    columns: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Paired differences, over passages, between schedules that one may choose between."""
    pairs = [
        ("1 each", "random candidate"),
        ("1 each, 1 more for best 2", "1 each"),
        ("1 each, 1 more for best 2", "2 each"),
        ("1 each, 2 more for best 2", "1 each, 1 more for best 2"),
        ("by confidence, up to 2", "1 each, 1 more for best 2"),
        ("2 each", "1 each"),
        ("3 each", "2 each"),
    ]
    found: dict[str, dict[str, list[float]]] = {}
    for ours, theirs in pairs:
        row = {}
        for column in ("unused", "others", "in_all"):
            left, right = columns[ours][column], columns[theirs][column]
            if np.isfinite(left).all() and np.isfinite(right).all():
                row[column] = rounded(difference_interval(left, right, names))
        found[f"{ours} − {theirs}"] = row
    return found


def render(rows: Sequence[Mapping[str, object]]) -> str:
    """The table, in Markdown."""

    def cell(value: object) -> str:
        if not isinstance(value, list):
            return "—"
        mean, low, high = value
        return f"{mean:.3f} ({low:.3f}–{high:.3f})"

    def plain(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else "—"

    lines = [
        "| schedule | trials | unused repeat | other questions | all repeats | … ties looked up |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['schedule']} | {row['trials']:.1f} | {cell(row.get('unused'))} "
        f"| {cell(row.get('others'))} | {cell(row.get('in_all'))} | {plain(row.get('peeking'))} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Reads the log, races, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="the release's rank_iter0.json")
    arguments = parser.parse_args()
    began = time.perf_counter()
    log = read_log(arguments.log)
    names = [passage.name for passage in log]
    table = {p.name: dict(enumerate(p.shares(p.all_questions))) for p in log}
    noise = estimate_noise(table)
    if noise is None:
        raise SystemExit("the log has no repeats")
    columns = {name: study(log, schedule) for name, schedule in schedules(noise).items()}
    rows = []
    for name, found in columns.items():
        row: dict[str, object] = {"schedule": name, "trials": float(found["trials"].mean())}
        for column in ("unused", "others", "in_all"):
            if np.isfinite(found[column]).all():
                row[column] = interval(found[column], names)
        for column in ("peeking", "peeking_finalists"):
            if column in found:
                row[column] = round(float(found[column].mean()), 4)
        rows.append(row)
    compared = differences(columns, names)
    within = report(table).within
    print(render(rows))
    print()
    for name, difference in compared.items():
        print(f"{name}: {difference}")
    print(f"noise of a trial: sd {noise.sd:.3f}; ICC(1) within passages {within.icc:.3f}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "command": "python experiments/racing_on_release_log.py seal_rank_iter0.json",
        "passages": len(log),
        "noise_sd": round(noise.sd, 4),
        "icc_within_passages": within.icc,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": rows,
        "differences": compared,
    }
    RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
