"""Turns a GGUF file into a transformers folder with safetensors weights in bfloat16.

The conversion runs in a child process: its memory (about twice the weights in float32) is given
back, its prints go nowhere, and it ends when its parent ends. transformers reads the GGUF file
and unpacks its quantised weights; since it refuses to save a model that still carries the GGUF
quantisation settings, the weights are put into a fresh model of the same configuration without
them. This module is also the child's program:
``python -m aios.backends.model_files.gguf_conversion IN OUT``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from aios.core.errors import ModelError

CONVERSION = "gguf-to-bf16-safetensors-1"
"""Names the way of converting; part of a converted model's digest."""

TIMEOUT_SECONDS = 3600.0
_MAGIC = b"GGUF"
_LAST_LINES = 2
_ALONE_NAME = "model.gguf"


def check_gguf(path: Path) -> None:
    """Looks at the file's first bytes.

    Raises:
        ModelError: It is no GGUF file, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}", "check the path and its rights"
        ) from error
    if magic != _MAGIC:
        raise ModelError(f"{path} is no GGUF file", "give a .gguf file or a model folder")


def convert_gguf(gguf: Path, out: Path) -> None:
    """Writes the model and tokenizer of a GGUF file to the folder `out`.

    Raises:
        ModelError: The file is broken, its architecture is not known to transformers, memory ran
            out, or it took longer than `TIMEOUT_SECONDS`.
    """
    check_gguf(gguf)
    program = [sys.executable, "-m", "aios.backends.model_files.gguf_conversion"]
    run_child([*program, str(gguf.resolve()), str(out.resolve())], out, what=gguf.name)


def run_child(command: Sequence[str], cwd: Path, *, what: str) -> None:
    """Runs a conversion's process to its end.

    The child gets a pipe as its standard input that closes when this process ends, however it
    ends; `main` watches it.

    Args:
        command: Program and arguments.
        cwd: Its folder; one of ours, so that no foreign module there is imported.
        what: What is converted, for messages.

    Raises:
        ModelError: It failed; with its last lines.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
    }
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_keep_last_lines, args=(process, lines), daemon=True)
    reader.start()
    try:
        process.wait(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"converting {what} took longer than {TIMEOUT_SECONDS / 60:.0f} minutes",
            "try again on a machine with less load, or use a smaller model",
        ) from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        reader.join(timeout=5)
    if process.returncode != 0:
        raise _child_failed(process.returncode, lines, what)


def _keep_last_lines(process: subprocess.Popen[bytes], lines: list[str]) -> None:
    if process.stderr is None:
        return
    with process.stderr as stream:
        for raw in stream:
            text = raw.decode("utf-8", "replace").strip()
            if text:
                lines.append(text)
                del lines[:-20]


def _child_failed(code: int, lines: list[str], what: str) -> ModelError:
    if code < 0:
        return ModelError(
            f"converting {what} was ended by signal {-code}",
            "if memory ran out, free some (about 8 bytes a parameter are needed) and try again",
        )
    last = " | ".join(lines[-_LAST_LINES:]) or f"exit code {code}"
    return ModelError(
        f"{what} cannot be converted: {last}",
        "check that the file is whole and that transformers knows its architecture, or give a"
        " folder with safetensors weights",
    )


def convert_here(gguf: Path, out: Path) -> None:
    """Converts in this process; imports torch and transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _alone(gguf, out) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_ALONE_NAME)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_ALONE_NAME)
    model.bfloat16()
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    with torch.device("meta"):  # no second copy of the weights
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    fresh.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextlib.contextmanager
def _alone(gguf: Path, out: Path) -> Iterator[Path]:
    """A folder with this file alone: transformers reads whatever else lies beside it."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".gguf-") as name:
        folder = Path(name)
        try:
            (folder / _ALONE_NAME).symlink_to(gguf.resolve())
        except OSError:  # no right to make links, or the disk has none
            shutil.copyfile(gguf, folder / _ALONE_NAME)
        yield folder


def main(arguments: Sequence[str]) -> int:
    """The child's program: converts ``IN`` to ``OUT`` and ends when its parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gguf, out = arguments
    convert_here(Path(gguf), Path(out))
    return 0


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 12):  # not sys.stdin: its lock would be held when the program ends
            pass
    os._exit(3)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
