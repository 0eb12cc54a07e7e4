"""A cascade with ComfyUI's own samplers: one call of its sampling for each stage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from .crossing import draws_within, enlarged, kept, mixed
from .noise import SOURCES
from .plan import Plan, PlanError, levels
from .students import check_family, family_of

TABLE = 1000
"""Number of noise levels of a variance-preserving model."""


class StageSteps:
    """The sampler function of one stage: steps along the noise levels, after which the last prediction is kept.

    Attributes:
        clean, noise: the predictions of the last step, which the next stage continues.
    """

    clean: Tensor
    noise: Tensor

    def __init__(self, flow: bool, draw: Callable[[int, Tensor], Tensor | None], plan: Plan) -> None:
        """Create the steps; `draw` returns the fresh noise for a step of the stage, counted from 0, or None."""
        self.flow, self.draw, self.crossing = flow, draw, plan.crossing

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        """Return the clean prediction of the last step."""
        for index in range(len(sigmas) - 1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            sigma = sigmas[index]
            self.clean = model(x, sigma.expand(len(x)), **(extra_args or {}))
            self.noise = (x - self._signal(sigma) * self.clean) / sigma
            if callback is not None:
                callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": self.clean})
            if index + 2 < len(sigmas):
                following = sigmas[index + 1]
                noise = kept(self.noise, self.draw(index + 1, x), self.crossing)
                x = self._signal(following) * self.clean + following * noise
        return self.clean

    def _signal(self, sigma: Tensor) -> Tensor:
        """Return the weight of the clean latent in a state."""
        return 1 - sigma if self.flow else torch.ones_like(sigma)


def sample(model: Any, plan: Plan, positive: Any, latent: dict[str, Any], kind: str, seed: int) -> dict[str, Any]:
    """Return the latents of a cascade.

    Args:
        model: a student's model.
        plan: its plan, which is fitted to the size of `latent`.
        positive: the encoded prompt.
        latent: empty latents of the final size.
        kind: kind of noise, one of `noise.SOURCES`.
        seed: seed of all random numbers.

    Raises:
        PlanError: model, plan and latents do not go together, or the result is not finite.
    """
    empty = comfy.sample.fix_empty_latent_channels(model, _checked(latent))
    family = plan.family or family_of(model)
    check_family(model, family)
    factor = int(getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8))
    height, width = (side * factor for side in empty.shape[-2:])
    plan = plan.fitted(height, width, _multiple(model, family, factor))
    model, sigmas, flow = _timed(model, plan)
    source = SOURCES[kind](seed, latent.get("batch_index", range(len(empty))))
    preview = latent_preview.prepare_callback(model, len(plan.steps))
    result, done = empty, None
    for stage, (high, wide) in enumerate(plan.stages):
        numbers = [index for index, (owner, _) in enumerate(plan.steps) if owner == stage]
        shape = (*empty.shape[:-2], int(high) // factor, int(wide) // factor)
        start, noise = _entry(model, plan, done, source, shape, numbers[0] + 1)
        done = StageSteps(flow, _drawing(source, numbers[0], plan), plan)
        told = _told(positive, plan, stage) if family == "sdxl" else positive
        stage_sigmas = torch.tensor([*(sigmas[index] for index in numbers), 0.0])
        result = _run(
            model, done, told, noise, start, stage_sigmas, _offset(preview, numbers[0], len(plan.steps)), seed
        )
    if not bool(torch.isfinite(result).all()):
        raise PlanError("the result has values that are not finite: start ComfyUI with --bf16-unet or --fp32-unet")
    return {**latent, "samples": result.to(comfy.model_management.intermediate_device())}


def _entry(
    model: Any, plan: Plan, before: StageSteps | None, source: Any, shape: tuple[int, ...], step: int
) -> tuple[Tensor, Tensor]:
    """Return the latents and the noise with which a stage begins; ComfyUI adds them by the weights of its first step.

    Args:
        before: the stage before; None for the first, which begins with noise alone.
        shape: shape of the stage's latents.
        step: number of its first step, from 1.
    """
    noise: Tensor
    if before is None:
        noise = source.normal(shape, "start")
        return torch.zeros(shape), noise
    noise = mixed(before.noise, source.normal(shape, f"crossing-{step}").to(before.noise), plan.crossing)
    start: Tensor = model.model.process_latent_out(enlarged(before.clean, (shape[-2], shape[-1]), plan.crossing))
    return start, noise


def _run(
    model: Any, steps: StageSteps, positive: Any, noise: Tensor, start: Tensor, sigmas: Tensor, callback: Any, seed: int
) -> Tensor:
    """Run one stage, without guidance, as ComfyUI's own samplers run."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    sampler = comfy.samplers.KSAMPLER(steps)
    result: Tensor = guider.sample(noise, start, sampler, sigmas, callback=callback, seed=seed)
    return result


