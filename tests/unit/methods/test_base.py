"""What methods share: roll-out equals sampler, who is evaluated how often, which step and time is drawn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import PROMPTS, LinearBackbone, assert_same, cascade, make_batch, make_method, tiny_sdxl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.plan import Step
from rmd.core.randomness import CounterNoise
from rmd.core.sampling import guided, run_cascade
from rmd.methods import Method
from rmd.methods.base import TAU_MARGIN, draw_shares
from rmd.models import Backbone, Cond
from rmd.models.generate import predictor
from rmd.models.roles import TRAINED

both_modes = pytest.mark.parametrize("mode", ["lora", "full"])
plans = pytest.mark.parametrize("sides", [(32,), (16, 32), (8, 16, 32)])


@torch.no_grad()
def perturb(method: Method, *roles: Any) -> None:
    """Move the given roles away from the teacher."""
    g = torch.Generator().manual_seed(1)
    for role in roles:
        for parameter in method.roles.trainable(role):
            parameter += 0.1 * torch.randn(parameter.shape, generator=g)


def gradients(method: Method, role: Any) -> list[Tensor]:
    return [parameter.grad for parameter in method.roles.trainable(role)]  # type: ignore[misc]


@both_modes
@plans
def test_a_training_roll_out_is_the_sampler_bit_for_bit(mode: str, sides: tuple[int, ...]) -> None:
    backbone = tiny_sdxl()
    plan = cascade(backbone, sides=sides)
    method = make_method(backbone, plan, mode=mode)
    perturb(method, "student")
    states: dict[int, Tensor] = {}

    def keep(step: Step, x0_hat: Tensor, x_t: Tensor) -> None:
        states[step.index] = x_t

    def sample(**options: Any) -> Tensor:
        with method.roles.fused("student") as student, torch.no_grad():
            return run_cascade(
                predictor(backbone, student, plan, backbone.encode(PROMPTS[:2])),
                plan,
                backbone.schedule,
                lambda stage: method.latent_shape(2, stage),
                CounterNoise(0, range(2), step=9),
                crossing=plan.training_crossing,
                **options,
            )

    sample(on_step=keep)
    for step in plan.steps:
        state = method.state_before(make_batch(backbone, iteration=9), step)
        assert torch.equal(state, sample(until=step.index))
        assert torch.equal(state, states[step.index])
        assert not state.requires_grad


def test_the_step_trained_is_the_step_sampled() -> None:
    """What `student_loss` computes at the last step of a plan is the sampler's picture."""
    backbone = tiny_sdxl()
    plan = cascade(backbone, crossing=cascade(backbone).training_crossing)
    method = make_method(backbone, plan)
    perturb(method, "student")
    batch = make_batch(backbone, iteration=4)
    _, rollout = method.student_loss(batch, plan.steps[-1])
    with method.roles.use("student") as student, torch.no_grad():
        sampled = run_cascade(
            predictor(backbone, student, plan, batch.cond),
            plan,
            backbone.schedule,
            lambda stage: method.latent_shape(2, stage),
            batch.noise,
        )
    # within the step, autograd may pick another kernel than no_grad does
    torch.testing.assert_close(rollout.y, sampled, rtol=0, atol=1e-6)


@both_modes
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_every_role_is_evaluated_as_often_as_needed(mode: str, guidance: float, index: int) -> None:
    backbone = LinearBackbone()
    calls: list[int] = []
    method = make_method(backbone, cascade(backbone), mode=mode, guidance=guidance)
    for module in {id(m): m for role in ("student", "teacher", "fake") for m in [_module(method, role)]}.values():
        module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[index - 1])
    assert method.evaluations == Counter(student=index, teacher=1, fake=1)
    for update in range(2):
        method.fake_loss(batch, rollout, update)
    assert method.evaluations == Counter(student=index, teacher=1, fake=3)
    teacher_batch = 2 if guidance == 1.0 else 4  # both branches in one call
    assert calls == [2] * index + [teacher_batch, 2, 2, 2]


def _module(method: Method, role: Any) -> torch.nn.Module:
    with method.roles.use(role) as module:
        return module


