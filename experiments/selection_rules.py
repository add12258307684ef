"""What selected self-edits are worth in trials that did not select them, rule by rule.

    python experiments/selection_rules.py --data seal_rank_iter0.json

Two sets of trials. The log of the SEAL release's first round (`--data`): 50 passages, 5 self-edits
of each, 3 repeats; the reward is the share of right answers. And our own trials
(`results/trial_signals.jsonl`): 16 passages, 5 self-edits, 2 repeats; the reward is the gain of
the answers' log-probability a token.

On the log each rule is run as a round of ReST-EM is: `race` spends the trials, `decide` estimates
the noise from the repeats that were spent and sets the margin, `choose` keeps. Since the margin of
a passage depends on the repeats of all others, orders of the repeats cannot all be enumerated, as
`racing_on_release_log` does passage by passage; whole rounds are drawn in its place, each with the
repeats of every self-edit in a new order. Our own trials are few enough for all orders.

The tables are printed and written to `results/selection_rules.json`. See selection.md.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for its neighbours

from experiments.racing_on_release_log import REPEATS, Logged, Repeats, Scenario, races, read_log

from aios.core.evaluation.statistics import Ratio, paired_bootstrap
from aios.core.restem import Tried, TriedPassage
from aios.core.seal.candidate_trials import decide
from aios.core.seal.racing import EvenSchedule, RacingSchedule, Schedule
from aios.core.seal.reliability import estimate_noise
from aios.core.seal.reward import Z_ONE_SIDED_95, AccuracyReward, Threshold
from aios.core.seal.selection import choose
from aios.core.seeds import derive
from aios.core.trials import Reward
from aios.core.types import SelfEdit

RESULTS = Path(__file__).parent / "results"
RECORD = RESULTS / "trial_signals.jsonl"
SUMMARY = RESULTS / "selection_rules.json"
ROUNDS = 1000  # drawn of the log
CANDIDATES = 5
EVEN = 1e-9  # gains closer to 0 are none
OURS = "ours: threshold auto, racing, at most 1"
REWARD = AccuracyReward(z=Z_ONE_SIDED_95)


@dataclass(frozen=True)
class Rule:
    """How trials are spent, and what is kept.

    Attributes:
        schedule: Who gets how many repeats.
        keep: What is kept.
        most: Most that are kept of a passage.
        threshold: From which improvement on a self-edit is rewarded.
    """

    schedule: Schedule
    keep: Literal["threshold", "best_of_k"]
    most: int = 1
    threshold: Threshold = "auto"


RULES: dict[str, Rule] = {
    "best of 5, 1 repeat": Rule(EvenSchedule(1), "best_of_k"),
    "best of 5, 2 repeats": Rule(EvenSchedule(2), "best_of_k"),
    "best of 5, 3 repeats (as released)": Rule(EvenSchedule(3), "best_of_k"),
    "best of 5, racing": Rule(RacingSchedule(), "best_of_k"),
    "above baseline, racing, at most 1": Rule(RacingSchedule(), "threshold", 1, 0.0),
    "threshold auto, 2 repeats, all": Rule(EvenSchedule(2), "threshold", CANDIDATES),
    "threshold auto, 2 repeats, at most 1": Rule(EvenSchedule(2), "threshold"),
    OURS: Rule(RacingSchedule(), "threshold"),
}


@dataclass
class Sums:
    """What a rule came to, by passage: sums over all rounds, ``[P]`` each.

    Attributes:
        kept: Self-edits kept.
        keeping: Rounds in which something was kept.
        gain: Gain over the baseline of what was kept, in repeats that were not used.
        over_others: The same, over the mean gain of all self-edits of the passage.
        no_better: How many of what was kept were no better than the baseline in such a repeat.
        seen: Gain in the repeats that were used.
        trials: Trials spent.
        rounds: Rounds in all.
        margins: Margin that one repeat had to exceed, of each round that had one.
        judged: Whether a repeat was left unused of everything that was kept.
    """

    kept: np.ndarray
    keeping: np.ndarray
    gain: np.ndarray
    over_others: np.ndarray
    no_better: np.ndarray
    seen: np.ndarray
    trials: np.ndarray
    rounds: float = 0.0
    margins: list[float] = field(default_factory=list)
    judged: bool = True

    @classmethod
    def of(cls, size: int) -> Sums:
        kept, keeping, gain, over, no_better, seen, trials = np.zeros((7, size))
        return cls(kept, keeping, gain, over, no_better, seen, trials)

    def add(self, number: int, passage: TriedPassage, unused: Mapping[int, Repeats]) -> None:
        """Enters a passage of a round; `unused` holds gains by the candidate's index."""
        self.trials[number] += passage.trials
        kept = [one for one in passage.candidates if one.kept]
        anyone = fmean([fmean(gains) for gains in unused.values() if gains] or [0.0])
        self.keeping[number] += bool(kept)
        for one in kept:
            left = unused[one.edit.index]
            self.kept[number] += 1
            self.seen[number] += fmean(one.improvements)
            self.judged = self.judged and bool(left)
            if left:
                self.gain[number] += fmean(left)
                self.over_others[number] += fmean(left) - anyone
                self.no_better[number] += fmean(gain <= EVEN for gain in left)


