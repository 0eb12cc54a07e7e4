"""The steps that the methods share: the roll-out, the student's prediction, tau, and the two scores' predictions.

Each is a function of the method (its networks, plan and call counter) and the batch. The purposes of the random numbers
("tau-student", ...) are keys: the same purpose gives the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rmd.core.crossing import renoise
from rmd.core.losses import snr_weight
from rmd.core.noise import NoiseSchedule, per_sample
from rmd.core.plan import Stage, Step, StepPlan
from rmd.core.sampling import run_cascade, step_noise
from rmd.core.shift import shift_time
from rmd.methods.base import Batch, Method, Sample
from rmd.models.cond import Cond
from rmd.models.generate import predictor
from rmd.recipes.methods import CascadeConfig, MatchingConfig

TAU_MARGIN = 20.0
"""Distance that tau keeps from 0 and 1000, where x0 or the noise is not determined (DMD)."""


@torch.no_grad()
def roll_out(method: Method, batch: Batch, step: Step) -> Tensor:
    """Return x_t, the student's state before a step: the sampler's own loop (Alg. 2) up to there, without gradient."""
    method.evaluations["student"] += step.index - 1
    # Merging adapters only pays off if the network is called.
    with (method.roles.fused if step.index > 1 else method.roles.use)("student") as student:
        return run_cascade(
            predictor(method.backbone, student, method.plan, batch.cond),
            method.plan,
            method.backbone.schedule,
            lambda stage: method.latent_shape(len(batch.cond), stage),
            batch.noise,
            crossing=method.plan.training_crossing,
            until=step.index,
        )


def student_prediction(method: Method, batch: Batch, step: Step, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x0_hat, eps_hat), the student's prediction from x_t at the step's own time and resolution."""
    with method.roles.use("student") as student:
        return method.predict("student", student, x_t, step.model_time, batch.cond, method.plan.stage_of(step))


def draw_tau(method: Method, batch: Batch, step: Step, purpose: str) -> Tensor:
    """Return teacher times (B,) for the scores, uniform in the step's range (`tau_range`); float64 on the CPU."""
    config, plan = matching_config(method), method.plan
    shift = method.backbone.schedule.for_size(plan.match_stage.height, plan.match_stage.width, plan.frames).shift
    low, high = tau_range(config, step, plan, shift=shift)
    uniform = batch.noise.uniform((len(batch.cond),), purpose).double()
    if config.tau_spacing == "time":
        return low + (high - low) * uniform
    start, end = shift_time(low, 1.0 / shift), shift_time(high, 1.0 / shift)
    return shift_time(start + (end - start) * uniform, shift)


def matching_config(method: Method) -> MatchingConfig:
    """Return the settings of a method that matches distributions.

    Raises:
        TypeError: the method has other settings.
    """
    if not isinstance(method.config, MatchingConfig):
        raise TypeError(f"{type(method).__name__} has no settings of a matching")
    return method.config


def tau_range(config: MatchingConfig, step: Step, plan: StepPlan, *, shift: float = 1.0) -> tuple[float, float]:
    """Return the teacher times (low, high) between which the scores' times of a step are drawn.

    `method.tau` selects the range, `method.tau_shift` moves it at low-resolution steps, and `method.tau_offset` is the
    share of it, from the lower end, that is left out. Both ends keep a margin from 0 and 1000: the upper one before
    that share is taken, the lower one after it.

    Args:
        config: the settings.
        step: the trained step.
        plan: the step's plan.
        shift: flow shift of the grid; with `method.tau_spacing` grid, shares and margins are those of unshifted times.
    """
    before = [other for other in plan.steps if other.stage < step.stage]
    top = {"segment": step.tau_high, "stage": before[-1].teacher_time if before else 1000.0}.get(config.tau, 1000.0)
    bottom = 0.0 if config.tau == "all" else step.tau_low
    shift = shift if config.tau_spacing == "grid" else 1.0
    if step.stage < len(plan.stages):
        bottom, top = shift_time(bottom, config.tau_shift), shift_time(top, config.tau_shift)
    # A range keeps some width, unless the scores read the next state, which cannot be diffused to a time below its own.
    room = 0.0 if _follows_trajectory(config) else TAU_MARGIN
    low = min(shift_time(bottom, 1.0 / shift), 1000.0 - TAU_MARGIN - room)
    high = max(min(shift_time(top, 1.0 / shift), 1000.0 - TAU_MARGIN), low)
    offsets = config.tau_offset or (0.0,)
    low = max(low + (high - low) * offsets[min(step.stage, len(offsets)) - 1], TAU_MARGIN)
    return shift_time(low, shift), shift_time(max(high, low), shift)


