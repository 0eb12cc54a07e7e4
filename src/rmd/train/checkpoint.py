"""Checkpoints that exist whole or not at all, and a resume that continues the same run.

A checkpoint is a folder `step-000100/` with `state.safetensors` (student, fake score, average, both optimisers) and
`meta.json` (iteration, recipe hash, plan). It is written under a temporary name and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmd.errors import RMDError
from rmd.roles import TRAINED, Roles

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds: the roles, their optimisers and the student's moving average."""

    roles: Roles
    optimizers: dict[str, torch.optim.Optimizer]
    average: dict[str, Tensor]


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / "meta.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(folder: Path, iteration: int, trained: Trained, meta: dict[str, object], *, keep: int) -> Path:
    """Write `step-<iteration>` atomically, then remove all but the newest `keep` checkpoints.

    Raises:
        RMDError: nothing could be written (full disk, no permission); the previous checkpoints are untouched.
    """
    final = folder / f"step-{iteration:06d}"
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for killed in folder.glob(".step-*.partial"):  # a run killed while it saved left it behind
            shutil.rmtree(killed, ignore_errors=True)
        partial.mkdir()
        save_file(_tensors(trained), partial / "state.safetensors")
        (partial / "meta.json").write_text(json.dumps({"iteration": iteration, **meta}, indent=1), encoding="utf-8")
        for name in ("state.safetensors", "meta.json"):
            _flush(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
        why = "the disk is full" if full else str(error)
        raise RMDError(
            f"cannot save {final}: {why}; earlier checkpoints are intact, make room and run again with --resume"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path, trained: Trained, *, run_hash: str) -> int:
    """Restore everything in place and return the iteration to go on from.

    Raises:
        RMDError: the checkpoint is of another recipe, lacks state, or is damaged.
    """
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RMDError(
            f"the checkpoint {path} is damaged: remove it to resume from the one before ({error})"
        ) from error
    if meta.get("run_hash") != run_hash:
        raise RMDError(
            f"the checkpoint {path} is of another recipe: resume with the settings it was made with, "
            "or choose another --out"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    for group in [*TRAINED, "average", *(f"optimizer-{role}" for role in TRAINED)]:
        if group not in groups and (group != "average" or trained.average):
            raise RMDError(f"the checkpoint {path} has no {group} state: it cannot continue the same run")
    for role in TRAINED:
        trained.roles.load_state(role, groups[role])
        _load_optimizer(trained.optimizers[role], trained.roles.named_trainable(role), groups[f"optimizer-{role}"])
    for name, tensor in trained.average.items():
        tensor.copy_(groups["average"][name])
    return int(meta["iteration"])


def _tensors(trained: Trained) -> dict[str, Tensor]:
    tensors = {f"average/{name}": value.contiguous() for name, value in trained.average.items()}
    for role in TRAINED:
        named = trained.roles.named_trainable(role)
        tensors |= {f"{role}/{name}": value.detach().contiguous() for name, value in named.items()}
        state = trained.optimizers[role].state
        for name, parameter in named.items():
            for key, value in state[parameter].items():
                tensors[f"optimizer-{role}/{name}/{key}"] = torch.as_tensor(value).detach().contiguous()
    return tensors


def _load_optimizer(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    for name, parameter in named.items():
        keys = ("step", "exp_avg", "exp_avg_sq")
        if any(f"{name}/{key}" not in tensors for key in keys):
            raise RMDError(f"the checkpoint lacks the optimiser's state of {name}: it cannot continue the same run")
        optimizer.state[parameter] = {key: tensors[f"{name}/{key}"].clone() for key in keys}


def _flush(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk, so that a rename never outruns its data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
