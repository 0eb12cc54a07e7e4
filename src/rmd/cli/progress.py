"""Shows the progress of long work: bars on a terminal, and elsewhere a line after every tenth."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rmd.common.workers import is_first


class ReportProgress(Protocol):
    """Shows how much of a piece of work is done."""

    def __call__(self, what: str, done: int, total: int, *, note: str = "", start: int = 0) -> None:
        """Show how much of a piece of work is done; less than before means that another one of this name has begun.

        Args:
            what: the name of the piece of work.
            done: how much of it is done.
            total: its total.
            note: text to show after the numbers.
            start: how much of it an earlier process did.
        """
        ...


@contextmanager
def progress_bar() -> Iterator[ReportProgress]:
    """Yield a function that shows progress on standard error, with one bar for each piece of work.

    Of the processes that torchrun starts on a machine, only the first one shows its progress.
    """
    if not is_first():
        yield _silent
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int, *, note: str = "", start: int = 0) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, completed=start, note=note)
            elif done < bars.tasks[tasks[what]].completed:
                bars.reset(tasks[what], total=total, completed=start)
            bars.update(tasks[what], completed=done, note=note)

        yield report


def _silent(what: str, done: int, total: int, *, note: str = "", start: int = 0) -> None:
    """Show nothing."""


def _line_printer() -> ReportProgress:
    began: dict[str, float] = {}
    tenths: dict[str, int] = {}
    last = time.monotonic()

    def report(what: str, done: int, total: int, *, note: str = "", start: int = 0) -> None:
        nonlocal last
        tenth = 10 * done // total
        if tenth < tenths.get(what, 0):
            del began[what], tenths[what]
        # Some work is done by the time of its first report: it began when the work before it ended.
        elapsed = time.monotonic() - began.setdefault(what, last)
        last = time.monotonic()
        if tenth > tenths.setdefault(what, 10 * start // total):
            tenths[what] = tenth
            left = elapsed / (done - start) * (total - done)
            words = [f"{what}: {done}/{total}", f"{elapsed:.0f} s", f"{left:.0f} s left", *([note] if note else [])]
            with suppress(OSError):  # a terminal that was closed must not end the work
                print(", ".join(words), file=sys.stderr, flush=True)

    return report
