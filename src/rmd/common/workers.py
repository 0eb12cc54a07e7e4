"""Workers: processes that share one piece of work, and what they write to one folder, without doing anything twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rmd.common.errors import RMDError, shown
from rmd.common.files import locked

Worker = tuple[int, int]
"""The number of a worker, counted from 0, and how many there are."""
ALONE: Worker = (0, 1)
START_LOCK = ".rmd-start.lock"
"""Lock that a worker holds briefly while it starts or finishes."""
WAIT = 60.0
"""Seconds that a worker waits for another one that starts or finishes at the same moment."""


class WorkerError(RMDError):
    """An error of one worker alone, which prints it even if torchrun has started others before it."""


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn every RMDError of the block, in which workers do different things, into one of this worker alone."""
    try:
        yield
    except RMDError as error:
        raise WorkerError(str(error)) from error


def is_first() -> bool:
    """Return whether this process is alone, or the first one that torchrun has started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def worker_of(text: str) -> Worker:
    """Return the worker that `--worker I/N` names.

    Raises:
        RMDError: the text is not of this form, or I is not from 0 to N - 1.
    """
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise RMDError(f"--worker should be I/N with I from 0 to N - 1, but is {shown(text)}")


def started_worker(text: str | None) -> Worker:
    """Return the worker that `--worker` names, or else the one that torchrun started, or else a single one.

    Args:
        text: the option's value; None: it was not given.

    Raises:
        RMDError: the option has another form, or is given to a process that torchrun started with others.
    """
    torchrun = ALONE
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        torchrun = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if text is None:
        return torchrun
    if torchrun != ALONE:
        raise RMDError("torchrun divides the work among its processes already: leave --worker out")
    return worker_of(text)


def worker_lock(worker: Worker) -> str:
    """Return the name of the lock that a worker holds while it works."""
    return f".rmd-worker-{worker[0]}-of-{worker[1]}.lock"


@contextmanager
def working(folder: Path, worker: Worker, begin: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a worker's lock of a folder during the block.

    Workers start one after another. If another one that is running counts on a different number of workers, the two
    would do the same work, so this one is refused.

    Args:
        folder: the folder, which is created if necessary.
        worker: the worker.
        begin: runs first, while no other worker starts or finishes.

    Raises:
        RMDError: the same worker, or one of another number of workers, is running; or the folder cannot be written to.
    """
    with ExitStack() as held:
        with locked(folder, START_LOCK, wait=WAIT):
            held.enter_context(locked(folder, worker_lock(worker)))
            for path in folder.glob(".rmd-worker-*.lock"):
                if not path.name.endswith(f"-of-{worker[1]}.lock"):
                    with locked(folder, path.name):
                        pass
            begin()
        yield
