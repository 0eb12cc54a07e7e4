"""The folder of a run: only one process at a time writes to it, and its contents must fit the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.common.files import LOCK, locked
from rmd.train.checkpoint import checkpoints
from rmd.train.parallel import Parallel

CHECKPOINTS = "checkpoints"


@contextmanager
def hold_folder(folder: Path, parallel: Parallel, *, resume: bool) -> Iterator[None]:
    """Check a run's folder and lock it for the duration of the block; a missing folder is created.

    The first process holds the lock for all processes of the run. The lock is released when that process ends, however
    it ends. A folder that was created here and not written to is removed again.

    Raises:
        RMDError: on every process, if another run writes to the folder, if it cannot be written to, or if it does not
            fit `resume`.
    """
    with ExitStack() as held:

        def hold() -> None:
            if not folder.is_dir():
                check_folder(folder, resume=resume)
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            try:
                held.enter_context(locked(folder))
                held.callback(_remove_unused, missing)
            except RMDError as error:
                advice = "; choose another --out" if isinstance(error.__cause__, OSError) else ""
                raise RMDError(f"{error}{advice}") from error
            check_folder(folder, resume=resume)

        parallel.on_main(hold)
        yield


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise RMDError unless the folder is suitable for a run that starts, or for one that resumes."""
    saved = checkpoints(folder / CHECKPOINTS)
    if saved and not resume:
        raise RMDError(f"{folder} holds a run already: add --resume to continue it, or choose another --out")
    if resume and not saved:
        raise RMDError(f"nothing to resume in {folder}: it holds no checkpoint; run without --resume")
    if folder.exists() and not folder.is_dir():
        raise RMDError(f"{folder} is a file: choose another --out")


def _remove_unused(created: list[Path]) -> None:
    """Remove folders, innermost first, as long as they contain only the lock that is still held."""
    with suppress(OSError):
        for folder in created:
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            folder.rmdir()
