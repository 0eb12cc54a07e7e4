"""Draws the figures of docs/how-it-works.md: `python -m research.illustrations`.

They need only the packaged teacher of the scenes, and take about ten seconds on a CPU:

- `docs/noise.png`: a scene and its low resolution under the same noise, at several noise levels;
- `docs/cascade.png`: what the packaged teacher predicts at each step of a cascade, before any distillation;
- `docs/plan.png`: the plan of the recipe `sdxl`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rmd.common.pictures import grid_image, label_rows, png, to_uint8
from rmd.core.crossing import upsample
from rmd.core.plan import Step, StepPlan
from rmd.core.randomness import CounterNoise
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.report.plotting import plot_plan
from rmd.worlds.still.grammar import attributes_of
from rmd.worlds.still.render import render, scenes_of

DOCS = Path(__file__).parents[1] / "docs"
CAPTION = "a big yellow checkered star in the middle, at night"
SIGMAS = (0.0, 0.3, 0.5, 0.7, 0.84, 0.95)
"""Noise levels of the first figure, in the unit that all teachers share (docs/plans.md)."""
STEPS = ("plan.steps=8", "plan.split=[4, 4]")
SEED = 1
SIDE = 128
"""Side of a picture in the figures, in pixels; those of any resolution are enlarged to it."""


def draw(folder: Path = DOCS) -> None:
    """Write the three figures into a folder."""
    recipe = load_recipe("scenes", STEPS)
    backbone = load_teacher(recipe)
    figures = {
        "noise": noise_levels(backbone, recipe.build_plan()),
        "cascade": cascade(backbone, recipe.build_plan(), guidance=recipe.method.guidance),
    }
    for name, content in figures.items():
        (folder / f"{name}.png").write_bytes(content)
    sdxl = load_recipe("sdxl")
    plot_plan(sdxl.build_plan(), sdxl.schedule(), folder / "plan.png", title="sdxl, 2+2 steps")


@torch.no_grad()
def noise_levels(backbone: Backbone, plan: StepPlan) -> bytes:
    """Draw a scene at the teacher's resolution and at the low one under the same noise, and their difference."""
    low, full = plan.stages[0].height, plan.stages[-1].height
    scene = scenes_of([attributes_of(CAPTION)], seed=SEED)
    fine, coarse = (backbone.encode_images(2 * render(scene, side) - 1) for side in (full, low))
    eps = CounterNoise(SEED, [0]).normal(fine.shape, "figure")
    enlarged = upsample(coarse, (fine.shape[-2], fine.shape[-1]), "bilinear")
    rows = [
        torch.cat([backbone.decode(_noised(backbone, x0, eps, sigma)) for sigma in SIGMAS]) for x0 in (fine, enlarged)
    ]
    return _grid({f"{full} px": rows[0], f"{low} px, enlarged": rows[1]}, [f"sigma {sigma:.2f}" for sigma in SIGMAS])


def cascade(backbone: Backbone, plan: StepPlan, *, guidance: float) -> bytes:
    """Draw the state before each step of the teacher's cascade, and what the teacher predicts from it."""
    states: list[Tensor] = []
    predictions: list[Tensor] = []

    def keep(step: Step, x0_hat: Tensor, x_t: Tensor) -> None:
        states.append(_enlarged(backbone.decode(x_t)))
        predictions.append(_enlarged(backbone.decode(x0_hat)))

    sample_latents(
        backbone, backbone.denoiser, plan, backbone.encode([CAPTION]), CounterNoise(SEED, [0]),
        null=backbone.null(1), guidance=guidance, on_step=keep,
    )  # fmt: skip
    labels = [f"step {step.index}, {plan.stage_of(step).height} px" for step in plan.steps]
    return _grid({"state": torch.cat(states), "prediction": torch.cat(predictions)}, labels)


def _noised(backbone: Backbone, x0: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """Return a latent at a noise level from 0 (clean) to below 1 (nearly pure noise)."""
    if sigma == 0:
        return x0
    return backbone.schedule.add_noise(x0, eps, backbone.schedule.time(2 * math.log((1 - sigma) / sigma)))


def _enlarged(pictures: Tensor) -> Tensor:
    """Repeat the pixels of pictures (n, 3, h, h) until their side is that of the figures."""
    return torch.nn.functional.interpolate(pictures, size=(SIDE, SIDE), mode="nearest")


def _grid(rows: Mapping[str, Tensor], labels: list[str]) -> bytes:
    """Return a PNG file of named rows of pictures in [-1, 1], each picture with its column's label below it."""
    pictures = torch.cat([_enlarged(row) for row in rows.values()])
    return png(label_rows(grid_image(to_uint8(pictures), len(labels), labels=labels * len(rows)), list(rows)))


if __name__ == "__main__":
    draw()
