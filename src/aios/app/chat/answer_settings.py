"""How an answer is wanted: by whom, in which session, drawn how. Checked, whoever asks."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from aios.app.chat.conversation import check_text
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.types import SamplingParams

MAX_SESSION = 256  # characters of a session's id
MAX_STOPS = 16
MAX_STOP = 1000  # characters
MAX_TOP_LOGPROBS = 20
_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How an answer is wanted.

    Attributes:
        model: ``base``, ``auto``, or an expert's id.
        session: The caller's text for a conversation; empty for none.
        sampling: How tokens are drawn.
        seed: Seed of the draws.
        top_logprobs: How many likeliest tokens to report at each place; None: none at all.
        timeout_seconds: It ends so long after it was asked for.
        adapts: Whether the session's own adapter takes part, and learns.
    """

    model: str
    session: str
    sampling: SamplingParams
    seed: int
    top_logprobs: int | None
    timeout_seconds: float | None
    adapts: bool


def usual_sampling(config: Config) -> SamplingParams:
    """How tokens are drawn where nothing else is asked for."""
    chat = config.chat
    return SamplingParams(chat.temperature, chat.top_p, chat.max_new_tokens)


def checked_settings(
    config: Config,
    model: str,
    session: str,
    sampling: SamplingParams | None,
    seed: int | None,
    top_logprobs: int | None,
    timeout_seconds: float | None,
    tta: bool | None,
) -> AnswerSettings:
    """The settings, where all of them can be used.

    Where `sampling` or `tta` is None, the config decides; a seed is drawn where none is given. The
    arguments are those of `app.chat.assistant.Assistant.chat`.

    Raises:
        UsageError: One cannot be used; the message says which.
    """
    check_text(model, "the model's name")
    check_text(session, "the session's id", longest=MAX_SESSION)
    if not session.isprintable():
        raise UsageError("the session's id has characters that cannot be printed")
    sampling = sampling or usual_sampling(config)
    _check_sampling(sampling)
    if top_logprobs is not None and not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
        raise UsageError(f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, not {top_logprobs}")
    if timeout_seconds is not None and not 0 < timeout_seconds < math.inf:
        raise UsageError(f"the timeout must be above 0 seconds, not {timeout_seconds}")
    return AnswerSettings(
        model=model,
        session=session,
        sampling=sampling,
        seed=secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
        top_logprobs=top_logprobs,
        timeout_seconds=timeout_seconds,
        adapts=bool(session) and (config.adaptation.enabled if tta is None else tta),
    )


def _check_sampling(sampling: SamplingParams) -> None:
    if not 0 <= sampling.temperature < math.inf:
        raise UsageError(f"the temperature must be 0 or more, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise UsageError(f"top_p must be above 0 up to 1, not {sampling.top_p}")
    if sampling.max_new_tokens < 1:
        raise UsageError(f"the most new tokens must be 1 or more, not {sampling.max_new_tokens}")
    if len(sampling.stop) > MAX_STOPS:
        raise UsageError(f"{len(sampling.stop)} stop texts; at most {MAX_STOPS} are looked for")
    for stop in sampling.stop:
        if not check_text(stop, "a stop text", longest=MAX_STOP):
            raise UsageError("a stop text is empty")
