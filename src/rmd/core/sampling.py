"""The sampling loop of a cascade (Alg. 2), which both inference and the roll-outs of training use.

The loop starts from Gaussian noise at the first stage's resolution and evaluates the steps of the plan in order. Each
evaluation predicts the clean latent, x0_hat, and the noise, eps_hat. From these follows the state x_t of the next step.
At the same resolution it is alpha' x0_hat + sigma' eps_hat, the deterministic step, or has fresh noise in place of
all or part of eps_hat if the plan says so. At a higher resolution it is the crossing of `rmd.core.crossing`. The result
is the clean prediction of the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.crossing import cross
from rmd.core.finite import is_finite
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import Crossing, Stage, Step, StepPlan
from rmd.core.randomness import NoiseSource

Predict = Callable[[Tensor, Step], tuple[Tensor, Tensor]]
"""(x_t, step) -> (x0_hat, eps_hat), both of x_t's shape."""
LatentShape = Callable[[Stage], tuple[int, ...]]
"""stage -> shape of its latents, (B, C, H, W) or (B, C, T, H, W)."""
OnStep = Callable[[Step, Tensor, Tensor], Tensor | None]
"""(step, x0_hat, x_t) -> a tensor that replaces x0_hat, or None."""
Move = Callable[[Tensor], Tensor]
"""x0_hat -> the state of the next step; after the last step, x0_hat itself."""
OnMove = Callable[[Step, Tensor, Move], Tensor]
"""(step, x0_hat, move) -> the state of the next step. Its noise is drawn already, so move may be called again."""


def run_cascade(
    predict: Predict, plan: StepPlan, schedule: NoiseSchedule, latent_shape: LatentShape, noise: NoiseSource, *,
    crossing: Crossing | None = None, until: int | None = None, on_step: OnStep | None = None,
    on_move: OnMove | None = None, x: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run a plan from pure noise (Alg. 2).

    Args:
        predict: evaluates the student at a step.
        plan: the steps and stages.
        schedule: the noise schedule that the model times refer to.
        latent_shape: returns the shape of a stage's latents, including the batch.
        noise: source of all random numbers. The purposes of the draws are "start", "crossing-i" for the crossing into
            step i, and "within-i" for fresh noise into step i at the same resolution.
        crossing: replaces `plan.crossing`; roll-outs of training pass `plan.training_crossing`.
        until: number of a step, from 1. If given, the run stops before this step.
        on_step: called after each evaluated step; a tensor that it returns replaces x0_hat.
        on_move: called after that; what it returns is the state of the next step, or the result after the last.
        x: initial noise at the first stage's resolution; drawn from `noise` by default.

    Returns:
        x0_hat of the last step, or the state x_t that step `until` would start from.

    Raises:
        RMDError: `until` is not a step of the plan, or x has the wrong shape.
    """
    if until is not None and not 1 <= until <= len(plan.steps):
        raise RMDError(f"cannot stop at step {until}: the plan has {len(plan.steps)} steps")
    x_t = _start(latent_shape(plan.stages[0]), noise, x)
    rule = plan.crossing if crossing is None else crossing
    for step in plan.steps:
        if step.index == until:
            return x_t
        x0_hat, eps_hat = predict(x_t, step)
        if on_step is not None:
            replaced = on_step(step, x0_hat, x_t)
            x0_hat = x0_hat if replaced is None else replaced
        move = _mover(step, eps_hat, plan, schedule, latent_shape, noise, rule)
        x_t = move(x0_hat) if on_move is None else on_move(step, x0_hat, move)
    return x_t


def sample_cascade(
    predict: Predict,
    plan: StepPlan,
    schedule: NoiseSchedule,
    latent_shape: LatentShape,
    noise: NoiseSource,
    *,
    on_step: OnStep | None = None,
    on_move: OnMove | None = None,
    x: Tensor | None = None,
) -> Tensor:
    """Run a whole plan as `run_cascade` does, and check that the clean prediction of every step is finite.

    The results of the checks stay on the device until the last step, to avoid a GPU sync per step.

    Raises:
        RMDError: a step returned values that are not finite, or x has the wrong shape.
    """
    flags: list[Tensor] = []

    def check(step: Step, x0_hat: Tensor, x_t: Tensor) -> Tensor | None:
        replaced = None if on_step is None else on_step(step, x0_hat, x_t)
        flags.append(is_finite(x0_hat if replaced is None else replaced))
        return replaced

    x0 = run_cascade(predict, plan, schedule, latent_shape, noise, on_step=check, on_move=on_move, x=x)
    finite = torch.stack(flags).tolist()
    if not all(finite):
        step = plan.steps[finite.index(False)]
        raise RMDError(
            f"step {step.index} of {len(plan.steps)} ({plan.stage_of(step).size}, time {step.model_time:g}) returned "
            "values that are not finite: use float32 or bfloat16 instead of float16, and check the model's weights"
        )
    return x0


def step_noise(eps_hat: Tensor, eps: Tensor, crossing: Crossing) -> Tensor:
    """Return the noise of a step that stays at its resolution: eta eps_hat + sqrt(1 - eta^2) eps, or eps alone.

    Args:
        eps_hat: the predicted noise.
        eps: fresh noise of the same shape.
        crossing: gives eta, and whether all noise is fresh.
    """
    if crossing.within == "fresh":
        return eps
    return crossing.eta * eps_hat + math.sqrt(1.0 - crossing.eta**2) * eps


def guided(x0_cond: Tensor, x0_uncond: Tensor, guidance: float) -> Tensor:
    """Apply classifier-free guidance: uncond + guidance (cond - uncond).

    Args:
        x0_cond, x0_uncond: predictions of the clean latent, or both of the noise, with and without the prompt.
        guidance: the guidance scale; 1 returns `x0_cond` up to rounding.
    """
    return x0_uncond + guidance * (x0_cond - x0_uncond)


def _start(shape: Sequence[int], noise: NoiseSource, x: Tensor | None) -> Tensor:
    if x is None:
        return noise.normal(shape, "start")
    if tuple(x.shape) != tuple(shape):
        raise RMDError(f"the start noise has shape {tuple(x.shape)}, but the first stage needs {tuple(shape)}")
    return x


def _mover(
    step: Step, eps_hat: Tensor, plan: StepPlan, schedule: NoiseSchedule, latent_shape: LatentShape,
    noise: NoiseSource, crossing: Crossing,
) -> Move:  # fmt: skip
    """Draw the noise of the step that follows `step`, and return how its state x_t follows from x0_hat."""
    if step.index == len(plan.steps):
        return lambda x0_hat: x0_hat
    following = plan.steps[step.index]
    if following.stage == step.stage:
        eps = eps_hat
        if crossing.within == "fresh" or crossing.eta < 1.0:
            eps = step_noise(eps_hat, noise.normal(eps_hat.shape, f"within-{following.index}"), crossing)
        return lambda x0_hat: schedule.add_noise(x0_hat, eps, following.model_time)
    fresh = noise.normal(latent_shape(plan.stage_of(following)), f"crossing-{following.index}")
    alpha, sigma = schedule.alpha(following.model_time), schedule.sigma(following.model_time)
    return lambda x0_hat: cross(x0_hat, eps_hat, fresh, alpha=alpha, sigma=sigma, crossing=crossing)
