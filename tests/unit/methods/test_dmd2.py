"""DMD2: matching over the whole range with fresh noise, steps that renew theirs, and its gradient in closed form."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.plan import Crossing
from rmd.methods import DMD2, Method
from rmd.methods.base import TAU_MARGIN

FRESH = Crossing(within="fresh")
OWN = {"tau": "all", "fake_weight": "noise", "metric": "l2"}


def make(**config: Any) -> Method:
    backbone = LinearBackbone()
    plan = cascade(backbone, sides=(32,), crossing=FRESH, training_crossing=FRESH)
    return make_method(backbone, plan, name="dmd2", **(OWN | config))


def test_the_sample_is_noised_afresh_where_it_is() -> None:
    method = make()
    assert isinstance(method, DMD2)
    predicted, fresh, x0_hat = (torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for step in method.plan.steps:
        assert method.tau_noise(predicted, fresh, step, torch.tensor([100.0, 900.0])) is fresh
        assert method.project(x0_hat) is x0_hat
        assert method.score_stage(step) == method.final


def test_times_are_those_of_the_whole_range_whatever_the_step() -> None:
    method = make()
    drawn = [
        method.draw_tau(make_batch(method.backbone, iteration=i), step, "tau")
        for i in range(200)
        for step in method.plan.steps[:2]
    ]
    found = torch.cat(drawn)
    assert float(found.min()) >= TAU_MARGIN and float(found.max()) <= 1000 - TAU_MARGIN
    counts = torch.histc(found.float(), bins=4, min=TAU_MARGIN, max=1000 - TAU_MARGIN) / len(found)
    torch.testing.assert_close(counts, torch.full((4,), 0.25), rtol=0, atol=5 * (0.25 * 0.75 / len(found)) ** 0.5)


def test_the_fake_scores_error_is_that_in_the_noise() -> None:
    """SNR |x0 - y|^2 = |eps_hat - eps|^2 for a prediction that shares x_tau."""
    method = make()
    schedule, tau = method.backbone.schedule, torch.tensor([30.0, 500.0, 950.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    y, x0, eps = (torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    alpha, sigma = (f(tau).view(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    eps_hat = (alpha * y + sigma * eps - alpha * x0) / sigma
    weight = method.fake_weight(eps, eps, tau)
    ours = weight * (x0 - y).square().flatten(1).mean(1)
    torch.testing.assert_close(ours, (eps_hat - eps).square().flatten(1).mean(1))


def test_the_students_gradient_is_dmd2s() -> None:
    """d loss / d y = (f_fake - f_real) / mean|y - f_real|, a sample's share of the batch and of its dimensions."""
    method = make()
    batch = make_batch(method.backbone)
    kept: list[Tensor] = []
    project = method.project

    def watch(x0_hat: Tensor) -> Tensor:
        kept.append(project(x0_hat))
        kept[0].retain_grad()
        return kept[0]

    with torch.no_grad():
        for parameter in method.roles.trainable("fake"):
            parameter += 0.1
    with mock.patch.object(method, "project", watch):
        loss, rollout = method.student_loss(batch, method.plan.steps[2])
    loss.backward()
    scale = (rollout.y - rollout.f_real).abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    expected = (rollout.f_fake - rollout.f_real) / scale / rollout.y.numel()
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(kept[0].grad, expected)


def test_what_is_not_dmd2_is_refused() -> None:
    backbone = LinearBackbone()
    with pytest.raises(
        RMDError, match=r"^method dmd2 works at one resolution, but the plan has 2 stages: give one side"
    ):
        make_method(backbone, cascade(backbone, crossing=FRESH, training_crossing=FRESH), name="dmd2")
    with pytest.raises(RMDError, match=r"^method dmd2 renews the noise at every step: set crossing\.within to fresh"):
        make_method(backbone, cascade(backbone, sides=(32,)), name="dmd2")