@both_modes
def test_losses_reach_their_own_role_alone(mode: str) -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone), mode=mode)
    perturb(method, *TRAINED)
    batch = make_batch(backbone)
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
def test_nothing_pushes_the_student_where_teacher_and_fake_score_agree(mode: str) -> None:
    """All roles start equal; without guidance f_real = f_fake, so the gradient is zero (Eq. 7)."""
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone), mode=mode, guidance=1.0)
    for step in method.plan.steps:
        loss, rollout = method.student_loss(make_batch(backbone), step)
        assert torch.equal(rollout.f_real, rollout.f_fake)
        assert not loss.detach().any()
        method.roles.zero_grad()
        method.roles.backward("student", loss)
        assert not any(g.any() for g in gradients(method, "student"))


def test_guidance_or_a_changed_fake_score_pushes_the_student() -> None:
    backbone = LinearBackbone()
    for changes, moved in (({"guidance": 3.0}, ()), ({"guidance": 1.0}, ("fake",))):
        method = make_method(backbone, cascade(backbone), **changes)  # type: ignore[arg-type]
        perturb(method, *moved)
        loss, _ = method.student_loss(make_batch(backbone), method.plan.steps[2])
        method.roles.backward("student", loss)
        assert any(g.any() for g in gradients(method, "student"))


@pytest.mark.parametrize(("weight", "metric"), [("none", "l2"), ("sample", "l2"), ("none", "pseudo_huber")])
def test_the_students_gradient_is_the_difference_of_the_scores(weight: str, metric: str) -> None:
    """d loss / d y, in closed form: -(f_real - f_fake) times the weight, over the number of values."""
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, sides=(32,)), weight=weight, metric=metric)
    kept: list[Tensor] = []
    project = method.project

    def spy(x0_hat: Tensor) -> Tensor:
        y = project(x0_hat)
        y.retain_grad()
        kept.append(y)
        return y

    method.project = spy  # type: ignore[method-assign]
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


@plans
def test_scores_are_read_at_the_teachers_resolution(sides: tuple[int, ...]) -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, sides=sides))
    final = backbone.latent_shape(2, 32, 32)
    for step in method.plan.steps:
        _, rollout = method.student_loss(make_batch(backbone), step)
        assert rollout.step is step
        for tensor in (rollout.y, rollout.x_tau, rollout.f_real, rollout.f_fake):
            assert tensor.shape == final
            assert not tensor.requires_grad
        assert rollout.eps_hat.shape == method.latent_shape(2, method.plan.stage_of(step))


def test_f_real_is_guided_and_f_fake_is_not() -> None:
    backbone = tiny_sdxl()
    method = make_method(backbone, cascade(backbone), guidance=3.0)
    perturb(method, "student", "fake")
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[0])

    @torch.no_grad()
    def read(role: Any, cond: Cond) -> Tensor:
        kwargs = backbone.stage_cond(cond, method.final, method.final)
        return backbone.predict(_module(method, role), rollout.x_tau, rollout.tau, kwargs)[0]

    expected = guided(read("teacher", batch.cond), read("teacher", batch.null), 3.0)
    torch.testing.assert_close(rollout.f_real, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(rollout.f_fake, read("fake", batch.cond), rtol=0, atol=1e-5)


def test_the_fake_score_learns_the_students_sample() -> None:
    """Its loss is a weighted squared error against the detached y, on noise of its own for every update."""
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone))
    perturb(method, *TRAINED)
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[3])
    losses = [float(method.fake_loss(batch, rollout, update).detach()) for update in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    method.roles.backward("fake", method.fake_loss(batch, rollout))  # checks that no student parameter is reached
    with torch.no_grad():
        tau = method.draw_tau(batch, rollout.step, "tau-fake-0")
        fresh = batch.noise.normal(rollout.y.shape, "noise-fake-0")
        mixed = method.tau_noise(rollout.eps_hat, fresh, rollout.step, tau)
        x_tau = backbone.schedule.add_noise(rollout.y, mixed, tau)
        kwargs = backbone.stage_cond(batch.cond, method.final, method.final)
        x0, _ = backbone.predict(_module(method, "fake"), x_tau, tau, kwargs)
    snr = (backbone.schedule.alpha(tau) / backbone.schedule.sigma(tau)).square().clamp(max=method.config.snr_cap)
    error = (x0 - rollout.y).square().flatten(1).mean(1)
    assert losses[0] == pytest.approx(float((snr * error).mean()), rel=1e-5)


def test_every_fake_update_draws_its_own_noise_and_its_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone))
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[2])
    drawn: list[Tensor] = []
    draw_tau = method.draw_tau

    def same(*arguments: Any) -> Tensor:
        drawn.append(draw_tau(*arguments))
        return rollout.tau

    monkeypatch.setattr(method, "draw_tau", same)
    assert len({float(method.fake_loss(batch, rollout, update).detach()) for update in range(3)}) == 3
    assert len({tuple(tau.tolist()) for tau in drawn}) == 3


