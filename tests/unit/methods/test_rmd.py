"""RMD's own parts: the projection to the teacher's resolution and the noise mixture, in closed form."""

from __future__ import annotations

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method
from torch import Tensor

from rmd.core.crossing import renoise, upsample
from rmd.core.plan import Crossing
from rmd.methods import DMD2, METHODS, RMD, TDM, Stagewise

SHARP = Crossing(rule="block", beta=0.3)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_methods_are_found_by_their_names() -> None:
    assert {"rmd": RMD, "tdm": TDM, "dmd2": DMD2, "stagewise": Stagewise} == METHODS


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_low_resolution_predictions_are_upsampled_as_in_the_training_crossing(mode: str) -> None:
    backbone = LinearBackbone()
    crossing = Crossing(upsample=mode)  # type: ignore[arg-type]
    method = make_method(backbone, cascade(backbone, training_crossing=crossing, crossing=crossing))
    x0_hat = noise(2, 2, 16, 16)
    assert torch.equal(method.project(x0_hat), upsample(x0_hat, (32, 32), crossing.upsample))


def test_the_projection_is_the_identity_at_the_teachers_resolution_and_differentiable_below() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone))
    full = noise(2, 2, 32, 32)
    assert method.project(full) is full
    low = noise(2, 2, 16, 16).requires_grad_()
    method.project(low).sum().backward()
    assert low.grad is not None
    assert float(low.grad.sum()) == pytest.approx(2 * 2 * 32 * 32, rel=1e-5)  # bilinear weights sum to one


@pytest.mark.parametrize("crossing", [Crossing(beta=0.3), Crossing(rule="corrected", beta=0.3), SHARP])
def test_the_noise_at_tau_is_that_of_a_crossing(crossing: Crossing) -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, training_crossing=crossing))
    eps_hat, fresh = noise(2, 2, 16, 16), noise(2, 2, 32, 32, seed=1)
    tau = torch.tensor([800.0, 900.0])
    mixed = method.tau_noise(eps_hat, fresh, method.plan.steps[0], tau)
    assert torch.equal(mixed, renoise(eps_hat, fresh, crossing))
    assert not torch.equal(mixed, fresh)


def test_at_the_teachers_resolution_the_mixture_is_the_two_noises() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, training_crossing=Crossing(beta=0.6)))
    eps_hat, fresh = noise(2, 2, 32, 32), noise(2, 2, 32, 32, seed=1)
    mixed = method.tau_noise(eps_hat, fresh, method.plan.steps[-1], torch.tensor([100.0, 200.0]))
    torch.testing.assert_close(mixed, 0.6 * eps_hat + 0.8 * fresh)


def test_fresh_noise_ignores_the_prediction() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone), tau_noise="fresh")
    fresh = noise(2, 2, 32, 32)
    assert method.tau_noise(noise(2, 2, 16, 16), fresh, method.plan.steps[0], torch.tensor([900.0, 900.0])) is fresh


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_the_scores_meet_the_upsampled_sample_under_that_noise(index: int) -> None:
    """x_tau = alpha Up(x0_hat) + sigma (beta Up(eps_hat) + sqrt(1 - beta^2) eps): steps 3 and 4 of the method."""
    backbone = LinearBackbone()
    plan = cascade(backbone, training_crossing=Crossing(beta=0.6))
    method = make_method(backbone, plan)
    step, batch = plan.steps[index], make_batch(backbone)
    _, rollout = method.student_loss(batch, step)
    x_t = method.state_before(batch, step)
    with method.roles.use("student") as student, torch.no_grad():
        x0_hat, eps_hat = backbone.predict(student, x_t, step.model_time, dict(context=batch.cond.tensors["context"]))
    fresh = batch.noise.normal(rollout.y.shape, "noise-student")
    alpha = backbone.schedule.alpha(rollout.tau).float().view(-1, 1, 1, 1)
    sigma = backbone.schedule.sigma(rollout.tau).float().view(-1, 1, 1, 1)
    size = (32, 32)
    mixed = 0.6 * upsample(eps_hat, size, "bilinear") + 0.8 * fresh
    expected = alpha * upsample(x0_hat, size, "bilinear") + sigma * mixed
    torch.testing.assert_close(rollout.x_tau, expected, rtol=0, atol=1e-4)


def test_a_low_resolution_student_can_be_matched_at_a_higher_one() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, sides=(16,)), scored=(32, 32), tau_noise="fresh")
    for step in method.plan.steps:
        _, rollout = method.student_loss(make_batch(backbone), step)
        assert rollout.eps_hat.shape[-2:] == method.latent_shape(1, method.plan.stages[0])[-2:]
        assert rollout.y.shape == rollout.f_real.shape == method.latent_shape(2, method.final)
        assert (method.final.height, method.final.width) == (32, 32)
        assert method.score_stage(step) == method.final