def _follows_trajectory(config: MatchingConfig) -> bool:
    return isinstance(config, CascadeConfig) and config.tau_noise in ("trajectory", "trajectory_sample")


@dataclass(frozen=True)
class Diffused:
    """The student's sample at a time tau, and what the fake score should predict there."""

    x_tau: Tensor
    """The noisy state."""
    target: Tensor
    """A clean sample whose mean, given x_tau, is the prediction that belongs to the score of x_tau's distribution."""
    weight: Tensor
    """(B,), the share of x_tau's noise that is independent of the student: the precision of the target. On the device
    of tau."""


def diffuse(
    method: Method, batch: Batch, step: Step, y: Tensor, eps_hat: Tensor, tau: Tensor, purpose: str
) -> Diffused:
    """Take a student's sample to times tau, with the noise that `method.tau_noise` selects.

    * "mixed" (the paper, Eq. 4 and 10): alpha_tau y + sigma_tau (beta Up(eps_hat) + sqrt(1 - beta^2) eps). As eps_hat
      was predicted together with y, the fake score that predicts y is not the score of x_tau, unless beta is 0.
    * "fresh": alpha_tau y + sigma_tau eps. The scores compare the distribution of y.
    * "trajectory": the sampler's next state x_mid = alpha_mid y + sigma_mid mixed, diffused from there up to tau. The
      scores compare the distribution of x_mid (TDM). The fake score predicts the clean sample that belongs to the score
      of x_tau given x_mid, which is exact at every beta and eta (denoising score matching with x_mid as the data).
      The student can only make x_mid right if its noise can be white: where eps_hat is upsampled, with beta 0 or the
      rule "block". Plainly upsampled noise has too much power in the low frequencies, and the student loses spread.
    * "trajectory_sample", as the authors' code does it: x_mid has the noise eta eps_hat + sqrt(1 - eta^2) eps at every
      step, even where the sampler crosses with other noise, and the fake score predicts y.

    Args:
        method: gives the plan's crossing, the schedule and the setting.
        batch: gives the random numbers.
        step: the trained step; `tau` is not below its `tau_low`.
        y: the clean prediction at the resolution at which it is matched (B, ...), detached.
        eps_hat: the predicted noise at the step's own resolution, detached.
        tau: teacher times (B,).
        purpose: name of the random numbers, such as "student".
    """
    schedule, crossing, config = method.backbone.schedule, method.plan.training_crossing, method.config
    rule = config.tau_noise if isinstance(config, CascadeConfig) else "fresh"
    eps = batch.noise.normal(y.shape, f"noise-{purpose}")
    one = torch.ones_like(tau)
    if rule == "fresh" or (rule != "mixed" and step.tau_low <= 0.0):
        return Diffused(schedule.add_noise(y, eps, tau), y, one)
    if rule == "mixed":
        return Diffused(schedule.add_noise(y, renoise(eps_hat, eps, crossing), tau), y, one)
    fresh = batch.noise.normal(y.shape, f"next-{purpose}")
    stays = method.plan.steps[step.index].stage == step.stage and eps_hat.shape == y.shape
    if rule == "trajectory_sample":
        crossing = replace(crossing, beta=crossing.eta if crossing.within == "predicted" else 0.0)
    mixed = step_noise(eps_hat, fresh, crossing) if stays else renoise(eps_hat, fresh, crossing)
    share = trajectory_share(schedule, step, tau)
    rho = per_sample(share, eps)
    x_tau = schedule.add_noise(y, rho * mixed + (1 - rho**2).sqrt() * eps, tau)
    if rule == "trajectory_sample":
        return Diffused(x_tau, y, one)
    own = (1 - share**2).clamp(min=1e-4)
    alpha, sigma = (per_sample(v, x_tau) for v in (schedule.alpha(tau), schedule.sigma(tau) / own.sqrt()))
    return Diffused(x_tau, ((x_tau - sigma * eps) / alpha).to(y.dtype), own)


def trajectory_share(schedule: NoiseSchedule, step: Step, tau: Tensor) -> Tensor:
    """Return rho (B,), the weight of x_mid's noise in that of x_tau, at times tau (B,); float64 on tau's device.

    Diffusing x_mid = alpha_mid y + sigma_mid mixed up to tau gives alpha_tau y + sigma_tau noise, with
    noise = rho mixed + sqrt(1 - rho^2) eps and rho = (alpha_tau / alpha_mid) sigma_mid / sigma_tau.
    """
    # The last step ends at the clean sample, in which nothing of the predicted noise is left.
    sigma_mid = schedule.sigma(step.tau_low) if step.tau_low > 0 else torch.zeros((), dtype=torch.float64)
    ratio = schedule.alpha(tau) / schedule.alpha(step.tau_low)
    return (ratio * sigma_mid / schedule.sigma(tau)).clamp(max=1.0)