def test_the_fake_scores_weight_is_the_capped_snr_or_one_more() -> None:
    backbone = LinearBackbone()
    tau = torch.tensor([30.0, 400.0, 900.0], dtype=torch.float64)
    snr = (backbone.schedule.alpha(tau) / backbone.schedule.sigma(tau)) ** 2
    noise = torch.zeros(3, 2, 4, 4)
    assert snr[0] > 5 > snr[1]
    plain = make_method(backbone, cascade(backbone)).fake_weight(noise, noise, tau)
    torch.testing.assert_close(plain, snr.clamp(max=5.0))
    one_more = make_method(LinearBackbone(), cascade(backbone), fake_weight="snr_plus_one", snr_cap=2.0)
    torch.testing.assert_close(one_more.fake_weight(noise, noise, tau), snr.clamp(max=2.0) + 1)


TOY = LinearBackbone()
THREE = make_method(LinearBackbone(), cascade(TOY, sides=(8, 16, 32), steps=6), warmup_steps=20)
SEGMENTS = {tau: make_method(LinearBackbone(), cascade(TOY), tau=tau) for tau in ("segment", "above")}


def test_warm_up_trains_the_first_stage_alone() -> None:
    drawn = [THREE.draw_step(i).stage for i in range(300)]
    assert set(drawn[:20]) == {1}
    assert set(drawn[20:]) == {1, 2, 3}
    seeds = [make_method(LinearBackbone(), THREE.plan, warmup_steps=20, seed=seed) for seed in range(20)]
    assert {method.draw_step(19).stage for method in seeds} == {1}
    assert {method.draw_step(20).stage for method in seeds} == {1, 2, 3}


def test_steps_are_drawn_uniformly_over_stages_then_steps() -> None:
    count, seeds = 40, 300
    in_stage = Counter(step.stage for step in THREE.plan.steps)
    assert len(set(in_stage.values())) > 1, "with equally many steps in each stage the order would not matter"
    for iteration in range(20, 20 + count, 13):  # each iteration by itself, over seeds
        methods = (make_method(LinearBackbone(), THREE.plan, warmup_steps=20, seed=seed) for seed in range(seeds))
        steps = Counter(method.draw_step(iteration).index for method in methods)
        for step in THREE.plan.steps:
            expected = 1 / 3 / in_stage[step.stage]
            assert steps[step.index] / seeds == pytest.approx(expected, abs=5 * (expected / seeds) ** 0.5)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_stage_and_step_comes_in_its_turn(seed: int) -> None:
    method = make_method(LinearBackbone(), THREE.plan, warmup_steps=20, seed=seed)
    drawn = [method.draw_step(20 + i) for i in range(60)]
    for start in range(0, 60, 3):
        assert {step.stage for step in drawn[start : start + 3]} == {1, 2, 3}
    for stage in THREE.plan.stages:
        steps = {step.index for step in THREE.plan.steps if step.stage == stage.index}
        visits = [step.index for step in drawn if step.stage == stage.index]
        for start in range(0, len(visits) - len(steps) + 1, len(steps)):
            assert set(visits[start : start + len(steps)]) == steps
    assert [step.index for step in drawn[:30]] != [step.index for step in drawn[30:]]  # not a fixed cycle


@pytest.mark.parametrize("draws", [(1, 2, 1), (3, 1, 2)])
def test_stages_are_drawn_as_often_as_asked(draws: tuple[int, ...]) -> None:
    method = make_method(LinearBackbone(), THREE.plan, warmup_steps=20, stage_draws=draws)
    drawn = [method.draw_step(20 + i) for i in range(sum(draws) * 12)]
    for start in range(0, len(drawn), sum(draws)):
        of_stage = Counter(step.stage for step in drawn[start : start + sum(draws)])
        assert of_stage == dict(zip((1, 2, 3), draws, strict=True))
    steps = Counter(step.index for step in drawn)
    shares = draw_shares(THREE.plan, method.config)
    assert sum(shares) == pytest.approx(1)
    for step, share in zip(THREE.plan.steps, shares, strict=True):
        assert steps[step.index] == pytest.approx(share * len(drawn))


