"""The steps that the methods share: the roll-out, the student's prediction, tau, and the two scores' predictions.

Each is a function of the method (its networks, plan and call counter) and the batch. The purposes of the random numbers
("tau-student", ...) are keys: the same purpose gives the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rmd.core.losses import snr_weight
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import Stage, Step
from rmd.core.sampling import run_cascade
from rmd.methods.base import Batch, Method
from rmd.models.base import Cond
from rmd.models.generate import predictor
from rmd.recipes.methods import MatchingConfig

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


def draw_tau(config: MatchingConfig, batch: Batch, step: Step, purpose: str) -> Tensor:
    """Return teacher times (B,) for the scores, uniform in the range that `method.tau` selects; float64 on the CPU."""
    high = step.tau_high if config.tau == "segment" else 1000.0
    low = 0.0 if config.tau == "all" else step.tau_low
    low = min(max(low, TAU_MARGIN), 1000.0 - 2 * TAU_MARGIN)
    high = max(min(high, 1000.0 - TAU_MARGIN), low)
    uniform = batch.noise.uniform((len(batch.cond),), purpose).double()
    return low + (high - low) * uniform


@torch.no_grad()
def teacher_prediction(method: Method, batch: Batch, x_tau: Tensor, tau: Tensor, stage: Stage) -> Tensor:
    """Return f_real, the teacher's guided prediction of x0 from x_tau; both branches run in one call."""
    guidance = method.config.guidance
    with method.roles.use("teacher") as teacher:
        if guidance == 1.0:
            return method.predict("teacher", teacher, x_tau, tau, batch.cond, stage)[0]
        both = Cond.cat([batch.cond, batch.null])
        return method.predict("teacher", teacher, x_tau, tau, both, stage, guidance)[0]


def fake_prediction(method: Method, batch: Batch, x_tau: Tensor, tau: Tensor, stage: Stage) -> Tensor:
    """Return f_fake, the fake score's prediction of x0 from x_tau, without guidance."""
    with method.roles.use("fake") as fake:
        return method.predict("fake", fake, x_tau, tau, batch.cond, stage)[0]


def fake_weight(config: MatchingConfig, schedule: NoiseSchedule, tau: Tensor) -> Tensor:
    """Return the weight (B,) of the fake score's squared error in x0 (Eq. 9), as `method.fake_weight` selects it."""
    cap = math.inf if config.fake_weight == "noise" else config.snr_cap
    snr = snr_weight(schedule.alpha(tau), schedule.sigma(tau), cap)
    return snr + 1.0 if config.fake_weight == "snr_plus_one" else snr
