"""The commands that jobs run, as the command line takes them.

Takes what a person chose; gives a `JobRequest` whose arguments are those of ``aios``, so that a
job started from a page does exactly what the same command does. Settings that are not options go
through the config that the job is started with.
"""

from __future__ import annotations

from pathlib import Path

from aios.app.jobs.records import JobRequest
from aios.core.errors import UsageError
from aios.core.files import require_id


def generate_job(artifacts: Path, job_id: str, input: Path, *, title: str = "") -> JobRequest:
    """Self-edits of a file's passages, to ``<artifacts>/edits/<job>/edits.jsonl``."""
    output = artifacts / "edits" / job_id / "edits.jsonl"
    arguments = ("seal", "generate", "--input", str(input), "--output", str(output))
    return JobRequest(
        kind="generate",
        title=title or input.name,
        arguments=arguments,
        output=output,
        run=None,
        resume=arguments,
        input=input,
    )


def ab_test_job(
    artifacts: Path,
    job_id: str,
    input: Path,
    *,
    questions: Path | None = None,
    title: str = "",
) -> JobRequest:
    """The comparison of experts with and without self-edits, in a folder of experiments."""
    output = artifacts / "seal_experiments" / job_id
    arguments = ["seal", "ab-test", "--input", str(input), "--output", str(output)]
    if questions is not None:
        arguments += ["--questions", str(questions)]
    return JobRequest(
        kind="ab-test",
        title=title or input.name,
        arguments=tuple(arguments),
        output=output,
        run=output,
        resume=(*arguments, "--resume"),
        input=input,
    )


def restem_job(
    artifacts: Path,
    job_id: str,
    input: Path,
    *,
    output_generator: Path | None = None,
    title: str = "",
) -> JobRequest:
    """Rounds of ReST-EM, in a folder of runs."""
    run = artifacts / "runs" / job_id
    common = ["seal", "restem", "optimize", "--dataset", str(input)]
    if output_generator is not None:
        common += ["--output-generator", str(output_generator)]
    return JobRequest(
        kind="restem",
        title=title or input.name,
        arguments=(*common, "--run-dir", str(run)),
        output=run,
        run=run,
        resume=(*common, "--resume", str(run)),
        input=input,
    )


def train_expert_job(
    artifacts: Path,
    input: Path,
    expert_id: str,
    *,
    name: str = "",
    description: str = "",
    category: str = "",
    goals: tuple[str, ...] = (),
    use_self_edits: bool = True,
) -> JobRequest:
    """The training of an expert.

    Raises:
        UsageError: The id is not valid, or a text begins like an option.
    """
    require_id(expert_id, "expert id")
    arguments = ["hrm-hf", "train-expert", "--expert-id", expert_id, "--dataset", str(input)]
    for option, text in (
        ("--name", name),
        ("--description", description),
        ("--category", category),
    ):
        if text:
            arguments.append(f"{option}={text}")
    arguments += [f"--goal={goal}" for goal in goals]
    if not use_self_edits:
        arguments.append("--no-seal")
    return JobRequest(
        kind="train-expert",
        title=expert_id,
        arguments=tuple(arguments),
        output=artifacts / "experts" / expert_id,
        run=artifacts / "runs" / f"train-expert-{expert_id}",
        resume=(*arguments, "--resume"),
        input=input,
    )


def forget_job(
    artifacts: Path, expert_id: str, passage: str, *, keep_versions: bool = False
) -> JobRequest:
    """The training of an expert without one of its passages.

    Raises:
        UsageError: The id is not valid, or the passage's cannot be given to a command.
    """
    require_id(expert_id, "expert id")
    if "\0" in passage or not _encodes(passage):
        raise UsageError(
            f"the passage {passage!r:.200} cannot be named on a command line",
            "train the expert anew, on a file without it",
        )
    arguments = ["experts", "forget", expert_id, f"--passage={passage}"]
    if keep_versions:
        arguments.append("--keep-versions")
    return JobRequest(
        kind="forget",
        title=expert_id,
        arguments=tuple(arguments),
        output=artifacts / "experts" / expert_id,
        run=artifacts / "runs" / f"train-expert-{expert_id}",
        resume=(*arguments, "--resume"),
    )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def pull_job(folder: Path, name: str) -> JobRequest:
    """The fetching of a base model into the folder where models are kept.

    Raises:
        UsageError: The name is empty, or begins like an option.
    """
    if not name or name.startswith("-") or not name.isprintable():
        raise UsageError(f"{name!r} is no model's name", "Take one of the list, or a hub id.")
    arguments = ("models", "pull", name)
    return JobRequest(
        kind="pull", title=name, arguments=arguments, output=folder, run=None, resume=arguments
    )


def require_readable(input: Path) -> Path:
    """A file that a job can read, as an absolute path.

    Raises:
        UsageError: There is no such file.
    """
    if not input.is_file():
        raise UsageError(f"there is no file {input.name}", "Choose another, or upload it again.")
    return input.absolute()
