"""When the next call to an endpoint may start: rate limits, pauses and backoff.

Takes limits per minute and what the server asks for; gives waits. Everything here runs on one
event loop, so nothing needs a lock; time, sleep and chance come from a `Clock`, so that tests need
not wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True)
class Clock:
    """Where time and chance come from.

    Attributes:
        now: Seconds of a clock that never goes back.
        sleep: Waits for so many seconds.
        chance: A random number from 0 to 1.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


class TokenBucket:
    """A rate limit: `per_minute` units, given out evenly.

    A taker that finds too few left takes them all the same and waits until they have come in, so
    takers are served in order and one that needs more than a minute's share is not stuck.

    Args:
        per_minute: Units a minute.
        burst: Most units that collect while nobody takes any.
        clock: Tells the time.
    """

    def __init__(self, per_minute: float, burst: float, clock: Clock) -> None:
        self._rate = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._seen = clock.now()

    def take(self, units: float) -> float:
        """Takes units; gives the seconds to wait before they may be used."""
        now = self._clock.now()
        self._left = min(self._burst, self._left + (now - self._seen) * self._rate)
        self._seen = now
        self._left -= units
        return max(0.0, -self._left / self._rate)

    def give_back(self, units: float) -> None:
        """Returns units that were taken and not used (fewer than none: takes more)."""
        self._left = min(self._burst, self._left + units)


class Pacing:
    """Holds calls back until the limits, and the server, allow them.

    Args:
        requests_per_minute: Most calls started a minute; None for no limit.
        tokens_per_minute: Most tokens a minute; None for no limit.
        clock: Time, sleep and chance.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock
    ) -> None:
        self.clock = clock
        self._requests = self._tokens = None
        if requests_per_minute is not None:
            self._requests = TokenBucket(requests_per_minute, 1, clock)
        if tokens_per_minute is not None:  # a second's worth may come at once
            self._tokens = TokenBucket(tokens_per_minute, tokens_per_minute / 60, clock)
        self._held_until = clock.now()

    def hold(self, seconds: float) -> None:
        """No call starts for so long, because the server asked for it."""
        self._held_until = max(self._held_until, self.clock.now() + seconds)

    async def turn(self, tokens: int) -> None:
        """Returns when a call that may use so many tokens may start."""
        wait = 0.0
        if self._requests:
            wait = self._requests.take(1)
        if self._tokens:
            wait = max(wait, self._tokens.take(tokens))
        while True:
            wait = max(wait, self._held_until - self.clock.now())
            if wait <= 0:
                return
            await self.clock.sleep(wait)
            wait = 0.0

    def used(self, expected: int, tokens: int) -> None:
        """Corrects what `turn` took for a call, now that the tokens are known."""
        if self._tokens:
            self._tokens.give_back(expected - tokens)

    async def back_off(self, tries: int) -> None:
        """Waits before a new try: twice as long after each one, and by chance half to all of it."""
        longest = min(FIRST_BACKOFF_SECONDS * 2**tries, LONGEST_BACKOFF_SECONDS)
        await self.clock.sleep(longest * (0.5 + self.clock.chance() / 2))