# ---------------------------------------------------------------- the release's log


def baselines(path: Path) -> list[float]:
    """Each passage's share of right answers before training; the log has one for all repeats."""
    found = []
    for number, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["articles"]):
        by_trial: dict[tuple[int, int], list[bool]] = {}
        for index, completion in enumerate(article["completions"]):
            for asked in completion["questions"]:
                by_trial.setdefault((index, asked["rep"]), []).append(asked["baseline_correct"])
        shares = {fmean(verdicts) for verdicts in by_trial.values()}
        if len(shares) != 1:
            raise SystemExit(f"{path}: article {number}: repeats with different baselines")
        found.append(shares.pop())
    return found


def one_round(log: Sequence[Logged], number: int) -> Iterator[Scenario]:
    """Every passage once, its candidates and the repeats of each in an order that is drawn."""
    rng = random.Random(derive(0, "round", number))
    for p, passage in enumerate(log):
        shares = passage.shares(passage.all_questions)
        values = tuple(tuple(rng.sample(repeats, REPEATS)) for repeats in shares)
        order = rng.sample(range(len(shares)), len(shares))
        yield Scenario(p, tuple(order), values, 1 / ROUNDS)


def tried_passages(
    every: Sequence[Scenario], schedule: Schedule, before: Sequence[float]
) -> list[TriedPassage]:
    """A round's trials, spent by the schedule; candidates are in the order of the race."""
    passages: dict[int, TriedPassage] = {}
    for scenario, result in races(iter(every), schedule):
        baseline = before[scenario.passage]
        candidates = [
            tried(int(standing.candidate.id.split("/")[1]), standing.values, baseline)
            for standing in result.standings
        ]
        passages[scenario.passage] = TriedPassage(
            f"p{scenario.passage}",
            tuple(candidates),
            asked=len(candidates),
            trials=result.trials,
            failed_trials=0,
            before=baseline,
            baseline=baseline,
        )
    return [passages[number] for number in range(len(every))]


def tried(index: int, values: Repeats, baseline: float) -> Tried:
    """A candidate with the values of its repeats, none decided on yet."""
    after = fmean(values)
    gain = after - baseline
    reward = Reward(
        value=gain,
        before=baseline,
        after=after,
        n=1,
        grader=REWARD.grader.name,
        threshold=None,
        standard_error=None,
        kind=REWARD.kind,
        rule="improvement",
        improvement=gain,
        repeats=len(values),
    )
    edit = SelfEdit("", "", index, (str(index),))
    return Tried(edit, reward, tuple(value - baseline for value in values))


def replay(log: Sequence[Logged], before: Sequence[float]) -> dict[str, Sums]:
    """All rules on the same rounds."""
    found = {name: Sums.of(len(log)) for name in RULES}
    for number in range(ROUNDS):
        every = list(one_round(log, number))
        done: dict[tuple[Schedule, Threshold], list[TriedPassage]] = {}
        for name, rule in RULES.items():
            key = rule.schedule, rule.threshold
            if key not in done:
                spent = tried_passages(every, rule.schedule, before)
                done[key], _ = decide(spent, REWARD, rule.threshold)
            decided, sums = done[key], found[name]
            sums.rounds += 1
            sums.margins += margin_of_one(decided)
            for p, passage in enumerate(choose(decided, rule.keep, rule.most)):
                unused = {
                    one.edit.index: left_over(every[p], one, before[p])
                    for one in passage.candidates
                }
                sums.add(p, passage, unused)
    return found


def left_over(scenario: Scenario, one: Tried, baseline: float) -> Repeats:
    """Gains of the repeats that a candidate's trials have not used."""
    unused = scenario.values[one.edit.index][len(one.improvements) :]
    return tuple(value - baseline for value in unused)


