"""DMD2: improved distribution matching distillation (Yin et al. 2024), the few-step baseline.

Every step's clean prediction is matched as a finished sample: it is noised with fresh noise to any time in [0.02,
0.98], and between steps the student renews the noise. Its training input is the student's own (backward simulation),
which is the roll-out of every method here. With `method.adversarial` a head on the fake score's features tells noised
real images from noised samples, and the student is trained to be taken for real; without it no image is needed.
"""

from __future__ import annotations

from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.losses import adversarial_fake_loss, adversarial_student_loss
from rmd.core.plan import Step, StepPlan
from rmd.methods.adversarial import HEAD, Head, new_head, watched
from rmd.methods.base import TAU_MARGIN, Batch, Method, Rollout, check_one_resolution
from rmd.models.base import Backbone, Cond
from rmd.models.roles import Roles
from rmd.recipes.schema import MethodConfig


class DMD2(Method):
    """Stochastic steps and whole-range matching at one resolution."""

    def __init__(self, backbone: Backbone, roles: Roles, plan: StepPlan, config: MethodConfig, *, seed: int) -> None:
        """As every method; RMDError if the plan has several stages, or steps that keep their noise."""
        check_one_resolution("dmd2", plan)
        if plan.training_crossing.within != "fresh":
            raise RMDError(
                "method dmd2 renews the noise at every step: set crossing.within to fresh, or use method tdm"
            )
        super().__init__(backbone, roles, plan, config, seed=seed)
        self.head: Head | None = None
        if config.adversarial > 0:
            with roles.use("fake") as fake:
                _, width = backbone.features(fake)
            self.head = new_head(width, seed=seed, device=backbone.device)
            roles.attach(HEAD, self.head)

    def project(self, x0_hat: Tensor) -> Tensor:
        return x0_hat

    def tau_noise(self, rollout_eps: Tensor, noise: Tensor, step: Step, tau: Tensor) -> Tensor:
        return noise

    def more_of_student(self, y: Tensor, batch: Batch) -> Tensor:
        if self.head is None:
            return super().more_of_student(y, batch)
        with self.roles.use("fake") as fake, self.roles.held("fake"):
            seen = self.features(fake, y, batch.cond, batch, "student")
            return self.config.adversarial * adversarial_student_loss(self.head(seen))

    def more_of_fake(self, batch: Batch, rollout: Rollout, update: int) -> Tensor:
        if self.head is None:
            return super().more_of_fake(batch, rollout, update)
        if batch.real is None:
            raise RMDError("method.adversarial needs real images, and the batch has none: set data.images")
        with self.roles.use("fake") as fake:
            of_student = self.head(self.features(fake, rollout.y, batch.cond, batch, f"fake-{update}"))
            of_real = self.head(self.features(fake, batch.real.x0, batch.real.cond, batch, f"real-{update}"))
        return self.config.adversarial_fake * adversarial_fake_loss(of_student, of_real)

    def features(self, fake: nn.Module, x0: Tensor, cond: Cond, batch: Batch, purpose: str) -> Tensor:
        """What the fake score sees in clean latents that fresh noise has taken to times of the whole range."""
        drawn = batch.noise.uniform((len(x0),), f"tau-adversarial-{purpose}").double()
        tau = TAU_MARGIN + (1000.0 - 2 * TAU_MARGIN) * drawn
        noise = batch.noise.normal(x0.shape, f"noise-adversarial-{purpose}")
        with watched(self.backbone.features(fake)[0]) as seen:
            self.predict("fake", fake, self.backbone.schedule.add_noise(x0, noise, tau), tau, cond, self.final)
        return seen[-1]
