"""Diffusers' own training-free switching: the plan's teacher times and sides, and repeatable noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny_sd3
from helpers import PROMPTS, tiny_sdxl
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.compare.official import FlowLCMSampler, flow_lcm_pipeline
from rmd.core.plan import StepPlan, build_plan
from rmd.models import Backbone

SEEDS = range(3)


def plan_of(backbone: Backbone, *sides: int, steps: int = 4) -> StepPlan:
    thresholds = [-1.0][: len(sides) - 1]
    return build_plan(backbone.schedule, steps=steps, sides=[(side, side) for side in sides], thresholds=thresholds)


def watched(network: nn.Module) -> list[tuple[int, float]]:
    """Return a list that receives the side and the time of every call."""
    seen: list[tuple[int, float]] = []

    def look(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append((kwargs["hidden_states"].shape[-1], float(kwargs["timestep"][0])))

    network.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def test_it_follows_the_plans_teacher_times_and_sides() -> None:
    backbone = tiny_sd3()
    plan = plan_of(backbone, 16, 32)
    seen = watched(backbone.denoiser)
    made = FlowLCMSampler.of(backbone, backbone.denoiser, plan).sample(PROMPTS[:3], SEEDS)
    assert [side for side, _ in seen] == [plan.stage_of(step).height // 2 for step in plan.steps]
    times = [backbone.schedule.model_timestep(torch.tensor(step.teacher_time)).item() for step in plan.steps]
    assert [time for _, time in seen] == pytest.approx(times)
    assert [sample.media.size for sample in made] == [(32, 32)] * 3


def test_one_step_at_one_side_is_the_networks_own_prediction() -> None:
    backbone = tiny_sd3()
    plan = plan_of(backbone, 16, steps=1)
    sampler = FlowLCMSampler.of(backbone, backbone.denoiser, plan)
    (ours,) = sampler.sample(PROMPTS[:1], [7])
    latents = torch.randn(backbone.latent_shape(1, 16, 16), generator=torch.Generator().manual_seed(7))
    (stage,) = plan.stages
    cond = backbone.stage_cond(backbone.encode(PROMPTS[:1]), stage, stage)
    with torch.no_grad():
        x0, _ = backbone.predict(backbone.denoiser, latents, plan.steps[0].model_time, cond)
        expected = ((backbone.decode(x0)[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0)
    assert np.abs(np.asarray(ours.media, dtype=float) - expected.numpy()).max() <= 1


def test_its_noise_is_repeatable_and_the_global_generator_is_left_alone() -> None:
    backbone = tiny_sd3()
    sampler = FlowLCMSampler.of(backbone, backbone.denoiser, plan_of(backbone, 16, 32))
    before = torch.random.get_rng_state()
    one, two, other = (sampler.sample(PROMPTS[:1], [seed])[0].media for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_diffusion_of_another_kind_is_refused() -> None:
    backbone = tiny_sdxl()
    with pytest.raises(RMDError, match=r"^FlowMatchLCMScheduler needs a rectified flow, which sdxl is not$"):
        flow_lcm_pipeline(backbone, backbone.denoiser, plan_of(backbone, 16, 32))
