"""A one-stage plan by the official pipeline of a family and by the library, on the same start noise."""

from __future__ import annotations

from inspect import signature

from families import frames_of
from helpers import PROMPTS
from torch import Tensor

from rmd.core.plan import StepPlan, build_plan
from rmd.core.randomness import CounterNoise
from rmd.models import Backbone
from rmd.models.generate import sample_latents

SEED = 3
STEPS = 4


def one_stage(backbone: Backbone, size: tuple[int, int], steps: int = STEPS) -> StepPlan:
    return build_plan(
        backbone.schedule, steps=steps, sides=[size], thresholds=[], multiple=backbone.size_multiple,
        frames=frames_of(backbone),
    )  # fmt: skip


def official(
    backbone: Backbone, size: tuple[int, int], guidance: float, *, steps: int = STEPS, output_type: str = "latent"
) -> Tensor:
    """The stock pipeline on the noise that `sample_images` draws for `SEED`."""
    options = {"num_inference_steps": steps, **backbone.official_options(frames_of(backbone))}
    scheduler = backbone.pipe.scheduler
    if backbone.schedule.kind == "flow" and not scheduler.config.use_dynamic_shifting:
        sigmas = [step.teacher_time / 1000 for step in one_stage(backbone, size, steps).steps]
        scheduler.set_shift(1.0)  # the sigmas are shifted already, and would be again
        if "sigmas" in signature(backbone.pipe.__call__).parameters:
            options["sigmas"] = sigmas
        else:  # as Wan's
            scheduler.set_timesteps = lambda count, device: type(scheduler).set_timesteps(
                scheduler, sigmas=sigmas, device=device
            )
    shape = backbone.latent_shape(len(PROMPTS), *size, frames_of(backbone))
    start = CounterNoise(SEED, range(len(PROMPTS))).normal(shape, "start")
    start = start.to(next(backbone.denoiser.parameters()).dtype)  # the stock pipelines take latents as they are
    options |= {"height": size[0], "width": size[1], "output_type": output_type, **backbone.official_guidance(guidance)}
    made = backbone.pipe(prompt=PROMPTS, latents=backbone.to_official(start), **options)
    result: Tensor = made.frames if backbone.moving else made.images
    return backbone.from_official(result, *size) if output_type == "latent" else result


def ours(backbone: Backbone, size: tuple[int, int], guidance: float, *, steps: int = STEPS) -> Tensor:
    """The library's own latents."""
    null = backbone.null(len(PROMPTS)) if guidance != 1.0 else None
    plan, cond = one_stage(backbone, size, steps), backbone.encode(PROMPTS)
    noise = CounterNoise(SEED, range(len(PROMPTS)))
    return sample_latents(backbone, backbone.denoiser, plan, cond, noise, null=null, guidance=guidance)
