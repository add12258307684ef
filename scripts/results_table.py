"""The one table of measured results, from the raw results, into README.md and benchmarks/README.md.

    python -m scripts.results_table            # writes it
    python -m scripts.results_table --check    # fails where a page is stale

Takes ``benchmarks/results/*.json`` and ``experiments/results``; nothing is measured or rounded by
hand here. Where raw results are one row a trial, the experiment's own functions sum them up.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import edit_search
from experiments import test_time_adaptation as adaptation

from aios.core.evaluation.statistics import relative_change_interval
from aios.core.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks" / "results"
EXPERIMENTS = ROOT / "experiments" / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
CPU, CORES = "AMD EPYC", 2
DATE = "2026-11-23"  # when the experiments below were last run; benchmarks bear their own
TOLERANCE = 0.02  # adaptation.tolerance, the guard's default
HEAD = ("measured", "result", "n", "command", "date")


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        what: What was compared with what, in words.
        figure: The number with its spread.
        n: Of how many.
        command: What measures it.
        date: When it was measured, ISO 8601.
        account: The page that tells the whole of it, from the top of the repository.
    """

    what: str
    figure: str
    n: str
    command: str
    date: str
    account: str


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def percent(change: float, low: float, high: float) -> str:
    """A relative change with its 95 % interval."""
    return f"**{change:+.1%}** ({low:+.1%} to {high:+.1%})".replace("%", " %").replace("-", "−")


def nats(change: float, low: float, high: float) -> str:
    """A difference of losses with its 95 % interval."""
    return f"**{change:+.3f} nats** ({low:+.3f} to {high:+.3f})".replace("-", "−")


# ---------------------------------------------------------------- what is learned


def learning() -> Iterator[Result]:
    """Losses of held-out answers; less is better."""
    yield from tests_of_edits()
    yield from restem()
    yield from experts_at_work()


def tests_of_edits() -> Iterator[Result]:
    demo = read(EXPERIMENTS / "demo.json")
    for control, words in (("passage", "the passages alone"), ("passage+other-edits", "others'")):
        found = compared(demo["comparisons"], control, "validation_loss")
        what = f"passage and self-edits (`cloze`) against {words}, invented passages"
        yield Result(
            what.replace("others'", "self-edits of others"),
            percent(found["relative_change"], *found["ci95"]),
            f"{found['n']} questions, {found['passages']} passages, {found['seeds']} seeds",
            demo["command"],
            demo["date"],
            "README.md#two-commands",
        )
    phase1 = read(EXPERIMENTS / "phase1" / "metrics.json")
    n = "73 questions, 25 passages, 3 seeds"
    command = "aios seal ab-test --config experiments/seal_phase1_experiment.yaml …"
    account = "experiments/seal_phase1_results.md"
    loss = compared(phase1["comparisons"], "passage", "validation_loss")
    exact = compared(phase1["comparisons"], "passage", "exact_match")
    assert f"{loss['n']} questions, {loss['passages']} passages, {loss['seeds']} seeds" == n
    what = "the same on SQuAD passages that nothing was chosen on"
    yield Result(what, percent(loss["relative_change"], *loss["ci95"]), n, command, DATE, account)
    points = [100 * value for value in (exact["change"], *exact["ci95"])]
    figure = "**{:+.1f} points** ({:+.1f} to {:+.1f})".format(*points)
    yield Result("the same, answers right word for word", figure, n, command, DATE, account)
    yield forgotten(phase1["arms"], n, command, account)
    rows = [r for r in edit_search.read_rows() if r["stage"] == "confirmed" and "nll" in r]
    ours, theirs = ([r for r in rows if r["variant"] == v] for v in ("cloze", "passage"))
    change = edit_search.loss_of(ours) / edit_search.loss_of(theirs) - 1
    yield Result(
        "one self-edit (`cloze`) a trial against the passage alone",
        percent(change, *edit_search.bootstrap(ours, theirs)),
        f"{sum(r['questions'] for r in ours)} questions, {len(ours)} passages",
        "python experiments/edit_search.py --stage confirmed …",
        DATE,
        "experiments/edit_search.md",
    )


def forgotten(arms: Mapping[str, Any], n: str, command: str, account: str) -> Result:
    """What the same training did to the loss on unrelated text."""
    before = arms["base"]["retention"]["loss"]["mean"]
    after = arms["passage+edits"]["retention"]["loss"]
    change = percent(*(after[key] / before - 1 for key in ("mean", "min", "max")))
    what = "the same, loss on unrelated text against the base model (seeds)"
    return Result(what, change, n.rsplit(", ", 1)[1], command, DATE, account)


