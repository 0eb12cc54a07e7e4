"""Pictures that explain a run: samples of fixed prompts, and the scores' predictions from the student's sample.

The losses of distribution matching are uninformative (a falling loss may be a collapse); these pictures show what is
going wrong.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from rmd.common.pictures import grid_image, to_uint8
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.methods.base import Rollout
from rmd.models.base import Backbone
from rmd.models.cond import Cond
from rmd.models.generate import sample_latents

PANEL_ROWS = ("student x0", "noised", "teacher x0", "fake x0", "difference x4")
PANEL_SAMPLES = 8


def sample_panel(backbone: Backbone, module: nn.Module, plan: StepPlan, cond: Cond, *, seed: int) -> Image.Image:
    """Sample prompts with the student as it is now, and arrange the images in a grid of two rows.

    Args:
        backbone: decodes the samples.
        module: the student's network.
        plan: the student's steps.
        cond: the encoded prompts, one per image.
        seed: keys the noise, so that the same prompts can be compared over a run.
    """
    noise = CounterNoise(seed, range(len(cond)), device=backbone.device)
    images = backbone.decode(sample_latents(backbone, module, plan, cond, noise)).clamp(-1, 1)
    return grid_image(to_uint8(strips(images)), columns=len(cond) // 2 or 1)


@torch.no_grad()
def score_panel(backbone: Backbone, rollout: Rollout) -> Image.Image:
    """Draw the rows `PANEL_ROWS` for the first `PANEL_SAMPLES` samples of a roll-out.

    The last row is four times f_real - f_fake, around grey.
    """
    decoded = [backbone.decode(x[:PANEL_SAMPLES]) for x in (rollout.y, rollout.x_tau, rollout.f_real, rollout.f_fake)]
    difference = 4 * (decoded[2] - decoded[3])
    return grid_image(to_uint8(strips(torch.cat([*decoded, difference]))), columns=len(decoded[0]))


def strips(samples: Tensor) -> Tensor:
    """Return samples as pictures (n, 3, H, W').

    Pictures (n, 3, H, W) are returned as they are; of videos (n, 3, T, H, W), the first, middle and last frames are
    placed side by side.
    """
    if samples.ndim == 4:
        return samples
    length = samples.shape[2]
    return torch.cat([samples[:, :, index] for index in sorted({0, length // 2, length - 1})], dim=-1)