def margin_of_one(passages: Sequence[TriedPassage]) -> list[float]:
    """The margin of a round under ``auto`` for a single repeat; none where there is none."""
    reward = passages[0].candidates[0].reward
    if reward is None or reward.rule != "auto" or reward.threshold is None:
        return []
    return [reward.threshold * reward.repeats**0.5]


def random_candidate(gains: Sequence[Sequence[Repeats]]) -> Sums:
    """What a self-edit that nothing selected is worth; gains ``[passage][candidate]``."""
    sums = Sums.of(len(gains))
    sums.rounds = 1
    for p, candidates in enumerate(gains):
        every = [gain for repeats in candidates for gain in repeats]
        sums.kept[p] = sums.keeping[p] = 1
        sums.gain[p] = fmean(every)
        sums.no_better[p] = fmean(gain <= EVEN for gain in every)
    return sums


# ---------------------------------------------------------------- our own trials


def own_trials() -> dict[str, list[Repeats]]:
    """Gains over the base model by passage: of each candidate, repeats 0 and 1."""
    lines = [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]
    by_stage: dict[str, dict[str, list[float]]] = {"repeat-0": {}, "repeat-1": {}}
    for line in lines:
        if line["stage"] in by_stage:
            by_stage[line["stage"]][line["passage"]] = line["rewards"]
    first, second = by_stage.values()
    return {p: list(zip(first[p], second[p], strict=True)) for p in first if p in second}


def replay_own(trials: Mapping[str, Sequence[Repeats]]) -> dict[str, Sums]:
    """Rules that one repeat of each candidate is enough for, judged by the other one.

    The candidates of a passage share the seed of a repeat, so a passage has two orders. One repeat
    says nothing about its noise: that is taken from both repeats of the other passages.
    """
    rules: dict[str, tuple[Literal["threshold", "best_of_k"], int]] = {
        "best of 5, 1 repeat": ("best_of_k", 1),
        "threshold auto, 1 repeat, all": ("threshold", CANDIDATES),
        "threshold auto, 1 repeat, at most 1": ("threshold", 1),
    }
    found = {name: Sums.of(len(trials)) for name in rules}
    for name, (keep, most) in rules.items():
        sums = found[name]
        sums.rounds = 2
        for p, (passage_id, gains) in enumerate(trials.items()):
            others = {q: dict(enumerate(mine)) for q, mine in trials.items() if q != passage_id}
            noise = estimate_noise(others)
            if noise is None:
                raise SystemExit(f"{RECORD} has no repeats")
            sums.margins.append(Z_ONE_SIDED_95 * noise.sd)
            for used in (0, 1):
                candidates = tuple(
                    tried(index, (gain[used],), 0.0) for index, gain in enumerate(gains)
                )
                passage = TriedPassage(passage_id, candidates, CANDIDATES, CANDIDATES, 0, 0.0, 0.0)
                decided, _ = decide([passage], REWARD, sums.margins[-1])
                unused = {index: (gain[1 - used],) for index, gain in enumerate(gains)}
                sums.add(p, choose(decided, keep, most)[0], unused)
    return found


# ---------------------------------------------------------------- what it says


def ratio(top: np.ndarray, bottom: np.ndarray) -> Ratio:
    """Per self-edit kept. A passage that keeps none weighs nothing (a weight must not be 0)."""
    return Ratio(top, np.maximum(bottom, 1e-9))


def interval(
    top: np.ndarray,
    bottom: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda ours, _: ours,
    other: Ratio | None = None,
) -> list[float]:
    """A ratio of sums over passages with its 95 % bootstrap interval; passages are resampled."""
    names = [str(number) for number in range(len(top))]
    mine = ratio(top, bottom)
    found = paired_bootstrap(mine, other or mine, names, statistic)
    return [round(number, 4) for number in (found.estimate, found.low, found.high)]


def row(name: str, sums: Sums) -> dict[str, Any]:
    """A line of a table; figures of unused repeats only where there are some."""
    every = np.full_like(sums.kept, sums.rounds)
    found: dict[str, Any] = {
        "rule": name,
        "trials_a_passage": round(float((sums.trials / every).mean()), 3),
        "kept": round(float((sums.kept / every).sum()), 2),
        "passages": len(sums.kept),
        "share_of_passages_that_keep": interval(sums.keeping, every),
    }
    if sums.judged:
        found["held_out_gain"] = interval(sums.gain, sums.kept)
        found["over_all_of_the_passage"] = interval(sums.over_others, sums.kept)
        found["no_better_than_baseline"] = interval(sums.no_better, sums.kept)
    if sums.trials.any():
        found["gain_in_used_repeats"] = interval(sums.seen, sums.kept)
    if sums.margins:
        found["margin_of_one_repeat"] = round(fmean(sums.margins), 4)
    return found