def restem() -> Iterator[Result]:
    summary = read(EXPERIMENTS / "phase2" / "summary.json")
    account = "experiments/seal_phase2_results.md"
    for treatment, control, what in (
        ("both, round 2", "both, untrained", "self-edits after two rounds of ReST-EM, before them"),
        ("both, round 2", "passage", "self-edits after two rounds of ReST-EM, the passage alone"),
        ("cloze", "7B implications", "`cloze`, self-edits that a 7B model wrote"),
    ):
        found = compared(summary["comparisons"], control, treatment=treatment)
        yield Result(
            " against ".join(what.rsplit(", ", 1)),
            percent(found["relative_change"], *found["ci95"]),
            f"{found['n']} passages, {summary['seeds']} seeds",
            "python experiments/seal_phase2.py …",
            DATE,
            account,
        )
    run = read(EXPERIMENTS / "phase2" / "run_metrics.json")["comparison"]
    yield Result(
        "gain of the loop on its own held-out passages, nats an answer token",
        nats(run["change"], *run["ci95"]),
        f"{run['n']} passages, one run",
        "aios seal restem optimize --config experiments/seal_phase2_experiment.yaml …",
        DATE,
        account,
    )


def experts_at_work() -> Iterator[Result]:
    routing = read(EXPERIMENTS / "routing_answers.json")
    inside, outside = (routing["groups"][g] for g in ("in domain", "out of domain"))
    n = f"{inside['routed']['n']} questions, {len(routing['experts'])} experts"
    command, account = "python -m experiments.routing --answers …", "experiments/routing.md"
    for arm, what in (("routed", "the expert that `auto` chose"), ("oracle", "the right expert")):
        loss = inside[arm]["against_base"]["loss"]
        yield Result(f"{what} against no expert", percent(*loss), n, command, DATE, account)
    other = percent(*outside["routed"]["against_base"]["loss"])
    n = f"{outside['routed']['n']} questions"
    yield Result(
        "`auto` on what no expert has learnt, against no expert", other, n, command, DATE, account
    )
    yield adapted()


def adapted() -> Result:
    """Adaptation to a conversation with the default settings, as the guard lets it pass."""
    rows = [r for r in rows_of(EXPERIMENTS / "tta.jsonl") if r["split"] == "report"]
    base = {r["conversation"]: r for r in rows if r["arm"] == adaptation.NONE}
    own = [r for r in rows if r["arm"] == "lr 0.001, 8 steps"]
    control = [base[r["conversation"]] for r in own]
    guarded = [
        r if adaptation.passes(r, TOLERANCE) else before
        for r, before in zip(own, control, strict=True)
    ]
    clusters = [r["conversation"] for r in control for _ in r["answers"]]
    after, before_it = (adaptation.pooled(arm, "answers") for arm in (guarded, control))
    change = relative_change_interval(after, before_it, clusters)
    return Result(
        "adapting to a conversation, answers about what has left the window",
        percent(change.estimate, change.low, change.high),
        f"{len(clusters)} answers, {len(own)} conversations",
        "python -m experiments.test_time_adaptation",
        DATE,
        "experiments/test_time_adaptation.md",
    )


def compared(
    comparisons: Sequence[Mapping[str, Any]],
    control: str,
    metric: str = "",
    treatment: str = "passage+edits",
) -> Mapping[str, Any]:
    """The one comparison of these arms."""
    (found,) = (
        each
        for each in comparisons
        if (each["treatment"], each["control"]) == (treatment, control)
        and each.get("metric", "") == metric
    )
    return found


# ---------------------------------------------------------------- how fast it is


def speed() -> Iterator[Result]:
    """Ratios within one run of a benchmark, and a few of its rates."""
    for name, key, what in (
        ("generation", "aios/transformers generate", "writing completions, transformers"),
        ("generation", "aios/llama.cpp server", "writing completions, llama.cpp's server"),
        (
            "trials",
            "aios bfloat16/PEFT float32 (training: all)",
            "trials, PEFT in float32 one by one",
        ),
        (
            "trials",
            "aios bfloat16/release, padded (training: all)",
            "trials, the SEAL release's way (extrapolated)",
        ),
        ("trials", "aios bfloat16, racing/PEFT float32 (passages decided: all)", ""),
        ("serving", "50 clients at once/one at a time", "50 clients at once, one at a time"),
        ("serving", "50 clients at once/PEFT, switched a request", "50 clients, PEFT switching"),
        ("server_load", "tokens/s: 50 clients/1 client", "`aios serve`, 50 clients, one"),
    ):
        document = benchmark(name)
        ratio = document["ratios"][key]
        words = what or "deciding on passages with racing, PEFT in float32"
        yield Result(
            " against ".join(words.rsplit(", ", 1)),
            f"**× {ratio['median']:.3g}**{between(ratio)}",
            rounds(document, key),
            document["command"],
            document["date"][:10],
            "benchmarks/README.md",
        )
    yield from rates()


