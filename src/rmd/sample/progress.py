"""Reports of the progress of work: a name, how much is done, and how much there is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def running_total(report: Progress, what: str, total: int) -> Callable[..., None]:
    """Return a function that is told how much more is done (1 by default), and reports how much is done in all."""
    done = 0

    def count(more: int = 1) -> None:
        nonlocal done
        done += more
        report(what, done, total)

    return count
