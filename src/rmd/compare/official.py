"""Training-free switching as diffusers has it: an official pipeline whose scheduler enlarges the clean prediction."""

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
    """The backbone's pipeline around another network, with a scheduler that follows the plan's sides.

    After each step the clean prediction is enlarged (bicubically, the scheduler's default) to the next step's side and
    noised anew, for the next teacher time: it knows no timestep map.

    Raises:
        RMDError: the teacher is no rectified flow.
    """
    if backbone.schedule.kind != "flow":
        raise RMDError(f"FlowMatchLCMScheduler is of rectified flows, which {backbone.family} is not")
    heights = [plan.stage_of(step).height for step in plan.steps]
    scheduler = FlowMatchLCMScheduler.from_config(
        dict(backbone.pipe.scheduler.config), scale_factors=[height / heights[0] for height in heights[1:]]
    )
    parts = {**backbone.pipe.components, backbone.denoiser_name: network, "scheduler": scheduler}
    pipe = type(backbone.pipe)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class FlowLCMSampler(PipelineSampler):
    """Such a pipeline as a sampler; its scheduler draws from the global generator, which is left as it was found."""

    @classmethod
    def of(cls, backbone: Backbone, network: nn.Module, plan: StepPlan) -> FlowLCMSampler:
        """The sampler of a plan; RMDError as `flow_lcm_pipeline`."""
        count, first = len(plan.steps), plan.stages[0]
        return cls(
            flow_lcm_pipeline(backbone, network, plan), backbone.family, guidance=1.0,
            height=first.height, width=first.width,
            # before the scheduler's own shift
            options={**backbone.official_options(1), "sigmas": [1 - step / count for step in range(count)]},
        )  # fmt: skip

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeds[0])
            return super().sample(prompts, seeds)
