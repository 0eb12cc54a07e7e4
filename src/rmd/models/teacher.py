"""Loads the teacher of a recipe, and checks that it fits the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule
from rmd.models.base import Backbone
from rmd.models.registry import load_backbone
from rmd.models.resolve import flow_noise, noise_of, resolve_noise, teacher_source
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise

__all__ = ["DTYPES", "check_teacher", "load_teacher", "resolve_noise", "teacher_source"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_teacher(recipe: Recipe, source: Path | str | None = None, **options: Any) -> Backbone:
    """Load the recipe's teacher in the recipe's dtype, and check that it fits the recipe.

    Args:
        source: the location of the teacher, if it is not the recipe's.
        options: passed on to `DiffusionPipeline.from_pretrained`, together with the recipe's `variant`.

    Raises:
        RMDError: the teacher cannot be loaded, or does not fit the recipe (`check_teacher`).
    """
    backbone = load_backbone(
        teacher_source(recipe.teacher) if source is None else source,
        dtype=DTYPES[recipe.train.dtype],
        conditioning=recipe.conditioning,
        variant=recipe.variant,
        **options,
    )
    check_teacher(recipe, backbone)
    return backbone


def check_teacher(recipe: Recipe, backbone: Backbone) -> None:
    """Raise RMDError unless a teacher's family, noise schedule and possible sizes are those that the recipe assumes."""
    if recipe.family != backbone.family:
        raise RMDError(
            f"the recipe's family is {recipe.family}, but the teacher {recipe.teacher} is of the family "
            f"{backbone.family}: correct family or teacher"
        )
    _check_noise(recipe, backbone)
    recipe = resolve_noise(recipe, dict(backbone.pipe.scheduler.config))
    backbone.check_frames(recipe.frames)
    for stage in recipe.build_plan().stages:
        if stage.height % backbone.size_multiple or stage.width % backbone.size_multiple:
            raise RMDError(
                f"plan.sides: stage {stage.index} of {stage.size} pixels is not divisible by {backbone.size_multiple}, "
                f"as the teacher {recipe.teacher} needs; choose other sides"
            )


def _check_noise(recipe: Recipe, backbone: Backbone) -> None:
    """Raise RMDError, with the key and both values, unless a recipe's noise is exactly its teacher's.

    The flow shift affects only the grid of times, so it may differ if the recipe gives the grid its own (`plan.shift`).
    """
    if isinstance(recipe.noise, str):
        return
    theirs = backbone.schedule
    if isinstance(recipe.noise, FlowNoise) and isinstance(theirs, FlowSchedule):
        grid_is_given = recipe.plan.shift is not None and recipe.noise.num_train_timesteps == theirs.train_steps
        if grid_is_given or recipe.noise == flow_noise(theirs):
            return
    elif isinstance(recipe.noise, VPNoise) and theirs.kind == "vp":
        ours = recipe.noise.schedule()
        times = torch.arange(1, ours.train_steps + 1, dtype=torch.float64) * (1000.0 / ours.train_steps)
        if ours.train_steps == theirs.train_steps and torch.equal(ours.alpha(times), theirs.alpha(times)):
            return
    also = ""
    if recipe.noise.kind == theirs.kind == "flow":
        also = ", or give plan.shift too if the grid of times should have another shift than the teacher"
    raise RMDError(
        f"the recipe's noise is not that of the teacher {recipe.teacher}: "
        f"{_difference(recipe.noise.model_dump(), backbone)}; set `noise: teacher`, which takes the teacher's own{also}"
    )


def _difference(ours: Mapping[str, object], backbone: Backbone) -> str:
    """Return the first key of a recipe's noise that differs from the teacher's, with both values."""
    try:
        theirs = noise_of(dict(backbone.pipe.scheduler.config), backbone.token_frames).model_dump()
    except RMDError as error:
        return str(error)
    key = next((key for key in ours if ours[key] != theirs.get(key)), "kind")
    return f"noise.{key} is {ours[key]}, and the teacher's is {theirs.get(key)}"