def test_without_a_wish_every_stage_is_drawn_alike() -> None:
    alike = make_method(LinearBackbone(), THREE.plan, warmup_steps=20, stage_draws=(1, 1, 1))
    assert [alike.draw_step(i) for i in range(100)] == [THREE.draw_step(i) for i in range(100)]
    assert draw_shares(THREE.plan, alike.config) == draw_shares(THREE.plan, THREE.config)


def test_a_number_for_every_stage() -> None:
    with pytest.raises(RMDError, match=r"method\.stage_draws has 2 numbers, but the plan 3 stages: give one for each"):
        make_method(LinearBackbone(), THREE.plan, stage_draws=(1, 2))


def test_the_step_is_a_function_of_seed_and_iteration() -> None:
    def drawn(seed: int) -> list[int]:
        method = make_method(LinearBackbone(), cascade(TOY), seed=seed)
        return [method.draw_step(i).index for i in range(40)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@given(iteration=st.integers(0, 1000), index=st.integers(0, 3), tau=st.sampled_from(["segment", "above"]))
def test_tau_stays_in_the_steps_segment(iteration: int, index: int, tau: str) -> None:
    method = SEGMENTS[tau]
    step = method.plan.steps[index]
    drawn = method.draw_tau(make_batch(TOY, iteration=iteration, count=4), step, "tau")
    assert drawn.shape == (4,)
    assert drawn.dtype == torch.float64
    high = step.tau_high if tau == "segment" else 1000.0
    assert float(drawn.min()) >= max(step.tau_low, TAU_MARGIN)
    assert float(drawn.max()) <= min(high, 1000.0 - TAU_MARGIN)


def test_tau_fills_the_segment() -> None:
    noise = CounterNoise(0, range(500))
    batch = make_batch(TOY, noise=noise)
    cond = Cond({"context": torch.zeros(500)})
    batch = type(batch)(0, cond, cond, noise)
    for step in SEGMENTS["segment"].plan.steps:
        drawn = SEGMENTS["segment"].draw_tau(batch, step, "tau")
        low, high = max(step.tau_low, TAU_MARGIN), min(step.tau_high, 1000.0 - TAU_MARGIN)
        assert float(drawn.min()) == pytest.approx(low, abs=0.02 * (high - low))
        assert float(drawn.max()) == pytest.approx(high, abs=0.02 * (high - low))
        assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_a_segment_outside_of_the_margins_still_gives_a_time_between_them() -> None:
    method = make_method(LinearBackbone(), cascade(TOY, sides=(32,), steps=100))
    for step in (method.plan.steps[0], method.plan.steps[-1]):
        drawn = method.draw_tau(make_batch(TOY), step, "tau")
        assert TAU_MARGIN <= float(drawn.min()) <= float(drawn.max()) <= 1000.0 - TAU_MARGIN


def test_a_loss_is_a_function_of_the_batch() -> None:
    backbone: Backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone))
    step = method.plan.steps[2]
    first, again, other = (method.student_loss(make_batch(backbone, iteration=i), step) for i in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert_same(
        {"y": first[1].y, "tau": first[1].tau, "x_tau": first[1].x_tau},
        {"y": again[1].y, "tau": again[1].tau, "x_tau": again[1].x_tau},
    )
    assert not torch.equal(first[1].tau, other[1].tau)


def test_steps_that_share_the_times_of_the_scores_are_drawn_independently() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, sides=(32,)), name="tdm", tau="all")
    drawn = [method.draw_step(iteration).index for iteration in range(4000)]
    again = sum(a == b for a, b in pairwise(drawn)) / 3999
    assert abs(again - 1 / 4) < 5 * (0.25 * 0.75 / 3999) ** 0.5
    assert all(abs(drawn.count(i) / 4000 - 1 / 4) < 5 * (0.25 * 0.75 / 4000) ** 0.5 for i in (1, 2, 3, 4))