def between(ratio: Mapping[str, float]) -> str:
    """The spread of a ratio; nothing where it was measured once."""
    low, high = ratio["min"], ratio["max"]
    return f" ({low:.3g} to {high:.3g})" if low < high else ""


def rates() -> Iterator[Result]:
    for name, row, metric, what, scale, unit in (
        (
            "generation_scale",
            "10,000 passages",
            "throughput",
            "passages written and journalled, scripted model",
            1,
            "a second",
        ),
        (
            "generation_scale",
            "100,000 passages",
            "peak memory",
            "memory while 100,000 passages are written",
            1,
            "MB",
        ),
        ("cache", "100,000 entries", "get, hit", "a hit among 100,000 cached entries", 1000, "µs"),
        (
            "quality_filter",
            "all",
            "precision",
            "quality filter: of what it drops, truly bad",
            100,
            "%",
        ),
        ("quality_filter", "all", "recall", "quality filter: of what is bad, dropped", 100, "%"),
        (
            "quality_filter",
            "cloze (default)",
            "dropped",
            "of the default self-edits (`cloze`), dropped",
            100,
            "%",
        ),
    ):
        document = benchmark(name)
        (found,) = (r for r in document["rows"] if (r["name"], r["metric"]) == (row, metric))
        median, low, high = (scale * found[key] for key in ("median", "min", "max"))
        yield Result(
            what,
            f"**{median:.3g} {unit}**" + (f" ({low:.3g} to {high:.3g})" if found["n"] > 1 else ""),
            counted(found["n"], "item" if name == "quality_filter" else "round"),
            document["command"],
            document["date"][:10],
            "benchmarks/README.md",
        )


def benchmark(name: str) -> dict[str, Any]:
    """A benchmark's results, which must come from the machine that the table names."""
    document: dict[str, Any] = read(BENCHMARKS / f"{name}.json")
    assert (document["machine"]["cpu"], document["machine"]["cores"]) == (CPU, CORES), name
    return document


def counted(n: int, what: str) -> str:
    """3 rounds, 1 round."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def rounds(document: Mapping[str, Any], key: str) -> str:
    """How many rounds a ratio is the median of: those of its first contestant."""
    if "alone" in document:
        return "one pair of phases"
    first = key.split("/")[0]
    n = max(r["n"] for r in document["rows"] if r["name"] == first)
    return counted(n, "round")


# ---------------------------------------------------------------- the table


def table() -> str:
    """Both parts as Markdown, with links from the top of the repository."""
    versions = benchmark("trials")["versions"]
    intro = (
        f"All on {CORES} cores of a shared {CPU} virtual machine, python {versions['python']},"
        f" torch {versions['torch']}, SmolLM2-135M-Instruct in bfloat16. In brackets: 95 %"
        " bootstrap intervals of what is learned, the smallest and the largest round of what is"
        " fast. *…* in a command: the linked page has the rest of it."
    )
    learned = "**What is learned**: loss of held-out answers, where nothing else is said."
    fast = "**How fast it is**: so many times as fast as the other, in the same run."
    return "\n\n".join([intro, learned, lines(learning()), fast, lines(speed())])


def lines(results: Iterator[Result]) -> str:
    body = [
        (
            f"[{r.what}]({r.account})",
            r.figure,
            r.n,
            f"`{r.command}`",
            r.date.replace("-", "\N{NON-BREAKING HYPHEN}"),
        )
        for r in results
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, ["---"] * len(HEAD), *body))


def page_with(page: Path, text: str) -> str:
    """The page with the table between its markers, links as seen from its folder.

    Raises:
        ValueError: The page lacks the markers.
    """
    if page.parent != ROOT:
        text = text.replace("](", "](../").replace("](../benchmarks/README.md)", "](README.md)")
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page.name} has no {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    check = parser.parse_args().check
    text = table()
    stale = [p for p in PAGES if page_with(p, text) != p.read_text(encoding="utf-8")]
    for page in stale:
        if check:
            print(f"stale: {page.relative_to(ROOT)}", file=sys.stderr)
        else:
            atomic_write_text(page, page_with(page, text))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
