"""``aios seal restem compare`` on the scripted model, from the arguments to what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios.app.restem.comparing import job as restem_compare
from aios.cli.aios import run
from aios.core.errors import RunInterrupted
from tests.generator_folders import scripted_generator
from tests.test_app.scripted_jobs import write_passages

Capture = pytest.CaptureFixture[str]
SETTINGS = {
    "model.name": "scripted",
    "restem.arms": "implications",
    "restem.trial_tokens": "60",
    "seal.min_length": "5",
    "training.rank": "2",
    "training.alpha": "4",
}


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., int]:
    """Runs the command on a file of four passages; gives its exit code."""
    data = write_passages(tmp_path / "data.jsonl", 4)
    scripted_generator(tmp_path / "gen", passages=0)
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]

    def call(*more: str) -> int:
        given = ["--optimized", "gen", "--dataset", str(data), "--candidates", "1"]
        return run(["seal", "restem", "compare", *given, *sets, *more])

    return call


def runs() -> list[Path]:
    return sorted(Path("artifacts/runs").glob("restem-compare-*"))


def test_the_verdict_and_both_generators_are_shown(
    call: Callable[..., int], capsys: Capture
) -> None:
    assert call("--seeds", "2") == 0
    out = capsys.readouterr().out
    assert "4 passages, 1 self-edits of each, 2 seeds (implications)" in out
    assert "the untrained model" in out
    assert "the generator gen" in out
    assert "on 4 passages, self-edits by the generator gen improve on training on the" in out
    assert "95 % interval" in out
    (folder,) = runs()
    assert out.endswith(f"{folder / 'metrics.json'}\n")
    assert len(json.loads((folder / "metrics.json").read_text())["passages"]) == 4


def test_json_stands_alone_on_stdout(call: Callable[..., int], capsys: Capture) -> None:
    assert call("--json", "--baseline", "gen") == 0
    document = json.loads(capsys.readouterr().out)
    (folder,) = runs()
    assert (document["run_dir"], document["metrics_json"]) == (
        str(folder),
        str(folder / "metrics.json"),
    )
    assert document["comparison"]["change"] == 0
    assert document["generators"]["baseline"]["name"] == "the generator gen"


def test_quiet_says_nothing_on_stderr(call: Callable[..., int], capsys: Capture) -> None:
    assert call("--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_dry_run_counts_and_writes_nothing(call: Callable[..., int], capsys: Capture) -> None:
    assert call("--dry-run", "--seeds", "3") == 0
    out = capsys.readouterr().out
    assert "at most 24 of both generators" in out
    assert "at most 72\n" in out
    assert "nothing was written" in out
    assert call("--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["passages"] == 4
    assert not Path("artifacts").exists()


def test_an_interrupted_comparison_prints_the_line_that_goes_on(
    call: Callable[..., int], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restem_compare.compare_generators

    def stopped(*args: Any, **options: Any) -> Any:
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > 5

        return real(*args, **{**options, "should_stop": should_stop})

    with monkeypatch.context() as patch:
        patch.setattr(restem_compare, "compare_generators", stopped)
        assert call() == 130
    (folder,) = runs()
    assert f"--resume {folder}" in capsys.readouterr().err
    assert call("--resume", folder.name) == 0
    assert runs() == [folder]
    assert "improve on training" in capsys.readouterr().out


def test_the_line_that_goes_on_keeps_the_folder_that_was_given(
    call: Callable[..., int], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> Any:
        raise RunInterrupted("stopped on request")

    monkeypatch.setattr(restem_compare, "compare_generators", stopped)
    assert call("--output", "mine") == 130
    line = capsys.readouterr().err
    assert "--resume mine" in line
    assert "--output" not in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--resume", "a", "--output", "b"], "exclude each other"),
        (["--resume", "nowhere"], "no comparison to go on with in nowhere"),
        (["--optimized", "nothing"], "nothing is not a generator"),
        (["--baseline", "nothing"], "nothing is not a generator"),
        (["--seeds", "0"], "0 is not in the range"),
        (["--arms", "nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_told_and_nothing_is_written(
    more: list[str], said: str, call: Callable[..., int], capsys: Capture
) -> None:
    assert call(*more) == 2
    assert said in capsys.readouterr().err
    assert not Path("artifacts").exists()
