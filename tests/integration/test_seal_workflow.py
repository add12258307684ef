"""The whole way through the command line on a tiny real model: generate, train, validate, compare.

The tiny model is random, so nothing here says that self-edits help; it shows that every part
fits the next, that what is trained is what is saved, and that a stopped run goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_app.scripted_jobs import files_below, without_times, write_passages

Cli = Callable[..., tuple[int, str, str]]

QUICK = {
    "seal.num_edits_per_passage": 1,
    "seal.max_new_tokens": 24,
    "seal.min_length": 5,
    "training.rank": 4,
    "training.alpha": 8,
    "training.batch_size": 8,
    "training.learning_rate": 0.01,
    "training.epochs": 2,
    "training.evaluations_per_epoch": 1,
    "evaluation.max_answer_tokens": 4,
    "evaluation.bootstrap_samples": 200,
    "ab_test.seeds": 1,
    "ab_test.evaluations": 2,
    "ab_test.budget_tokens": 600,
}
# What a random model writes is no text: these tests are about the way, not the filter.
KEEP_ALL = {"seal.enable_quality_filter": "false", "seal.enable_deduplication": "false"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_model import build_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    return build_tiny_model(folder, max_position_embeddings=1024)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_jobs: None) -> Path:
    """A folder to work in, with a file of four passages."""
    monkeypatch.chdir(tmp_path)
    write_passages(tmp_path / "passages.jsonl", 4)
    return tmp_path


@pytest.fixture
def cli(model_folder: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command on the tiny model with quick settings; gives exit code, stdout and stderr."""
    from aios.cli.aios import run

    def call(line: str, *, bare: bool = False, **settings: Any) -> tuple[int, str, str]:
        words = shlex.split(line)
        if not bare:
            changed = {key.replace("__", "."): value for key, value in settings.items()}
            pairs = {**QUICK, "model.cache_dir": work / "models", **changed}
            words += ["--model", str(model_folder), "--offline"]
            words += [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]
        code = run(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_generated_edits_are_cached_across_runs(cli: Cli, work: Path) -> None:
    settings = {key.replace(".", "__"): value for key, value in KEEP_ALL.items()}
    line = "seal generate --input passages.jsonl --output {} --strategy implications --json"
    code, out, err = cli(line.format("first.jsonl"), **settings)
    assert code == 0, err
    first = json.loads(out)
    assert (first["passages"], first["generated"], first["cached"]) == (4, 4, 0)
    assert first["tokens"] > 4
    code, out, _ = cli(line.format("second.jsonl"), **settings)
    second = json.loads(out)
    assert (second["generated"], second["cached"], second["tokens"]) == (0, 4, 0)
    assert (work / "first.jsonl").read_bytes() == (work / "second.jsonl").read_bytes()
    assert cli("seal cache stats --json", bare=True)[0] == 0
    # a spoiled entry is made again, to the same text
    entry = sorted((work / "artifacts" / "seal_cache").glob("*.json"))[0]
    entry.write_bytes(b"spoiled")
    code, out, err = cli(line.format("third.jsonl"), **settings)
    third = json.loads(out)
    assert (code, third["generated"], third["cached"]) == (0, 1, 3)
    assert "corrupt" in err
    edits = [
        [json.loads(row)["passage_id"] for row in (work / name).read_text().splitlines()]
        for name in ("first.jsonl", "third.jsonl")
    ]
    assert edits[0] == edits[1]


def test_an_expert_is_trained_saved_and_answers_as_it_was_validated(
    cli: Cli, work: Path, model_folder: Path
) -> None:
    from aios.app.models import load_model, load_trainer
    from aios.core.config.schemas import Config
    from aios.core.data.probes import make_probes
    from aios.core.data.readers import read_passages
    from aios.core.protocols import LanguageModel
    from aios.core.types import AdapterRef

    line = (
        "hrm-hf train-expert --expert-id tiny --dataset passages.jsonl "
        "--seal-strategy cloze --epochs 1 --json"
    )
    code, out, err = cli(line)
    assert code == 0, err
    report = json.loads(out)
    folder = work / "artifacts" / "experts" / "tiny"
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "expert.json"} <= (
        files_below(folder)
    )
    card = json.loads((folder / "expert.json").read_text())
    metrics = card["performance_metrics"]
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert card["dataset_stats"]["by_source"]["cloze"] > 4
    assert report["dataset_stats"] == card["dataset_stats"]

    config = Config.model_validate(
        {"model": {"name": str(model_folder), "cache_dir": work / "models", "offline": True}}
    )
    base = load_model(config)
    passages = read_passages(work / "passages.jsonl", on_reject=lambda reject: None)
    requests = [p.request for p in make_probes({p.id: p.questions for p in passages})]

    def loss(model: LanguageModel) -> float:
        scores = model.score(requests)
        return -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)

    trainer = load_trainer(config, base)
    expert = trainer.attach(AdapterRef(folder, card["adapter_digest"], card["base_digest"]))
    assert loss(expert) == pytest.approx(metrics["validation_loss"], rel=1e-4)
    assert loss(base) == pytest.approx(metrics["validation_loss_before"], rel=1e-4)

    code, out, _ = cli(line)
    assert code == 2
    assert "exists already" in out


