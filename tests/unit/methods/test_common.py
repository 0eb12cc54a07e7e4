"""The steps that methods share: the roll-out equals the sampler, network calls, tau, and the fake score's weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import PROMPTS, LinearBackbone, cascade, make_batch, make_method, network_of, perturb, tiny_sdxl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.plan import Step, StepPlan
from rmd.core.randomness import CounterNoise
from rmd.core.sampling import guided, run_cascade
from rmd.core.shift import shift_time
from rmd.methods.common import (
    TAU_MARGIN,
    diffuse,
    draw_tau,
    fake_weight,
    guidance_range,
    real_prediction,
    roll_out,
    tau_range,
)
from rmd.models import Backbone, Cond
from rmd.models.generate import predictor, sample_latents
from rmd.recipes.methods import RMDConfig

both_modes = pytest.mark.parametrize("mode", ["lora", "full"])
TOY = LinearBackbone()
PLAN = cascade(TOY)
METHODS = {tau: make_method(TOY, PLAN, tau=tau) for tau in ("segment", "above", "all")}


def matched_plan(backbone: Backbone) -> StepPlan:
    """A student of one low resolution that is matched at a higher one."""
    return replace(cascade(backbone, sides=(16,)), match_side=(32, 32))


@both_modes
@pytest.mark.parametrize("sides", [(32,), (16, 32), (8, 16, 32), None])
def test_the_roll_out_is_the_sampler_bit_for_bit(mode: str, sides: tuple[int, ...] | None) -> None:
    backbone = tiny_sdxl()
    plan = matched_plan(backbone) if sides is None else cascade(backbone, sides=sides)
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
        state = roll_out(method, make_batch(backbone, iteration=9), step)
        assert torch.equal(state, sample(until=step.index))
        assert torch.equal(state, states[step.index])
        assert not state.requires_grad


def test_training_and_sampling_tell_the_networks_the_size_that_the_plan_is_matched_at() -> None:
    """Student, teacher and fake score are all conditioned on the higher resolution at which samples are matched."""
    backbone = tiny_sdxl()
    plan = matched_plan(backbone)
    told: list[list[int]] = []

    def spy(module: torch.nn.Module, arguments: Any, options: Any) -> None:
        told.append([int(side) for side in options["added_cond_kwargs"]["time_ids"][0]])

    handle = backbone.denoiser.register_forward_pre_hook(spy, with_kwargs=True)
    method = make_method(backbone, plan, mode="lora")
    batch = make_batch(backbone)
    with method.roles.use("student") as student:
        sample_latents(backbone, student, plan, batch.cond, batch.noise)
    sampled, _ = told.copy(), told.clear()
    _, rollout = method.student_loss(batch, plan.steps[-1])
    handle.remove()
    assert sampled == [[32, 32, 0, 0, 16, 16]] * 4  # original_size, crop, target_size
    assert told[:4] == sampled
    assert told[4:] == [[32, 32, 0, 0, 32, 32]] * 2  # teacher and fake score
    assert rollout.y.shape[-2:] == rollout.f_real.shape[-2:] == (16, 16)  # of latents


def test_the_trained_step_is_the_sampled_step() -> None:
    """At the last step of a plan, `student_loss` computes the sampler's result."""
    backbone = tiny_sdxl()
    plan = cascade(backbone, crossing=cascade(backbone).training_crossing)
    method = make_method(backbone, plan)
    perturb(method, "student")
    batch = make_batch(backbone, iteration=4)
    _, rollout = method.student_loss(batch, plan.steps[-1])
    with method.roles.use("student") as student:
        sampled = sample_latents(backbone, student, plan, batch.cond, batch.noise)
    # Within the step, autograd may choose another kernel than no_grad does.
    torch.testing.assert_close(rollout.y, sampled, rtol=0, atol=1e-6)


