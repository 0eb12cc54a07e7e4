"""Training-free switching as in diffusers: an official pipeline whose scheduler enlarges the clean prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler
from torch import nn

from rmd.common.errors import RMDError
from rmd.core.plan import StepPlan
from rmd.models.base import Backbone
from rmd.sample.samplers import PipelineSampler, Sample


def flow_lcm_pipeline(backbone: Backbone, network: nn.Module, plan: StepPlan) -> DiffusionPipeline:
    """Return the backbone's pipeline with another network, and with a scheduler that follows the plan's sides.

    After each step, the scheduler enlarges the clean prediction to the next step's side (bicubically, by default) and
    adds fresh noise for the next teacher time. It has no timestep map.

    Raises:
        RMDError: the teacher is not a rectified flow.
    """
    if backbone.schedule.kind != "flow":
        raise RMDError(f"FlowMatchLCMScheduler needs a rectified flow, which {backbone.family} is not")
    heights = [plan.stage_of(step).height for step in plan.steps]
    scheduler = FlowMatchLCMScheduler.from_config(
        dict(backbone.pipe.scheduler.config), scale_factors=[height / heights[0] for height in heights[1:]]
    )
    parts = {**backbone.pipe.components, backbone.denoiser_name: network, "scheduler": scheduler}
    pipe = type(backbone.pipe)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class FlowLCMSampler(PipelineSampler):
    """Samples with `flow_lcm_pipeline`; its scheduler uses the global generator, whose state is restored."""

    @classmethod
    def of(cls, backbone: Backbone, network: nn.Module, plan: StepPlan) -> FlowLCMSampler:
        """Return the sampler of a plan.

        Raises:
            RMDError: the teacher is not a rectified flow.
        """
        count, first = len(plan.steps), plan.stages[0]
        return cls(
            flow_lcm_pipeline(backbone, network, plan), backbone.family, guidance=1.0,
            height=first.height, width=first.width,
            # before the scheduler applies its shift
            options={
                **backbone.official_options(1), **backbone.official_guidance(1.0),
                "sigmas": [1 - step / count for step in range(count)],
            },
        )  # fmt: skip

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeds[0])
            return super().sample(prompts, seeds)
