"""Noise schedules: how much of a noisy state is signal at each time, and how much is noise.

Diffusion models learn to undo a gradual replacement of a clean latent x0 by Gaussian noise eps. At time t the state is

    x_t = alpha_t x0 + sigma_t eps,    eps ~ N(0, I),

and a schedule is the pair of functions alpha and sigma. Its noise level is summarised by the logarithm of the
signal-to-noise ratio, logsnr(t) = log(alpha_t^2 / sigma_t^2), which is large for clean states and -inf for pure noise.
Times are in the scheduler's unit, 0 (clean) to 1000 (pure noise). There are two families:

* variance preserving (SDXL, PixArt): integer t is entry t - 1 of the scheduler's table `alphas_cumprod` (abar), with
  alpha = sqrt(abar) and sigma = sqrt(1 - alpha^2). Between the entries, alpha is linear in t;
* rectified flow (SD3.5, Wan): sigma = t / 1000 and alpha = 1 - sigma, where t is the time after the flow shift (Eq. 1).

The tables are float32, as in the schedulers that the networks were trained with (`rmd.core.betas`). Everything computed
from them is float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.betas import alphas_cumprod, flag, number, train_steps
from rmd.core.shift import MAX_TIME, DynamicShift, TimeLike, shift_time

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""The quantity that a network is trained to predict; see `to_x0_eps`."""


