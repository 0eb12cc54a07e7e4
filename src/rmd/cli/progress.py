"""Progress of long work: bars on a terminal, a line every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

ReportProgress = Callable[[str, int, int], None]


@contextmanager
def progress_bar() -> Iterator[ReportProgress]:
    """A function of (what, done, total) that shows it on standard error, one bar for each `what`."""
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
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def _line_printer() -> ReportProgress:
    began: dict[str, float] = {}
    tenths: dict[str, int] = {}
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        # the first report comes when some is done already: the work began when the one before it ended
        elapsed = time.monotonic() - began.setdefault(what, last)
        last = time.monotonic()
        tenth = 10 * done // total
        if tenth > tenths.get(what, 0):
            tenths[what] = tenth
            left = elapsed / done * (total - done)
            print(f"{what}: {done}/{total}, {elapsed:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    return report
