"""A thread with an event loop, where the HTTP calls of an endpoint run.

Calls can be cancelled there at any moment, which a blocked thread cannot. The thread starts with
its first use and ends with `close`, or with the program.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")

_POLL_SECONDS = 1.0  # a waiting caller looks this often whether the thread is alive
_CLOSE_SECONDS = 5.0


class LoopThread:
    """An event loop on a thread of its own.

    Args:
        name: The thread's name.
        at_end: Run on the loop before it ends.
    """

    def __init__(self, name: str, at_end: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._at_end = at_end
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def start(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Starts a coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine to its end; an interrupt in the caller cancels it."""
        future = self.start(work)
        try:
            while True:
                try:
                    return future.result(_POLL_SECONDS)
                except concurrent.futures.TimeoutError:
                    if future.done():  # the work's own
                        raise
                    self.check()
        finally:
            future.cancel()

    def check(self) -> None:
        """Raises a RuntimeError if the thread has died, so that nobody waits for it for ever."""
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError(f"the thread {self._name} has ended; its model was closed")

    def close(self) -> None:
        """Cancels what runs and ends the thread; the next use starts another."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._process != os.getpid():
            return
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            if thread is not threading.current_thread():
                thread.join(_CLOSE_SECONDS)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            forked = self._process != os.getpid()
            if self._loop is None or forked:  # a child has none of its parent's threads
                self._process = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop, self._at_end), name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop


async def all_of(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Runs coroutines at once and gives their results; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _serve(loop: asyncio.AbstractEventLoop, at_end: Callable[[], Awaitable[None]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(at_end())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
