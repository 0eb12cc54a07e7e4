"""Pictures that explain a run: samples of fixed prompts, and the scores' predictions from the student's sample.

The losses of distribution matching are uninformative (a falling loss may be a collapse); these pictures show what is
going wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn

from rmd.common.pictures import grid_image, label_rows, to_uint8
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.methods.base import Rollout
from rmd.models.base import Backbone
from rmd.models.cond import Cond
from rmd.models.generate import sample_latents

PANEL_ROWS = ("student x0", "noised", "teacher x0", "fake x0", "difference x4")
PANEL_SAMPLES = 8


def sample_panel(
    backbone: Backbone, module: nn.Module, plan: StepPlan, cond: Cond, *, seed: int, at_once: int
) -> Image.Image:
    """Sample prompts with the student as it is now, and arrange the images in a grid of two rows.

    Args:
        backbone: decodes the samples.
        module: the student's network.
        plan: the student's steps.
        cond: the encoded prompts, one per image.
        seed: keys the noise, so that the same prompts can be compared over a run.
        at_once: the largest number of samples that are computed together, so that no more memory is needed than for
            training.
    """
    made = []
    for numbers, part in groups(cond, at_once):
        noise = CounterNoise(seed, numbers, device=backbone.device)
        made.append(decoded(backbone, sample_latents(backbone, module, plan, part, noise)))
    images = torch.cat(made).clamp(-1, 1)
    return grid_image(to_uint8(strips(images)), columns=len(cond) // 2 or 1)


@torch.no_grad()
def score_panel(backbone: Backbone, rollout: Rollout) -> Image.Image:
    """Draw the rows `PANEL_ROWS`, each with its name, for the first `PANEL_SAMPLES` samples of a roll-out.

    The last row is four times f_real - f_fake, around grey.
    """
    latents = (rollout.y, rollout.x_tau, rollout.f_real, rollout.f_fake)
    shown = [decoded(backbone, x[:PANEL_SAMPLES]) for x in latents]
    difference = 4 * (shown[2] - shown[3])
    grid = grid_image(to_uint8(strips(torch.cat([*shown, difference]))), columns=len(shown[0]))
    return label_rows(grid, PANEL_ROWS)


def decoded(backbone: Backbone, latents: Tensor) -> Tensor:
    """Return decoded latents, one sample after another: a VAE needs more memory for a sample than the denoiser."""
    return torch.cat([backbone.decode(sample[None]) for sample in latents])


def groups(cond: Cond, at_once: int) -> Iterator[tuple[range, Cond]]:
    """Divide encoded prompts into groups of at most `at_once`; yield the numbers of each group's samples with them."""
    for first in range(0, len(cond), at_once):
        numbers = range(first, min(first + at_once, len(cond)))
        yield numbers, Cond({name: tensor[first : numbers.stop] for name, tensor in cond.tensors.items()})


def strips(samples: Tensor) -> Tensor:
    """Return samples as pictures (n, 3, H, W').

    Pictures (n, 3, H, W) are returned as they are; of videos (n, 3, T, H, W), the first, middle and last frames are
    placed side by side.
    """
    if samples.ndim == 4:
        return samples
    length = samples.shape[2]
    return torch.cat([samples[:, :, index] for index in sorted({0, length // 2, length - 1})], dim=-1)