def stage_weight(config: CascadeConfig, step: Step) -> float:
    """Return the weight of the student's loss at a step's stage (Eq. 6): 1, unless `method.stage_weights` are given."""
    return config.stage_weights[step.stage - 1] if config.stage_weights else 1.0


@torch.no_grad()
def teacher_prediction(
    method: Method, batch: Batch, x_tau: Tensor, tau: Tensor, stage: Stage, scale: float | None = None
) -> Tensor:
    """Return f_real, the teacher's guided prediction of x0 from x_tau; both branches run in one call.

    Args:
        scale: another scale of guidance than the method's.
    """
    guidance = method.config.guidance
    with method.roles.use("teacher") as teacher:
        if guidance == 1.0:
            return method.predict("teacher", teacher, x_tau, tau, batch.cond, stage)[0]
        both = Cond.cat([batch.cond, batch.null])
        return method.predict("teacher", teacher, x_tau, tau, both, stage, guidance if scale is None else scale)[0]


@torch.no_grad()
def real_prediction(method: Method, batch: Batch, sample: Sample, x_tau: Tensor, tau: Tensor) -> Tensor:
    """Return f_real at x_tau, with the guidance that `method.guidance_tau` and `stage_guidance` select.

    "same" is `teacher_prediction`. With "below", the guidance is read at a state of its own, at a cleaner time: what it
    adds, (guidance - 1) (cond - uncond), is there about finer detail, while the rest of f_real, without guidance, still
    belongs to tau (decoupled classifier-free guidance, Liu et al. 2025). All three branches run in one call.
    """
    config = method.config
    if not isinstance(config, CascadeConfig):
        return teacher_prediction(method, batch, x_tau, tau, sample.stage)
    scale = config.stage_guidance[sample.step.stage - 1] if config.stage_guidance else config.guidance
    if config.guidance_tau == "same" or config.guidance == 1.0:
        return teacher_prediction(method, batch, x_tau, tau, sample.stage, scale)
    low, high = guidance_range(config, sample, method.plan)
    below = low + (high - low) * batch.noise.uniform((len(tau),), "tau-guidance").double()
    x_below = diffuse(method, batch, sample.step, sample.y.detach(), sample.eps_hat, below, "guidance").x_tau
    cond = Cond.cat([batch.cond, batch.cond, batch.null])
    with method.roles.use("teacher") as teacher:
        x, t = torch.cat([x_tau, x_below, x_below]), torch.cat([tau, below, below])
        real, with_prompt, without = method.predict("teacher", teacher, x, t, cond, sample.stage)[0].chunk(3)
    return real + (scale - 1.0) * (with_prompt - without)


def guidance_range(config: MatchingConfig, sample: Sample, plan: StepPlan) -> tuple[float, float]:
    """Return the teacher times (low, high) between which the guidance of `guidance_tau` below is read.

    Up to the step's own time; and from 0, unless the sample is upsampled, whose blur would show at cleaner times than
    its segment's, or the next state is read, which is as noisy as the segment's end.
    """
    step = sample.step
    low = step.tau_low if sample.stage != plan.stage_of(step) or _follows_trajectory(config) else 0.0
    return max(low, TAU_MARGIN), max(min(step.tau_high, 1000.0 - TAU_MARGIN), TAU_MARGIN)


def fake_prediction(method: Method, batch: Batch, x_tau: Tensor, tau: Tensor, stage: Stage) -> Tensor:
    """Return f_fake, the fake score's prediction of x0 from x_tau, without guidance."""
    with method.roles.use("fake") as fake:
        return method.predict("fake", fake, x_tau, tau, batch.cond, stage)[0]


def fake_weight(config: MatchingConfig, schedule: NoiseSchedule, tau: Tensor) -> Tensor:
    """Return the weight (B,) of the fake score's squared error in x0 (Eq. 9), as `method.fake_weight` selects it."""
    cap = math.inf if config.fake_weight == "noise" else config.snr_cap
    snr = snr_weight(schedule.alpha(tau), schedule.sigma(tau), cap)
    return snr + 1.0 if config.fake_weight == "snr_plus_one" else snr