@pytest.mark.slow
def test_self_edits_are_compared_with_their_absence(cli: Cli, work: Path) -> None:
    (work / "retention.txt").write_text("The sun is warm.\n\nThe sea is wide.")
    code, out, err = cli(
        "seal ab-test --input passages.jsonl --output ab --strategy cloze "
        "--set training.retention_file=retention.txt"
    )
    assert code == 0, err
    metrics = json.loads((work / "ab" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["verdict"] in out
    assert str(Path("ab", "report.html")) in out
    losses = {
        name: arm["summary"]["validation_loss"]["mean"] for name, arm in metrics["arms"].items()
    }
    assert set(losses) == {"base", "passage", "passage+edits", "passage+other-edits"}
    assert losses["passage+edits"] < losses["base"]
    assert all(arm["retention"]["loss"]["mean"] > 0 for arm in metrics["arms"].values())
    tokens = {
        run["tokens"]
        for name, arm in metrics["arms"].items()
        for run in arm["runs"]
        if name != "base"
    }
    assert all(600 <= spent < 600 + 8 * 150 for spent in tokens)  # to the end of a batch
    page = (work / "ab" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "<script" not in page


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_by_the_printed_line(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aios.backends.adapter_training import TorchAdapterTrainer

    line = "seal ab-test --input passages.jsonl --output {} --strategy cloze --arms {}"
    arms = "base,passage,passage+edits"
    assert cli(line.format("whole", arms))[0] == 0
    fit, calls = TorchAdapterTrainer.fit, 0

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return fit(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TorchAdapterTrainer, "fit", interrupted)
        code, _, err = cli(line.format("stopped", arms))
    assert code == 130
    assert not (work / "stopped" / "metrics.json").exists()
    going_on = err.rpartition("go on with: aios ")[2].strip()
    assert going_on.endswith("--resume")
    code, _, err = cli(going_on, bare=True)
    assert code == 0, err
    whole, resumed = (
        json.loads((work / name / "metrics.json").read_text(encoding="utf-8"))
        for name in ("whole", "stopped")
    )
    # the whole run filled the cache that the other one used
    for metrics in (whole, resumed):
        del metrics["info"]["edits_from_cache"]
    assert without_times(resumed) == without_times(whole)


def test_an_expert_of_another_base_model_is_refused(cli: Cli, work: Path, tmp_path: Path) -> None:
    from aios.app.models import load_model, load_trainer
    from aios.core.config.schemas import Config
    from aios.core.errors import AdapterMismatchError
    from aios.core.types import AdapterRef
    from tests.tiny_model import build_tiny_model

    line = "hrm-hf train-expert --expert-id tiny --dataset passages.jsonl --no-seal"
    assert cli(line, training__epochs=1)[0] == 0
    folder = work / "artifacts" / "experts" / "tiny"
    card = json.loads((folder / "expert.json").read_text())
    other = build_tiny_model(tmp_path / "other", hidden_size=32)
    config = Config.model_validate(
        {"model": {"name": str(other), "cache_dir": work / "models", "offline": True}}
    )
    trainer = load_trainer(config, load_model(config))
    with pytest.raises(AdapterMismatchError):
        trainer.attach(AdapterRef(folder, card["adapter_digest"], card["base_digest"]))


@pytest.mark.model
def test_the_bundled_model_goes_the_whole_way(
    work: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from aios.cli.aios import run

    write_passages(work / "two.jsonl", 2)
    common = [
        *("--set", f"model.cache_dir={models_folder}"),
        *("--set", "seal.max_new_tokens=48"),
        *("--set", "seal.min_length=5"),
        "--json",
    ]
    generate = ["seal", "generate", "--input", "two.jsonl", "--num-edits", "1", *common]
    for strategy in ("implications", "self-qa-grounded"):
        output = f"{strategy}.jsonl"
        assert run([*generate, "--strategy", strategy, "--output", output]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["passages"], report["generated"], report["failures"]) == (2, 2, [])
        assert report["tokens"] > 10
        for row in (work / output).read_text(encoding="utf-8").splitlines():
            assert json.loads(row)["items"]
    train = ["hrm-hf", "train-expert", "--expert-id", "two", "--dataset", "two.jsonl"]
    train += ["--epochs", "2"]
    assert run([*train, *common]) == 0
    report = json.loads(capsys.readouterr().out)
    metrics = report["expert"]["performance_metrics"]
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert report["expert"]["model_architecture"] == "smollm2-135m-instruct"
