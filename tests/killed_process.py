"""Work in a process of its own that is killed on the way.

The processes are forked from one that has everything imported, torch included: a kill then costs
what the work costs, and not the seconds that the imports take. `start_server` starts that one; it
does its imports while the tests go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

PRELOADED = ["tests.killed_training", "tests.killed_restem", "tests.test_app.scripted_jobs"]

Tell = Callable[[], None]


def start_server() -> None:
    """Starts the process that the others are forked from, where it is not running; waits not."""
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def killed_at(event: int, pause: float, work: Callable[..., None], *arguments: Any) -> bool:
    """Does work in a process of its own and kills it after so many events.

    Args:
        event: Number of the event to kill it at, from 1.
        pause: Seconds to wait then, to hit what follows the event.
        work: Called there with the arguments and a function to call at every event.
        arguments: Of the work; all must be picklable.

    Returns:
        Whether it was killed; False where it was done before.
    """
    processes = multiprocessing.get_context("forkserver")
    heard, told = processes.Pipe(duplex=False)
    process = processes.Process(target=_work, args=(dict(os.environ), told, work, arguments))
    process.start()
    told.close()
    try:
        for _ in range(event):
            heard.recv_bytes()
        time.sleep(pause)
        process.kill()
    except EOFError:
        pass
    process.join()
    heard.close()
    code = process.exitcode
    process.close()
    assert code in (0, -signal.SIGKILL), f"the process failed (exit code {code})"
    return code != 0


def _work(
    environment: dict[str, str],
    told: Connection,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments, lambda: told.send_bytes(b"."))
