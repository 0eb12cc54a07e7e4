"""Writes checkpoints atomically, and resumes a run from one.

A checkpoint is a folder `step-000100/` that torch.distributed.checkpoint writes (student, fake score, average, both
optimisers, by name), with `meta.json` (iteration, identity of the run, plan) beside it. Every process writes its own
part, in a thread, under a temporary name; the first process renames it. Any number of processes can read it, and
nothing that a checkpoint holds can run code (`rmd.train.index`).
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import JsonValue
from pydantic_core import from_json
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rmd.common.errors import RMDError
from rmd.common.files import MAX_JSON, parse_model, write_text
from rmd.common.files import reason as why
from rmd.common.typed import Strict
from rmd.models.roles import TRAINED, Roles
from rmd.train.guard import Best, GuardState
from rmd.train.identity import Identity, another_recipe
from rmd.train.index import IndexReader
from rmd.train.parallel import Parallel

META = "meta.json"
_NAME = re.compile(r"step-(\d{6,})")
_ADAMW = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds: the roles, their optimisers and the student's moving average."""

    roles: Roles
    optimizers: dict[str, torch.optim.Optimizer]
    average: dict[str, Tensor]


class Meta(Strict):
    """The content of a checkpoint's `meta.json`."""

    version: Literal[1] = 1
    iteration: int
    """Number of iterations that are done."""
    recipe: str
    """Name of the recipe."""
    identity: Identity | None = None
    """Identity of the run; None in checkpoints of RMD 0.1."""
    run_hash: str | None = None
    """Hash of the recipe (`rmd.recipes.hashes.settings_hash`), in checkpoints of RMD 0.1 only."""
    plan: dict[str, JsonValue]
    guard: GuardState
    best: Best | None


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if is_checkpoint(path)), key=_iteration_of)


def checkpoint_name(iteration: int) -> str:
    """Return the folder name of the checkpoint after `iteration` iterations."""
    return f"step-{iteration:06d}"


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a complete checkpoint."""
    return _NAME.fullmatch(path.name) is not None and (path / META).is_file()


def read_student_state(path: Path) -> dict[str, Tensor]:
    """Read the whole student of a checkpoint: its moving average, if there is one.

    Raises:
        RMDError: the checkpoint is damaged, or RMD did not write it.
    """
    reader = _open(path)
    kind = "average/" if any(name.startswith("average/") for name in reader.tensors) else "student/"
    wanted = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.tensors.items()
        if name.startswith(kind)
    }
    _read(wanted, reader, path, alone=True)
    return {name.removeprefix(kind): tensor for name, tensor in wanted.items()}


def set_aside(folder: Path, since: int) -> None:
    """Rename the checkpoints from an iteration on, so that no resume takes them: `collapsed-step-000120`."""
    for path in checkpoints(folder):
        if _iteration_of(path) >= since:
            aside = path.with_name(f"collapsed-{path.name}")
            _discard(aside)
            path.rename(aside)


class CheckpointWriter:
    """Writes a run's checkpoints one after another, beside the training; all processes take part."""

    def __init__(
        self, folder: Path, parallel: Parallel | None = None, *, keep_last: int, keep_every: int | None = None
    ) -> None:
        """Args:
        keep_last: so many of the newest are kept.
        keep_every: those of every so many iterations are kept for good, too.
        """
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self.parallel = Parallel() if parallel is None else parallel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.good_until: int | None = None
        """Since this iteration the run looks bad: the newest checkpoint before it is kept, too."""
        self.best: int | None = None
        """The checkpoint of this iteration is kept, too."""

    def save(self, trained: Trained, meta: Meta) -> Path:
        """Copy everything and begin to write `step-<iteration>`; the one begun before is waited for.

        Raises:
            RMDError: the one begun before could not be written (full disk, no permission); those before it are intact.
        """
        self.wait()
        # written from a copy on the CPU: training goes on and changes what was given
        copies = {name: _copied(tensor) for name, tensor in _tensors(trained).items()}
        final = self.folder / checkpoint_name(meta.iteration)
        self._pending = self._thread.submit(self._write, final, copies, meta)
        return final

    def wait(self) -> None:
        """Until what was begun lies there whole; RMDError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """As `wait`; to be called once."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, final: Path, tensors: dict[str, Tensor], meta: Meta) -> None:
        partial = final.with_name(f".{final.name}.partial")
        failure: BaseException | None = None
        self._agree(_reason(lambda: _clear(self.folder, partial)) if self.parallel.main else None, final)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                group, alone = self.parallel.storage, self.parallel.weights is None
                save(tensors, checkpoint_id=partial, process_group=group, no_dist=alone)
        except (OSError, RuntimeError, CheckpointException) as error:
            failure = error
        reason = None if failure is None else _why(failure)
        if self.parallel.main:
            reason = reason or _reason(lambda: _finish(partial, final, meta))
            if reason is not None:
                shutil.rmtree(partial, ignore_errors=True)
        self._agree(reason, final)
        if self.parallel.main:
            self._prune()

    def _agree(self, reason: str | None, final: Path) -> None:
        """RMDError on every process if there is a reason on the first."""
        if self.parallel.weights is not None:
            box = [reason]
            dist.broadcast_object_list(box, src=0, group=self.parallel.storage, device=torch.device("cpu"))
            reason = box[0]
        if reason is not None:
            raise RMDError(
                f"cannot save {final}: {reason}; earlier checkpoints are intact, make room and run again with --resume"
            )

    def _prune(self) -> None:
        found, until = checkpoints(self.folder), self.good_until
        good = [path for path in found if until is not None and _iteration_of(path) < until]
        for old in found[: -self.keep_last]:
            iteration = _iteration_of(old)
            kept = iteration == self.best or (self.keep_every is not None and iteration % self.keep_every == 0)
            if not kept and old not in good[-1:]:
                _discard(old)


