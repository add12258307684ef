"""A made-up ReST-EM run, drawn by seed: what a report of one is rendered from."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from aios.core.restem import (
    ArmReport,
    Diversity,
    HeldOut,
    ReSTEMState,
    RoundReport,
    Tried,
    TriedPassage,
)
from aios.core.seal.reliability import report as measure
from aios.core.trials import Reward
from aios.core.types import Failure, Passage, SelfEdit

STRATEGIES = ("implications", "rewrite", "self-qa", "answer-first")
NOISE = 0.05
_FACTS = (
    "The observatory at Cerro Alto was completed in 1931 and houses a 2.1 m reflector.",
    "Its first director, Ana Lindqvist, catalogued 4,212 variable stars in nine years.",
    "A fire in 1958 destroyed the east wing; the main instrument was saved by the staff.",
    "Since 1994 the site has been used to train students from three countries.",
)


@dataclass(frozen=True)
class Run:
    """The arguments of `render_restem_report`, by name."""

    state: ReSTEMState
    candidates: Mapping[int, Sequence[TriedPassage]]
    held_out: Mapping[int, Sequence[TriedPassage]]
    passages: Mapping[str, Passage]
    info: Mapping[str, Any]


def made_up_run(
    *,
    seed: int = 0,
    rounds: int = 3,
    passages: int = 16,
    candidates: int = 5,
    held_out: int = 8,
    gain: float = 0.035,
    text: str = "",
) -> Run:
    """A run whose generator gains `gain` a round on average; `text` is put into every text."""
    rng = random.Random(seed)
    known = {
        name: Passage.make(f"{' '.join(_FACTS)} {text}", id=name, title=f"Passage {name} {text}")
        for name in [*(f"p{n}" for n in range(passages)), *(f"h{n}" for n in range(held_out))]
    }
    level = {name: rng.gauss(0.0, 0.04) for name in known}
    names = [f"{name}{text}" for name in STRATEGIES]
    shares = dict.fromkeys(names, 0.25)
    reports, tried_by_round, held_out_by_round = [], {}, {}
    for number in range(rounds + 1):
        held = [
            _passage(rng, f"h{n}", number, gain * number + level[f"h{n}"], 3, names, shares, text)
            for n in range(held_out)
        ]
        held_out_by_round[number] = held
        tried: list[TriedPassage] = []
        if number:
            tried = [
                _passage(
                    rng, f"p{n}", number, gain * (number - 1) + level[f"p{n}"], candidates, names,
                    shares, text,
                )
                for n in range(passages)
            ]  # fmt: skip
            tried_by_round[number] = tried
        report, shares = _report(rng, number, tried, held, shares, text)
        reports.append(report)
    best = max(reports, key=lambda report: report.held_out.mean if report.held_out else 0.0)
    state = ReSTEMState(tuple(reports), shares, best.number, f"all {rounds} rounds are done{text}")
    return Run(state, tried_by_round, held_out_by_round, known, _info(text))


def _passage(
    rng: random.Random, name: str, number: int, level: float, asked: int, names: Sequence[str],
    shares: Mapping[str, float], text: str,
) -> TriedPassage:  # fmt: skip
    candidates = []
    for index in range(asked):
        luck = rng.random()
        if luck < 0.03:  # the quality filter left nothing
            continue
        strategy = rng.choices(names, [shares[n] for n in names])[0]
        worth = level + 0.03 * names.index(strategy) - 0.04 + rng.gauss(0, 0.04)
        items = tuple(
            f"{_FACTS[(index + k) % 4]} ({strategy}, round {number}) {text}"
            for k in range(rng.randrange(1, 7))
        )
        edit = SelfEdit(name, strategy, index, items, model="tiny", seed=index, tokens=80)
        if luck < 0.06:
            failure = Failure("train", f"{name}/{index}", f"the loss became NaN at step 3 {text}")
            candidates.append(Tried(edit, None, failures=(failure,)))
            continue
        repeats = tuple(worth + rng.gauss(0, NOISE) for _ in range(2 if rng.random() < 0.4 else 1))
        candidates.append(_tried(edit, repeats, rng))
    chosen = max(
        (one for one in candidates if one.rewarded), key=lambda o: o.improvement or 0, default=None
    )
    marked = tuple(
        Tried(o.edit, o.reward, o.improvements, o.accuracy_gain, 1500, o.failures, o is chosen)
        for o in candidates
    )
    failed = sum(len(one.failures) for one in marked)
    trials = 1 + failed + sum(len(one.improvements) for one in marked)
    return TriedPassage(name, marked, asked, trials, failed, 3.1, 2.6)


def _tried(edit: SelfEdit, repeats: tuple[float, ...], rng: random.Random) -> Tried:
    mean, margin = fmean(repeats), 1.645 * NOISE / math.sqrt(len(repeats))
    reward = Reward(
        float(mean > margin), 2.6, 2.6 - mean, 5, "logprob", margin, 0.1, "loss", "auto", mean,
        len(repeats),
    )  # fmt: skip
    return Tried(edit, reward, repeats, rng.choice((-0.2, 0.0, 0.2)), 1500)


def _report(
    rng: random.Random,
    number: int,
    tried: Sequence[TriedPassage],
    held: Sequence[TriedPassage],
    shares: Mapping[str, float],
    text: str,
) -> tuple[RoundReport, dict[str, float]]:
    seconds = {"held-out": 210.0 + rng.random()}
    examined = RoundReport(number, held_out=_held_out(held), seconds=seconds)
    if not number:
        return examined, dict(shares)
    every = [one for passage in tried for one in passage.candidates]
    able = [one for one in every if one.improvement is not None]
    means = [one.improvement for one in able if one.improvement is not None]
    asked = sum(passage.asked for passage in tried)
    reliability = measure({p.passage_id: {o.edit.index: o.improvements for o in p.candidates}
                           for p in tried})  # fmt: skip
    following = {name: 0.25 + 0.06 * number * (k - 1.5) / 1.5 for k, name in enumerate(shares)}
    report = replace(
        examined,
        generator=f"rounds/{number}/generator",
        digest="ab" * 32,
        passages=len(tried),
        asked=asked,
        tried=len(able),
        filtered=asked - len(every),
        failed=len(every) - len(able),
        trials=sum(passage.trials for passage in tried),
        failed_trials=sum(passage.failed_trials for passage in tried),
        rewarded=sum(one.rewarded for one in every),
        kept=sum(one.kept for one in every),
        threshold=1.645 * NOISE,
        improvement=fmean(means),
        accuracy_gain=fmean(one.accuracy_gain or 0.0 for one in able),
        improvements=tuple(means),
        reliability=reliability.describe() + text,
        icc=reliability.within.icc,
        noise=reliability.noise.sd if reliability.noise else None,
        arms=_arms(every, shares, following),
        diversity=Diversity(
            0.61 - 0.06 * number, 0.92 - 0.16 * number, 0.05 * number, 0.3 + 0.02 * number
        ),
        sft={
            "examples": 14.0, "tokens": 2143.0, "steps": 28.0, "seconds": 96.5,
            "loss_first": 2.412, "loss_last": 1.137,
        },
        seconds={"propose": 184.0, "try": 1210.4 + 30 * number, "fit": 96.5, **seconds},
        tokens=80 * len(every),
        train_tokens=1500 * sum(len(one.improvements) for one in able),
    )  # fmt: skip
    return report, following


def _arms(
    every: Sequence[Tried], shares: Mapping[str, float], following: Mapping[str, float]
) -> dict[str, ArmReport]:
    arms = {}
    for name, share in shares.items():
        mine = [one for one in every if one.edit.strategy == name]
        gains = [one.improvement for one in mine if one.improvement is not None]
        arms[name] = ArmReport(
            share=share,
            asked=len(mine),
            tried=len(gains),
            rewarded=sum(one.rewarded for one in mine),
            improvement=fmean(gains) if gains else None,
            tokens=80.0,
            value=1000 * fmean([max(0.0, gain) for gain in gains]) / 80 if gains else 0.0,
            next_share=following[name],
        )
    return arms


def _held_out(held: Sequence[TriedPassage]) -> HeldOut | None:
    if not held:
        return None
    asked = sum(passage.asked for passage in held)
    return HeldOut(
        {p.passage_id: sum(o.improvement or 0 for o in p.candidates) / p.asked for p in held},
        {p.passage_id: sum(o.accuracy_gain or 0 for o in p.candidates) / p.asked for p in held},
        sum(one.rewarded for passage in held for one in passage.candidates) / asked,
    )


def span(low: float, middle: float, high: float) -> dict[str, float]:
    """`core.restem_workload.Span` as a JSON object."""
    return {"low": low, "middle": middle, "high": high}


def _info(text: str) -> dict[str, Any]:
    return {
        "model": {"name": f"tiny {text}", "digest": "abcdef012345"},
        "dataset": f"passages.jsonl {text}",
        "passages": {"optimised on": 16, "held out": 8},
        "reward": "loss",
        "baseline": "passage",
        "rounds": {"passages": 16, "candidates": 5, "repeats": 2, "racing": True},
        "generator training": {"rank": 64, "alpha": 128, "learning rate": 3e-4, "epochs": 2},
        "seed": 0,
        "offline": True,
        "command": f"aios seal restem optimize --dataset passages.jsonl {text}",
        "estimate": [
            {"name": "try", "unit": "s", "estimated": span(3000, 3600, 4500), "actual": 3810.0},
            {"name": "all", "unit": "s", "estimated": span(4500, 5400, 6500), "actual": 5495.0},
            {"name": "trials", "unit": "trials", "estimated": span(400, 400, 400), "actual": 367},
        ],
        "log_link": "events.jsonl",
    }
