r"""What each choice of ReST-EM's default settings does, one changed at a time, by whole rounds.

    python experiments/restem_ablations.py \
        --data artifacts/data/restem.json --run artifacts/phase2/run
    python experiments/restem_ablations.py --table

Takes the finished run of ``experiments/seal_phase2_experiment.yaml``, which has the defaults. A
variant is a run of its own on the same passages and with the same seeds; what it would do exactly
as that run has done it (writing, trials) it finds in the copy of its journals. Variants are
compared by what the generator of the same round writes from the held-out passages: the improvement
over their baseline, in nats an answer token. One JSON file a variant goes to
``results/ablations``; variants that are there are skipped, begun ones are gone on with. The
passages that results are reported on are not among these.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import aios
from aios.app.models import load_model
from aios.app.restem.job import optimize
from aios.core.protocols import LanguageModel
from aios.core.restem import ReSTEMState

RESULTS = Path(__file__).parent / "results" / "ablations"
CONFIG = Path(__file__).parent / "seal_phase2_experiment.yaml"
DEFAULT = "default"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the default, and from where on they make a difference.

    Attributes:
        name: For people.
        settings: Config overrides.
        rounds: Rounds that are run.
        shared: Files of the default's run that hold for this one too, as patterns.
    """

    name: str
    settings: tuple[str, ...]
    rounds: int
    shared: tuple[str, ...]


UNTRAINED = ("baselines.trials.journal", "rounds/0/*.journal")
CANDIDATES_1 = (*UNTRAINED, "rounds/1/candidates.*.journal")
ROUND_1 = (*CANDIDATES_1, "rounds/1/held_out.*.journal")
CANDIDATES_2 = (*ROUND_1, "rounds/2/candidates.*.journal")

VARIANTS = (
    Variant("best of k", ("restem.keep=best_of_k",), 1, CANDIDATES_1),
    Variant("one kept a passage", ("restem.kept_per_passage=1",), 1, CANDIDATES_1),
    Variant("threshold 0", ("restem.threshold=0",), 1, CANDIDATES_1),
    Variant("from the previous generator", ("restem.init=previous",), 2, CANDIDATES_2),
    Variant("formats not learned", ("restem.learn_format=false",), 2, ROUND_1),
    Variant("3 candidates", ("seal.restem_candidates_per_passage=3",), 1, UNTRAINED),
    Variant("one trial each", ("restem.racing=false", "restem.repeats=1"), 1, ()),
    Variant("baseline: no training", ("restem.baseline=base",), 1, ()),
)


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the passages of the default's run")
    parser.add_argument("--run", type=Path, help="the default's run directory, finished")
    parser.add_argument("--output-dir", type=Path, default=Path("artifacts/ablations"))
    parser.add_argument("--only", nargs="*", help="names of variants; all by default")
    parser.add_argument("--table", action="store_true", help="print the table only")
    given = parser.parse_args()
    if not given.table:
        if given.data is None or given.run is None:
            parser.error("--data and --run are needed")
        wanted = [v for v in VARIANTS if given.only is None or v.name in given.only]
        run_all(wanted, given.data, given.run, given.output_dir)
    sys.stdout.write(table(read_results()))


def run_all(variants: Sequence[Variant], data: Path, default: Path, output: Path) -> None:
    """Runs the variants that have no result yet, one after the other."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    state = ReSTEMState.from_json(json.loads((default / "state.json").read_text(encoding="utf-8")))
    keep(DEFAULT, (), state)
    model = load_model(aios.load_config(config_file=CONFIG))
    for variant in variants:
        if (RESULTS / f"{slug(variant.name)}.json").exists():
            continue
        print(f"{variant.name} …", file=sys.stderr, flush=True)
        state = run_variant(variant, data, default, output, model)
        keep(variant.name, variant.settings, state)
        if any(text.startswith("restem.baseline=") for text in variant.settings):
            judge_by(default, output / slug(variant.name), variant)


def run_variant(
    variant: Variant, data: Path, default: Path, output: Path, model: LanguageModel
) -> ReSTEMState:
    """One run, on copies of what the default's run has recorded."""
    folder = output / slug(variant.name)
    if not folder.exists():
        building = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(building, ignore_errors=True)
        for pattern in ("run.json", "config.yaml", *variant.shared):
            for source in default.glob(pattern):
                target = building / source.relative_to(default)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        building.rename(folder)
    rounds = f"seal.restem_iterations={variant.rounds}"
    config = aios.load_config(
        "restem.estimate=false", rounds, *variant.settings, config_file=CONFIG
    )
    return optimize(config, data, None, run_dir=folder, resume=True, model=model).state


