"""ReST-EM for an expert: the generator is optimised first, in a run of its own beside the expert's.

Takes the run of an expert's training and the passages to optimise on; gives the best generator. The
ReST-EM run is named in the state of the expert's run before it begins, so a training that was
killed anywhere goes on with it, and finds the generator there when it is done.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.app.composition import Run
from aios.app.restem.folders import KIND
from aios.app.restem.job import ReSTEMReport, optimize
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.events import Notice
from aios.core.files import atomic_write_bytes, confined, encode_json, read_json
from aios.core.protocols import Emit, LanguageModel, ShouldStop
from aios.core.types import Passage

_PASSAGES_FILE = "restem_passages.jsonl"
_STATE_KEY = "restem_run"


def optimize_for_expert(
    config: Config,
    run: Run,
    model: LanguageModel,
    passages: Sequence[Passage],
    *,
    display: Emit,
    should_stop: ShouldStop,
) -> ReSTEMReport:
    """Optimises the generator on passages, or goes on with that.

    The generator is put into the folder ``generator`` of the ReST-EM run. Experiment trackers
    follow the expert's run alone.

    Args:
        config: The resolved config.
        run: The run of the expert's training; its state is replaced by one that names the
            ReST-EM run.
        model: The base model.
        passages: Passages with questions.
        display: Shows the events of the ReST-EM run, which are in its own record.
        should_stop: Asked between and during trials and trainings.

    Raises:
        UsageError: The passages cannot be used, or the ReST-EM run is on others.
        BackendError: Writing or training failed, or too many trials did; what is done is kept.
        StorageError: The run cannot be written.
        RunInterrupted: `should_stop` said so; the training can be resumed.
    """
    runs = run.directory.path.parent
    name = _named(run.directory.read_state()) or _new_name()
    folder = confined(runs, name)
    run.directory.commit_state({"finished": False, _STATE_KEY: name})
    dataset = run.directory.path / _PASSAGES_FILE
    atomic_write_bytes(dataset, b"".join(encode_json(_record(p)) + b"\n" for p in passages))
    run.emit(Notice(f"the generator is optimised on {len(passages)} passages first, in {folder}"))
    telemetry = config.telemetry.model_copy(update={"trackers": ()})
    return optimize(
        config.model_copy(update={"telemetry": telemetry}),
        dataset,
        folder / "generator",
        run_dir=folder,
        resume=True,  # where there is none yet, it begins
        emit=display,
        should_stop=should_stop,
        model=model,
    )


def restem_run_of(path: Path) -> Path | None:
    """The ReST-EM run of an expert's run; None where there is none.

    Raises:
        StorageError: The state of the expert's run is corrupt.
    """
    name = _named(read_json(path / "state.json", default=None))
    return None if name is None else confined(path.parent, name)


def finished_state(restem_run: Path | None) -> dict[str, object]:
    """The state of an expert's run that is done."""
    return {"finished": True, **({} if restem_run is None else {_STATE_KEY: restem_run.name})}


def describe_optimisation(report: ReSTEMReport, passages: int) -> dict[str, Any]:
    """What ReST-EM came to, as the expert's card keeps it.

    Args:
        report: Of the ReST-EM run.
        passages: Passages that the generator was optimised on, those among them that its rounds
            were compared on.
    """
    return {
        "run": str(report.run_dir),
        "generator": None if report.generator is None else str(report.generator),
        "round": report.state.best,
        "passages": passages,
        "stopped": report.state.stopped,
        "verdict": report.metrics["verdict"],
    }


def refuse_other_way(path: Path, *, restem: bool, has_work: bool) -> None:
    """Refuses to go on with a training in another way than it was begun in.

    Args:
        path: The expert's run.
        restem: Whether ReST-EM is asked for now.
        has_work: Whether the run has finished anything.

    Raises:
        UsageError: It was begun with ReST-EM and that is not asked for, or the other way round.
    """
    begun = restem_run_of(path) is not None
    if begun and not restem:
        raise UsageError(
            "this training was begun with ReST-EM", "add --restem, or start over with --overwrite"
        )
    if restem and has_work and not begun:
        raise UsageError(
            "this training was begun without ReST-EM",
            "leave out --restem, or start over with --overwrite",
        )


def _named(state: object) -> str | None:
    """The name of the ReST-EM run in a state, if there is one."""
    name = state.get(_STATE_KEY) if isinstance(state, dict) else None
    return name if isinstance(name, str) else None


def _new_name() -> str:
    return f"{KIND}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _record(passage: Passage) -> dict[str, Any]:
    """A passage as a line of a file of passages."""
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "questions": [asdict(question) for question in passage.questions],
    }