@both_modes
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_every_role_is_called_as_often_as_needed(mode: str, guidance: float, index: int) -> None:
    backbone = LinearBackbone()
    calls: list[int] = []
    method = make_method(backbone, cascade(backbone), mode=mode, guidance=guidance)
    for module in {id(m): m for role in ("student", "teacher", "fake") for m in [network_of(method, role)]}.values():
        module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[index - 1])
    assert method.evaluations == Counter(student=index, teacher=1, fake=1)
    for update in range(2):
        method.fake_loss(batch, rollout, update)
    assert method.evaluations == Counter(student=index, teacher=1, fake=3)
    teacher_batch = 2 if guidance == 1.0 else 4  # both branches in one call
    assert calls == [2] * index + [teacher_batch, 2, 2, 2]


def test_f_real_is_guided_and_f_fake_is_not() -> None:
    backbone = tiny_sdxl()
    method = make_method(backbone, cascade(backbone), guidance=3.0)
    perturb(method, "student", "fake")
    batch = make_batch(backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[0])
    final = method.plan.stages[-1]

    @torch.no_grad()
    def read(role: Any, cond: Cond) -> Tensor:
        kwargs = backbone.stage_cond(cond, final, final)
        return backbone.predict(network_of(method, role), rollout.x_tau, rollout.tau, kwargs)[0]

    expected = guided(read("teacher", batch.cond), read("teacher", batch.null), 3.0)
    torch.testing.assert_close(rollout.f_real, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(rollout.f_fake, read("fake", batch.cond), rtol=0, atol=1e-5)


def test_the_weight_of_the_fake_score_is_the_capped_snr_that_plus_one_or_the_uncapped_snr() -> None:
    schedule, tau = TOY.schedule, torch.tensor([30.0, 400.0, 900.0], dtype=torch.float64)
    snr = (schedule.alpha(tau) / schedule.sigma(tau)) ** 2
    assert snr[0] > 5 > snr[1]

    def weight(**settings: Any) -> Tensor:
        return fake_weight(RMDConfig(guidance=1.0, **settings), schedule, tau)

    torch.testing.assert_close(weight(), snr.clamp(max=5.0))
    torch.testing.assert_close(weight(fake_weight="snr_plus_one", snr_cap=2.0), snr.clamp(max=2.0) + 1)
    torch.testing.assert_close(weight(fake_weight="noise"), snr)


@given(iteration=st.integers(0, 1000), index=st.integers(0, 3), tau=st.sampled_from(sorted(METHODS)))
def test_tau_stays_in_its_range(iteration: int, index: int, tau: str) -> None:
    step = PLAN.steps[index]
    drawn = draw_tau(METHODS[tau], make_batch(TOY, iteration=iteration, count=4), step, "tau")
    assert drawn.shape == (4,)
    assert drawn.dtype == torch.float64
    low = 0.0 if tau == "all" else step.tau_low
    high = step.tau_high if tau == "segment" else 1000.0
    assert float(drawn.min()) >= max(low, TAU_MARGIN)
    assert float(drawn.max()) <= min(high, 1000.0 - TAU_MARGIN)


@pytest.mark.parametrize("tau", sorted(METHODS))
def test_tau_fills_its_range(tau: str) -> None:
    noise = CounterNoise(0, range(500))
    cond = Cond({"context": torch.zeros(500)})
    batch = type(make_batch(TOY))(0, cond, cond, noise)
    for step in PLAN.steps:
        drawn = draw_tau(METHODS[tau], batch, step, "tau")
        low = max(0.0 if tau == "all" else step.tau_low, TAU_MARGIN)
        high = min(step.tau_high if tau == "segment" else 1000.0, 1000.0 - TAU_MARGIN)
        assert float(drawn.min()) == pytest.approx(low, abs=0.02 * (high - low))
        assert float(drawn.max()) == pytest.approx(high, abs=0.02 * (high - low))
        assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_a_segment_outside_of_the_margins_still_gives_a_time_between_them() -> None:
    plan = cascade(TOY, sides=(32,), steps=100)
    for step in (plan.steps[0], plan.steps[-1]):
        drawn = draw_tau(make_method(TOY, plan), make_batch(TOY), step, "tau")
        assert TAU_MARGIN <= float(drawn.min()) <= float(drawn.max()) <= 1000.0 - TAU_MARGIN


def test_the_range_of_stage_ends_at_the_last_step_of_the_stage_before() -> None:
    """In the first stage, it ends at pure noise; both ends keep the margin."""
    plan = cascade(TOY, sides=(8, 16, 32), steps=6)
    config = RMDConfig(guidance=1.0, tau="stage")
    for step in plan.steps:
        before = [other.teacher_time for other in plan.steps if other.stage < step.stage]
        low, high = tau_range(config, step, plan)
        assert high == min(before[-1] if before else 1000.0, 1000.0 - TAU_MARGIN)
        assert low == max(step.tau_low, TAU_MARGIN)


def test_an_offset_leaves_out_its_share_of_the_range_at_the_lower_end() -> None:
    """Each stage has its own, and later ones that of the last; the margin from 0 does not count in the share."""
    plan = cascade(TOY, sides=(8, 16, 32), steps=6)
    whole, part = (RMDConfig(guidance=1.0, tau="stage", tau_offset=offsets) for offsets in ((), (0.5, 0.1)))
    for step in plan.steps:
        low, high = tau_range(whole, step, plan)
        bottom = step.tau_low if step.index < 6 else 0.0
        share = 0.5 if step.stage == 1 else 0.1
        assert tau_range(part, step, plan) == pytest.approx((max(bottom + share * (high - bottom), TAU_MARGIN), high))
        assert low == max(bottom, TAU_MARGIN)
    nothing = RMDConfig(guidance=1.0, tau_offset=(1.0,))
    for step in plan.steps:
        low, high = tau_range(nothing, step, plan)
        assert low == high, "all of the range is left out but its upper end"


def test_grid_spacing_draws_uniformly_before_the_flow_shift() -> None:
    flow = LinearBackbone(beta_schedule=None, _class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    plan = cascade(flow, sides=(16, 32))
    batch = make_batch(flow)
    cond = Cond({"context": torch.zeros(500)})
    batch = type(batch)(0, cond, cond, CounterNoise(0, range(500)))
    for step in plan.steps:
        drawn = {}
        for spacing in ("time", "grid"):
            method = make_method(flow, plan, tau="stage", tau_spacing=spacing, tau_offset=(0.25,))
            drawn[spacing] = draw_tau(method, batch, step, "tau")
            low, high = tau_range(method.config, step, plan, shift=3.0)
            uniform = drawn[spacing] if spacing == "time" else shift_time(drawn[spacing], 1 / 3)
            ends = (low, high) if spacing == "time" else (shift_time(low, 1 / 3), shift_time(high, 1 / 3))
            assert float(uniform.min()) >= ends[0] - 1e-9 and float(uniform.max()) <= ends[1] + 1e-9
            assert float(uniform.mean()) == pytest.approx(sum(ends) / 2, abs=0.05 * (ends[1] - ends[0]))
        assert not torch.equal(drawn["time"], drawn["grid"])


def test_without_a_shift_both_spacings_are_the_same() -> None:
    for step in PLAN.steps:
        time, grid = (
            draw_tau(make_method(TOY, PLAN, tau="above", tau_spacing=spacing), make_batch(TOY), step, "tau")
            for spacing in ("time", "grid")
        )
        torch.testing.assert_close(time, grid)


@pytest.mark.parametrize("rule", ["trajectory", "trajectory_sample"])
def test_scores_of_a_trajectory_read_no_time_below_its_next_state(rule: Any) -> None:
    """Wan's grid has its second step at 962, above the least time that other ranges begin at."""
    plan = cascade(TOY, times=[1000, 970, 500, 250], steps=None)
    step = plan.steps[0]
    assert tau_range(RMDConfig(guidance=1.0), step, plan) == (960.0, 980.0)
    assert tau_range(RMDConfig(guidance=1.0, tau_noise=rule), step, plan) == (970.0, 980.0)


def test_the_weight_of_a_stage_scales_the_students_loss_at_its_steps() -> None:
    losses = []
    for weights in ((), (1.0, 1.0), (0.5, 3.0)):
        backbone = LinearBackbone()
        method = make_method(backbone, PLAN, stage_weights=weights)
        perturb(method, "student")
        losses.append([float(method.student_loss(make_batch(backbone), step)[0].detach()) for step in PLAN.steps])
    assert losses[0] == losses[1]
    factors = [0.5 if step.stage == 1 else 3.0 for step in PLAN.steps]
    assert losses[2] == pytest.approx([f * loss for f, loss in zip(factors, losses[0], strict=True)], rel=1e-6)


def test_guidance_read_at_a_cleaner_time_is_added_to_the_unguided_score() -> None:
    """f_real = f(x_tau) + (guidance - 1) (cond - uncond) of a state of its own, in one call of three branches."""
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone), guidance=3.0, guidance_tau="below", matching="own")
    batch = make_batch(backbone)
    for step in method.plan.steps:
        sample = method.sample(batch, step)
        tau = draw_tau(method, batch, step, "tau-student")
        x_tau = diffuse(method, batch, step, sample.y.detach(), sample.eps_hat, tau, "student").x_tau
        method.evaluations.clear()
        real = real_prediction(method, batch, sample, x_tau, tau)
        assert method.evaluations == {"teacher": 1}

        low, high = guidance_range(method.config, sample, method.plan)
        assert (low, high) == (TAU_MARGIN, min(step.tau_high, 1000 - TAU_MARGIN))
        below = low + (high - low) * batch.noise.uniform((2,), "tau-guidance").double()
        x_below = diffuse(method, batch, step, sample.y.detach(), sample.eps_hat, below, "guidance").x_tau
        with method.roles.use("teacher") as teacher, torch.no_grad():
            score, with_prompt, without = (
                method.predict("teacher", teacher, x, t, cond, sample.stage)[0]
                for x, t, cond in ((x_tau, tau, batch.cond), (x_below, below, batch.cond), (x_below, below, batch.null))
            )
        torch.testing.assert_close(real, score + 2.0 * (with_prompt - without))
        assert float((with_prompt - without).abs().max()) > 0


