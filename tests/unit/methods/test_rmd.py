"""RMD's losses in closed form: the projection to the teacher's resolution, the noise mixture, and both gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import LinearBackbone, assert_same, cascade, make_batch, make_method, network_of, perturb
from torch import Tensor

from rmd.core.crossing import renoise, upsample
from rmd.core.plan import Crossing, StepPlan
from rmd.methods import RMD, Method
from rmd.methods import rmd as module
from rmd.methods.common import diffuse, draw_tau, roll_out
from rmd.models import Backbone
from rmd.models.roles import TRAINED

both_modes = pytest.mark.parametrize("mode", ["lora", "full"])
SHARP = Crossing(rule="block", beta=0.3)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(backbone: Backbone | None = None, plan: StepPlan | None = None, **config: Any) -> RMD:
    backbone = LinearBackbone() if backbone is None else backbone
    method = make_method(backbone, cascade(backbone) if plan is None else plan, **config)
    assert isinstance(method, RMD)
    return method


def gradients(method: Method, role: Any) -> list[Tensor]:
    return [parameter.grad for parameter in method.roles.trainable(role)]  # type: ignore[misc]


@both_modes
def test_each_loss_reaches_its_own_role_only(mode: str) -> None:
    method = make(mode=mode)
    perturb(method, *TRAINED)
    batch = make_batch(method.backbone)
    for step in method.plan.steps:
        loss, rollout = method.student_loss(batch, step)
        assert loss.shape == ()
        method.roles.zero_grad()
        method.roles.backward("student", loss)
        assert any(g.abs().max() > 0 for g in gradients(method, "student"))
        method.roles.zero_grad()
        method.roles.backward("fake", method.fake_loss(batch, rollout))
        assert any(g.abs().max() > 0 for g in gradients(method, "fake"))


@both_modes
def test_the_student_has_no_gradient_where_both_scores_agree(mode: str) -> None:
    """All roles start equal; without guidance f_real = f_fake, so the gradient is zero (Eq. 7)."""
    method = make(mode=mode, guidance=1.0)
    for step in method.plan.steps:
        loss, rollout = method.student_loss(make_batch(method.backbone), step)
        assert torch.equal(rollout.f_real, rollout.f_fake)
        assert not loss.detach().any()
        method.roles.zero_grad()
        method.roles.backward("student", loss)
        assert not any(g.any() for g in gradients(method, "student"))


def test_guidance_or_a_changed_fake_score_moves_the_student() -> None:
    for guidance, moved in ((3.0, ()), (1.0, ("fake",))):
        method = make(guidance=guidance)
        perturb(method, *moved)
        loss, _ = method.student_loss(make_batch(method.backbone), method.plan.steps[2])
        method.roles.backward("student", loss)
        assert any(g.any() for g in gradients(method, "student"))


@pytest.mark.parametrize("sides", [(32,), (16, 32)])
@pytest.mark.parametrize(("weight", "metric"), [("none", "l2"), ("sample", "l2"), ("none", "pseudo_huber")])
def test_the_students_gradient_is_the_difference_of_the_scores(
    weight: str, metric: str, sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """d loss / d y, in closed form: -(f_real - f_fake) times the weight, divided by the number of values."""
    backbone = LinearBackbone()
    method = make(backbone, cascade(backbone, sides=sides), weight=weight, metric=metric)
    kept: list[Tensor] = []

    def spy(*arguments: Any) -> Tensor:
        y = upsample(*arguments)
        y.retain_grad()
        kept.append(y)
        return y

    monkeypatch.setattr(module, "upsample", spy)
    loss, rollout = method.student_loss(make_batch(backbone), method.plan.steps[1])
    loss.backward()
    gap = rollout.f_real - rollout.f_fake
    dims = gap[0].numel()
    if metric == "l2":
        expected = -gap / dims
    else:
        c = 0.00054 * dims**0.5
        expected = -gap / (gap.flatten(1).square().sum(1) + c * c).sqrt().view(-1, 1, 1, 1)
    if weight == "sample":
        expected = expected / (rollout.y - rollout.f_real).abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    torch.testing.assert_close(kept[0].grad, expected / len(gap), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sides", [(32,), (16, 32), (8, 16, 32)])
def test_both_scores_read_samples_at_the_teachers_resolution(sides: tuple[int, ...]) -> None:
    backbone = LinearBackbone()
    method = make(backbone, cascade(backbone, sides=sides))
    final = backbone.latent_shape(2, 32, 32)
    for step in method.plan.steps:
        _, rollout = method.student_loss(make_batch(backbone), step)
        assert rollout.step is step
        for tensor in (rollout.y, rollout.x_tau, rollout.f_real, rollout.f_fake):
            assert tensor.shape == final
            assert not tensor.requires_grad
        assert rollout.eps_hat.shape == method.latent_shape(2, method.plan.stage_of(step))
        assert method.score_stages(step) == {method.plan.stages[-1]: 1.0}


def test_a_low_resolution_student_can_be_matched_at_a_higher_resolution() -> None:
    backbone = LinearBackbone()
    method = make(backbone, replace(cascade(backbone, sides=(16,)), match_side=(32, 32)), tau_noise="fresh")
    for step in method.plan.steps:
        _, rollout = method.student_loss(make_batch(backbone), step)
        assert rollout.eps_hat.shape[-2:] == method.latent_shape(1, method.plan.stages[0])[-2:]
        assert rollout.y.shape == rollout.f_real.shape == method.latent_shape(2, method.plan.match_stage)
        assert method.draw_score_stage(0, step).size == "32x32"


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_the_scores_read_the_upsampled_sample_under_the_mixed_noise(index: int, mode: Any) -> None:
    """x_tau = alpha Up(x0_hat) + sigma (beta Up(eps_hat) + sqrt(1 - beta^2) eps), Eq. 4 and 10."""
    backbone = LinearBackbone()
    plan = cascade(backbone, training_crossing=Crossing(upsample=mode, beta=0.6))
    method = make(backbone, plan)
    step, batch = plan.steps[index], make_batch(backbone)
    _, rollout = method.student_loss(batch, step)
    x_t = roll_out(method, batch, step)
    with method.roles.use("student") as student, torch.no_grad():
        x0_hat, eps_hat = backbone.predict(student, x_t, step.model_time, {"context": batch.cond.tensors["context"]})
    fresh = batch.noise.normal(rollout.y.shape, "noise-student")
    alpha = backbone.schedule.alpha(rollout.tau).float().view(-1, 1, 1, 1)
    sigma = backbone.schedule.sigma(rollout.tau).float().view(-1, 1, 1, 1)
    size = (32, 32)
    torch.testing.assert_close(rollout.y, upsample(x0_hat, size, mode), rtol=0, atol=1e-5)
    mixed = 0.6 * upsample(eps_hat, size, mode) + 0.8 * fresh
    expected = alpha * upsample(x0_hat, size, mode) + sigma * mixed
    torch.testing.assert_close(rollout.x_tau, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("crossing", [Crossing(beta=0.3), Crossing(rule="corrected", beta=0.3), SHARP])
def test_the_noise_at_tau_is_that_of_the_training_crossing(crossing: Crossing) -> None:
    """At the low resolution as in a crossing, and at the teacher's, where nothing is upsampled, too (Eq. 10)."""
    backbone = LinearBackbone()
    method = make(backbone, cascade(backbone, training_crossing=crossing))
    batch, tau = make_batch(backbone), torch.full((2,), 600.0, dtype=torch.float64)
    y, fresh = noise(2, 2, 32, 32, seed=2), batch.noise.normal((2, 2, 32, 32), "noise-student")
    for step, side in ((method.plan.steps[0], 16), (method.plan.steps[2], 32)):
        eps_hat = noise(2, 2, side, side)
        noisy = diffuse(method, batch, step, y, eps_hat, tau, "student")
        expected = backbone.schedule.add_noise(y, renoise(eps_hat, fresh, crossing), tau)
        assert torch.equal(noisy.x_tau, expected)
        assert noisy.target is y
        assert not torch.equal(noisy.x_tau, backbone.schedule.add_noise(y, fresh, tau))


