"""``aios seal``: flags reach the app, results reach the reader."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from aios.cli.aios import run
from aios.cli.commands.seal import OUTPUT_FORMATS
from aios.core.data.edit_rows import CHAT_FORMATS
from aios.core.events import Evaluated, Notice, PassageGenerated
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.passage_edits import PassageEdits
from aios.core.types import Completion, Failure

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


def test_generate_passes_its_flags_as_one_config(app: Any, passages: Path) -> None:
    line = "--strategy rewrite --num-edits 7 --temperature 0.5 --model tiny --seed 3 --offline"
    more = "--format alpaca --resume always --set seal.top_p=0.5"
    io = ["--input", str(passages), "--output", "o.jsonl"]
    assert run(["seal", "generate", *io, *line.split(), *more.split()]) == 0
    name, args, kwargs = app.calls[-1]
    config = args[0]
    assert name == "generate_edits"
    assert args[1:] == (passages, Path("o.jsonl"))
    assert (kwargs["resume"], kwargs["output_format"]) == ("always", "alpaca")
    assert (config.seal.strategy, config.seal.num_edits_per_passage) == ("rewrite", 7)
    assert (config.seal.temperature, config.seal.top_p) == (0.5, 0.5)
    assert (config.model.name, config.model.offline, config.seed) == ("tiny", True, 3)


@pytest.mark.parametrize(
    "line", ["generate --output o.txt", "preview", "ab-test"], ids=lambda line: line.split()[0]
)
def test_a_generator_can_be_given(line: str, app: Any, passages: Path) -> None:
    words = ["seal", *line.split(), "--input", str(passages)]
    assert run([*words, "--seal-generator", "runs/gen"]) == 0
    assert app.config.seal.generator == Path("runs/gen")
    assert run(words) == 0
    assert app.config.seal.generator is None


def test_generate_resumes_by_default_and_sets_only_what_is_given(app: Any, passages: Path) -> None:
    assert run(["seal", "generate", "--input", str(passages), "--output", "o.txt"]) == 0
    assert app.kwargs["resume"] == "if-possible"
    assert app.kwargs["output_format"] is None
    assert app.config.seal.strategy == "auto"


def test_generate_reports_counts_reasons_and_pace(
    app: Any, passages: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert run(["seal", "generate", "--input", str(passages), "--output", "o.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "passages           4 (1 rejected)" in out
    assert "self-edits         6 generated, 2 cached (25 % from the cache)" in out
    assert "kept               6\n" in out
    assert "dropped            4: 3 too_short, 1 duplicate" in out
    assert "tokens             1,234" in out
    assert "time               12 s; 3.0 s per passage; 2.0 s per generated self-edit" in out
    assert "rejects listed in  edits.rejects.jsonl" in out
    assert out.endswith(f"written to         {tmp_path / 'edits.jsonl'}\n")


def test_generate_json_is_the_report_alone(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = lambda kwargs: kwargs["emit"](Notice("hello"))
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl", "--json"]
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["dropped"] == {"duplicate": 1, "too_short": 3}
    assert err == "note: hello\n"


def test_quiet_silences_progress_but_not_the_result(
    app: Any, passages: Path, capsys: Capture
) -> None:
    app.during = lambda kwargs: kwargs["emit"](Notice("hello"))
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl", "--quiet"]
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "written to" in out


def test_failures_are_listed_and_all_failed_is_a_failure(
    app: Any, passages: Path, capsys: Capture
) -> None:
    failures = tuple(Failure("generate", f"p{i}", "timed out") for i in range(7))
    report = dataclasses.replace(app.results["generate_edits"], failures=failures)
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl"]
    app.results["generate_edits"] = report
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "failed: p0: timed out" in out
    assert "failed: 2 more passages" in out
    app.results["generate_edits"] = dataclasses.replace(report, edits=0)
    assert run(line) == 1


def test_dry_run_counts_and_calls_nothing_else(app: Any, passages: Path, capsys: Capture) -> None:
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl", "--dry-run"]
    assert run(line) == 0
    assert [name for name, *_ in app.calls] == ["plan_generation"]
    out = capsys.readouterr().out
    assert "to be generated       15" in out
    assert "dry run" in out
    assert run([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == 20


@pytest.mark.parametrize("name", ["passages.txt", "../{}/passages.txt", "link.txt"])
def test_the_input_is_never_replaced_by_the_output(
    name: str, app: Any, passages: Path, capsys: Capture
) -> None:
    Path("link.txt").symlink_to(passages)
    line = ["seal", "generate", "--input", str(passages)]
    assert run([*line, "--output", name.format(Path.cwd().name)]) == 2
    assert "--output is the input file itself" in capsys.readouterr().err
    assert app.calls == []


def test_nothing_kept_says_where_to_look(app: Any, passages: Path, capsys: Capture) -> None:
    report = dataclasses.replace(app.results["generate_edits"], edits=0)
    app.results["generate_edits"] = report
    assert run(["seal", "generate", "--input", str(passages), "--output", "o.jsonl"]) == 0
    assert "Nothing was kept. `aios seal preview`" in capsys.readouterr().out


def test_verbose_shows_each_passage(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = lambda kwargs: kwargs["emit"](PassageGenerated("p1", 4, 1, 0, 5, 99, 2.0))
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl"]
    assert run(line) == 0
    assert "passage p1" not in capsys.readouterr().err
    assert run([*line, "--verbose"]) == 0
    assert "passage p1: 4 kept, 1 dropped" in capsys.readouterr().err


def test_the_formats_are_those_of_the_writers() -> None:
    assert set(OUTPUT_FORMATS) == set(CHAT_FORMATS)


def test_preview_shows_kept_and_dropped_with_reasons(
    app: Any, passages: Path, capsys: Capture
) -> None:
    assert run(["seal", "preview", "--input", str(passages), "--num-samples", "5"]) == 0
    assert app.calls[-1][1][1:] == (passages, 5)
    out = capsys.readouterr().out
    assert "passage 1 of 1: Orrin (p1)\n  The lighthouse\n  of Orrin.\n" in out
    assert "kept, rewrite #0:\n  • Orrin has a lighthouse.\n" in out
    assert "dropped, rewrite #1, too_short (4 tokens < 20):\n  It is so.\n" in out
    assert "\x1b" not in out


def test_preview_says_why_a_passage_failed(app: Any, passages: Path, capsys: Capture) -> None:
    passage = app.results["preview_edits"][0].passage
    failed = PassageEdits(passage, failure=Failure("generate", "p1", "timed out"))
    app.results["preview_edits"] = [failed, PassageEdits(passage)]
    assert run(["seal", "preview", "--input", str(passages)]) == 0
    out = capsys.readouterr().out
    assert "failed: timed out" in out
    assert "the model wrote nothing that could be used" in out


def test_preview_needs_at_least_one_sample(app: Any, passages: Path) -> None:
    assert run(["seal", "preview", "--input", str(passages), "--num-samples", "0"]) == 2


def test_ab_test_passes_its_flags_and_ends_with_the_two_paths(
    app: Any, passages: Path, capsys: Capture, tmp_path: Path
) -> None:
    line = ["seal", "ab-test", "--input", str(passages), "--questions", str(passages)]
    flags = "--seeds 5 --arms base,passage --match steps --max-passages 9 --output out --resume"
    assert run([*line, *flags.split(), "--strategy", "self-qa"]) == 0
    settings = app.config.ab_test
    assert (settings.seeds, settings.arms) == (5, ("base", "passage"))
    assert (settings.match, settings.max_passages) == ("steps", 9)
    assert app.config.seal.strategy == "self-qa"
    assert app.kwargs["output"] == Path("out")
    assert app.kwargs["questions"] == passages
    assert app.kwargs["resume"] is True
    last_two = capsys.readouterr().out.splitlines()[-2:]
    run_dir = tmp_path / "results"
    assert last_two == [str(run_dir / "report.html"), str(run_dir / "metrics.json")]


def test_an_unknown_arm_is_wrong_usage(app: Any, passages: Path, capsys: Capture) -> None:
    assert run(["seal", "ab-test", "--input", str(passages), "--arms", "base,zzz"]) == 2
    assert "ab_test.arms" in capsys.readouterr().err
    assert app.calls == []


def test_an_output_ending_in_json_gets_the_numbers_and_a_folder_beside_it(
    app: Any, passages: Path, capsys: Capture
) -> None:
    line = ["seal", "ab-test", "--dataset", str(passages), "--output", "numbers.json"]
    assert run(line) == 0
    assert app.kwargs["output"] == Path("numbers")
    assert json.loads(Path("numbers.json").read_text(encoding="utf-8")) == {"verdict": "fake"}
    assert capsys.readouterr().out.splitlines()[-1] == "numbers.json"


def test_ab_test_json_has_paths_and_comparison(
    app: Any, passages: Path, capsys: Capture, metrics: dict[str, Any]
) -> None:
    assert run(["seal", "ab-test", "--input", str(passages), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["comparison"]["verdict"] == metrics["comparison"]["verdict"]
    assert document["report_html"].endswith("report.html")
    assert document["metrics_json"].endswith("metrics.json")


def test_ab_test_verbose_shows_the_curve(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = lambda kwargs: kwargs["emit"](Evaluated("passage", 5, 1.0, 99, 3.0, 3.5, 1.0))
    assert run(["seal", "ab-test", "--input", str(passages), "--verbose"]) == 0
    assert "validation 3.500" in capsys.readouterr().err


def test_ab_test_dry_run_counts_trainings(app: Any, passages: Path, capsys: Capture) -> None:
    line = ["seal", "ab-test", "--input", str(passages), "--seeds", "4", "--dry-run"]
    assert run(line) == 0
    assert "12 (3 trained arms times 4 seeds)" in capsys.readouterr().out
    assert run([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trainings"] == 12
    assert {name for name, *_ in app.calls} == {"plan_ab_test"}


def test_ab_test_dry_run_tells_time_and_memory(app: Any, passages: Path, capsys: Capture) -> None:
    line = ["seal", "ab-test", "--input", str(passages), "--dry-run"]
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "estimated time  about 60 to 90 s, from 3 earlier runs here\n" in out
    assert "passage+edits" in out
    assert "800 to 1,000" in out
    assert "about 3.0 GB; 2.0 GB is free\n" in out
    assert "warning: that is more memory than is free" in out
    assert "1 damaged costs.json" in out
    assert run([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimate"]["seconds"] == {"low": 60.0, "middle": 70.0, "high": 90.0}
    assert found["memory"] == {
        "peak_bytes": 3 * 10**9,
        "at_least": False,
        "free_bytes": 2 * 10**9,
        "fits": False,
    }
    assert [arm["name"] for arm in found["work"]["arms"]] == ["passage", "passage+edits"]


def test_ab_test_dry_run_says_why_there_is_no_time(
    app: Any, passages: Path, capsys: Capture
) -> None:
    plan = app.results["plan_ab_test"]
    missing = {"work": None, "estimate": None, "peak_bytes": None, "reason": "no probe"}
    nothing = dataclasses.replace(plan.forecast, **missing)
    app.results["plan_ab_test"] = dataclasses.replace(plan, forecast=nothing)
    line = ["seal", "ab-test", "--input", str(passages), "--dry-run"]
    assert run(line) == 0
    out = capsys.readouterr().out
    assert "not known: no probe" in out
    assert "warning" not in out
    assert run([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["work"], found["estimate"]["seconds"]) == (None, None)
    assert found["memory"]["fits"] is None


def test_the_script_is_the_same_command() -> None:
    script = ROOT / "scripts" / "seal_ab_test.py"
    line = [sys.executable, str(script), "--dataset", "nope.txt", "--output", "results.json"]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "'nope.txt' does not exist" in result.stderr
    assert "see aios seal ab-test --help" in result.stderr


@pytest.fixture
def filled(app: Any, tmp_path: Path) -> Path:
    """A real cache of three self-edits, in its default place."""
    folder = tmp_path / "artifacts" / "seal_cache"
    folder.mkdir(parents=True)
    with SelfEditCache(folder, 10**9) as cache:
        for i in range(3):
            key = f"{i:064x}"
            assert cache.put(key, Completion("x", 1, "stop", i), strategy="rewrite", model="small")
        assert cache.get(f"{0:064x}") is not None
        assert cache.get(f"{9:064x}") is None
    return folder


def test_cache_stats(filled: Path, capsys: Capture) -> None:
    size = sum(path.stat().st_size for path in filled.glob("*.json"))
    assert run(["seal", "cache", "stats"]) == 0
    out = capsys.readouterr().out
    assert "self-edits   3\n" in out
    assert f"size         {size} B of 1.0 GB (0.0 %)\n" in out
    assert f"by strategy  rewrite 3 ({size} B)\n" in out
    assert f"by model     small 3 ({size} B)\n" in out
    assert "50.0 % of 2 lookups" in out
    head, row = out.splitlines()[-3], out.splitlines()[-1]
    assert head.split("  ")[0] == "run ended"
    assert row.split()[2:] == ["UTC", "2", "1", "1", "50.0", "%"]
    assert "set aside" not in out
    assert run(["seal", "cache", "stats", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["entries"], document["hit_rate"]) == (3, 0.5)
    assert document["by_strategy"] == {"rewrite": {"entries": 3, "bytes": size}}
    assert [(run["hits"], run["misses"]) for run in document["runs"]] == [(1, 1)]


def test_cache_stats_show_the_last_runs_newest_first(filled: Path, capsys: Capture) -> None:
    for hits in range(2, 8):
        with SelfEditCache(filled, 10**9) as cache:
            for _ in range(hits):
                cache.get(f"{0:064x}")
    assert run(["seal", "cache", "stats"]) == 0
    rows = capsys.readouterr().out.splitlines()[-5:]
    assert [row.split()[3] for row in rows] == ["7", "6", "5", "4", "3"]


def test_cache_stats_say_what_else_is_in_the_folder(filled: Path, capsys: Capture) -> None:
    (filled / f"{0:064x}.json").write_text("{")
    (filled / "corrupt").mkdir()
    (filled / "corrupt" / f"{9:064x}.json").write_text("{")
    (filled / f".{0:064x}.json.0123456789abcdef.tmp").write_text("{{")
    assert run(["seal", "cache", "stats"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["unreadable", "1"] in lines
    assert ["set", "aside as corrupt  1 (1 B) in corrupt/"] in lines
    assert ["unfinished", "1 (2 B) of runs at work, or killed"] in lines


def test_cache_stats_of_no_cache(app: Any, capsys: Capture) -> None:
    assert run(["seal", "cache", "stats"]) == 0
    out = capsys.readouterr().out
    assert "self-edits  0\n" in out
    assert "hits        - of 0 lookups in recent runs\n" in out
    assert "run ended" not in out


def test_cache_clear_refuses_without_a_terminal(filled: Path, capsys: Capture) -> None:
    assert run(["seal", "cache", "clear"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert len(list(filled.glob("*.json"))) >= 3


def test_cache_clear_with_yes(filled: Path, capsys: Capture) -> None:
    assert run(["seal", "cache", "clear", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("3 self-edits removed")
    assert not list(filled.glob("0*.json"))


def test_cache_clear_says_where_corrupt_files_stay_and_removes_them_if_asked(
    filled: Path, capsys: Capture
) -> None:
    (filled / "corrupt").mkdir()
    (filled / "corrupt" / f"{9:064x}.json").write_text("{")
    assert run(["seal", "cache", "clear", "--yes"]) == 0
    assert f"1 corrupt files stay in {Path('artifacts/seal_cache/corrupt')};" in (
        capsys.readouterr().out
    )
    assert run(["seal", "cache", "clear", "--set-aside"]) == 2
    assert "0 self-edits and 1 corrupt files in" in capsys.readouterr().err
    assert run(["seal", "cache", "clear", "--yes", "--set-aside", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["set_aside"] == 1
    assert not (filled / "corrupt").exists()


@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("y", 0)])
def test_cache_clear_asks_on_a_terminal(
    answer: str, left: int, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return answer == "y"

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(click, "confirm", confirm)
    assert run(["seal", "cache", "clear"]) == 0
    assert [question[:20] for question in asked] == ["Delete 3 self-edits "]
    assert len(list(filled.glob("0*.json"))) == left


def test_cache_prune_to_a_size(filled: Path, capsys: Capture) -> None:
    size = sum(path.stat().st_size for path in filled.glob("*.json"))
    assert run(["seal", "cache", "prune", "--max-size", "5GB"]) == 0
    expected = f"0 self-edits removed, 0 B freed; 3 left, {size} B\n"
    assert capsys.readouterr().out == expected
    assert run(["seal", "cache", "prune", "--max-size", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 3


def test_cache_prune_dry_run_removes_nothing(filled: Path, capsys: Capture) -> None:
    size = sum(path.stat().st_size for path in filled.glob("*.json"))
    assert run(["seal", "cache", "prune", "--max-size", "0", "--dry-run"]) == 0
    expected = f"3 self-edits would be removed, {size} B would be freed; 0 left, 0 B\n"
    assert capsys.readouterr().out == expected
    assert len(list(filled.glob("0*.json"))) == 3


@pytest.mark.parametrize(
    ("age", "removed"), [("30d", 1), ("2w", 2), ("90 m", 3), ("1.5H", 3), ("8w", 0)]
)
def test_cache_prune_by_age(age: str, removed: int, filled: Path, capsys: Capture) -> None:
    now = time.time()
    for number, days in enumerate((40, 20, 1)):
        used = now - days * 86_400
        os.utime(filled / f"{number:064x}.json", (used, used))
    assert run(["seal", "cache", "prune", "--older-than", age]) == 0
    assert capsys.readouterr().out.startswith(f"{removed} self-edits removed")
    assert len(list(filled.glob("0*.json"))) == 3 - removed


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1y", "30 days"])
def test_what_is_no_age_is_refused(age: str, filled: Path, capsys: Capture) -> None:
    assert run(["seal", "cache", "prune", f"--older-than={age}"]) == 2
    assert "write it like 90m, 12h, 30d or 8w" in capsys.readouterr().err
    assert len(list(filled.glob("0*.json"))) == 3


def test_cache_warm_passes_input_and_progress(app: Any, passages: Path, capsys: Capture) -> None:
    assert run(["seal", "cache", "warm", "--input", str(passages), "--num-edits", "2"]) == 0
    name, args, kwargs = app.calls[-1]
    assert name == "warm_cache"
    assert args[1] == passages
    assert kwargs["should_stop"]() is False
    assert app.config.seal.num_edits_per_passage == 2
    out = capsys.readouterr().out
    assert "passages           4 (1 rejected)\n" in out
    assert "cached before      2\n" in out
    assert "generated          6; 1 cut off by the deadline or not written\n" in out
    assert out.endswith(f"kept in            {Path('artifacts/seal_cache')}\n")


def test_cache_warm_that_keeps_nothing_has_failed(app: Any, passages: Path) -> None:
    line = ["seal", "cache", "warm", "--input", str(passages), "--json"]
    report = app.results["warm_cache"]
    app.results["warm_cache"] = dataclasses.replace(report, stored=0)
    assert run(line) == 1
    app.results["warm_cache"] = dataclasses.replace(report, stored=0, generated=0)
    assert run(line) == 0


def test_cache_warm_dry_run_only_counts(app: Any, passages: Path, capsys: Capture) -> None:
    assert run(["seal", "cache", "warm", "--input", str(passages), "--dry-run"]) == 0
    assert [call[0] for call in app.calls] == ["plan_generation"]
    assert "already in the cache" in capsys.readouterr().out
