"""Writes checkpoints beside the training, atomically: a checkpoint is complete or it is not there.

Every process writes its own part, in a thread, under a temporary name; the first process renames the folder once all
have succeeded.

torch's `async_save` is not used: it ends when the files are written, but the processes must then agree on the outcome
and one must rename the folder, which needs a thread of our own anyway.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from rmd.common.errors import RMDError
from rmd.common.files import write_text
from rmd.train.checkpoint import (
    META,
    Meta,
    Trained,
    checkpoint_name,
    checkpoints,
    discard,
    failure_reason,
    iteration_of,
    without_dist_warning,
)
from rmd.train.parallel import Parallel


class CheckpointWriter:
    """Writes a run's checkpoints one after another, in a thread beside the training; all processes take part."""

    def __init__(
        self, folder: Path, parallel: Parallel | None = None, *, keep_last: int, keep_every: int | None = None
    ) -> None:
        """Prepare to write into a folder.

        Args:
            folder: the run's folder of checkpoints.
            parallel: the place of this process in the run; by default it is the only one.
            keep_last: number of newest checkpoints to keep.
            keep_every: checkpoints whose iteration is a multiple of this are kept for good.
        """
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self.parallel = Parallel() if parallel is None else parallel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.good_until: int | None = None
        """Iteration since which the run looks bad: the newest checkpoint before it is kept, too."""
        self.best: int | None = None
        """Iteration of the best checkpoint, which is kept, too."""

    def save(self, trained: Trained, meta: Meta) -> Path:
        """Copy everything and begin to write `step-<iteration>`, after waiting for the previous checkpoint.

        Raises:
            RMDError: the previous checkpoint could not be written (full disk, no permission); earlier ones are intact.
        """
        self.wait()
        # A copy on the CPU is written, because the training goes on and changes the original.
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in trained.tensors().items()}
        final = self.folder / checkpoint_name(meta.iteration)
        self._pending = self._thread.submit(self._write, final, copies, meta)
        return final

    def wait(self) -> None:
        """Wait until the pending checkpoint is complete; raise RMDError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait as `wait` does, and end the thread; to be called once."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, final: Path, tensors: dict[str, Tensor], meta: Meta) -> None:
        """Write a checkpoint under a temporary name, agree on the outcome, rename it, and prune older ones."""
        partial = final.with_name(f".{final.name}.partial")
        failure: BaseException | None = None
        self._agree(_reason(lambda: _clear(self.folder, partial)) if self.parallel.main else None, final)
        try:
            with without_dist_warning():
                group, no_dist = self.parallel.storage, self.parallel.dp_mesh is None
                save(tensors, checkpoint_id=partial, process_group=group, no_dist=no_dist)
        except (OSError, RuntimeError, CheckpointException) as error:
            failure = error
        reason = None if failure is None else failure_reason(failure)
        if self.parallel.main:
            reason = reason or _reason(lambda: _finish(partial, final, meta))
            if reason is not None:
                shutil.rmtree(partial, ignore_errors=True)
        self._agree(reason, final)
        if self.parallel.main:
            self._prune()

    def _agree(self, reason: str | None, final: Path) -> None:
        """Raise RMDError on every process if the first one has a reason why the checkpoint failed."""
        if self.parallel.dp_mesh is not None:
            box = [reason]
            dist.broadcast_object_list(box, src=0, group=self.parallel.storage, device=torch.device("cpu"))
            reason = box[0]
        if reason is not None:
            raise RMDError(
                f"cannot save {final}: {reason}; earlier checkpoints are intact, free some space and run again with "
                "--resume"
            )

    def _prune(self) -> None:
        """Remove the checkpoints that need not be kept."""
        saved, until = checkpoints(self.folder), self.good_until
        good = [path for path in saved if until is not None and iteration_of(path) < until]
        for old in saved[: -self.keep_last]:
            iteration = iteration_of(old)
            kept = iteration == self.best or (self.keep_every is not None and iteration % self.keep_every == 0)
            if not kept and old not in good[-1:]:
                discard(old)


def _clear(folder: Path, partial: Path) -> None:
    """Create the folder of a new checkpoint, and remove what a run left behind that was killed while it saved."""
    folder.mkdir(parents=True, exist_ok=True)
    for killed in folder.glob(".*.partial"):
        shutil.rmtree(killed, ignore_errors=True)
    partial.mkdir()


def _finish(partial: Path, final: Path, meta: Meta) -> None:
    """Give a written checkpoint its name, in one step that a kill cannot leave half done."""
    write_text(partial / META, meta.model_dump_json(indent=1))
    _flush(partial / META)
    _flush(partial)
    discard(final)
    partial.rename(final)
    _flush(final.parent)


def _reason(work: Callable[[], None]) -> str | None:
    """Call a function; return None, or why the disk refused."""
    try:
        work()
    except OSError as error:
        return failure_reason(error)
    return None


def _flush(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk, so that a rename never precedes its data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
