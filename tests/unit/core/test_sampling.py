"""The cascade loop against the samplers of diffusers, analytic results for Gaussian data, and its guarantees."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.crossing import cross, upsample
from rmd.core.noise import (
    FlowSchedule,
    NoiseSchedule,
    Prediction,
    VPSchedule,
    schedule_from_config,
    to_x0_eps,
)
from rmd.core.plan import Crossing, NoiseRule, Stage, Step, StepPlan, build_plan
from rmd.core.randomness import CounterNoise
from rmd.core.sampling import LatentShape, Predict, guided, run_cascade, sample_cascade

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = VPSchedule.from_config(SDXL)
FLOW = FlowSchedule(3.0)
RULES: list[NoiseRule] = ["plain", "corrected", "block"]


def shape(batch: int = 2, channels: int = 3) -> LatentShape:
    """Return shapes of latents with an eighth of the stage's sides."""
    return lambda stage: (batch, channels, stage.height // 8, stage.width // 8)


def cascade(schedule: NoiseSchedule = FLOW, **changes: object) -> StepPlan:
    """Return a plan of three stages, 1+1+2, with a non-integer ratio between the last two."""
    arguments: dict[str, object] = {
        "steps": 4,
        "sides": ((32, 32), (64, 64), (96, 96)),
        "thresholds": (-5.0, -2.5) if schedule.kind == "flow" else (-4.0, -2.0),
        "crossing": Crossing(beta=0.5),
    }
    return build_plan(schedule, **(arguments | changes))  # type: ignore[arg-type]


def one_stage(schedule: NoiseSchedule, steps: int) -> StepPlan:
    return build_plan(schedule, steps=steps, sides=[(64, 64)], thresholds=[])


def network(x: Tensor, t: float) -> Tensor:
    """Evaluate a smooth toy network that mixes neighbours and depends on the time."""
    return torch.tanh(x.roll(1, -1) + 0.3 * x + math.sin(t / 100))


def toy(schedule: NoiseSchedule) -> Predict:
    """Return a predictor that takes the toy network's output as noise (VP) or as velocity (flow)."""

    def predict(x_t: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        t = step.model_time
        output = network(x_t, schedule.model_timestep(t))
        prediction: Prediction = "epsilon" if schedule.kind == "vp" else "flow"
        return to_x0_eps(output, x_t, schedule.alpha(t), schedule.sigma(t), prediction)

    return predict


def gaussian(schedule: NoiseSchedule, mean: float, std: float) -> Predict:
    """Return the exact predictor for data whose values are independent and N(mean, std^2)."""

    def predict(x_t: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        a, s = float(schedule.alpha(step.model_time)), float(schedule.sigma(step.model_time))
        x0 = mean + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * mean)
        return x0, (x_t - a * x0) / s

    return predict


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_fresh_noise_within_a_stage_is_drawn_for_every_step(schedule: NoiseSchedule) -> None:
    """The loop equals a stochastic sampler written out: predict, add fresh noise for the next time, repeat."""
    plan = replace(one_stage(schedule, 4), crossing=Crossing(within="fresh"))
    noise, predict = CounterNoise(0, [0, 1]), toy(schedule)
    x = noise.normal((2, 3, 8, 8), "start")
    for step, following in pairwise(plan.steps):
        x0_hat, _ = predict(x, step)
        fresh = noise.normal((2, 3, 8, 8), f"within-{following.index}")
        x = schedule.add_noise(x0_hat, fresh, following.model_time)
    expected, _ = predict(x, plan.steps[-1])
    assert torch.equal(run_cascade(predict, plan, schedule, shape(), noise), expected)
    deterministic = run_cascade(predict, one_stage(schedule, 4), schedule, shape(), noise)
    assert float((deterministic - expected).abs().mean()) > 0.01


@pytest.mark.parametrize("schedule", [VP, FLOW])
def test_eta_is_the_weight_of_the_predicted_noise_within_a_stage(schedule: NoiseSchedule) -> None:
    """The loop is written out for eta .5; at 1 it draws nothing, and at 0 it is that of fresh noise."""
    plan, noise, predict = one_stage(schedule, 3), CounterNoise(0, [0, 1]), toy(schedule)
    x = noise.normal((2, 3, 8, 8), "start")
    for step, following in pairwise(plan.steps):
        x0_hat, eps_hat = predict(x, step)
        fresh = noise.normal((2, 3, 8, 8), f"within-{following.index}")
        x = schedule.add_noise(x0_hat, 0.5 * eps_hat + math.sqrt(0.75) * fresh, following.model_time)
    expected, _ = predict(x, plan.steps[-1])

    def run(**crossing: Any) -> Tensor:
        return run_cascade(predict, plan, schedule, shape(), noise, crossing=Crossing(**crossing))

    torch.testing.assert_close(run(eta=0.5), expected)
    assert torch.equal(run(eta=1.0), run_cascade(predict, one_stage(schedule, 3), schedule, shape(), noise))
    torch.testing.assert_close(run(eta=0.0), run(within="fresh"))
    with pytest.raises(RMDError, match="steps with fresh noise have no eta"):
        run(eta=0.5, within="fresh")


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_one_stage_is_diffusers_ddim(steps: int) -> None:
    theirs = DDIMScheduler(**SDXL, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    start = CounterNoise(0, [0, 1]).normal((2, 3, 8, 8), "start")
    x = start
    for t in theirs.timesteps:
        x = theirs.step(network(x, float(t)), t, x).prev_sample
    ours = run_cascade(toy(VP), one_stage(VP, steps), VP, shape(), CounterNoise(0, [0, 1]))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_one_stage_is_diffusers_flow_euler(steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    x = CounterNoise(0, [0, 1]).normal((2, 3, 8, 8), "start")
    for t in theirs.timesteps:
        x = theirs.step(network(x, float(t)), t, x).prev_sample
    schedule = schedule_from_config(theirs.config)
    ours = run_cascade(toy(schedule), one_stage(schedule, steps), schedule, shape(), CounterNoise(0, [0, 1]))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_one_stage_is_ddim_written_out() -> None:
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
    x = CounterNoise(3, [0]).normal((1, 3, 8, 8), "start").double()
    start, x0 = x, x
    for t, previous in ((999, 749), (749, 499), (499, 249), (249, None)):
        eps = network(x, t)
        x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
        if previous is not None:
            x = abar[previous].sqrt() * x0 + (1 - abar[previous]).sqrt() * eps
    ours = run_cascade(toy(VP), one_stage(VP, 4), VP, shape(1), CounterNoise(3, [0]), x=start)
    torch.testing.assert_close(ours, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_one_stage_on_gaussian_data_is_the_product_of_its_steps(schedule: NoiseSchedule) -> None:
    mean, std, steps = 1.5, 0.4, 5
    plan = one_stage(schedule, steps)
    start = CounterNoise(0, [0, 1], dtype=torch.float64).normal((2, 3, 8, 8), "start")
    coefficients = [(float(schedule.alpha(s.teacher_time)), float(schedule.sigma(s.teacher_time))) for s in plan.steps]
    gain = 1.0
    for (a, s), (b, r) in zip(coefficients, [*coefficients[1:], (1.0, 0.0)], strict=True):
        gain *= (a * b * std**2 + s * r) / (a**2 * std**2 + s**2)
    expected = mean + gain * (start - coefficients[0][0] * mean)
    result = run_cascade(gaussian(schedule, mean, std), plan, schedule, shape(), CounterNoise(0, [0, 1]), x=start)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_many_steps_on_gaussian_data_follow_the_ode_to_the_data(schedule: NoiseSchedule) -> None:
    mean, std = 1.5, 0.4
    plan = one_stage(schedule, 500)
    start = CounterNoise(0, [0, 1], dtype=torch.float64).normal((2, 3, 8, 8), "start")
    a, s = float(schedule.alpha(1000)), float(schedule.sigma(1000))
    # The probability-flow ODE keeps each value's number of standard deviations from the mean.
    expected = mean + std * (start - a * mean) / math.sqrt(a**2 * std**2 + s**2)
    result = run_cascade(gaussian(schedule, mean, std), plan, schedule, shape(), CounterNoise(0, [0, 1]), x=start)
    torch.testing.assert_close(result, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_a_cascade_on_constant_data_returns_the_constant(schedule: NoiseSchedule, rule: NoiseRule) -> None:
    plan = cascade(schedule, crossing=Crossing(rule=rule, beta=0.5))
    result = run_cascade(gaussian(schedule, 1.5, 0.0), plan, schedule, shape(), CounterNoise(0, [0, 1]))
    torch.testing.assert_close(result, torch.full((2, 3, 12, 12), 1.5))


def test_a_block_cascade_on_white_gaussian_data_keeps_the_states_on_the_schedule() -> None:
    # White data of unit variance at sigma is white noise of variance alpha^2 + sigma^2. Block means of the
    # noise are inherited, so the state after the crossing has exactly the predicted low-resolution part.
    plan = build_plan(
        FLOW,
        steps=4,
        sides=[(64, 64), (128, 128)],
        thresholds=[-2.5],
        crossing=Crossing("nearest", "block", 1.0),
    )
    noise = CounterNoise(0, range(16))
    seen: dict[int, Tensor] = {}

    def remember(step: Step, x0_hat: Tensor, x_t: Tensor) -> None:
        seen[step.index] = x0_hat

    predict = gaussian(FLOW, 0.0, 1.0)
    state = run_cascade(predict, plan, FLOW, shape(16), noise, until=3, on_step=remember)
    into = plan.steps[2].model_time
    before = run_cascade(predict, plan, FLOW, shape(16), noise, until=2)
    _, eps_hat = predict(before, plan.steps[1])
    means = torch.nn.functional.avg_pool2d(state, 2)
    expected = (1 - into / 1000) * seen[2] + into / 1000 * eps_hat / 2
    torch.testing.assert_close(means, expected)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("rule", RULES)
def test_until_returns_the_state_the_full_run_sees_bit_for_bit(schedule: NoiseSchedule, rule: NoiseRule) -> None:
    plan = cascade(schedule, crossing=Crossing(rule=rule, beta=0.5))
    seen: list[Tensor] = []
    x0s: list[Tensor] = []

    def record(step: Step, x0_hat: Tensor, x_t: Tensor) -> None:
        assert step == plan.steps[len(seen)]
        seen.append(x_t)
        x0s.append(x0_hat)

    last = run_cascade(toy(schedule), plan, schedule, shape(), CounterNoise(0, [4, 5]), on_step=record)
    assert torch.equal(last, x0s[-1])
    assert [x.shape[-1] for x in seen] == [4, 8, 12, 12]
    for step in plan.steps:
        state = run_cascade(toy(schedule), plan, schedule, shape(), CounterNoise(0, [4, 5]), until=step.index)
        assert torch.equal(state, seen[step.index - 1])


def test_until_evaluates_only_the_steps_before_it() -> None:
    evaluated: list[int] = []

    def predict(x_t: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        evaluated.append(step.index)
        return x_t, x_t

    run_cascade(predict, cascade(), FLOW, shape(), CounterNoise(0, [0, 1]), until=3)
    assert evaluated == [1, 2]
    state = run_cascade(predict, cascade(), FLOW, shape(), CounterNoise(0, [0, 1]), until=1)
    assert evaluated == [1, 2]
    assert torch.equal(state, CounterNoise(0, [0, 1]).normal((2, 3, 4, 4), "start"))


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_does_not_depend_on_its_batch(rule: NoiseRule) -> None:
    plan = cascade(crossing=Crossing(rule=rule, beta=0.5))
    batch = run_cascade(toy(FLOW), plan, FLOW, shape(3), CounterNoise(0, [7, 8, 9]))
    for i, sample in enumerate([7, 8, 9]):
        alone = run_cascade(toy(FLOW), plan, FLOW, shape(1), CounterNoise(0, [sample]))
        torch.testing.assert_close(alone[0], batch[i], rtol=1e-5, atol=1e-5)
        if rule != "block":  # the block rule's matrix products may round differently with the batch
            assert torch.equal(alone[0], batch[i])


def test_a_run_is_repeatable_and_depends_on_its_seed() -> None:
    first = run_cascade(toy(VP), cascade(VP), VP, shape(), CounterNoise(0, [0, 1]))
    assert torch.equal(first, run_cascade(toy(VP), cascade(VP), VP, shape(), CounterNoise(0, [0, 1])))
    assert not torch.equal(first, run_cascade(toy(VP), cascade(VP), VP, shape(), CounterNoise(1, [0, 1])))


def test_a_given_start_replaces_the_drawn_one() -> None:
    noise = CounterNoise(0, [0, 1])
    start = noise.normal((2, 3, 4, 4), "start")
    drawn = run_cascade(toy(FLOW), cascade(), FLOW, shape(), noise)
    assert torch.equal(run_cascade(toy(FLOW), cascade(), FLOW, shape(), noise, x=start), drawn)
    assert not torch.equal(run_cascade(toy(FLOW), cascade(), FLOW, shape(), noise, x=-start), drawn)


def test_the_crossing_uses_the_next_steps_time_and_its_own_named_noise() -> None:
    plan, noise = cascade(), CounterNoise(0, [0, 1])
    start = noise.normal((2, 3, 4, 4), "start")
    x0_hat, eps_hat = toy(FLOW)(start, plan.steps[0])
    t = plan.steps[1].model_time
    fresh = noise.normal((2, 3, 8, 8), "crossing-2")
    up_x0, up_eps = (upsample(x, (8, 8), "bilinear") for x in (x0_hat, eps_hat))
    expected = (1 - t / 1000) * up_x0 + t / 1000 * (0.5 * up_eps + math.sqrt(0.75) * fresh)
    torch.testing.assert_close(run_cascade(toy(FLOW), plan, FLOW, shape(), noise, until=2), expected)


def test_the_crossing_can_be_replaced_as_a_training_rollout_does() -> None:
    training = Crossing(beta=0.2)
    plan = cascade(training_crossing=training)
    noise = CounterNoise(0, [0, 1])
    rolled = run_cascade(toy(FLOW), plan, FLOW, shape(), noise, crossing=plan.training_crossing)
    assert torch.equal(rolled, run_cascade(toy(FLOW), cascade(crossing=training), FLOW, shape(), noise))
    assert not torch.equal(rolled, run_cascade(toy(FLOW), plan, FLOW, shape(), noise))


def test_the_state_stays_on_the_device_of_its_noise() -> None:
    # The meta device stands for any accelerator: it refuses to mix with tensors left on the CPU.
    for schedule in (VP, FLOW):
        prediction: Prediction = "v_prediction" if schedule.kind == "vp" else "flow"

        def predict(x_t: Tensor, step: Step) -> tuple[Tensor, Tensor]:
            t = torch.full((2,), step.model_time, device=x_t.device)
            return to_x0_eps(x_t, x_t, schedule.alpha(t), schedule.sigma(t), prediction)  # noqa: B023

        for rule in RULES:
            plan = cascade(schedule, crossing=Crossing(rule=rule, beta=0.5))
            noise = CounterNoise(0, [0, 1], device="meta")
            result = run_cascade(predict, plan, schedule, shape(), noise)
            assert result.device.type == "meta"
            assert result.shape == (2, 3, 12, 12)


def test_videos_cross_too() -> None:
    def video_shape(stage: Stage) -> tuple[int, ...]:
        return (1, 2, 3, stage.height // 8, stage.width // 8)

    result = run_cascade(toy(FLOW), cascade(), FLOW, video_shape, CounterNoise(0, [0]))
    assert result.shape == (1, 2, 3, 12, 12)
    assert bool(torch.isfinite(result).all())


def test_the_whole_run_is_differentiable_when_gradients_are_on() -> None:
    start = CounterNoise(0, [0, 1]).normal((2, 3, 4, 4), "start").requires_grad_()
    run_cascade(toy(FLOW), cascade(), FLOW, shape(), CounterNoise(0, [0, 1]), x=start).sum().backward()
    assert start.grad is not None
    assert float(start.grad.abs().sum()) > 0.0


@pytest.mark.parametrize("until", [0, 5, -1])
def test_a_step_that_is_not_in_the_plan_is_refused(until: int) -> None:
    with pytest.raises(RMDError, match=f"cannot stop at step {until}: the plan has 4 steps"):
        run_cascade(toy(FLOW), cascade(), FLOW, shape(), CounterNoise(0, [0, 1]), until=until)


def test_initial_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(RMDError, match=r"has shape \(2, 3, 8, 8\), but the first stage needs \(2, 3, 4, 4\)"):
        run_cascade(toy(FLOW), cascade(), FLOW, shape(), CounterNoise(0, [0, 1]), x=torch.zeros(2, 3, 8, 8))


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(guided(cond, uncond, 1.0), cond)
    assert torch.equal(guided(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guided(cond, uncond, 3.0), torch.tensor([3.0, -2.0]))


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_guiding_x0_and_eps_gives_the_same_state(schedule: NoiseSchedule) -> None:
    a, s = float(schedule.alpha(600.0)), float(schedule.sigma(600.0))
    x_t, first, second = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = guided((x_t - s * first) / a, (x_t - s * second) / a, 4.5)
    torch.testing.assert_close(a * x0 + s * guided(first, second, 4.5), x_t)


def test_the_step_into_a_stage_equals_cross() -> None:
    plan, noise = cascade(VP), CounterNoise(0, [0, 1])
    x0_hat, eps_hat = toy(VP)(noise.normal((2, 3, 4, 4), "start"), plan.steps[0])
    t = plan.steps[1].model_time
    fresh = noise.normal((2, 3, 8, 8), "crossing-2")
    expected = cross(x0_hat, eps_hat, fresh, alpha=VP.alpha(t), sigma=VP.sigma(t), crossing=plan.crossing)
    assert torch.equal(run_cascade(toy(VP), plan, VP, shape(), noise, until=2), expected)


def test_sampling_is_the_roll_out_bit_for_bit() -> None:
    plan, noise = cascade(), CounterNoise(0, [0, 1])
    seen: list[int] = []

    def look(step: Step, x0_hat: Tensor, x_t: Tensor) -> None:
        seen.append(step.index)

    result = sample_cascade(toy(FLOW), plan, FLOW, shape(), noise, on_step=look)
    assert torch.equal(result, run_cascade(toy(FLOW), plan, FLOW, shape(), noise)) and seen == [1, 2, 3, 4]
    start = noise.normal((2, 3, 4, 4), "start")
    assert torch.equal(sample_cascade(toy(FLOW), plan, FLOW, shape(), noise, x=start), result)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("index", "size"), [(1, "32x32"), (3, "96x96"), (4, "96x96")])
def test_the_first_step_that_is_not_finite_is_named(index: int, size: str, value: float) -> None:
    plan = cascade()

    def breaking(x_t: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        x0, eps = toy(FLOW)(x_t, step)
        x0[-1, 0, 0, 0] = value if step.index == index else x0[-1, 0, 0, 0]
        return x0, eps

    expected = rf"^step {index} of 4 \({size}, time {plan.steps[index - 1].model_time:g}\) returned values that are "
    with pytest.raises(RMDError, match=expected):
        sample_cascade(breaking, plan, FLOW, shape(), CounterNoise(0, [0, 1]))
    assert not bool(run_cascade(breaking, plan, FLOW, shape(), CounterNoise(0, [0, 1])).isfinite().all())  # a roll-out


def test_a_tensor_returned_by_a_callback_is_checked_too() -> None:
    def spoil(step: Step, x0_hat: Tensor, x_t: Tensor) -> Tensor | None:
        return torch.full_like(x0_hat, math.nan) if step.index == 4 else None

    with pytest.raises(RMDError, match=r"^step 4 of 4 "):
        sample_cascade(toy(FLOW), cascade(), FLOW, shape(), CounterNoise(0, [0, 1]), on_step=spoil)