def load_checkpoint(
    path: Path,
    trained: Trained,
    *,
    identity: Identity,
    earlier_hash: str | None = None,
    parallel: Parallel | None = None,
    reset_optimizers: bool = False,
) -> Meta:
    """Restore everything in place; return what the checkpoint says of its run, including the iteration to resume from.

    Args:
        identity: the identity of the run that is resumed.
        earlier_hash: the run's `settings_hash`. A checkpoint of RMD 0.1, which recorded nothing else, is accepted if it
            has the same hash; a warning says that its prompts and teacher could not be compared.
        reset_optimizers: load only weights and average, of any recipe that they fit; the optimisers start anew.

    Raises:
        RMDError: the checkpoint belongs to another run, lacks state or holds foreign state, is damaged, or was not
            written by RMD.
    """
    reader, meta = _open(path), _read_meta(path)
    if not reset_optimizers:
        _check_same_run(path, meta, identity, earlier_hash)
    for role in TRAINED:
        if reset_optimizers:
            trained.optimizers[role].state.clear()
        else:
            _fill_optimizer(trained.optimizers[role], trained.roles.trainable(role))
    wanted = _tensors(trained)
    found = {name: tuple(entry.size) for name, entry in reader.tensors.items()}
    if reset_optimizers:
        found = {name: size for name, size in found.items() if not name.startswith("optimizer-")}
    _check_fit(path, wanted, found)
    _read(wanted, reader, path, alone=parallel is None or parallel.weights is None)
    for role in TRAINED:
        trained.roles.sync(role)
    return meta


def _check_same_run(path: Path, meta: Meta, identity: Identity, earlier_hash: str | None) -> None:
    """Raise RMDError unless a checkpoint belongs to the run that is resumed."""
    what = f"the checkpoint {path}"
    if meta.identity is not None:
        identity.check(meta.identity, what)
    elif meta.run_hash is None or meta.run_hash != earlier_hash:
        raise another_recipe(what)
    else:
        warnings.warn(
            f"{what} was written by RMD 0.1, which did not record the contents of prompts and teacher: make sure that "
            "they are those it was made with",
            stacklevel=2,
        )


def _read_meta(path: Path) -> Meta:
    """Return what a checkpoint says of its run; raise RMDError if it is damaged or from a later version."""
    try:
        with (path / META).open("rb") as file:
            content = file.read(MAX_JSON)
        from_json(content)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return parse_model(content, Meta, str(path / META))


