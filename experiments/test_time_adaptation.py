"""Does adapting to a conversation help with what was said in it before the window that is kept?

    python -m experiments.test_time_adaptation
    python -m experiments.test_time_adaptation --latency
    python -m experiments.test_time_adaptation --table

Scripted conversations with invented names and numbers: three facts early, six turns about other
things, and late questions whose answers depend on the facts, which by then lie before the window
(200 tokens). Each conversation is adapted to once, before the questions. Measured on each answer:
the loss of the fact in it (nats a token) given the window and the answer's first words, and whether
the model would write it (greedy). Controls: the same answers with the facts in the window, and
other invented words as answers, which must not become as much likelier.

Ten conversations choose learning rate and steps: the lowest loss of the answers among the settings
whose loss on unrelated text rises by no more than ``adaptation.tolerance`` on average. At that
setting, self-edits as turns of a conversation are tried too. Thirty other conversations report the
plan's setting and the chosen one. The guard is applied afterwards: adaptations are made without it,
and those that it would have dropped count as no adaptation in the guarded figures. ``--latency``
measures how long answers take while a session adapts in the background, and without. One JSON line
a conversation and setting goes to ``results/tta.jsonl``; what is there is skipped, so a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from experiments.conversations_with_facts import (
    Conversation,
    Fact,
    Message,
    conversation,
    other_key,
)

import aios
from aios.app.chat.adaptation import SessionAdapters
from aios.app.chat.assistant_parts import open_writer
from aios.app.chat.conversation import check_messages, fit_window
from aios.app.chat.session_training import build_adaptation
from aios.app.models import load_model
from aios.core.config.schemas import Config
from aios.core.evaluation.statistics import (
    Interval,
    Ratio,
    difference_interval,
    relative_change_interval,
)
from aios.core.protocols import LanguageModel, ignore
from aios.core.seeds import derive
from aios.core.serving import Writer, WriteRequest
from aios.core.types import SamplingParams, ScoreRequest

RESULTS = Path(__file__).parent / "results" / "tta.jsonl"
WINDOW = 200  # tokens of the conversation that the model sees
NO_GUARD = 1e6
NONE = "none"
RATES, STEPS = (1e-5, 1e-4, 1e-3, 3e-3), (8, 16)
LATENCY_ANSWERS, LATENCY_TOKENS = 10, 24
LATENCY_HEAD_START = 0.5  # seconds that an adaptation has before an answer is asked for


def answer_requests(
    model: LanguageModel,
    before: Sequence[Message],
    asked: Sequence[Fact],
    keys: Sequence[str],
    *,
    hidden: bool,
    window_tokens: int,
) -> list[ScoreRequest]:
    """Each question after the messages before it, as far as the window holds them.

    Args:
        model: For its chat template.
        before: What was said.
        asked: The questions.
        keys: The answers that are scored.
        hidden: Whether the facts must lie before the window; else they must be in it.
        window_tokens: Tokens of the window.
    """
    requests = []
    for fact, key in zip(asked, keys, strict=True):
        said = check_messages([*before, {"role": "user", "content": fact.question}])
        window = fit_window(model, said, system="", max_tokens=window_tokens)
        if (fact.statement in window.prompt) is hidden:
            raise SystemExit(f"a window of {window_tokens} tokens holds too much, or too little")
        requests.append(ScoreRequest(f"{window.prompt}{fact.opening}", f" {key}"))
    return requests


def scored(model: LanguageModel, requests: Sequence[ScoreRequest]) -> list[dict[str, Any]]:
    return [
        {"nll": -score.logprob, "tokens": score.tokens, "greedy": score.greedy}
        for score in model.score(requests)
    ]


@dataclass(frozen=True)
class Arm:
    """A way to adapt."""

    rate: float
    steps: int
    as_turns: bool = False

    @property
    def name(self) -> str:
        form = ", as turns" if self.as_turns else ""
        return f"lr {self.rate:g}, {self.steps} steps{form}"


PLAN = Arm(1e-5, 8)


class Experiment:
    """Runs what is missing, and keeps it.

    Args:
        config: Names the model.
        given: The command's options.
    """

    def __init__(self, config: Config, given: argparse.Namespace) -> None:
        self.config = config
        self.results: Path = given.results
        self.window: int = given.window
        self.sizes = {"development": given.development, "report": given.report}
        self.model = load_model(config)
        self.label = label(self.model)
        self.done = {row["key"]: row for row in read(self.results) if row["model"] == self.label}

    def run(self) -> None:
        """Chooses on the development conversations, then reports on the others."""
        grid = [Arm(rate, steps) for steps in STEPS for rate in RATES]
        self.without("development")
        for arm in grid:
            self.adapted("development", arm)
        best = self.choose(grid)
        turned = replace(best, as_turns=True)
        self.adapted("development", turned)
        best = self.choose([best, turned])
        self.without("report")
        for arm in dict.fromkeys((PLAN, best)):
            self.adapted("report", arm)

    def choose(self, arms: Sequence[Arm]) -> Arm:
        """The arm with the lowest loss of answers among those that cost little elsewhere."""
        rows = [row for row in self.done.values() if row["split"] == "development"]
        of = {arm: [row for row in rows if row["arm"] == arm.name] for arm in arms}
        limit = self.config.adaptation.tolerance
        gentle = [arm for arm in arms if fmean(map(rise_elsewhere, of[arm])) <= limit]
        return min(gentle or arms, key=lambda arm: mean_of(of[arm], "answers"))

    def conversations(self, split: str) -> list[Conversation]:
        return [conversation(split, number) for number in range(self.sizes[split])]

    def without(self, split: str) -> None:
        """Without adaptation: with the facts before the window, and in it."""
        for chat in self.conversations(split):
            if f"{chat.id} {NONE}" in self.done:
                continue
            keys = [fact.key for fact in chat.facts]
            shown = self.requests(chat.early, chat, keys, hidden=False)
            row = {**self.answers(self.model, chat), "in_window": scored(self.model, shown)}
            self.keep(split, chat, NONE, row)

    def adapted(self, split: str, arm: Arm) -> None:
        """Adapts to each conversation anew, without the guard, and asks."""
        tta = build_adaptation(self.config, self.model)
        tta.settings = replace(
            tta.settings, learning_rate=arm.rate, as_turns=arm.as_turns, tolerance=NO_GUARD
        )
        for chat in self.conversations(split):
            if f"{chat.id} {arm.name}" in self.done:
                continue
            said = (*chat.early, *chat.late)
            model, record = tta.adapt_to_context(self.model, said, arm.steps)
            if not record.kept:
                raise SystemExit(f"{chat.id} was not adapted to: {record.reason}")
            self.keep(
                split, chat, arm.name, {**self.answers(model, chat), "record": asdict(record)}
            )

    def answers(self, model: LanguageModel, chat: Conversation) -> dict[str, Any]:
        """The answers with the facts before the window, and other invented words as answers."""
        before = (*chat.early, *chat.late)
        keys = [fact.key for fact in chat.facts]
        rng = random.Random(derive(0, "foreign", chat.id))
        foreign = [other_key(rng, key) for key in keys]
        return {
            "answers": scored(model, self.requests(before, chat, keys, hidden=True)),
            "foreign": scored(model, self.requests(before, chat, foreign, hidden=True)),
        }

    def requests(
        self, before: Sequence[Message], chat: Conversation, keys: Sequence[str], *, hidden: bool
    ) -> list[ScoreRequest]:
        return answer_requests(
            self.model, before, chat.facts, keys, hidden=hidden, window_tokens=self.window
        )

    def keep(self, split: str, chat: Conversation, arm: str, row: Mapping[str, Any]) -> None:
        about = {"key": f"{chat.id} {arm}", "split": split, "conversation": chat.id, "arm": arm}
        self.done[about["key"]] = keep(self.results, {**about, **row, "model": self.label})


# ------------------------------------------------------------ latency


def measure_latency(config: Config, given: argparse.Namespace) -> None:
    """Answers by turns without anything else going on, and while a session adapts."""
    section = config.adaptation.model_copy(update={"every": 1})
    config = config.model_copy(update={"adaptation": section})
    writer = open_writer(config, ignore)
    adapters = SessionAdapters(writer, config)
    known = {row["key"] for row in read(given.results) if row["model"] == label(writer.model)}
    try:
        for number in range(given.answers):
            chat = conversation("latency", number)
            for busy in (False, True):
                key = f"{chat.id} {'busy' if busy else 'idle'}"
                if key in known:
                    continue
                row = one_answer(writer, adapters, chat, given.window, busy=busy)
                about = {"key": key, "split": "latency", "model": label(writer.model)}
                keep(given.results, {**about, "busy": busy, **row})
    finally:
        adapters.close()
        writer.close()


def one_answer(
    writer: Writer, adapters: SessionAdapters, chat: Conversation, window: int, *, busy: bool
) -> dict[str, Any]:
    """An answer of a fixed length; busy: while a session adapts to the conversation."""
    said = (*chat.early, *chat.late)
    asked = check_messages([*said, {"role": "user", "content": chat.facts[0].question}])
    prompt = fit_window(writer.model, asked, system="", max_tokens=window).prompt
    if busy:
        adapters.note_turn(chat.id, (), said)
        time.sleep(LATENCY_HEAD_START)
    sampling = SamplingParams(temperature=1.0, max_new_tokens=LATENCY_TOKENS)
    text = writer.submit(WriteRequest(prompt, sampling=sampling, seed=1))
    for _ in text:
        pass
    under_way = busy and not adapters.wait(0)
    adapters.wait()
    ending = text.ending
    assert ending is not None
    records = [asdict(record) for record in adapters.history(chat.id)] if busy else []
    return {**asdict(ending), "under_way": under_way, "adaptations": records}


# ------------------------------------------------------------ results


def label(model: LanguageModel) -> str:
    return f"{model.name} {model.digest[:12]}"


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    sys.stderr.write(f"{row['key']}\n")
    return row


def rise(row: Mapping[str, Any], what: str) -> float:
    change = row["record"][f"{what}_loss"]
    return float(change["after"] - change["before"])


def rise_elsewhere(row: Mapping[str, Any]) -> float:
    return rise(row, "retention")


def passes(row: Mapping[str, Any], tolerance: float) -> bool:
    """Whether the guard would have let an adaptation pass."""
    return max(rise(row, "retention"), rise(row, "turns")) <= tolerance


def pooled(rows: Sequence[Mapping[str, Any]], what: str) -> Ratio:
    """Losses of all answers as a ratio of sums."""
    answers = [answer for row in rows for answer in row[what]]
    return Ratio([a["nll"] for a in answers], [a["tokens"] for a in answers])


def mean_of(rows: Sequence[Mapping[str, Any]], what: str) -> float:
    answers = [answer for row in rows for answer in row[what]]
    return float(sum(a["nll"] for a in answers) / sum(a["tokens"] for a in answers))


def right(rows: Sequence[Mapping[str, Any]], what: str = "answers") -> list[float]:
    return [float(answer["greedy"]) for row in rows for answer in row[what]]


def table(rows: Sequence[Mapping[str, Any]], tolerance: float) -> str:
    """All figures, as Markdown."""
    parts = [split_table(rows, split, tolerance) for split in ("development", "report")]
    return "\n".join([*filter(None, parts), latency_table(rows)])


def split_table(rows: Sequence[Mapping[str, Any]], split: str, tolerance: float) -> str:
    mine = [row for row in rows if row["split"] == split]
    base = {row["conversation"]: row for row in mine if row["arm"] == NONE}
    if len(base) < 2:
        return ""
    plain = list(base.values())
    lines = [
        f"{split}: {len(base)} conversations, {len(right(plain))} answers",
        "",
        "| adaptation | loss of answers | change | right | change | other answers | unrelated text"
        " | last turns | passes the guard | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {NONE} | {mean_of(plain, 'answers'):.3f} | | {fmean(right(plain)):.1%} | | | | | | |",
        f"| {NONE}, facts in the window | {mean_of(plain, 'in_window'):.3f} | "
        f"| {fmean(right(plain, 'in_window')):.1%} | | | | | | |",
    ]
    for arm in dict.fromkeys(row["arm"] for row in mine if row["arm"] != NONE):
        own = [row for row in mine if row["arm"] == arm and row["conversation"] in base]
        if len(own) < 2:
            continue
        control = [base[row["conversation"]] for row in own]
        guarded = [row if passes(row, tolerance) else base[row["conversation"]] for row in own]
        lines.append(arm_line(arm, own, control, costs(own, tolerance)))
        lines.append(arm_line(f"{arm}, guarded", guarded, control, "| | | | |"))
    return "\n".join([*lines, ""])


def arm_line(
    title: str,
    own: Sequence[Mapping[str, Any]],
    control: Sequence[Mapping[str, Any]],
    more: str,
) -> str:
    """A line of the table: against the same answers without adaptation."""
    clusters = [row["conversation"] for row in control for _ in row["answers"]]
    change, other = (
        relative_change_interval(pooled(own, what), pooled(control, what), clusters)
        for what in ("answers", "foreign")
    )
    more_right = difference_interval(right(own), right(control), clusters)
    return (
        f"| {title} | {mean_of(own, 'answers'):.3f} | {percent(change)} | "
        f"{fmean(right(own)):.1%} | {percent(more_right)} | {percent(other)} {more}"
    )


def costs(own: Sequence[Mapping[str, Any]], tolerance: float) -> str:
    seconds = median(row["record"]["seconds"] for row in own)
    return (
        f"| {fmean(rise(row, 'retention') for row in own):+.3f} "
        f"| {fmean(rise(row, 'turns') for row in own):+.3f} "
        f"| {fmean(passes(row, tolerance) for row in own):.0%} | {seconds:.1f} |"
    )


def percent(interval: Interval) -> str:
    return f"{interval.estimate:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def latency_table(rows: Sequence[Mapping[str, Any]]) -> str:
    mine = [row for row in rows if row["split"] == "latency"]
    lines = ["| answers | first token (s) | whole (s) | n |", "|---|---|---|---|"]
    for title, busy in (("nothing else going on", False), ("while a session adapts", True)):
        of = [row for row in mine if row["busy"] is busy]
        if of:
            first, whole = (
                f"{median(values):.2f} (to {max(values):.2f})"
                for values in ([r["seconds_to_first"] for r in of], [r["seconds"] for r in of])
            )
            lines.append(f"| {title} | {first} | {whole} | {len(of)} |")
    return "\n".join([*lines, ""]) if mine else ""


def main() -> None:
    """Runs what is missing, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="another model than the config's")
    parser.add_argument("--strategy", default="auto", help="what makes the self-edits")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--development", type=int, default=10, help="conversations that choose")
    parser.add_argument("--report", type=int, default=30, help="conversations that report")
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens that the model sees")
    parser.add_argument("--answers", type=int, default=LATENCY_ANSWERS, help="for --latency")
    parser.add_argument("--latency", action="store_true", help="measure how long answers take")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    given = parser.parse_args()
    config = aios.load_config()
    adaptation = config.adaptation.model_copy(update={"strategy": given.strategy})
    config = config.model_copy(update={"adaptation": adaptation})
    if given.model:
        model = config.model.model_copy(update={"name": given.model})
        config = config.model_copy(update={"model": model})
    if given.table:
        sys.stdout.write(table(read(given.results), config.adaptation.tolerance))
    elif given.latency:
        measure_latency(config, given)
    else:
        Experiment(config, given).run()


if __name__ == "__main__":
    main()
