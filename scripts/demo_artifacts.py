"""Fills a folder of artifacts with something of everything, as a person would: by the program.

    python -m scripts.demo_artifacts FOLDER
    python -m scripts.demo_artifacts FOLDER --model smollm2-135m-instruct

With the scripted model, the default, it takes half a minute, and no number in it means anything;
with a real model it takes as long as the work does. Files of passages are made of
``examples/passages.jsonl``. Used for the pictures of the documentation and by tests of the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios.app.data.files import DataFiles
from aios.app.jobs.commands import ab_test_job, generate_job, restem_job, train_expert_job
from aios.app.jobs.records import Job, JobRequest
from aios.app.jobs.store import JobStore
from aios.app.page_settings import PageSettings
from aios.cli.aios import run

ROOT = Path(__file__).resolve().parents[1]
SCRIPTED = (  # the same work as with a real model, but less of it
    "model.name=scripted",
    "training.max_tokens=300",
    "seal.restem_candidates_per_passage=2",
    "ab_test.seeds=2",
    "ab_test.budget_tokens=200",
    "evaluation.bootstrap_samples=200",
    "restem.keep=best_of_k",
    "restem.held_out_fraction=0",
    "restem.estimate=false",
    "adaptation.enabled=false",
)
REAL = (  # minutes on two cores
    "ab_test.budget_tokens=3000",
    "ab_test.max_passages=8",
    "ab_test.seeds=2",
    "seal.restem_iterations=1",
    "seal.restem_batch_size=6",
    "seal.restem_candidates_per_passage=2",
    "training.retention_file=examples/retention.txt",
)


@dataclass(frozen=True)
class DemoExpert:
    """An expert of the demonstration.

    Attributes:
        id: Its id.
        name: For people.
        description: What it is for.
        category: Its category.
        passages: Titles of the passages that it learns.
        goal: What it serves.
        edits: Whether it learns from self-edits, too.
    """

    id: str
    name: str
    description: str
    category: str
    passages: tuple[str, ...]
    goal: str
    edits: bool = True


EXPERTS = (
    DemoExpert(
        "harbours",
        "Harbours and tides",
        "Pumps, lights and bridges along the coast.",
        "engineering",
        ("Brellow tide engine", "Skarrow Light", "Oskerry Bridge"),
        "Answer questions about harbours and lights",
    ),
    DemoExpert(
        "tide-engine",
        "The Brellow tide engine",
        "One machine, in detail.",
        "engineering",
        ("Brellow tide engine",),
        "Answer questions about harbours and lights",
        edits=False,
    ),
    DemoExpert(
        "animals",
        "Animals and plants",
        "What lives where, and on what.",
        "nature",
        ("Dralquet", "Fennikin moss", "Velvet sandpecker", "Brindled ossel"),
        "Know the animals and plants of the coast",
    ),
    DemoExpert(
        "laws",
        "Laws and customs",
        "Treaties, bells and feast days.",
        "history",
        ("Varsholm Bell Law", "Treaty of Lummerfold", "Pellowin Night"),
        "Explain laws and customs",
    ),
)
_WRITTEN_ABOUT = 6  # passages of the file of self-edits
_LESS_CHANCE = ("--set", "seal.temperature=0.5", "--set", "seal.max_new_tokens=200")
QUESTIONS = (
    "Who designed the Brellow tide engine?",
    "What does the velvet sandpecker eat?",
    "When must the bells of Varsholm be silent?",
    "How heavy is each float of the Brellow tide engine?",
)


def make_demo(
    artifacts: Path,
    *overrides: str,
    passages: Path = ROOT / "examples" / "passages.jsonl",
    experts: Sequence[DemoExpert] = EXPERTS,
    settings: Sequence[str] = SCRIPTED,
    runs: bool = True,
) -> None:
    """Fills a folder of artifacts.

    Args:
        artifacts: The folder; made where there is none.
        overrides: More settings, as ``key=value``.
        passages: Where the passages come from.
        experts: Those to train; the second becomes a child of the first.
        settings: What the model is and how much work is done.
        runs: Whether there are to be runs of ReST-EM and A/B tests, which take longest.
    """
    given = (*settings, f"paths.artifacts={artifacts}", *overrides)
    lines = passages.read_text(encoding="utf-8").splitlines()
    by_title = {str(json.loads(line).get("title", "")): line for line in lines}
    files = {file.name: file.path for file in DataFiles(artifacts).list()}

    def upload(name: str, chosen: Sequence[str]) -> Path:
        data = "".join(f"{line}\n" for line in chosen).encode()
        return files.get(name) or DataFiles(artifacts).add(name, io.BytesIO(data)).path

    whole = upload(passages.name, lines)
    some = upload("coast.jsonl", lines[:_WRITTEN_ABOUT])
    jobs = _Jobs(artifacts, given)
    mix = ("--set", "seal.strategy=cloze:1,rewrite:1,implications:1", *_LESS_CHANCE)
    jobs.run(generate_job(artifacts, "generate-coast", some), "generate-coast", *mix)
    if runs:
        jobs.run(ab_test_job(artifacts, "ab-test-passages", whole), "ab-test-passages")
        again = ("--set", "ab_test.arms=[base, passage, passage+edits]", "--seed", "1")
        jobs.run(ab_test_job(artifacts, "ab-test-again", whole), "ab-test-again", *again)
        jobs.run(restem_job(artifacts, "restem-passages", whole), "restem-passages")
    for expert in experts:
        file = upload(f"{expert.id}.jsonl", [by_title[title] for title in expert.passages])
        jobs.run(_training(artifacts, file, expert), f"train-expert-{expert.id}")
    _look_after(given, experts)


def _training(artifacts: Path, file: Path, expert: DemoExpert) -> JobRequest:
    return train_expert_job(
        artifacts,
        file,
        expert.id,
        name=expert.name,
        description=expert.description,
        category=expert.category,
        goals=(expert.goal,),
        use_self_edits=expert.edits,
    )


def _look_after(settings: Sequence[str], experts: Sequence[DemoExpert]) -> None:
    first, second, *_, last = (expert.id for expert in experts)
    _aios(settings, "experts", "set-parent", second, first)
    _aios(settings, "experts", "freeze", last)
    _aios(settings, "experts", "deactivate", second)
    for number, question in enumerate(QUESTIONS):
        _aios(settings, "chat", f"--session=demo-{number}", "--max-new-tokens=40", question)


def _aios(settings: Sequence[str], *arguments: str) -> None:
    more = [part for text in settings for part in ("--set", text)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = run([*arguments, *more, "--json", "--quiet"])
    if code:
        raise SystemExit(f"aios {' '.join(arguments)}: {said.getvalue()}")


class _Jobs:
    """Runs jobs one after the other, as a page starts them."""

    def __init__(self, artifacts: Path, settings: Sequence[str]) -> None:
        self._store = JobStore(artifacts.absolute())
        self._settings = PageSettings(overrides=tuple(settings), env={})

    def run(self, request: JobRequest, job_id: str, *more: str) -> Job:
        """Runs a job to its end; one that is there and was stopped goes on."""
        known: Mapping[str, Job] = {job.id: job for job in self._store.list()}
        job = known.get(job_id)
        if job is None:
            request = _with(request, more)
            job = self._store.start(request, self._settings.loaded().config, job_id=job_id)
        elif job.can_resume:
            self._store.resume(job_id)
        while (job := self._store.get(job_id)).live:
            time.sleep(0.1)
        if job.state != "done":
            raise SystemExit(f"{job_id}: {job.state}\n{self._store.log_tail(job_id)}")
        return job


def _with(request: JobRequest, more: Sequence[str]) -> JobRequest:
    return JobRequest(
        kind=request.kind,
        title=request.title,
        arguments=(*request.arguments, *more),
        output=request.output,
        run=request.run,
        resume=(*request.resume, *more),
        input=request.input,
    )


def main() -> None:
    """Fills the folder on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--no-runs", action="store_true", help="no A/B tests and no ReST-EM")
    chosen = parser.parse_args()
    small = chosen.model == "scripted"
    settings = SCRIPTED if small else (f"model.name={chosen.model}", *REAL)
    make_demo(chosen.folder.absolute(), settings=settings, runs=not chosen.no_runs)
    print(f"{chosen.folder} is filled", file=sys.stderr)


if __name__ == "__main__":
    main()
