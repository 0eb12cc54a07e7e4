"""Runs of a toy network, and what is compared of them, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from helpers import LinearBackbone
from torch import Tensor

from rmd.models import Backbone
from rmd.models.roles import TRAINED
from rmd.recipes.schema import Recipe
from rmd.train.loop import Trainer
from rmd.train.tracking import MACHINE, read_metrics

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def toy(recipe: Recipe, folder: Path, backbone: Backbone | None = None) -> Trainer:
    """Return a trainer of a toy network, or of the given backbone."""
    return Trainer(recipe, LinearBackbone(**ZERO_SNR) if backbone is None else backbone, folder)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Return weights, average and optimiser states by name."""
    state = {f"average/{name}": value.clone() for name, value in trainer.trained.average.items()}
    for role in TRAINED:
        state |= {f"{role}/{name}": value.clone() for name, value in trainer.roles.state(role).items()}
        optimizer = trainer.trained.optimizers[role]
        for name, parameter in trainer.roles.named_trainable(role).items():
            for key, value in optimizer.state[parameter].items():
                state[f"{role}/{name}/{key}"] = torch.as_tensor(value).clone()
    return state


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the run's records without the machine-dependent metrics."""
    return [of_the_run(row) for row in read_metrics(folder / "metrics.jsonl")]


def of_the_run(values: dict[str, float]) -> dict[str, float]:
    """Return an iteration's metrics without the machine-dependent ones."""
    return {name: value for name, value in values.items() if name not in MACHINE}


class Crash(Exception):
    """Stands for anything that ends a process between two iterations."""


def crash_at(iteration: int) -> Callable[[int, dict[str, float]], None]:
    """Return a function for `Trainer.on_iteration` that raises Crash after an iteration."""

    def check(done: int, values: dict[str, float]) -> None:
        if done == iteration:
            raise Crash

    return check
