"""The judge that watches a run: equal answers for equal students, and better marks for the teacher than for noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rmd.evaluation.watch import SEED, judge_grader, student_watcher
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.worlds.registry import world_of


@pytest.mark.parametrize("name", ["scenes", "scenes-wan"])
def test_it_tells_the_teacher_from_noise(name: str) -> None:
    recipe = load_recipe(name)
    backbone, world = load_teacher(recipe), world_of(recipe)
    captions = world.captions(6, seed=SEED, training=False)
    watch = student_watcher(backbone, recipe.build_plan(), captions, [judge_grader(world)], seed=0)
    marks = watch(backbone.denoiser)
    assert marks.recorded.keys() == {"judge/all_right", "judge/kernel_distance"}
    assert marks.deciding == "judge/all_right" and len(marks.samples["judge/all_right"]) == 6
    assert marks == watch(backbone.denoiser)

    class Noise(nn.Module):
        dtype = torch.float32

        def forward(self, *arguments: Tensor, **options: Tensor) -> tuple[Tensor]:
            return (torch.zeros_like(arguments[0] if arguments else options["hidden_states"]),)

    worse = watch(Noise())
    assert worse.recorded["judge/all_right"] < 0.1 < marks.recorded["judge/all_right"]
    assert worse.recorded["judge/kernel_distance"] > 2 * marks.recorded["judge/kernel_distance"]
    assert worse.sampled == marks.sampled
    assert student_watcher(backbone, recipe.build_plan(), captions, [], seed=1)(Noise()).sampled != marks.sampled
