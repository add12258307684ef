"""Ctrl-C and SIGTERM: the first asks for a graceful stop, the second aborts at once.

`stop_on_signals` gives a `ShouldStop` to hand to an app function. Whichever way the work ends
early, the caller sees `RunInterrupted` whose remedy is the exact line to go on with.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from aios.core.errors import RunInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A `ShouldStop` that a signal sets."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.asked

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: notes the first signal, aborts on the second."""
        if self.asked:
            for each in _SIGNALS:  # a third one ends the process whatever it does
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.asked = True
        _say("stopping after the work in hand; once more to abort at once")


def _say(text: str) -> None:
    """Writes a line to stderr from a signal handler, past Python's (non-reentrant) buffers."""
    start = "\r\x1b[2K" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{start}{text}\n".encode())


@contextmanager
def stop_on_signals(resume: Callable[[], str] = str) -> Iterator[Callable[[], bool]]:
    """Installs the handlers for the time of the block and gives the `ShouldStop`.

    Args:
        resume: Gives, when the work has stopped, the command line that goes on; empty if none
            does.

    Raises:
        RunInterrupted: The work stopped early, gracefully or not.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {each: signal.signal(each, request.handle) for each in _SIGNALS}
    try:
        yield request
    except RunInterrupted as error:
        raise RunInterrupted(error.message, _remedy(resume()) or error.remedy) from error
    except KeyboardInterrupt as error:
        raise RunInterrupted("aborted", _remedy(resume())) from error
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _remedy(line: str) -> str:
    return f"go on with: {line}" if line else ""


def resume_line(args: Sequence[str], *, drop: Sequence[str] = (), add: Sequence[str] = ()) -> str:
    """The command line that continues this one.

    Args:
        args: The arguments as given, without the program's name.
        drop: Options to take out: ``--flag`` for a flag, ``--option=`` for one with a value.
        add: What to put at the end.

    Returns:
        A line to paste into a POSIX shell.
    """
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word in drop:
            continue
        if f"{word}=" in drop:
            next(words, None)
        elif not any(word.startswith(option) for option in drop if option.endswith("=")):
            kept.append(word)
    return shlex.join(["aios", *kept, *add])
