"""The first steps of every command that computes; libraries are imported inside, so that `--help` stays fast."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmd.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch

    from rmd.recipes.schema import Recipe


def start(
    device: str | None = None, *, threads: int | None = None, kinds: tuple[str, ...] = ("cpu", "cuda")
) -> torch.device:
    """Silence other libraries, prepare the CPU, and return the device; see `rmd.cli.device`."""
    quiet_libraries()
    from rmd.cli.device import find_device, prepare_cpu

    prepare_cpu(threads)
    return find_device(device, kinds=kinds)


def start_local(device: str | None = None, *, kinds: tuple[str, ...] = ("cpu", "cuda")) -> torch.device:
    """Start a command that torchrun may start in several processes, each of which gets a GPU of its own."""
    where = start(device, kinds=kinds)
    if "LOCAL_RANK" not in os.environ:
        return where
    from rmd.train.parallel import local_device

    return local_device(where)


def resolved_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Load a recipe with settings, and take its noise schedule from its teacher if it does not spell it out."""
    from rmd.recipes.schema import load_recipe

    recipe = load_recipe(name, settings)
    if isinstance(recipe.noise, str):
        from rmd.models.resolve import resolve_noise

        recipe = resolve_noise(recipe)
    return recipe
