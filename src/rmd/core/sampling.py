"""The one cascade loop (Alg. 2), used by training roll-outs and by inference alike.

It starts from Gaussian noise at the first stage's resolution and evaluates the plan's steps in order. Between
two steps at the same resolution it takes the deterministic step, or renews the noise where the plan asks for it; into a
higher resolution it crosses.
"""

from __future__ import annotations

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
LatentShape = Callable[[Stage], tuple[int, ...]]
OnStep = Callable[[Step, Tensor, Tensor], Tensor | None]


def run_cascade(
    predict: Predict,
    plan: StepPlan,
    schedule: NoiseSchedule,
    latent_shape: LatentShape,
    noise: NoiseSource,
    *,
    crossing: Crossing | None = None,
    until: int | None = None,
    on_step: OnStep | None = None,
    x: Tensor | None = None,
) -> Tensor:
    """Run the plan from noise and return x0_hat of its last step (Alg. 2).

    `predict(x_t, step)` returns (x0_hat, eps_hat) at x_t's shape; `latent_shape(stage)` includes the batch.
    `crossing` replaces `plan.crossing` (a training roll-out passes `plan.training_crossing`). With `until=i`
    steps 1..i-1 are evaluated and the state that step i's `predict` would be given is returned. `on_step`
    sees each evaluated step with its x0_hat and x_t; what it
    returns, if anything, takes x0_hat's place. `x` is the start noise, drawn for "start" if it is not
    given; noise into step i is drawn for "crossing-i", or for "within-i" at the same resolution. Raises RMDError if
    `until` or x's shape does not fit.
    """
    if until is not None and not 1 <= until <= len(plan.steps):
        raise RMDError(f"cannot stop at step {until} of a plan of {len(plan.steps)} steps")
    x_t = _start(latent_shape(plan.stages[0]), noise, x)
    rule = plan.crossing if crossing is None else crossing
    for step in plan.steps:
        if step.index == until:
            return x_t
        x0_hat, eps_hat = predict(x_t, step)
        if on_step is not None:
            replaced = on_step(step, x0_hat, x_t)
            x0_hat = x0_hat if replaced is None else replaced
        if step.index == len(plan.steps):
            break
        following = plan.steps[step.index]
        if following.stage == step.stage:
            fresh = rule.within == "fresh"
            eps = noise.normal(x0_hat.shape, f"within-{following.index}") if fresh else eps_hat
            x_t = schedule.add_noise(x0_hat, eps, following.model_time)
        else:
            x_t = _cross_into(following, x0_hat, eps_hat, plan, schedule, latent_shape, noise, rule)
    return x0_hat


def sample_cascade(
    predict: Predict,
    plan: StepPlan,
    schedule: NoiseSchedule,
    latent_shape: LatentShape,
    noise: NoiseSource,
    *,
    on_step: OnStep | None = None,
    x: Tensor | None = None,
) -> Tensor:
    """Run the whole plan as `run_cascade` does, and check that every step's clean prediction is finite.

    The result of each check stays on the device; all results are read together after the last step.

    Raises:
        RMDError: a step gave values that are not finite, or x's shape does not fit.
    """
    flags: list[Tensor] = []

    def note(step: Step, x0_hat: Tensor, x_t: Tensor) -> Tensor | None:
        replaced = None if on_step is None else on_step(step, x0_hat, x_t)
        flags.append(is_finite(x0_hat if replaced is None else replaced))
        return replaced

    x0 = run_cascade(predict, plan, schedule, latent_shape, noise, on_step=note, x=x)
    finite = torch.stack(flags).tolist()
    if not all(finite):
        step = plan.steps[finite.index(False)]
        raise RMDError(
            f"step {step.index} of {len(plan.steps)} ({plan.stage_of(step).size}, time {step.model_time:g}) gave "
            "values that are not finite: work in float32 or bfloat16 if this is float16, and check the model's weights"
        )
    return x0


def guided(x0_cond: Tensor, x0_uncond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on predictions of x0 (or of eps): uncond + guidance (cond - uncond)."""
    return x0_uncond + guidance * (x0_cond - x0_uncond)


def _start(shape: Sequence[int], noise: NoiseSource, x: Tensor | None) -> Tensor:
    if x is None:
        return noise.normal(shape, "start")
    if tuple(x.shape) != tuple(shape):
        raise RMDError(f"the start noise has shape {tuple(x.shape)}, but the first stage needs {tuple(shape)}")
    return x


def _cross_into(
    following: Step,
    x0_hat: Tensor,
    eps_hat: Tensor,
    plan: StepPlan,
    schedule: NoiseSchedule,
    latent_shape: LatentShape,
    noise: NoiseSource,
    crossing: Crossing,
) -> Tensor:
    fresh = noise.normal(latent_shape(plan.stage_of(following)), f"crossing-{following.index}")
    alpha, sigma = schedule.alpha(following.model_time), schedule.sigma(following.model_time)
    return cross(x0_hat, eps_hat, fresh, alpha=alpha, sigma=sigma, crossing=crossing)