def differences(
    found: Mapping[str, Sums], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, list[float]]]:
    """Paired differences, over passages, of the figures of unused repeats."""
    table = {}
    for ours, theirs in pairs:
        left, right = found[ours], found[theirs]
        columns = {
            "held_out_gain": (left.gain, right.gain),
            "over_all_of_the_passage": (left.over_others, right.over_others),
            "no_better_than_baseline": (left.no_better, right.no_better),
        }
        table[f"{ours} − {theirs}"] = {
            name: interval(mine, left.kept, np.subtract, ratio(its, right.kept))
            for name, (mine, its) in columns.items()
        }
    return table


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table, in Markdown."""

    def cell(values: list[float] | None, form: str) -> str:
        if values is None:
            return "—"
        mean, low, high = (format(value, form) for value in values)
        return f"{mean} ({low} to {high})"

    lines = [
        "| rule | trials | kept | passages that keep | held-out gain | over all of the passage "
        "| no better than baseline | gain in the repeats used |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['rule']} | {r['trials_a_passage']:.1f} | {r['kept']:.1f} "
        f"| {cell(r['share_of_passages_that_keep'], '.0%')} "
        f"| {cell(r.get('held_out_gain'), '+.3f')} "
        f"| {cell(r.get('over_all_of_the_passage'), '+.3f')} "
        f"| {cell(r.get('no_better_than_baseline'), '.0%')} "
        f"| {cell(r.get('gain_in_used_repeats'), '+.3f')} |"
        for r in rows
    ]
    return "\n".join(lines)


def render_differences(table: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The differences, in Markdown."""
    lines = [
        "| difference | held-out gain | over all of the passage | no better than baseline |",
        "|---|---|---|---|",
    ]
    for name, found in table.items():
        gain, over = (
            "{:+.3f} ({:+.3f} to {:+.3f})".format(*found[column])
            for column in ("held_out_gain", "over_all_of_the_passage")
        )
        share = "{:+.0%} ({:+.0%} to {:+.0%})".format(*found["no_better_than_baseline"])
        lines.append(f"| {name} | {gain} | {over} | {share} |")
    return "\n".join(lines)


def main() -> None:
    """Replays both sets of trials, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the release's rank_iter0.json")
    arguments = parser.parse_args()
    log, before = read_log(arguments.data), baselines(arguments.data)
    gains = [
        [tuple(value - base for value in repeats) for repeats in passage.shares(range(questions))]
        for passage, base in zip(log, before, strict=True)
        for questions in [len(passage.all_questions)]
    ]
    released = {"a random self-edit": random_candidate(gains), **replay(log, before)}
    own = own_trials()
    ours = {"a random self-edit": random_candidate(list(own.values())), **replay_own(own)}
    document: dict[str, Any] = {
        "command": "python experiments/selection_rules.py --data seal_rank_iter0.json",
        "z": Z_ONE_SIDED_95,
        "release_log": {
            "unit": "share of right answers, over the untrained model's",
            "rounds_drawn": ROUNDS,
            "rows": [row(name, sums) for name, sums in released.items()],
            "differences": differences(
                released,
                [
                    (OURS, "best of 5, 1 repeat"),
                    (OURS, "best of 5, 2 repeats"),
                    (OURS, "best of 5, racing"),
                    (OURS, "above baseline, racing, at most 1"),
                    (OURS, "threshold auto, 2 repeats, at most 1"),
                    (OURS, "threshold auto, 2 repeats, all"),
                    (OURS, "a random self-edit"),
                ],
            ),
        },
        "own_trials": {
            "unit": "answers' log-probability a token, over the untrained model's",
            "rows": [row(name, sums) for name, sums in ours.items()],
            "differences": differences(
                ours, [("threshold auto, 1 repeat, at most 1", "best of 5, 1 repeat")]
            ),
        },
    }
    for part in ("release_log", "own_trials"):
        print(render(document[part]["rows"]), end="\n\n")
        print(render_differences(document[part]["differences"]), end="\n\n")
    SUMMARY.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