def test_guidance_below_keeps_to_the_segment_where_the_sample_is_upsampled_or_the_next_state_is_read() -> None:
    for options in ({"matching": "teacher"}, {"matching": "own", "tau_noise": "trajectory"}):
        method = make_method(TOY, PLAN, guidance_tau="below", **options)
        step = PLAN.steps[1]
        sample = method.sample(make_batch(TOY), step)
        assert guidance_range(method.config, sample, PLAN) == (step.tau_low, step.tau_high)


def test_the_teachers_branches_are_counted() -> None:
    counts = [
        RMDConfig(guidance=guidance, guidance_tau=tau).teacher_branches
        for guidance, tau in ((1.0, "same"), (1.0, "below"), (3.0, "same"), (3.0, "below"))
    ]
    assert counts == [1, 1, 2, 3]


@pytest.mark.parametrize("tau", ["same", "below"])
def test_each_stage_may_have_its_own_guidance(tau: str) -> None:
    """The teacher's prediction is affine in the scale, so that of a stage is known from two others."""
    results = {}
    for scales in ((1.0, 5.0), (2.0, 3.0), (3.0, 1.0)):
        method = make_method(TOY, PLAN, guidance=3.0, guidance_tau=tau, stage_guidance=scales)
        batch = make_batch(TOY)
        results[scales] = [method.student_loss(batch, step)[1].f_real for step in PLAN.steps]
    usual = make_method(TOY, PLAN, guidance=3.0, guidance_tau=tau)
    for i, step in enumerate(PLAN.steps):
        one, two, three = (results[scales][i] for scales in results)
        torch.testing.assert_close(two, (one + three) / 2)
        same = three if step.stage == 1 else two
        torch.testing.assert_close(usual.student_loss(make_batch(TOY), step)[1].f_real, same)
        assert not torch.equal(one, three)


@pytest.mark.parametrize("name", ["stage_draws", "stage_weights", "stage_guidance"])
def test_settings_by_stage_have_one_number_for_each(name: str) -> None:
    with pytest.raises(RMDError, match=rf"method\.{name} has 3 numbers, but the plan has 2 stages: give one for each"):
        make_method(TOY, PLAN, **{name: (1, 2, 3)})


def test_guidance_by_stage_needs_guidance() -> None:
    with pytest.raises(RMDError, match="turns guidance off, so"):
        make_method(TOY, PLAN, guidance=1.0, stage_guidance=(1.0, 2.0))
