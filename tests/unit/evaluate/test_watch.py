"""The judge that watches a run: the same answer to the same student, better for the teacher than for noise."""

from __future__ import annotations

import torch
from torch import nn

from rmd.evaluate.watch import scene_watcher
from rmd.models import load_backbone
from rmd.recipes.schema import load_recipe
from rmd.worlds.assets import teacher_folder


def test_it_tells_the_teacher_from_noise() -> None:
    backbone = load_backbone(teacher_folder())
    watch = scene_watcher(backbone, load_recipe("scenes").build_plan(), samples=6, seed=0)
    found = watch(backbone.denoiser)
    assert found.keys() == {"judge/all_right", "judge/kernel_distance"}
    assert found == watch(backbone.denoiser)

    class Noise(nn.Module):
        def forward(self, x: torch.Tensor, *arguments: object, **options: object) -> tuple[torch.Tensor]:
            return (torch.zeros_like(x),)

    worse = watch(Noise())
    assert worse["judge/all_right"] == 0.0
    assert worse["judge/kernel_distance"] > 2 * found["judge/kernel_distance"]
