"""Fetches a model folder from the Hugging Face hub: weights as safetensors, never pickles or code.

Takes ``owner/name`` or ``owner/name@revision``; gives the folder of the snapshot. Only the files
that a model needs are asked for. Offline, only what was fetched before is looked at.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from aios.core.errors import ModelError
from aios.core.events import StageFinished, StageStarted
from aios.core.protocols import Emit

_HUB_ID = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,128}))?")
_ALLOWED = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "README.md",
]
_IGNORED = ["*/*", "*.py", "*.bin", "*.pt", "*.pkl"]


def parse_hub_id(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of a hub id, or None where the text is none."""
    match = _HUB_ID.fullmatch(name)
    if match is None or ".." in name:
        return None
    return match["repo"], match["revision"]


def find_snapshot(name: str, cache_dir: Path | None) -> Path | None:
    """The folder of a model that was fetched before; None without one. Uses no network.

    Raises:
        ModelError: The text is no valid hub id.
    """
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(name, cache_dir, local_only=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no hub id: {error}", "use owner/name") from error


def fetch_snapshot(name: str, cache_dir: Path | None, *, emit: Emit) -> Path:
    """Fetches a model from the hub, or what has changed of it since.

    Raises:
        ModelError: There is no such model, access is not granted, or the network fails.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    transport_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    stage = f"fetch {name}"
    emit(StageStarted(stage))
    started = time.monotonic()
    try:
        path = _snapshot(name, cache_dir, local_only=False)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the hub gives {name} only to those who have accepted its terms",
            "accept them on the model's page and log in with `hf auth login`",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(
            f"the hub has no model {name}, or you may not see it",
            "check the spelling; for a private model log in with `hf auth login`",
        ) from error
    except (OSError, ValueError, transport_error) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name} could not be fetched from the hub: {first}",
            "check the network and try again, or give a local folder",
        ) from error
    emit(StageFinished(stage, seconds=time.monotonic() - started))
    return path


def _snapshot(name: str, cache_dir: Path | None, *, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    parsed = parse_hub_id(name)
    if parsed is None:
        raise ModelError(f"{name!r} is no hub id", "use owner/name or owner/name@revision")
    repo, revision = parsed
    return Path(
        snapshot_download(
            repo,
            revision=revision,
            cache_dir=None if cache_dir is None else cache_dir / "hub",
            local_files_only=local_only,
            allow_patterns=_ALLOWED,
            ignore_patterns=_IGNORED,
        )
    )
