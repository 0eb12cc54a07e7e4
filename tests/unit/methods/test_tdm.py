"""TDM's noise in closed form: the trajectory's next state, diffused up, and its relation to RMD at one resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method, network_of, perturb
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.noise import NoiseSchedule
from rmd.methods import TDM, Method
from rmd.methods.common import draw_tau
from rmd.methods.tdm import importance, trajectory_noise

SHAPE = (3, 2, 8, 8)
schedules = pytest.mark.parametrize(
    "scheduler", [{}, {"beta_schedule": None, "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}]
)


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(scheduler: dict[str, Any] | None = None, name: str = "tdm", **config: Any) -> Method:
    backbone = LinearBackbone(**(scheduler or {}))
    return make_method(backbone, cascade(backbone, sides=(32,)), name=name, **config)


def coefficients(schedule: NoiseSchedule, tau: Tensor) -> tuple[Tensor, Tensor]:
    return schedule.alpha(tau).view(-1, 1, 1, 1), schedule.sigma(tau).view(-1, 1, 1, 1)


def times(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, SHAPE[0], dtype=torch.float64)


@schedules
@pytest.mark.parametrize("index", [0, 1, 2])
def test_x_tau_is_the_next_state_diffused_up(scheduler: dict[str, Any], index: int) -> None:
    """x_tau = r x_mid + sqrt(sigma_tau^2 - r^2 sigma_mid^2) eps with r = alpha_tau / alpha_mid."""
    method = make(scheduler)
    schedule, step = method.backbone.schedule, method.plan.steps[index]
    tau = times(step.tau_low + 1, step.tau_high - 1)
    x0, eps_hat, fresh = noise(0), noise(1), noise(2)
    alpha, sigma = coefficients(schedule, tau)
    x_tau = alpha * x0 + sigma * trajectory_noise(schedule, step, tau, eps_hat, fresh)

    alpha_mid, sigma_mid = schedule.alpha(step.tau_low), schedule.sigma(step.tau_low)
    x_mid, r = alpha_mid * x0 + sigma_mid * eps_hat, alpha / alpha_mid
    expected = r * x_mid + (sigma**2 - (r * sigma_mid) ** 2).sqrt() * fresh
    torch.testing.assert_close(x_tau, expected)


@schedules
@pytest.mark.parametrize("index", [0, 1, 2])
def test_at_the_segments_lower_end_x_tau_lies_on_the_trajectory(scheduler: dict[str, Any], index: int) -> None:
    method = make(scheduler)
    step = method.plan.steps[index]
    eps_hat = noise(1)
    tau = torch.full((SHAPE[0],), step.tau_low, dtype=torch.float64)
    mixed = trajectory_noise(method.backbone.schedule, step, tau, eps_hat, noise(2))
    torch.testing.assert_close(mixed, eps_hat, rtol=0, atol=1e-7)


@schedules
def test_the_predicted_noise_fades_towards_higher_times(scheduler: dict[str, Any]) -> None:
    method = make(scheduler)
    step = method.plan.steps[1]
    tau = times(step.tau_low, 990.0)
    schedule = method.backbone.schedule
    rho = trajectory_noise(schedule, step, tau, torch.ones(SHAPE), torch.zeros(SHAPE))[:, 0, 0, 0]
    assert bool((rho.diff() < 0).all())
    assert float(rho[0]) == pytest.approx(1.0)
    assert 0 < float(rho[-1]) < 0.5


@schedules
def test_below_the_segment_the_predicted_noise_is_all_there_is(scheduler: dict[str, Any]) -> None:
    method = make(scheduler)
    eps_hat = noise(1)
    step = method.plan.steps[0]
    tau = times(100.0, step.tau_low - 1)
    assert torch.equal(trajectory_noise(method.backbone.schedule, step, tau, eps_hat, noise(2)), eps_hat)


@schedules
def test_the_last_step_ends_at_the_clean_sample_so_its_noise_is_fresh(scheduler: dict[str, Any]) -> None:
    method = make(scheduler)
    fresh = noise(2)
    step = method.plan.steps[-1]
    assert step.tau_low == 0
    tau = times(20.0, step.tau_high)
    assert torch.equal(trajectory_noise(method.backbone.schedule, step, tau, noise(1), fresh), fresh)


def test_in_the_last_step_tdm_is_rmd_with_fresh_noise() -> None:
    tdm, rmd = make(), make(name="rmd", tau_noise="fresh")
    for step, same in zip(tdm.plan.steps, [False, False, False, True], strict=True):
        ours, theirs = (method.student_loss(make_batch(method.backbone), step) for method in (tdm, rmd))
        assert torch.equal(ours[1].y, theirs[1].y)
        assert torch.equal(ours[1].x_tau, theirs[1].x_tau) == same
        assert torch.equal(ours[0], theirs[0]) == same
        losses = [m.fake_loss(make_batch(m.backbone), r[1]) for m, r in ((tdm, ours), (rmd, theirs))]
        assert torch.equal(*losses) == same


def test_the_importance_weight_is_the_ratio_of_densities() -> None:
    mixed, fresh = noise(1), noise(2)
    mean = (mixed.square() - fresh.square()).flatten(1).mean(1)
    torch.testing.assert_close(importance(mixed, fresh), torch.exp(-mean / 2))
    assert torch.equal(importance(fresh, fresh), torch.ones(SHAPE[0], dtype=torch.float64))


def test_the_fake_scores_error_is_weighted_by_snr_and_importance() -> None:
    method = make()
    backbone, batch, step = method.backbone, make_batch(method.backbone), method.plan.steps[1]
    perturb(method, "fake")
    _, rollout = method.student_loss(batch, step)
    loss = float(method.fake_loss(batch, rollout).detach())
    tau = draw_tau(method, batch, step, "tau-fake-0")
    fresh = batch.noise.normal(rollout.y.shape, "noise-fake-0")
    mixed = trajectory_noise(backbone.schedule, step, tau, rollout.eps_hat, fresh)
    x_tau = backbone.schedule.add_noise(rollout.y, mixed, tau)
    with torch.no_grad():
        x0, _ = backbone.predict(network_of(method, "fake"), x_tau, tau, {"context": batch.cond.tensors["context"]})
    snr = (backbone.schedule.alpha(tau) / backbone.schedule.sigma(tau)).square().clamp(max=5.0)
    weight = snr * importance(mixed, fresh)
    assert loss == pytest.approx(float((weight * (x0 - rollout.y).square().flatten(1).mean(1)).mean()), rel=1e-5)
    assert float((importance(mixed, fresh) - 1).abs().max()) > 1e-3


def test_the_sample_is_the_prediction_itself() -> None:
    """TDM does not upsample: y has the resolution of the step."""
    method = make()
    for step in method.plan.steps:
        _, rollout = method.student_loss(make_batch(method.backbone), step)
        assert rollout.y.shape == rollout.eps_hat.shape == rollout.x_tau.shape


def test_two_resolutions_are_refused() -> None:
    backbone = LinearBackbone()
    sentence = (
        "method tdm works at one resolution, but the plan has 2 stages: "
        "give one side and no threshold, or use method rmd"
    )
    with pytest.raises(RMDError) as caught:
        make_method(backbone, cascade(backbone), name="tdm")
    assert str(caught.value) == sentence
    assert isinstance(make(), TDM)