def test_fresh_noise_ignores_the_prediction() -> None:
    method = make(tau_noise="fresh")
    batch, tau = make_batch(method.backbone), torch.full((2,), 600.0, dtype=torch.float64)
    y, fresh = noise(2, 2, 32, 32, seed=2), batch.noise.normal((2, 2, 32, 32), "noise-student")
    noisy = diffuse(method, batch, method.plan.steps[0], y, noise(2, 2, 16, 16), tau, "student")
    assert torch.equal(noisy.x_tau, method.backbone.schedule.add_noise(y, fresh, tau))


def test_the_fake_score_learns_the_students_sample() -> None:
    """Its loss is a weighted squared error against the detached y, with new noise in every update (Eq. 9)."""
    method = make()
    backbone = method.backbone
    perturb(method, *TRAINED)
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[3])
    losses = [float(method.fake_loss(batch, rollout, update).detach()) for update in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    method.roles.backward("fake", method.fake_loss(batch, rollout))  # checks that no student parameter is reached
    final = method.plan.stages[-1]
    with torch.no_grad():
        tau = draw_tau(method, batch, rollout.step, "tau-fake-0")
        fresh = batch.noise.normal(rollout.y.shape, "noise-fake-0")
        mixed = renoise(rollout.eps_hat, fresh, method.plan.training_crossing)
        x_tau = backbone.schedule.add_noise(rollout.y, mixed, tau)
        kwargs = backbone.stage_cond(batch.cond, final, final)
        x0, _ = backbone.predict(network_of(method, "fake"), x_tau, tau, kwargs)
    snr = (backbone.schedule.alpha(tau) / backbone.schedule.sigma(tau)).square().clamp(max=method.config.snr_cap)
    error = (x0 - rollout.y).square().flatten(1).mean(1)
    assert losses[0] == pytest.approx(float((snr * error).mean()), rel=1e-5)


def test_every_update_of_the_fake_score_has_noise_and_times_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    batch = make_batch(method.backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[2])
    drawn: list[Tensor] = []

    def same(*arguments: Any) -> Tensor:
        drawn.append(draw_tau(*arguments))
        return rollout.tau

    monkeypatch.setattr(module, "draw_tau", same)
    assert len({float(method.fake_loss(batch, rollout, update).detach()) for update in range(3)}) == 3
    assert len({tuple(tau.tolist()) for tau in drawn}) == 3


def test_a_loss_is_a_function_of_the_batch() -> None:
    method = make()
    step = method.plan.steps[2]
    first, again, other = (method.student_loss(make_batch(method.backbone, iteration=i), step) for i in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert_same(
        {"y": first[1].y, "tau": first[1].tau, "x_tau": first[1].x_tau},
        {"y": again[1].y, "tau": again[1].tau, "x_tau": again[1].x_tau},
    )
    assert not torch.equal(first[1].tau, other[1].tau)
