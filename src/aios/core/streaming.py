"""Streams of generations: what comes out of `LanguageModel.stream`, and putting it in order.

A stream takes requests from an iterator as it has room for them and gives each one's outcome when
it is ready, which need not be in order. So a file of any length is written with a bounded number of
requests in flight, and one slow or failing request holds up no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aios.core.errors import BackendError
from aios.core.types import Completion


@dataclass(frozen=True, slots=True)
class Generated:
    """The outcome of one request of a stream: completions, or the error it failed with.

    Attributes:
        index: The request's position in the stream, from 0.
        completions: One for each of its seeds, in order; empty where it failed.
        error: Why it failed, or None.
        seconds: Its share of the time that the stream has worked: all shares together are the
            time, whatever is written at once.
        retries: How often the backend has asked again (over a network, say).
    """

    index: int
    completions: tuple[Completion, ...] = ()
    error: BackendError | None = None
    seconds: float = 0.0
    retries: int = 0


def collect(stream: Iterable[Generated]) -> list[list[Completion]]:
    """The completions of all requests, in the order of the requests.

    Raises:
        BackendError: A request failed: the one that came first in the stream.
    """
    done = sorted(stream, key=lambda generated: generated.index)
    for generated in done:
        if generated.error is not None:
            raise generated.error
    return [list(generated.completions) for generated in done]
