"""DMD2: improved distribution matching distillation (Yin et al. 2024), the few-step baseline at one resolution.

Every step's clean prediction is matched as a finished sample: it is noised with fresh noise to a time of the whole
range [0.02, 0.98] (`method.tau=all`). Between steps the student renews its noise. Its training inputs are its own
states (backward simulation), as in every method here. With `method.adversarial`, a head on the fake score's features
learns to distinguish noised real images from noised samples, and the student learns to produce samples that the head
takes for real. Otherwise no image is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.losses import (
    adversarial_fake_loss,
    adversarial_student_loss,
    fake_score_loss,
    generator_loss,
    sample_weight,
)
from rmd.core.plan import Step, StepPlan
from rmd.methods.adversarial import HEAD, Head, captured_output, new_head
from rmd.methods.base import Batch, Method, Rollout, Sample, check_one_resolution
from rmd.methods.common import (
    TAU_MARGIN,
    draw_tau,
    fake_prediction,
    fake_weight,
    roll_out,
    student_prediction,
    teacher_prediction,
)
from rmd.models.base import Backbone
from rmd.models.cond import Cond
from rmd.models.roles import Roles
from rmd.recipes.methods import DMD2Config


class DMD2(Method):
    """Stochastic steps, and matching over the whole range of noise levels."""

    Config = DMD2Config
    config: DMD2Config

    def check_plan(self) -> None:
        """Raise RMDError if the plan has several resolutions, or steps that keep their noise."""
        check_one_resolution("dmd2", self.plan)
        if self.plan.training_crossing.within != "fresh":
            raise RMDError(
                "method dmd2 renews the noise at every step: set crossing.within to fresh, or use method tdm"
            )

    def __init__(self, backbone: Backbone, roles: Roles, plan: StepPlan, config: DMD2Config, *, seed: int) -> None:
        """Prepare the losses, and put the adversarial head on the fake score if its loss is on."""
        super().__init__(backbone, roles, plan, config, seed=seed)
        self.head: Head | None = None
        if config.adversarial > 0:
            with roles.use("fake") as fake:
                _, width = backbone.features(fake)
            self.head = new_head(width, seed=seed, device=backbone.device)
            roles.attach(HEAD, self.head)

    def sample(self, batch: Batch, step: Step) -> Sample:
        """Roll the student out to a step (backward simulation), and return its prediction there."""
        x_t = roll_out(self, batch, step)
        return Sample(step, self.plan.match_stage, *student_prediction(self, batch, step, x_t))

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return the student's loss at one step, and the sample that it was computed on."""
        config, schedule, stage = self.config, self.backbone.schedule, self.plan.match_stage

        sample = self.sample(batch, step)
        y, eps_hat = sample.y, sample.eps_hat

        tau = draw_tau(self, batch, step, "tau-student")
        eps = batch.noise.normal(y.shape, "noise-student")
        with torch.no_grad():
            x_tau = schedule.add_noise(y.detach(), eps, tau)
            f_real = teacher_prediction(self, batch, x_tau, tau, stage)
            f_fake = fake_prediction(self, batch, x_tau, tau, stage)

        w = sample_weight(y, f_real, config.weight_floor) if config.weight == "sample" else None
        loss = generator_loss(y, f_real, f_fake, weight=w, metric=config.metric)
        if self.head is not None:
            with self.roles.use("fake") as fake, self.roles.held("fake"):
                features = self.features(fake, y, batch.cond, batch, "student")
                loss = loss + config.adversarial * adversarial_student_loss(self.head(features))
        return loss, Rollout(step, stage, y.detach(), eps_hat.detach(), tau, x_tau, f_real, f_fake)

    def fake_loss(self, batch: Batch, sample: Sample, update: int = 0) -> Tensor:
        """Return the fake score's denoising loss on the student's sample, plus the loss of the adversarial head.

        Raises:
            RMDError: the adversarial loss is on, and the batch has no real images.
        """
        config, schedule, y = self.config, self.backbone.schedule, sample.y
        tau = draw_tau(self, batch, sample.step, f"tau-fake-{update}")
        eps = batch.noise.normal(y.shape, f"noise-fake-{update}")
        x_tau = schedule.add_noise(y, eps, tau)
        f_fake = fake_prediction(self, batch, x_tau, tau, self.plan.match_stage)
        loss = fake_score_loss(f_fake, y, fake_weight(config, schedule, tau))
        if self.head is not None:
            if batch.real is None:
                raise RMDError("method.adversarial needs real images, and the batch has none: set data.images")
            with self.roles.use("fake") as fake:
                of_student = self.head(self.features(fake, y, batch.cond, batch, f"fake-{update}"))
                of_real = self.head(self.features(fake, batch.real.x0, batch.real.cond, batch, f"real-{update}"))
            loss = loss + config.adversarial_fake * adversarial_fake_loss(of_student, of_real)
        return loss

    def features(self, fake: nn.Module, x0: Tensor, cond: Cond, batch: Batch, purpose: str) -> Tensor:
        """Return the fake score's features of clean latents, noised to times of the whole range.

        Args:
            fake: the fake score's network.
            x0: clean latents, of samples or of real images.
            cond: their encoded prompts.
            batch: the source of the noise.
            purpose: the key of the noise; every call in an iteration has its own.
        """
        uniform = batch.noise.uniform((len(x0),), f"tau-adversarial-{purpose}").double()
        tau = TAU_MARGIN + (1000.0 - 2 * TAU_MARGIN) * uniform
        eps = batch.noise.normal(x0.shape, f"noise-adversarial-{purpose}")
        with captured_output(self.backbone.features(fake)[0]) as outputs:
            x_tau = self.backbone.schedule.add_noise(x0, eps, tau)
            self.predict("fake", fake, x_tau, tau, cond, self.plan.match_stage)
        return outputs[-1]