def keep(name: str, settings: Sequence[str], state: ReSTEMState) -> None:
    """Writes what the table is made of."""
    rounds = [
        {
            "round": report.number,
            "asked": report.asked,
            "tried": report.tried,
            "rewarded": report.rewarded,
            "kept": report.kept,
            "threshold": report.threshold,
            "trials": report.trials,
            "seconds": dict(report.seconds),
            "shares": {arm: asdict(found) for arm, found in report.arms.items()},
            "held_out": dict(report.held_out.passages) if report.held_out else {},
            "held_out_rewarded": report.held_out.rewarded if report.held_out else None,
        }
        for report in state.rounds
    ]
    result = {"variant": name, "settings": list(settings), "rounds": rounds}
    text = json.dumps(result, indent=1) + "\n"
    (RESULTS / f"{slug(name)}.json").write_text(text, encoding="utf-8")


def judge_by(default: Path, run: Path, variant: Variant) -> None:
    """Puts a variant's held-out passages on the default's baseline.

    A run reports improvements over its own baseline, and this variant has another one. What its
    self-edits lead to is subtracted from what the default's baseline leads to; as in a run, a
    self-edit that the filter left out counts as no improvement.
    """
    baselines: dict[str, list[float]] = {}
    for file in sorted(default.glob("rounds/*/held_out.jsonl")):
        for passage, found, _ in held_out(file):
            baselines.setdefault(passage, []).extend(before for before, _ in found)
    path = RESULTS / f"{slug(variant.name)}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for row in result["rounds"]:
        file = run / "rounds" / str(row["round"]) / "held_out.jsonl"
        row["held_out_own_baseline"] = row["held_out"]
        row["held_out"] = {
            passage: sum(float(np.mean(baselines[passage])) - after for _, after in found) / asked
            for passage, found, asked in held_out(file)
        }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def held_out(file: Path) -> Iterator[tuple[str, list[tuple[float, float]], int]]:
    """Passages, the losses before and after each self-edit, and how many were asked for."""
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rewards = [one["reward"] for one in record["candidates"] if one["reward"]]
        pairs = [(reward["before"], reward["after"]) for reward in rewards]
        yield record["passage_id"], pairs, record["asked"]


def slug(name: str) -> str:
    """A file name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def read_results() -> dict[str, dict[str, Any]]:
    """All results, by variant, the default first."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    order = [DEFAULT, *(v.name for v in VARIANTS)]
    return {r["variant"]: r for r in sorted(found, key=lambda r: order.index(r["variant"]))}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table: each variant's last round beside the default's of the same number."""
    if DEFAULT not in results:
        return "no results yet\n"
    text = "| variant | settings | round | rewarded | kept | trials | held-out, mean |"
    text += " against default | 95 % | verdict |\n|---|---|---|---|---|---|---|---|---|---|\n"
    default = {r["round"]: r for r in results[DEFAULT]["rounds"]}
    text += "".join(line(results[DEFAULT], r, None) for r in default.values())
    for name, result in results.items():
        if name != DEFAULT:
            last = result["rounds"][-1]
            text += line(result, last, default[last["round"]])
    return text


def line(result: dict[str, Any], row: dict[str, Any], default: dict[str, Any] | None) -> str:
    """One row; the difference is paired by passage, with a bootstrap over passages."""
    mean = float(np.mean(list(row["held_out"].values())))
    change = interval = verdict = ""
    if default is not None:
        names = sorted(default["held_out"])
        differences = np.array([row["held_out"][n] - default["held_out"][n] for n in names])
        draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
        low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
        change, interval = f"{differences.mean():+.3f}", f"{low:+.3f} … {high:+.3f}"
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference found"
    rewarded = f"{row['rewarded']} of {row['tried']}" if row["round"] else ""
    settings = ", ".join(f"`{s}`" for s in result["settings"])
    return (
        f"| {result['variant']} | {settings} | {row['round']} | {rewarded} | {row['kept'] or ''} |"
        f" {row['trials']} | {mean:+.3f} | {change} | {interval} | {verdict} |\n"
    )


if __name__ == "__main__":
    main()
