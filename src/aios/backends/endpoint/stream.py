"""Many requests to an endpoint at once: taken as there is room, given back as they are ready.

The requests are taken from their iterator in the caller's thread; the calls run on the event loop
of the model. One seed is one call. A request whose call has failed for good is that request's
error; where the endpoint as a whole is to blame (it is gone, it refuses the key, or it has refused
every request so far) the stream ends with that error, and so a file of passages is not spent on a
server that is down.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from aios.backends.endpoint.calls import Caller, Tally
from aios.backends.endpoint.http import CallError
from aios.backends.endpoint.loop import LoopThread, all_of
from aios.core.errors import BackendError
from aios.core.streaming import Generated
from aios.core.types import Completion, GenerationRequest

UNREACHED_IN_A_ROW = 3
FAILED_IN_A_ROW = 10
_POLL_SECONDS = 1.0


class Health:
    """Tells an endpoint that is down from requests that fail.

    Args:
        caller: Knows whether the endpoint has ever written a completion.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._unreached = 0
        self._failed = 0

    def answered(self, tally: Tally) -> BackendError | None:
        """A request is done; gives an error if the last many of them all came to nothing."""
        if tally.asked == 0:  # nothing was to be written
            return None
        if tally.silent < tally.asked:
            self._unreached = self._failed = 0
            return None
        self._failed += 1
        if self._failed < FAILED_IN_A_ROW:
            return None
        return BackendError(
            f"{self._caller.http.url} wrote nothing before the deadline in {self._failed} requests"
            " in a row",
            "lower endpoint.concurrency, raise seal.max_generation_time, or look at the server",
            retryable=True,
        )

    def failed(self, error: BackendError) -> BackendError | None:
        """A request has failed; gives the error that ends the stream, if it is to end."""
        if not isinstance(error, CallError):  # the prompt is at fault
            return None
        status = error.status or 0
        of_all = status in (401, 403, 404, 405) or 300 <= status < 400
        if status == 401 or (of_all and not self._caller.proven):
            return error
        if self._caller.proven and 400 <= status < 500 and not error.retryable:
            return None  # the endpoint works: it is this text that it does not want
        self._failed += 1
        self._unreached = self._unreached + 1 if error.connect else 0
        if self._unreached < UNREACHED_IN_A_ROW and self._failed < FAILED_IN_A_ROW:
            return None
        return BackendError(
            f"{error.message}; {self._failed} requests in a row have failed",
            error.remedy,
            retryable=error.retryable,
        )


class Shares:
    """Divides the time that passes among the requests in flight."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._passed = 0.0  # seconds for one request that is in flight all the time
        self._seen = now()
        self._began: dict[int, float] = {}

    def begin(self, index: int) -> None:
        """A request is in flight from now on."""
        self._advance()
        self._began[index] = self._passed

    def end(self, index: int) -> float:
        """A request is done; gives its share in seconds."""
        self._advance()
        return self._passed - self._began.pop(index)

    def _advance(self) -> None:
        now = self._now()
        if self._began:
            self._passed += (now - self._seen) / len(self._began)
        self._seen = now


class EndpointStream:
    """The state of one stream.

    Args:
        caller: Makes the calls.
        loop: Where they run.
        width: Most calls at a time.
    """

    def __init__(self, caller: Caller, loop: LoopThread, width: int) -> None:
        self._caller = caller
        self._loop = loop
        self._width = width
        self._outcomes: queue.SimpleQueue[Generated | BackendError] = queue.SimpleQueue()
        self._tasks: dict[int, concurrent.futures.Future[None]] = {}
        self._seeds: dict[int, int] = {}
        self._room: asyncio.Semaphore | None = None
        self._health = Health(caller)
        self._shares = Shares()

    def run(self, requests: Iterable[GenerationRequest]) -> Iterator[Generated]:
        """Gives one outcome a request, each when it is ready.

        Raises:
            BackendError: The endpoint is down.
        """
        waiting = enumerate(requests)
        ready: deque[Generated] = deque()
        more = True
        try:
            while more or self._tasks or ready:
                while more and len(ready) < self._width and self._has_room():
                    index, request = next(waiting, (-1, None))
                    if request is None:
                        more = False
                    else:
                        self._seeds[index] = len(request.seeds)
                        self._tasks[index] = self._loop.start(self._write(index, request))
                ready += self._finished(wait=not ready)
                if ready:
                    yield ready.popleft()
        finally:
            for task in self._tasks.values():
                task.cancel()

    def _has_room(self) -> bool:
        return sum(self._seeds.values()) < self._width

    def _finished(self, wait: bool) -> list[Generated]:
        """The outcomes that are there; if asked to, waits for one, where any can still come."""
        found: list[Generated] = []
        while self._tasks:
            try:
                outcome = self._outcomes.get(wait and not found, timeout=_POLL_SECONDS)
            except queue.Empty:
                if found or not wait:
                    break
                self._check()
                continue
            if isinstance(outcome, BackendError):
                raise outcome
            del self._tasks[outcome.index], self._seeds[outcome.index]
            found.append(outcome)
        return found

    def _check(self) -> None:
        """Raises where no outcome can come any more, so that nobody waits for ever."""
        self._loop.check()
        for task in self._tasks.values():
            if task.done():
                task.result()  # raises what is no failure of the endpoint: a bug

    async def _write(self, index: int, request: GenerationRequest) -> None:
        """Writes one request's completions and puts its outcome into the queue."""
        if self._room is None:  # belongs to the loop that it is first used on
            self._room = asyncio.Semaphore(self._width)
        tally = Tally()
        self._shares.begin(index)
        try:
            completions = await self._complete(request, tally) if request.seeds else ()
            error, down = None, self._health.answered(tally)
        except BackendError as failure:
            completions, error, down = (), failure, self._health.failed(failure)
        finally:
            seconds = self._shares.end(index)
        outcome = Generated(index, completions, error, seconds, tally.retries)
        self._outcomes.put(outcome if down is None else down)

    async def _complete(self, request: GenerationRequest, tally: Tally) -> tuple[Completion, ...]:
        """All completions of a request; when one has failed, the others are given up."""
        room = self._room
        assert room is not None
        prepared = await self._caller.prepare(request)

        async def complete(seed: int) -> Completion:
            async with room:
                return await self._caller.complete(prepared, seed, tally)

        return tuple(await all_of(complete(seed) for seed in request.seeds))
