"""Roles of a toy network with optimisers, and checkpoints of them, for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import LinearBackbone, Mixer
from torch import Tensor

from rmd.models.roles import TRAINED, build_roles
from rmd.train.checkpoint import Meta, Trained
from rmd.train.guard import GuardState
from rmd.train.identity import Identity
from rmd.train.writer import CheckpointWriter

IDENTITY = Identity(run_hash="abc", prompts=4, prompts_key="p", teacher_key="t", images_key=None)


def make(mode: Any = "lora", *, average: bool = True, rank: int = 2, fused: bool = False) -> Trained:
    roles = build_roles(Mixer(), mode=mode, targets=LinearBackbone.lora_targets, rank=rank, alpha=2.0)
    optimizers: dict[str, torch.optim.Optimizer] = {
        role: torch.optim.AdamW(roles.trainable(role), lr=0.1, fused=fused) for role in TRAINED
    }
    kept = {name: value.clone() for name, value in roles.state("student").items()} if average else {}
    return Trained(roles, optimizers, kept)


def advance(trained: Trained, *, seed: int = 0) -> None:
    """Update everything that a checkpoint holds, once."""
    g = torch.Generator().manual_seed(seed)
    for role in TRAINED:
        for parameter in trained.roles.trainable(role):
            parameter.grad = torch.randn(parameter.shape, generator=g)
        trained.optimizers[role].step()
    for name, value in trained.average.items():
        value.lerp_(trained.roles.state("student")[name], 0.5)


def everything(trained: Trained) -> dict[str, Tensor]:
    state = {f"average/{name}": value.clone() for name, value in trained.average.items()}
    for role in TRAINED:
        state |= {f"{role}/{name}": value.clone() for name, value in trained.roles.state(role).items()}
        for i, each in enumerate(trained.optimizers[role].state.values()):
            state |= {f"{role}/{i}/{key}": torch.as_tensor(value).clone() for key, value in each.items()}
    return state


def meta_of(iteration: int, **changes: Any) -> Meta:
    guard = GuardState(series={}, best=0.0, low=[])
    known: dict[str, Any] = {"recipe": "tiny", "identity": IDENTITY, "plan": {}, "guard": guard, "best": None}
    return Meta(iteration=iteration, **(known | changes))


def save_now(folder: Path, iteration: int, trained: Trained, keep: int = 2, keep_every: int | None = None) -> Path:
    writer = CheckpointWriter(folder, keep_last=keep, keep_every=keep_every)
    path = writer.save(trained, meta_of(iteration))
    writer.close()
    return path