def _open(path: Path) -> IndexReader:
    """Return a reader of a checkpoint's tensors; raise RMDError if its index is damaged or was not written by RMD."""
    try:
        return IndexReader(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read(tensors: dict[str, Tensor], reader: IndexReader, path: Path, *, alone: bool) -> None:
    """Fill tensors with what a checkpoint holds under their names; RMDError if it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=alone)
    except (OSError, RuntimeError, EOFError, ValueError, CheckpointException) as error:
        raise _damaged(path, error) from error


def _tensors(trained: Trained) -> dict[str, Tensor]:
    """Everything by name, as it lies in memory."""
    tensors = {f"average/{name}": value for name, value in trained.average.items()}
    for role in TRAINED:
        named = trained.roles.named_trainable(role)
        tensors |= {f"{role}/{name}": value.detach() for name, value in named.items()}
        state = trained.optimizers[role].state
        for name, parameter in named.items():
            for key, value in state.get(parameter, {}).items():
                tensors[f"optimizer-{role}/{name}/{key}"] = value.detach()
    return tensors


def _fill_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """The state that AdamW makes at its first step, to load into."""
    for parameter in parameters:
        counts = parameter.device if optimizer.defaults["fused"] else "cpu"
        optimizer.state[parameter] = {
            key: torch.zeros((), device=counts) if key == "step" else torch.zeros_like(parameter, requires_grad=False)
            for key in _ADAMW
        }


def _check_fit(path: Path, wanted: dict[str, Tensor], found: dict[str, tuple[int, ...]]) -> None:
    """RMDError unless the checkpoint holds what is wanted and nothing else."""
    for group, names in _groups(wanted):
        if not any(name.startswith(group) for name in found):
            raise RMDError(f"the checkpoint {path} has no {group[:-1]} state: it cannot continue the same run")
        held = {name for name in found if name.startswith(group)}
        if group.startswith("optimizer-"):
            missing = sorted(name.removeprefix(group).rsplit("/", 1)[0] for name in names - held)
            if missing:
                raise RMDError(
                    f"the checkpoint {path} lacks the optimiser's state of {missing[0]}: it cannot continue the same "
                    "run; add --reset-optimizer to begin with new optimisers"
                )
        elif names != held or any(tuple(wanted[name].shape) != found[name] for name in names):
            raise RMDError(
                f"the checkpoint {path} does not fit: its weights for the {group[:-1]} belong to another network or "
                "another LoRA rank"
            )
    foreign = sorted(found.keys() - wanted.keys())
    if foreign:
        raise RMDError(f"the checkpoint {path} holds {foreign[0]}, which this run does not have: it is of another run")


def _groups(wanted: dict[str, Tensor]) -> Iterator[tuple[str, set[str]]]:
    groups: dict[str, set[str]] = {}
    for name in wanted:
        groups.setdefault(f"{name.partition('/')[0]}/", set()).add(name)
    yield from groups.items()


def _clear(folder: Path, partial: Path) -> None:
    """Make room for a checkpoint to be; a run killed while it saved may have left its own behind."""
    folder.mkdir(parents=True, exist_ok=True)
    for killed in folder.glob(".*.partial"):
        shutil.rmtree(killed, ignore_errors=True)
    partial.mkdir()


def _finish(partial: Path, final: Path, meta: Meta) -> None:
    """Make the written checkpoint the real one, in a step that no kill can halve."""
    write_text(partial / META, meta.model_dump_json(indent=1))
    _flush(partial / META)
    _flush(partial)
    _discard(final)
    partial.rename(final)
    _flush(final.parent)


def _discard(path: Path) -> None:
    """Remove a checkpoint if it exists; a kill meanwhile leaves nothing that looks like a checkpoint."""
    removed = path.with_name(f".removed-{path.name}.partial")
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _reason(work: Callable[[], None]) -> str | None:
    """Do it; None, or why it could not be done."""
    try:
        work()
    except OSError as error:
        return _why(error)
    return None


def _why(error: BaseException) -> str:
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    inner = causes[0][0] if causes else error
    if isinstance(inner, pickle.UnpicklingError):  # its message advises to load without the check
        return "it holds something that is not a tensor"
    return why(inner)


def _damaged(path: Path, error: BaseException) -> RMDError:
    return RMDError(f"the checkpoint {path} is damaged: remove it to resume from the one before ({_why(error)})")


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()


def _iteration_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def _flush(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk, so that a rename never outruns its data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