def _timed(model: Any, plan: Plan) -> tuple[Any, list[float], bool]:
    """Return a model that is given the plan's times, the noise levels of the steps, and whether it is a flow."""
    sampling = model.get_model_object("model_sampling")
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    if flow:
        found = levels(plan, None, steps=getattr(sampling, "multiplier", 1000))
    elif isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete) and len(sampling.sigmas) == TABLE:
        found = levels(plan, sampling.sigmas, ends_in_noise=bool(getattr(sampling, "zsnr", False)))
    else:
        raise PlanError(f"a plan cannot set the times of {type(sampling).__name__}: remove nodes that change sampling")
    sigmas, times = torch.tensor(found).T

    def timestep(sigma: Tensor) -> Tensor:
        """Return the time of the plan's step whose noise level is nearest."""
        nearest = (sigma.reshape(-1, 1).float() - sigmas.to(sigma.device)).abs().argmin(1)
        time: Tensor = times.to(sigma.device)[nearest].reshape(sigma.shape)
        return time

    timed = copy.deepcopy(sampling)
    timed.timestep = timestep
    model = model.clone()
    model.add_object_patch("model_sampling", timed)
    return model, [sigma for sigma, _ in found], flow


def _drawing(source: Any, first: int, plan: Plan) -> Callable[[int, Tensor], Tensor | None]:
    """Return the function that draws fresh noise for steps within a stage, whose first step is `first`."""

    def draw(index: int, like: Tensor) -> Tensor | None:
        if not draws_within(plan.crossing):
            return None
        noise: Tensor = source.normal(like.shape, f"within-{first + index + 1}").to(like)
        return noise

    return draw


def _checked(latent: dict[str, Any]) -> Tensor:
    """Return empty latents; raise PlanError if they are not empty, because a cascade starts from noise."""
    samples: Tensor = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
        raise PlanError("a cascade makes pictures or clips: connect an empty latent of the model")
    if "noise_mask" in latent or not torch.equal(samples.amin(), samples.amax()):
        raise PlanError("a cascade starts from noise, and does not change pictures: connect an empty latent")
    return samples


def _multiple(model: Any, family: str, factor: int) -> int:
    """Return the number of pixels by which sides must be divisible."""
    config = model.model.model_config.unet_config
    if family == "sdxl":
        return factor << (len(config["channel_mult"]) - 1)
    patch = config["patch_size"]
    return factor * int(patch if isinstance(patch, int) else patch[-1])


def _told(positive: Any, plan: Plan, stage: int) -> Any:
    """Return an encoded prompt with the sizes that SDXL is told at a stage."""
    original, target = plan.told(stage)
    sizes = {
        "height": int(original[0]), "width": int(original[1]), "crop_h": 0, "crop_w": 0,
        "target_height": int(target[0]), "target_width": int(target[1]),
    }  # fmt: skip
    return [[embeddings, {**values, **sizes}] for embeddings, values in positive]


def _offset(preview: Any, first: int, total: int) -> Any:
    """Return a callback that counts the steps of all stages."""

    def callback(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        preview(first + step, x0, x, total)

    return callback
