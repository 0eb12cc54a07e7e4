"""DMD2: matching over the whole range with fresh noise, steps that renew theirs, and its gradient in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.losses import generator_loss
from rmd.core.plan import Crossing
from rmd.methods import DMD2, Method
from rmd.methods import dmd2 as module
from rmd.methods.common import TAU_MARGIN, draw_tau, fake_weight

FRESH = Crossing(within="fresh")
OWN = {"tau": "all", "fake_weight": "noise", "metric": "l2"}


def make(**config: Any) -> Method:
    backbone = LinearBackbone()
    plan = cascade(backbone, sides=(32,), crossing=FRESH, training_crossing=FRESH)
    return make_method(backbone, plan, name="dmd2", **(OWN | config))


def test_the_sample_is_the_prediction_itself_under_fresh_noise() -> None:
    method = make()
    assert isinstance(method, DMD2)
    batch, schedule = make_batch(method.backbone), method.backbone.schedule
    for step in method.plan.steps:
        _, rollout = method.student_loss(batch, step)
        fresh = batch.noise.normal(rollout.y.shape, "noise-student")
        assert rollout.y.shape == rollout.eps_hat.shape
        assert torch.equal(rollout.x_tau, schedule.add_noise(rollout.y, fresh, rollout.tau))
        assert method.score_stages(step) == {method.plan.stages[-1]: 1.0}


def test_tau_comes_from_the_whole_range_at_every_step() -> None:
    method = make()
    drawn = [
        draw_tau(method, make_batch(method.backbone, iteration=i), step, "tau")
        for i in range(200)
        for step in method.plan.steps[:2]
    ]
    tau = torch.cat(drawn)
    assert float(tau.min()) >= TAU_MARGIN and float(tau.max()) <= 1000 - TAU_MARGIN
    counts = torch.histc(tau.float(), bins=4, min=TAU_MARGIN, max=1000 - TAU_MARGIN) / len(tau)
    torch.testing.assert_close(counts, torch.full((4,), 0.25), rtol=0, atol=5 * (0.25 * 0.75 / len(tau)) ** 0.5)


def test_the_fake_score_minimises_the_error_in_the_noise() -> None:
    """SNR |x0 - y|^2 = |eps_hat - eps|^2 for a prediction that shares x_tau."""
    method = make()
    schedule, tau = method.backbone.schedule, torch.tensor([30.0, 500.0, 950.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    y, x0, eps = (torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    alpha, sigma = (f(tau).view(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    eps_hat = (alpha * y + sigma * eps - alpha * x0) / sigma
    weight = fake_weight(method.config, schedule, tau)
    error = weight * (x0 - y).square().flatten(1).mean(1)
    torch.testing.assert_close(error, (eps_hat - eps).square().flatten(1).mean(1))


def test_the_students_gradient_is_dmd2s(monkeypatch: pytest.MonkeyPatch) -> None:
    """d loss / d y = (f_fake - f_real) / mean|y - f_real|, a sample's share of the batch and of its dimensions."""
    method = make()
    batch = make_batch(method.backbone)
    kept: list[Tensor] = []

    def spy(y: Tensor, *arguments: Any, **options: Any) -> Tensor:
        y.retain_grad()
        kept.append(y)
        return generator_loss(y, *arguments, **options)

    monkeypatch.setattr(module, "generator_loss", spy)
    with torch.no_grad():
        for parameter in method.roles.trainable("fake"):
            parameter += 0.1
    loss, rollout = method.student_loss(batch, method.plan.steps[2])
    loss.backward()
    scale = (rollout.y - rollout.f_real).abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    expected = (rollout.f_fake - rollout.f_real) / scale / rollout.y.numel()
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(kept[0].grad, expected)


def test_plans_that_do_not_fit_are_refused() -> None:
    backbone = LinearBackbone()
    with pytest.raises(
        RMDError, match=r"^method dmd2 works at one resolution, but the plan has 2 stages: give one side"
    ):
        make_method(backbone, cascade(backbone, crossing=FRESH, training_crossing=FRESH), name="dmd2")
    with pytest.raises(RMDError, match=r"^method dmd2 renews the noise at every step: set crossing\.within to fresh"):
        make_method(backbone, cascade(backbone, sides=(32,)), name="dmd2")
