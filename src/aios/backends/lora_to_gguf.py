"""An adapter as a GGUF file, by llama.cpp's own converter.

llama.cpp ships ``convert_lora_to_gguf.py``; it is found where the user says, in ``LLAMA_CPP_DIR``
or on ``PATH``, and run as a process of its own for a bounded time, without a network. What it
needs of the base model is its configuration, no weights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from aios.core.errors import BackendError, UsageError

CONVERTER = "convert_lora_to_gguf.py"
_NAMES = (CONVERTER, "convert-lora-to-gguf.py", "convert-lora-to-gguf")
_LINES = 5
_MAGIC = b"GGUF"


def find_converter(given: Path | None, environ: Mapping[str, str]) -> Path:
    """Where llama.cpp's converter is.

    Args:
        given: What the user says: the script, or llama.cpp's folder.
        environ: The environment; ``LLAMA_CPP_DIR`` and ``PATH`` are looked at.

    Raises:
        UsageError: It is nowhere.
    """
    places = [given] if given is not None else []
    if not places and environ.get("LLAMA_CPP_DIR"):
        places.append(Path(environ["LLAMA_CPP_DIR"]).expanduser())
    for place in places:
        for path in (place, place / CONVERTER):
            if path.is_file():
                return path.resolve()
        raise UsageError(f"there is no {CONVERTER} at {place}", "check the path")
    for name in _NAMES:
        found = shutil.which(name, path=environ.get("PATH"))
        if found is None:  # a script need not be executable to be run by Python
            folders = environ.get("PATH", "").split(os.pathsep)
            found = next((f"{one}/{name}" for one in folders if Path(one, name).is_file()), None)
        if found is not None:
            return Path(found).resolve()
    raise UsageError(
        f"llama.cpp's {CONVERTER} was not found, and nothing else writes LoRA adapters as GGUF",
        "get llama.cpp's sources (git clone https://github.com/ggml-org/llama.cpp), then give "
        f"--converter llama.cpp/{CONVERTER} or set LLAMA_CPP_DIR",
    )


def convert(
    converter: Path, adapter: Path, base: Path, output: Path, *, timeout_seconds: float
) -> None:
    """Converts an adapter.

    Args:
        converter: llama.cpp's script; run by this Python if it ends in ``.py``.
        adapter: The adapter's folder.
        base: The base model's folder; its configuration is read.
        output: The file to write.
        timeout_seconds: Time after which it is ended.

    Raises:
        BackendError: It failed, took too long, or wrote no GGUF file.
    """
    python = [sys.executable] if converter.suffix == ".py" else []
    command = [*python, str(converter), "--base", str(base), "--outfile", str(output), str(adapter)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"{converter} was not done after {timeout_seconds:g} s", "give more time with --timeout"
        ) from error
    except OSError as error:
        raise BackendError(
            f"{converter} cannot be run: {error.strerror or error}", "check the path"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-_LINES:]
        raise BackendError(
            f"{converter} failed (exit code {done.returncode}): {' / '.join(said) or 'no message'}",
            "a missing Python package is installed beside aios (llama.cpp needs gguf, torch and "
            "transformers); run the converter by hand to see all that it says",
        )
    if not _is_gguf(output):
        raise BackendError(f"{converter} wrote no GGUF file", "update llama.cpp, then try again")


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == _MAGIC