class NoiseSchedule(ABC):
    """The mixture of signal and noise over time; every method takes times in [0, 1000] and works in float64.

    Attributes:
        kind: "vp" (variance preserving) or "flow" (rectified flow).
        shift: the flow shift that `grid` applies; 1, which is no shift, for variance-preserving schedules.
        train_steps: number of time steps that the network was trained with; it scales the network's time input.
    """

    kind: ClassVar[Literal["vp", "flow"]]
    shift: float = 1.0
    train_steps: int = 1000

    def for_size(self, height: int, width: int, frames: int = 1) -> NoiseSchedule:
        """Return the schedule of samples of a size in pixels: this one, unless the flow shift depends on the size."""
        return self

    @abstractmethod
    def alpha(self, t: float | Tensor) -> Tensor:
        """Return alpha_t, the weight of the clean latent; float64, shape of t (0-d for a float), in [0, 1]."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """Return sigma_t, the weight of the noise; float64, shape of t (0-d for a float), in [0, 1]."""

    @abstractmethod
    def logsnr(self, t: float | Tensor) -> Tensor:
        """Return log(alpha_t^2 / sigma_t^2); float64, shape of t, -inf where no signal is left (alpha_t = 0)."""

    @abstractmethod
    def time(self, logsnr: float | Tensor) -> Tensor:
        """Return the time of a logSNR, the inverse of `logsnr`; clamped to the times of the schedule."""

    @abstractmethod
    def model_timestep(self, t: TimeLike) -> TimeLike:
        """Return the value that the network takes as its timestep at t; it is not rounded."""

    def add_noise(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        """Return the noisy state x_t = alpha_t x0 + sigma_t eps.

        Args:
            x0, eps: clean latents and noise of one shape (B, ...).
            t: one time for the whole batch, or a vector (B,) with one time per sample.

        Returns:
            x_t with the shape, dtype and device of x0.
        """
        alpha, sigma = per_sample(self.alpha(t), x0), per_sample(self.sigma(t), x0)
        return (alpha * widen(x0) + sigma * widen(eps)).to(x0.dtype)

    def grid(self, steps: int, end: float = 0.0) -> tuple[float, ...]:
        """Return the teacher times t_1 > ... > t_N of a sampler (Sec. 3.1).

        They are uniform on (end, 1] as fractions of the scheduler's time, flow shifted, and scaled to (0, 1000]. The
        first is always 1000.

        Args:
            steps: number of times N, at least 1.
            end: exclusive end of the uniform grid, in [0, 1).

        Raises:
            RMDError: `steps` or `end` is out of range.
        """
        if steps < 1:
            raise RMDError(f"a schedule of {steps} steps has no steps: use at least 1")
        if not 0.0 <= end < 1.0:
            raise RMDError(f"the grid's end must be at least 0 and below 1, got {end}")
        uniform = (MAX_TIME * (1.0 - (1.0 - end) * i / steps) for i in range(steps))
        return tuple(shift_time(t, self.shift) for t in uniform)


class VPSchedule(NoiseSchedule):
    """A variance-preserving schedule, alpha^2 + sigma^2 = 1, given by the `alphas_cumprod` table of a scheduler.

    Times below the first entry of the table (t = 1 if it has 1000 entries) are clamped to it.
    """

    kind = "vp"

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """Create the schedule from its table.

        Args:
            alphas_cumprod: abar, of shape (n,) with n >= 2, strictly decreasing, and in [0, 1).

        Raises:
            RMDError: the table is not like that.
        """
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
        # alpha and sigma as a scheduler computes them, in float32. Sigma cannot be recovered from the rounded alpha to
        # the last bit, because 1 - alpha amplifies the rounding error.
        self._entries = (table.float().sqrt().double(), (1.0 - table.float()).sqrt().double())

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> VPSchedule:
        """Create the schedule of a diffusers scheduler's configuration; see `rmd.core.betas.alphas_cumprod`."""
        return cls(alphas_cumprod(config))

    def alpha(self, t: float | Tensor) -> Tensor:
        """Return alpha_t; at an entry of the table, the scheduler's own value to the last bit."""
        return self._at_entries(0, t, self._alpha(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """Return sigma_t; at an entry of the table, the scheduler's own value to the last bit."""
        alpha = self._alpha(t)
        return self._at_entries(1, t, ((1.0 - alpha) * (1.0 + alpha)).sqrt())

    def logsnr(self, t: float | Tensor) -> Tensor:
        """Return log(alpha_t^2 / (1 - alpha_t^2)); see `NoiseSchedule.logsnr`."""
        alpha = self._alpha(t)
        return 2.0 * alpha.log() - ((1.0 - alpha) * (1.0 + alpha)).log()

    def time(self, logsnr: float | Tensor) -> Tensor:
        """Return the time at which alpha^2 = sigmoid(logsnr); see `NoiseSchedule.time`."""
        alpha = torch.sigmoid(_double(logsnr)).sqrt()
        table = self._alphas.to(alpha.device)
        above = torch.searchsorted(-table, -alpha).clamp(1, self.train_steps - 1)
        part = (table[above - 1] - alpha) / (table[above - 1] - table[above])
        return (above + part).clamp(1.0, float(self.train_steps)) * (MAX_TIME / self.train_steps)

    def model_timestep(self, t: TimeLike) -> TimeLike:
        """Return the (fractional) index into the table: t - 1 if it has 1000 entries, and never below 0."""
        index = t * (self.train_steps / MAX_TIME) - 1.0
        return max(index, 0.0) if isinstance(index, float) else index.clamp(min=0.0)

    def _position(self, t: float | Tensor) -> Tensor:
        """Return the (fractional) position of t in the table, counted from 1."""
        return (_double(t) * (self.train_steps / MAX_TIME)).clamp(1.0, float(self.train_steps))

    def _alpha(self, t: float | Tensor) -> Tensor:
        """Return alpha_t, linearly interpolated between the entries of the table."""
        position = self._position(t)
        table = self._alphas.to(position.device)
        below = position.floor().long().clamp(max=self.train_steps - 1)
        return torch.lerp(table[below - 1], table[below], position - below)

    def _at_entries(self, which: int, t: float | Tensor, interpolated: Tensor) -> Tensor:
        """Replace interpolated values by the scheduler's alphas (0) or sigmas (1) where t is an entry of the table."""
        position = self._position(t)
        entry = position.round()
        exact = self._entries[which].to(position.device)[entry.long() - 1]
        return torch.where(position == entry, exact, interpolated)


class FlowSchedule(NoiseSchedule):
    """Rectified flow: sigma = t / 1000 and alpha = 1 - sigma (Eq. 1). Only `grid` applies the flow shift."""

    kind = "flow"

    def __init__(
        self,
        shift: float = 1.0,
        train_steps: int = 1000,
        *,
        dynamic: DynamicShift | None = None,
        terminal: float | None = None,
    ) -> None:
        """Create the schedule.

        Args:
            shift: the flow shift of the time grid, positive: 3 for SD3.5, 5 for Wan2.1 14B.
            train_steps: number of time steps that the network was trained with.
            dynamic: the rule of a shift that depends on the size of the sample, in place of `shift`; only what
                `for_size` returns then has a grid.
            terminal: the last sigma of a grid, in (0, 1), to which its times are stretched (`shift_terminal`).

        Raises:
            RMDError: the shift is not a positive number, or the last sigma is out of range.
        """
        if not (math.isfinite(shift) and shift > 0):
            raise RMDError(f"the flow shift must be a positive number, got {shift}")
        if terminal is not None and not 0.0 < terminal < 1.0:
            raise RMDError(f"the scheduler's shift_terminal must be above 0 and below 1, got {terminal}")
        self.shift = float(shift)
        self.train_steps = train_steps
        self.dynamic = dynamic
        self.terminal = terminal

    @classmethod
    def from_config(
        cls, config: Mapping[str, object], *, token_side: int | None = None, token_frames: int = 1
    ) -> FlowSchedule:
        """Create the schedule of a diffusers scheduler's configuration.

        Args:
            config: reads `shift` or `flow_shift`, `num_train_timesteps`, `shift_terminal` and, if
                `use_dynamic_shifting` is set, what `DynamicShift` reads; with diffusers' defaults.
            token_side, token_frames: the pixels and frames of a token, on which a dynamic shift depends.

        Raises:
            RMDError: a value has the wrong type or is out of range, a setting makes the noise depend on more than the
                time, or the shift is dynamic and the size of a token is not given.
        """
        if config.get("invert_sigmas") not in (None, False):
            raise RMDError("the scheduler's invert_sigmas is not supported: turn it off")
        terminal = number(config, "shift_terminal", 0.0) or None
        if flag(config, "use_dynamic_shifting"):
            if token_side is None:
                raise RMDError(
                    "the scheduler's shift depends on the sample's size (use_dynamic_shifting), not known here"
                )
            rule = DynamicShift.from_config(config, token_side, token_frames)
            return cls(train_steps=train_steps(config), dynamic=rule, terminal=terminal)
        key = "flow_shift" if config.get("shift") is None else "shift"
        return cls(number(config, key, 1.0), train_steps(config), terminal=terminal)

    def for_size(self, height: int, width: int, frames: int = 1) -> FlowSchedule:
        """Return the schedule whose shift is that of samples of a size; see `NoiseSchedule.for_size`."""
        if self.dynamic is None:
            return self
        return FlowSchedule(self.dynamic.at(height, width, frames), self.train_steps, terminal=self.terminal)

    def grid(self, steps: int, end: float = 0.0) -> tuple[float, ...]:
        """Return the teacher times; see `NoiseSchedule.grid`. A terminal sigma stretches them, as the scheduler does.

        Raises:
            ValueError: the shift depends on the size, and this is not what `for_size` returned: a programming error.
        """
        if self.dynamic is not None:
            raise ValueError("a dynamic shift has no grid of times before for_size")
        times = super().grid(steps, end)
        if self.terminal is None or times[-1] == MAX_TIME:
            return times
        scale = (1.0 - self.terminal) * MAX_TIME / (MAX_TIME - times[-1])
        return tuple(MAX_TIME - (MAX_TIME - t) * scale for t in times)

    def alpha(self, t: float | Tensor) -> Tensor:
        """Return 1 - sigma_t; see `NoiseSchedule.alpha`."""
        return 1.0 - self.sigma(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        """Return t / 1000; see `NoiseSchedule.sigma`."""
        return (_double(t) / MAX_TIME).clamp(0.0, 1.0)

    def logsnr(self, t: float | Tensor) -> Tensor:
        """Return 2 log((1 - sigma_t) / sigma_t) (Eq. 1); see `NoiseSchedule.logsnr`."""
        sigma = self.sigma(t)
        return 2.0 * ((1.0 - sigma).log() - sigma.log())

    def time(self, logsnr: float | Tensor) -> Tensor:
        """Return 1000 / (1 + exp(logsnr / 2)) (Eq. 1); see `NoiseSchedule.time`."""
        return MAX_TIME * torch.sigmoid(-0.5 * _double(logsnr))

    def model_timestep(self, t: TimeLike) -> TimeLike:
        """Return t in units of the network's training steps: t itself if there are 1000."""
        return t * (self.train_steps / MAX_TIME)


def schedule_from_config(
    config: Mapping[str, object], *, token_side: int | None = None, token_frames: int = 1
) -> NoiseSchedule:
    """Create the schedule that the configuration of a diffusers scheduler describes.

    Args:
        config: the configuration.
        token_side, token_frames: the pixels and frames of a token, on which a dynamic flow shift depends.

    A scheduler is of the flow family if its `_class_name` starts with FlowMatch, if it sets `use_flow_sigmas`, or if it
    has a shift and no betas. (`flow_shift` alone does not decide: multistep solvers carry it unused.)

    Raises:
        RMDError: the scheduler belongs to neither family, or a value of its configuration is not valid.
    """
    is_flow = str(config.get("_class_name", "")).startswith("FlowMatch") or flag(config, "use_flow_sigmas")
    has_betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
    has_shift = config.get("shift") is not None or config.get("flow_shift") is not None
    if is_flow or (has_shift and not has_betas):
        return FlowSchedule.from_config(config, token_side=token_side, token_frames=token_frames)
    if has_betas:
        return VPSchedule.from_config(config)
    raise RMDError(
        f"cannot tell the noise schedule of the scheduler {config.get('_class_name', '(no _class_name)')}: "
        "its config needs 'beta_schedule' or 'trained_betas' (variance preserving), or 'shift' (flow)"
    )


def to_x0_eps(
    output: Tensor, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """Convert a network's output into its predictions of the clean latent and of the noise.

    Both follow from x_t = alpha x0 + sigma eps and the meaning of the output, which is "epsilon": eps; "sample": x0;
    "v_prediction": alpha eps - sigma x0 (requires alpha^2 + sigma^2 = 1); "flow": eps - x0 (requires
    alpha + sigma = 1).

    Args:
        output: the network's output, of x_t's shape.
        x_t: the noisy state (B, ...).
        alpha, sigma: weights of x0 and eps in x_t; scalars, or one value per sample (B,).
        prediction: meaning of the output.

    Returns:
        (x0, eps), both of x_t's shape and at least float32.

    Raises:
        RMDError: the output does not determine both: "epsilon" at alpha = 0, or "sample" at sigma = 0.
    """
    a, s = per_sample(alpha, x_t), per_sample(sigma, x_t)
    out, x = widen(output), widen(x_t)
    if prediction == "epsilon":
        _refuse_zero(
            alpha, a.dtype, "a network that predicts the noise cannot start where no signal is left (alpha = 0)"
        )
        return (x - s * out) / a, out
    if prediction == "sample":
        _refuse_zero(sigma, s.dtype, "a network that predicts the sample does not determine the noise at sigma = 0")
        return out, (x - a * out) / s
    if prediction == "v_prediction":
        return a * x - s * out, a * out + s * x
    if prediction == "flow":
        return x - s * out, x + a * out
    raise RMDError(f"unknown prediction {prediction!r}: use epsilon, v_prediction, sample or flow")


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """Reshape a coefficient so that it multiplies a batch.

    Args:
        value: a scalar, or one value per sample (B,).
        like: the batch (B, ...) to be multiplied.

    Returns:
        The coefficient on `like`'s device, at least float32: 0-d, or (B, 1, ..., 1).

    Raises:
        ValueError: `value` has another shape.
    """
    coefficient = torch.as_tensor(value, dtype=_wide(like), device=like.device)
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.shape != like.shape[:1]:
        raise ValueError(f"expected a scalar or {like.shape[0]} values, got shape {tuple(coefficient.shape)}")
    return coefficient.reshape(-1, *[1] * (like.ndim - 1))


def widen(x: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 unchanged."""
    return x.to(_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _double(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _refuse_zero(coefficient: float | Tensor, dtype: torch.dtype, message: str) -> None:
    """Raise RMDError if a coefficient is zero in the precision of the computation.

    The check runs on the coefficient's own device, usually the CPU, to avoid a GPU sync.
    """
    if bool((torch.as_tensor(coefficient, dtype=dtype) == 0).any()):
        raise RMDError(f"{message}: use a teacher with v- or flow prediction, or another time")
