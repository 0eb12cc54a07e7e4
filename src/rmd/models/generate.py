"""Samples with a backbone: the cascade of `rmd.core.sampling` with a real network, in batches.

Training roll-outs, the demo, the judge and the pipeline all use `predictor`, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rmd.core.plan import Stage, Step, StepPlan
from rmd.core.randomness import CounterNoise, NoiseSource
from rmd.core.sampling import OnStep, Predict, sample_cascade
from rmd.models.base import Backbone
from rmd.models.cond import Cond


def predictor(
    backbone: Backbone, module: nn.Module, plan: StepPlan, cond: Cond, *,
    null: Cond | None = None, guidance: float = 1.0, final: Stage | None = None,
) -> Predict:  # fmt: skip
    """Return the function (x_t, step) -> (x0_hat, eps_hat) of a network for encoded prompts.

    Args:
        null: the prompts of the unconditional branch; without them there is no guidance.
        guidance: scale of classifier-free guidance.
        final: the stage whose size the network is given as that of the finished picture; by default the plan's
            (`StepPlan.match_stage`).
    """
    final = plan.match_stage if final is None else final
    both = cond if null is None else Cond.cat([cond, null])
    kwargs = {stage.index: backbone.stage_cond(both, stage, final) for stage in plan.stages}

    def predict(x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        scale = None if null is None else guidance
        return backbone.predict(module, x, step.model_time, kwargs[step.stage], guidance=scale)

    return predict


@torch.no_grad()
def sample_latents(
    backbone: Backbone, module: nn.Module, plan: StepPlan, cond: Cond, noise: NoiseSource, *,
    null: Cond | None = None, guidance: float = 1.0, final: Stage | None = None, on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Return clean latents of encoded prompts (Alg. 2), in the shape of `Backbone.latent_shape` at the final size.

    Args:
        null, guidance, final: as in `predictor`.
        on_step: called after every step.

    Raises:
        RMDError: the values of a step are not finite.
    """
    return sample_cascade(
        predictor(backbone, module, plan, cond, null=null, guidance=guidance, final=final),
        plan,
        backbone.schedule,
        lambda stage: backbone.latent_shape(len(cond), stage.height, stage.width, plan.frames),
        noise,
        on_step=on_step,
    )


@torch.no_grad()
def latent_batches(
    backbone: Backbone, module: nn.Module, plan: StepPlan, prompts: Sequence[str], *, seed: int, guidance: float,
    batch_size: int,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield clean latents of prompts in batches; the noise of sample i depends only on (seed, i)."""
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        noise = CounterNoise(seed, range(start, start + len(part)), device=backbone.device)
        null = backbone.null(len(part)) if guidance != 1.0 else None
        yield sample_latents(backbone, module, plan, backbone.encode(part), noise, null=null, guidance=guidance)
