"""Writes and reads the contents of checkpoints, from which runs are resumed.

A checkpoint is a folder `step-000100/` that torch.distributed.checkpoint writes (student, fake score, average, both
optimisers, by name), with `meta.json` (iteration, identity of the run, plan) beside it. Any number of processes can
read it, and nothing in it can run code (`rmd.train.index`). `rmd.train.writer` writes it.

torch's `get_optimizer_state_dict` and `set_optimizer_state_dict` are not used: both raise KeyError if the optimiser's
parameters are not the module's own, as with the float32 masters of a network in half precision.
"""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue
from pydantic_core import from_json
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from rmd.common.errors import RMDError
from rmd.common.files import MAX_JSON, parse_model
from rmd.common.files import reason as why
from rmd.common.typed import Strict
from rmd.models.roles import TRAINED, Roles
from rmd.train.guard import Best, GuardState
from rmd.train.identity import Identity
from rmd.train.index import IndexReader
from rmd.train.parallel import Parallel

META = "meta.json"
_NAME = re.compile(r"step-(\d{6,})")
_ADAMW = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """The contents of a checkpoint: the roles, their optimisers and the student's moving average."""

    roles: Roles
    optimizers: dict[str, torch.optim.Optimizer]
    average: dict[str, Tensor]
    """The student's moving average by name; empty if none is kept."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, without copying and sharded as it is."""
        tensors = {f"average/{name}": value for name, value in self.average.items()}
        for role in TRAINED:
            named = self.roles.named_trainable(role)
            tensors |= {f"{role}/{name}": value.detach() for name, value in named.items()}
            state = self.optimizers[role].state
            for name, parameter in named.items():
                for key, value in state.get(parameter, {}).items():
                    tensors[f"optimizer-{role}/{name}/{key}"] = value.detach()
        return tensors


class Meta(Strict):
    """The content of a checkpoint's `meta.json`."""

    version: Literal[1] = 1
    iteration: int
    """Number of iterations done."""
    recipe: str
    """Name of the recipe."""
    identity: Identity
    """Identity of the run."""
    plan: dict[str, JsonValue]
    guard: GuardState
    best: Best | None


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if is_checkpoint(path)), key=iteration_of)


def checkpoint_name(iteration: int) -> str:
    """Return the folder name of the checkpoint after `iteration` iterations."""
    return f"step-{iteration:06d}"


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a complete checkpoint."""
    return _NAME.fullmatch(path.name) is not None and (path / META).is_file()


def read_student_state(path: Path) -> dict[str, Tensor]:
    """Read the full student of a checkpoint: its moving average, if one was kept.

    Raises:
        RMDError: the checkpoint is damaged, or RMD did not write it.
    """
    reader = _open(path)
    kind = "average/" if any(name.startswith("average/") for name in reader.tensors) else "student/"
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.tensors.items()
        if name.startswith(kind)
    }
    _read(tensors, reader, path, no_dist=True)
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items()}


def set_aside(folder: Path, since: int) -> None:
    """Rename the checkpoints from an iteration on, so that no resume takes them: `collapsed-step-000120`."""
    for path in checkpoints(folder):
        if iteration_of(path) >= since:
            aside = path.with_name(f"collapsed-{path.name}")
            discard(aside)
            path.rename(aside)


def load_checkpoint(
    path: Path,
    trained: Trained,
    *,
    identity: Identity,
    parallel: Parallel | None = None,
    reset_optimizers: bool = False,
) -> Meta:
    """Restore everything in place, and return the checkpoint's `Meta`, with the iteration to resume from.

    Args:
        path: the checkpoint.
        trained: what is restored.
        identity: the identity of the run that is resumed.
        parallel: the place of this process in the run; by default it is the only one.
        reset_optimizers: load only weights and average, of any recipe that they fit; the optimisers start anew.

    Raises:
        RMDError: the checkpoint belongs to another run, lacks state or holds foreign state, is damaged, or was not
            written by RMD.
    """
    reader, meta = _open(path), _read_meta(path)
    if not reset_optimizers:
        identity.check(meta.identity, f"the checkpoint {path}")
    for role in TRAINED:
        if reset_optimizers:
            trained.optimizers[role].state.clear()
        else:
            _fill_optimizer(trained.optimizers[role], trained.roles.trainable(role))
    tensors = trained.tensors()
    stored = {name: tuple(entry.size) for name, entry in reader.tensors.items()}
    if reset_optimizers:
        stored = {name: size for name, size in stored.items() if not name.startswith("optimizer-")}
    _check_fit(path, tensors, stored)
    _read(tensors, reader, path, no_dist=parallel is None or parallel.dp_mesh is None)
    for role in TRAINED:
        trained.roles.sync(role)
    return meta


def _read_meta(path: Path) -> Meta:
    """Read a checkpoint's `meta.json`; raise RMDError if it is damaged or from a later version."""
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


