"""The judge that watches a run: equal answers for equal students, and better marks for the teacher than for noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmd.evaluation.watch import student_watcher
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.worlds.registry import world_of


@pytest.mark.parametrize("name", ["scenes", "scenes-wan"])
def test_it_tells_the_teacher_from_noise(name: str) -> None:
    recipe = load_recipe(name)
    backbone = load_teacher(recipe)
    watch = student_watcher(world_of(recipe), backbone, recipe.build_plan(), samples=6, seed=0)
    marks = watch(backbone.denoiser)
    assert marks.keys() == {"judge/all_right", "judge/kernel_distance"}
    assert marks == watch(backbone.denoiser)

    class Noise(nn.Module):
        dtype = torch.float32

        def forward(self, *arguments: torch.Tensor, **options: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.zeros_like(arguments[0] if arguments else options["hidden_states"]),)

    worse = watch(Noise())
    assert worse["judge/all_right"] < 0.1 < marks["judge/all_right"]
    assert worse["judge/kernel_distance"] > 2 * marks["judge/kernel_distance"]
