"""The teacher of a recipe: found, loaded, and checked to be what the recipe takes it for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rmd.backbones.base import Backbone, Conditioning, load_backbone
from rmd.config import Recipe
from rmd.errors import RMDError
from rmd.scenes.assets import TEACHERS, teacher_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_teacher(recipe: Recipe, source: Path | str | None = None, **options: Any) -> Backbone:
    """Load the recipe's teacher in its dtype; RMDError unless it fits the recipe (`check_teacher`).

    Args:
        source: where it lies, if not where the recipe says.
        options: go to `DiffusionPipeline.from_pretrained`.
    """
    backbone = load_backbone(
        teacher_source(recipe.teacher) if source is None else source,
        dtype=DTYPES[recipe.train.dtype],
        conditioning=Conditioning(**recipe.conditioning.model_dump()),
        **options,
    )
    check_teacher(recipe, backbone)
    return backbone


def teacher_source(name: str) -> Path | str:
    """Where a teacher called so lies: the folder of one of the scenes' own, or the folder or Hub id itself."""
    return teacher_folder(name) if name in TEACHERS else name


def check_teacher(recipe: Recipe, backbone: Backbone) -> None:
    """RMDError unless the teacher is what the recipe takes it for: family, noise schedule, sides it can work at."""
    if recipe.family != backbone.family:
        raise RMDError(
            f"the recipe's family is {recipe.family}, but the teacher {recipe.teacher} is of the family "
            f"{backbone.family}: set family or teacher right"
        )
    times = torch.tensor([1.0, 250.0, 500.0, 750.0, 1000.0])
    ours, theirs = recipe.noise.schedule().alpha(times), backbone.schedule.alpha(times)
    worst = int((ours - theirs).abs().argmax())
    if abs(float(ours[worst] - theirs[worst])) > 1e-6:
        raise RMDError(
            f"the recipe's noise is not that of the teacher {recipe.teacher}: at time {times[worst]:g} its alpha is "
            f"{ours[worst]:.6f}, the teacher's {theirs[worst]:.6f}; set noise to what the teacher's scheduler says"
        )
    backbone.check_frames(recipe.frames)
    for stage in recipe.build_plan().stages:
        if stage.height % backbone.size_multiple or stage.width % backbone.size_multiple:
            raise RMDError(
                f"plan.sides: stage {stage.index} of {stage.size} pixels is not divisible by {backbone.size_multiple}, "
                f"as the teacher {recipe.teacher} needs; choose other sides"
            )
