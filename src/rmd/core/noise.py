"""Noise schedules: alpha, sigma and logSNR of a time, the way back, and the flow shift.

A schedule says how a clean latent and unit noise mix, ``x_t = alpha_t x0 + sigma_t eps``, and how much
signal is left, ``logsnr = log(alpha^2 / sigma^2)``. Time runs in the scheduler's unit, 0 (clean) to 1000
(noisiest). Two families exist:

* variance preserving (SDXL, PixArt): integer t is entry t - 1 of the scheduler's ``alphas_cumprod``,
  ``alpha = sqrt(abar)`` is linear in t between the entries, ``sigma = sqrt(1 - alpha^2)``;
* rectified flow (SD3.5, Wan): ``sigma = t / 1000``, ``alpha = 1 - sigma``, t after the flow shift (Eq. 1).

Tables of betas are built in float32, the precision of the schedulers the networks were trained with, so
that they equal those schedulers' to the last bit; everything after that is float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from rmd.common.errors import RMDError, finite, integer

MAX_TIME = 1000.0
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
TimeLike = TypeVar("TimeLike", float, Tensor)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "cosine")
# Settings that make a scheduler's noise depend on something a schedule of RMD does not know.
_UNSUPPORTED_FLOW = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas")


class NoiseSchedule(ABC):
    """How signal and noise mix over time; every method works in float64 on times of 0..1000.

    `shift` is the flow shift that `grid` applies (1, no shift, for variance-preserving schedules);
    `train_steps` is the number of steps the network was trained with, which scales what it is given as time.
    """

    kind: ClassVar[Literal["vp", "flow"]]
    shift: float = 1.0
    train_steps: int = 1000

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """Weight of the clean latent at t; float64, shape of t (0-d for a float)."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """Weight of the noise at t; float64, shape of t (0-d for a float)."""

    @abstractmethod
    def logsnr(self, t: float | Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at t; -inf where no signal is left."""

    @abstractmethod
    def time(self, logsnr: float | Tensor) -> Tensor:
        """Inverse of `logsnr`, clamped to the times of the schedule."""

    @abstractmethod
    def model_timestep(self, t: TimeLike) -> TimeLike:
        """What the network is given as its timestep at t; not rounded."""

    def add_noise(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        """Return alpha_t x0 + sigma_t eps, shape, dtype and device of x0.

        `t` is one time, or a vector with one time a sample of the batch (the first dimension of x0).
        """
        alpha, sigma = per_sample(self.alpha(t), x0), per_sample(self.sigma(t), x0)
        return (alpha * widen(x0) + sigma * widen(eps)).to(x0.dtype)

    def grid(self, steps: int, end: float = 0.0) -> tuple[float, ...]:
        """Teacher times t_1 > ... > t_N: uniform on (end, 1] in the scheduler's time, shifted, x1000.

        Raises RMDError if `steps` is below 1 or `end` is not in [0, 1).
        """
        if steps < 1:
            raise RMDError(f"a schedule of {steps} steps has no steps: use at least 1")
        if not 0.0 <= end < 1.0:
            raise RMDError(f"the grid's end must be at least 0 and below 1, got {end}")
        uniform = (MAX_TIME * (1.0 - (1.0 - end) * i / steps) for i in range(steps))
        return tuple(shift_time(t, self.shift) for t in uniform)


class VPSchedule(NoiseSchedule):
    """Variance-preserving schedule over the `alphas_cumprod` table of a scheduler.

    Times below the first entry of the table (t = 1 with 1000 entries) are clamped to it.
    """

    kind = "vp"

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """Take the table (n,), strictly decreasing and in [0, 1); RMDError if it is not."""
        table = alphas_cumprod.detach().to("cpu", torch.float64)
        if table.ndim != 1 or len(table) < 2 or not bool(torch.isfinite(table).all()):
            raise RMDError("alphas_cumprod must be a list of at least two finite numbers")
        if not (bool((table.diff() < 0).all()) and float(table[-1]) >= 0 and float(table[0]) < 1):
            raise RMDError(
                "alphas_cumprod must fall strictly from below 1 to 0 or more: check the betas of the schedule"
            )
        self.alphas_cumprod = table
        self.train_steps = len(table)
        self._alphas = table.sqrt()
        # What a scheduler computes in float32 from its table; kept apart because 1 - alpha suffers from the rounding.
        self._known = (table.float().sqrt().double(), (1.0 - table.float()).sqrt().double())

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> VPSchedule:
        """Build from the config of a diffusers scheduler.

        Reads `beta_schedule` (linear, scaled_linear, squaredcos_cap_v2), `beta_start`, `beta_end`,
        `num_train_timesteps`, `trained_betas` and `rescale_betas_zero_snr`, with diffusers' defaults.
        """
        betas = _betas(config)
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise RMDError("the betas of the noise schedule must be above 0 and at most 1")
        if _flag(config, "rescale_betas_zero_snr"):
            betas = _zero_terminal_snr(betas)
        return cls(torch.cumprod(1.0 - betas, dim=0))

    def alpha(self, t: float | Tensor) -> Tensor:
        """As in the base class; at an entry of the table it is the scheduler's own number, to the last bit."""
        return self._weight(0, t, self._alpha(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """As in the base class; at an entry of the table it is the scheduler's own number, to the last bit."""
        alpha = self._alpha(t)
        return self._weight(1, t, ((1.0 - alpha) * (1.0 + alpha)).sqrt())

    def logsnr(self, t: float | Tensor) -> Tensor:
        alpha = self._alpha(t)
        return 2.0 * alpha.log() - ((1.0 - alpha) * (1.0 + alpha)).log()

    def time(self, logsnr: float | Tensor) -> Tensor:
        alpha = torch.sigmoid(_double(logsnr)).sqrt()
        table = self._alphas.to(alpha.device)
        above = torch.searchsorted(-table, -alpha).clamp(1, self.train_steps - 1)
        part = (table[above - 1] - alpha) / (table[above - 1] - table[above])
        return (above + part).clamp(1.0, float(self.train_steps)) * (MAX_TIME / self.train_steps)

    def _position(self, t: float | Tensor) -> Tensor:
        """Where t is in the table, counted from 1."""
        return (_double(t) * (self.train_steps / MAX_TIME)).clamp(1.0, float(self.train_steps))

    def _alpha(self, t: float | Tensor) -> Tensor:
        """Linear between the entries, in float64."""
        position = self._position(t)
        table = self._alphas.to(position.device)
        below = position.floor().long().clamp(max=self.train_steps - 1)
        return torch.lerp(table[below - 1], table[below], position - below)

    def _weight(self, which: int, t: float | Tensor, between: Tensor) -> Tensor:
        """`between` where t is between two entries of the table, else what the scheduler has there."""
        position = self._position(t)
        entry = position.round()
        return torch.where(position == entry, self._known[which].to(position.device)[entry.long() - 1], between)

    def model_timestep(self, t: TimeLike) -> TimeLike:
        """The (fractional) index into the table: t - 1 with 1000 entries, never below 0."""
        index = t * (self.train_steps / MAX_TIME) - 1.0
        return max(index, 0.0) if isinstance(index, float) else index.clamp(min=0.0)


class FlowSchedule(NoiseSchedule):
    """Rectified flow: sigma = t / 1000, alpha = 1 - sigma. Only `grid` applies the shift (Eq. 1)."""

    kind = "flow"

    def __init__(self, shift: float = 1.0, train_steps: int = 1000) -> None:
        """Take the flow shift (3 for SD3.5, 5 for Wan2.1 14B); RMDError if it is not a positive number."""
        if not (math.isfinite(shift) and shift > 0):
            raise RMDError(f"the flow shift must be a positive number, got {shift}")
        self.shift = float(shift)
        self.train_steps = train_steps

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> FlowSchedule:
        """Build from the config of a diffusers scheduler: `shift` or `flow_shift`, `num_train_timesteps`."""
        for key in _UNSUPPORTED_FLOW:
            if config.get(key) not in (None, False):
                raise RMDError(
                    f"the scheduler's {key} is not supported, because it makes the noise depend on more than "
                    f"the time: turn it off and give a fixed 'shift'"
                )
        key = "flow_shift" if config.get("shift") is None else "shift"
        return cls(_number(config, key, 1.0), _count(config))

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1.0 - self.sigma(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        return (_double(t) / MAX_TIME).clamp(0.0, 1.0)

    def logsnr(self, t: float | Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 2.0 * ((1.0 - sigma).log() - sigma.log())

    def time(self, logsnr: float | Tensor) -> Tensor:
        return MAX_TIME * torch.sigmoid(-0.5 * _double(logsnr))

    def model_timestep(self, t: TimeLike) -> TimeLike:
        """t itself, in units of the network's training steps."""
        return t * (self.train_steps / MAX_TIME)


def schedule_from_config(config: Mapping[str, object]) -> NoiseSchedule:
    """Build the schedule that a diffusers scheduler's config describes; RMDError if it is neither kind.

    A flow scheduler is one whose `_class_name` starts with FlowMatch, which sets `use_flow_sigmas`, or which
    has a shift and no betas. (`flow_shift` alone does not decide: multistep solvers carry it unused.)
    """
    is_flow = str(config.get("_class_name", "")).startswith("FlowMatch") or _flag(config, "use_flow_sigmas")
    has_betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
    has_shift = config.get("shift") is not None or config.get("flow_shift") is not None
    if is_flow or (has_shift and not has_betas):
        return FlowSchedule.from_config(config)
    if has_betas:
        return VPSchedule.from_config(config)
    raise RMDError(
        f"cannot tell the noise schedule of the scheduler {config.get('_class_name', '(no _class_name)')}: "
        "its config needs 'beta_schedule' or 'trained_betas' (variance preserving), or 'shift' (flow)"
    )


def shift_time(t: TimeLike, shift: float) -> TimeLike:
    """Flow shift of a time of 0..1000: sigma <- shift sigma / (1 + (shift - 1) sigma)."""
    # Written so that pure noise stays exactly pure noise, and a shift of 1 changes no bit.
    return t * (shift * MAX_TIME / (shift * t + (MAX_TIME - t)))


def to_x0_eps(
    output: Tensor, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """Turn a network's output into (x0, eps), both of x_t's shape and at least float32.

    `alpha` and `sigma` are scalars or one a sample. "v_prediction" is alpha eps - sigma x0 and needs
    alpha^2 + sigma^2 = 1; "flow" is eps - x0 and needs alpha + sigma = 1. Raises RMDError where the output
    does not determine x0 or eps: "epsilon" at alpha = 0, "sample" at sigma = 0.
    """
    a, s = per_sample(alpha, x_t), per_sample(sigma, x_t)
    out, x = widen(output), widen(x_t)
    if prediction == "epsilon":
        _refuse_zero(
            alpha, a.dtype, "a network that predicts the noise cannot start where no signal is left (alpha = 0)"
        )
        return (x - s * out) / a, out
    if prediction == "sample":
        _refuse_zero(sigma, s.dtype, "a network that predicts the sample says nothing of the noise at sigma = 0")
        return out, (x - a * out) / s
    if prediction == "v_prediction":
        return a * x - s * out, a * out + s * x
    if prediction == "flow":
        return x - s * out, x + a * out
    raise RMDError(f"unknown prediction {prediction!r}: use epsilon, v_prediction, sample or flow")


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """Shape a coefficient (a scalar, or one a sample) to multiply `like`; its device, at least float32."""
    coefficient = torch.as_tensor(value, dtype=_wide(like), device=like.device)
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.shape != like.shape[:1]:
        raise ValueError(f"expected a scalar or {like.shape[0]} values, got shape {tuple(coefficient.shape)}")
    return coefficient.reshape(-1, *[1] * (like.ndim - 1))


def widen(x: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 as they are."""
    return x.to(_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _double(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _refuse_zero(coefficient: float | Tensor, dtype: torch.dtype, message: str) -> None:
    """RMDError if it is 0 as computed with; asked where it lies, since on a GPU that waits for all under way."""
    if bool((torch.as_tensor(coefficient, dtype=dtype) == 0).any()):
        raise RMDError(f"{message}: use a teacher with v- or flow prediction, or another time")


def _betas(config: Mapping[str, object]) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return _trained_betas(trained)
    name = config.get("beta_schedule", "linear")
    count = _count(config)
    start, end = _number(config, "beta_start", 1e-4), _number(config, "beta_end", 0.02)
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
    """Beta i of the cosine schedule of Nichol and Dhariwal (2021), capped at 0.999."""

    def abar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return min(1.0 - abar((i + 1) / count) / abar(i / count), 0.999)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that it ends at 0 and starts where it did (Lin et al. 2023, Alg. 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    abar = ((root - last) * (first / (first - last))) ** 2
    return 1.0 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key)
    return default if value is None else finite(f"the scheduler's {key}", value)


def _count(config: Mapping[str, object]) -> int:
    value = integer("the scheduler's num_train_timesteps", config.get("num_train_timesteps", 1000))
    if value < 2:
        raise RMDError(f"the scheduler's num_train_timesteps must be 2 or more, got {value}")
    return value


def _flag(config: Mapping[str, object], key: str) -> bool:
    value = config.get(key, False)
    if value not in (None, True, False):
        raise RMDError(f"the scheduler's {key} must be true or false, got {value!r}")
    return bool(value)
