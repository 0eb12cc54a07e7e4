"""The registry of worlds, and look-ups over all of them."""

from __future__ import annotations

from collections.abc import Iterator

from rmd.common.errors import RMDError, one_of, shown
from rmd.common.plugins import Registry
from rmd.recipes.schema import Recipe
from rmd.worlds.base import Judge, PackagedTeacher, World

WORLDS: Registry[World] = Registry(
    "rmd.worlds",
    "world",
    {
        "scenes": "rmd.worlds.still.world:WORLD",
        "vistas": "rmd.worlds.vistas.world:WORLD",
        "moving-scenes": "rmd.worlds.moving.world:WORLD",
    },
)
"""All worlds by name; a world's name is also that of its prompt source."""


def all_worlds() -> Iterator[World]:
    """Yield every world, RMD's own first."""
    for name in WORLDS.names():
        yield WORLDS.get(name)


def packaged_teachers() -> dict[str, PackagedTeacher]:
    """Return the packaged teachers of all worlds by name."""
    return {name: teacher for world in all_worlds() for name, teacher in world.teachers.items()}


def world_of_teacher(name: str) -> World:
    """Return the world of a packaged teacher.

    Raises:
        RMDError: no world has a teacher of this name.
    """
    one_of("teacher", name, tuple(packaged_teachers()))
    return next(world for world in all_worlds() if name in world.teachers)


def world_of(recipe: Recipe) -> World:
    """Return the world that judges a recipe's student: that of its prompts, or else that of its packaged teacher.

    Raises:
        RMDError: neither the prompts nor the teacher belong to a world.
    """
    if recipe.data.prompts in WORLDS.names():
        return WORLDS.get(recipe.data.prompts)
    for world in all_worlds():
        if recipe.teacher in world.teachers:
            return world
    raise RMDError(
        f"there is no judge for prompts of {shown(recipe.data.prompts)} and the teacher {shown(recipe.teacher)}: set "
        f"data.prompts to one of {', '.join(WORLDS.names())}"
    )


def judge_of(recipe: Recipe) -> Judge:
    """Load the judge of a recipe's world with the statistics of its teacher, or of the first one if it is not packaged.

    Raises:
        RMDError: the recipe belongs to no world, or the judge's weights or statistics are missing.
    """
    world = world_of(recipe)
    return world.judge(recipe.teacher if recipe.teacher in world.teachers else None)


def world_of_kind(*, moving: bool) -> World:
    """Return the first world of clips (`moving`) or of pictures."""
    return next(world for world in all_worlds() if world.moving == moving)
