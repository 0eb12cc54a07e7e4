"""Tables of betas: how much noise each training step of a variance-preserving model adds.

A diffusion model of this family was trained with a fixed list of numbers beta_1, ..., beta_n, one per training step.
The share of signal that is left after i steps is abar_i, the product of (1 - beta_j) over all j up to i. The
configuration of a diffusers scheduler names the formula of the betas; this module evaluates it. The arithmetic is
float32, in the order of operations that the schedulers use, so the tables equal theirs to the last bit.

The formulas are written out here because loading diffusers' DDPMScheduler, whose tables are the same bit for bit, takes
more than two seconds, and `rmd plan` needs nothing else of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rmd.common.errors import RMDError, finite, integer

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "cosine")


def alphas_cumprod(config: Mapping[str, object]) -> Tensor:
    """Return the table of abar that the configuration of a diffusers scheduler describes; float32, (n,).

    Args:
        config: reads `beta_schedule` (one of `BETA_SCHEDULES`), `beta_start`, `beta_end`, `num_train_timesteps`,
            `trained_betas` and `rescale_betas_zero_snr`, with diffusers' defaults.

    Raises:
        RMDError: a value has the wrong type, is out of range, or names an unknown schedule.
    """
    betas = _betas(config)
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise RMDError("the betas of the noise schedule must be above 0 and at most 1")
    if flag(config, "rescale_betas_zero_snr"):
        betas = _zero_terminal_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0)


def number(config: Mapping[str, object], key: str, default: float) -> float:
    """Return a finite number of a scheduler's configuration, or the default if it is absent or null."""
    value = config.get(key)
    return default if value is None else finite(f"the scheduler's {key}", value)


def train_steps(config: Mapping[str, object]) -> int:
    """Return `num_train_timesteps` of a scheduler's configuration: 1000 by default, and at least 2."""
    value = integer("the scheduler's num_train_timesteps", config.get("num_train_timesteps", 1000))
    if value < 2:
        raise RMDError(f"the scheduler's num_train_timesteps must be 2 or more, got {value}")
    return value


def flag(config: Mapping[str, object], key: str) -> bool:
    """Return a boolean of a scheduler's configuration; False if it is absent or null."""
    value = config.get(key, False)
    if value not in (None, True, False):
        raise RMDError(f"the scheduler's {key} must be true or false, got {value!r}")
    return bool(value)


def _betas(config: Mapping[str, object]) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return _trained_betas(trained)
    name = config.get("beta_schedule", "linear")
    count = train_steps(config)
    start, end = number(config, "beta_start", 1e-4), number(config, "beta_end", 0.02)
    if name in ("squaredcos_cap_v2", "cosine"):
        return torch.tensor([_cosine_beta(i, count) for i in range(count)], dtype=torch.float32, device="cpu")
    if not 0.0 < start <= end <= 1.0:
        raise RMDError(f"betas must satisfy 0 < beta_start <= beta_end <= 1, got {start} and {end}")
    if name == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32, device="cpu")
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32, device="cpu") ** 2
    raise RMDError(f"unknown beta_schedule {name!r}: use one of {', '.join(BETA_SCHEDULES)}")


def _trained_betas(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float32)
    if not isinstance(value, Sequence) or not all(isinstance(beta, (int, float)) for beta in value):
        raise RMDError("trained_betas must be a list of numbers")
    return torch.tensor(list(value), dtype=torch.float32, device="cpu")


def _cosine_beta(i: int, count: int) -> float:
    """Return beta i of the cosine schedule (Nichol and Dhariwal 2021, Eq. 17), capped at 0.999."""

    def abar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return min(1.0 - abar((i + 1) / count) / abar(i / count), 0.999)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that it ends at 0 and its first value stays (Lin et al. 2023, Alg. 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    abar = ((root - last) * (first / (first - last))) ** 2
    return 1.0 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