def _read(tensors: dict[str, Tensor], reader: IndexReader, path: Path, *, no_dist: bool) -> None:
    """Fill tensors with what a checkpoint holds under their names; raise RMDError if it is damaged."""
    try:
        with without_dist_warning():
            load(tensors, storage_reader=reader, no_dist=no_dist)
    except (OSError, RuntimeError, EOFError, ValueError, CheckpointException) as error:
        raise _damaged(path, error) from error


@contextmanager
def without_dist_warning() -> Iterator[None]:
    """Suppress torch's warning that a run of a single process does not use torch.distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _fill_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Create the state that AdamW creates at its first step, so that a checkpoint can be loaded into it."""
    for parameter in parameters:
        step_device = parameter.device if optimizer.defaults["fused"] else "cpu"
        optimizer.state[parameter] = {
            key: torch.zeros((), device=step_device)
            if key == "step"
            else torch.zeros_like(parameter, requires_grad=False)
            for key in _ADAMW
        }


def _check_fit(path: Path, tensors: dict[str, Tensor], stored: dict[str, tuple[int, ...]]) -> None:
    """Raise RMDError unless a checkpoint stores exactly the given tensors.

    Args:
        stored: the size of each tensor in the checkpoint.
    """
    for group in dict.fromkeys(f"{name.partition('/')[0]}/" for name in tensors):
        names, held = ({name for name in each if name.startswith(group)} for each in (tensors, stored))
        if not held:
            raise RMDError(f"the checkpoint {path} has no {group[:-1]} state: it cannot continue the same run")
        if group.startswith("optimizer-"):
            missing = sorted(name.removeprefix(group).rsplit("/", 1)[0] for name in names - held)
            if missing:
                raise RMDError(
                    f"the checkpoint {path} lacks the optimiser's state of {missing[0]}: it cannot continue the same "
                    "run; add --reset-optimizer to start with new optimisers"
                )
        elif names != held or any(tuple(tensors[name].shape) != stored[name] for name in names):
            raise RMDError(
                f"the checkpoint {path} does not fit: its weights for the {group[:-1]} belong to another network or "
                "another LoRA rank"
            )
    foreign = sorted(stored.keys() - tensors.keys())
    if foreign:
        raise RMDError(
            f"the checkpoint {path} holds {foreign[0]}, which this run does not have: it belongs to another run"
        )


def discard(path: Path) -> None:
    """Remove a checkpoint if it exists; a kill in between leaves nothing that looks like a checkpoint."""
    removed = path.with_name(f".removed-{path.name}.partial")
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def failure_reason(error: BaseException) -> str:
    """Return the reason of an error, found inside torch's exceptions, as part of a sentence."""
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    inner = causes[0][0] if causes else error
    if isinstance(inner, pickle.UnpicklingError):  # its message advises to load without the check
        return "it holds something that is not a tensor"
    return why(inner)


def _damaged(path: Path, error: BaseException) -> RMDError:
    return RMDError(
        f"the checkpoint {path} is damaged: remove it to resume from the one before ({failure_reason(error)})"
    )


def iteration_of(path: Path) -> int:
    """Return the number of iterations after which a checkpoint was saved."""
    return int(path.name.split("-")[1])
