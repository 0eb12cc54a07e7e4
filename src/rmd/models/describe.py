"""Reads what a teacher's configuration files say of it; no weights are read, or fetched from the Hub."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import snapshot_download

from rmd.common.errors import RMDError, located
from rmd.models.base import Architecture, Backbone
from rmd.models.folder import INDEX, model_index
from rmd.models.hub import hub_errors, read_object
from rmd.models.registry import family_class, family_of
from rmd.models.resolve import SCHEDULER, noise_of, teacher_source
from rmd.models.untrained import architecture_of, untrained_backbone
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise

CONFIGURATIONS = (INDEX, "*/config.json", SCHEDULER)
"""The files that are fetched from the Hub."""


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher, as its configurations describe it."""

    name: str
    """The teacher, as it was named."""
    pipeline: str | None
    """Name of its class in diffusers; None if its configurations have not been read."""
    family: type[Backbone]
    architecture: Architecture
    noise: VPNoise | FlowNoise
    prediction: str | None
    """The prediction of its network: epsilon, v_prediction, sample or flow; None if its scheduler has not been read."""
    side: int | None
    """Side of the square pictures that it was made for, in pixels; None if it does not say."""
    multiple: int
    """Number of pixels by which all sides must be divisible."""
    guidance: float | None
    """Guidance scale that its pipeline uses by default; None if it has none."""


def describe(teacher: str) -> TeacherFacts:
    """Read the configurations of a teacher: a folder, a repository on the Hub, or a packaged one.

    Raises:
        RMDError: they cannot be found or read, or they are not those of a text-to-image or text-to-video model of a
            known family.
    """
    folder = configuration_folder(teacher)
    index = model_index(folder)
    family = family_of(index)
    parts = [name for name, entry in index.items() if isinstance(entry, list) and (folder / name).is_dir()]
    paths = {name: folder / name / "config.json" for name in parts}
    with located(str(folder)):
        family.check_network({name: read_object(path) for name, path in paths.items() if path.is_file()})
    scheduler = read_object(folder / SCHEDULER)
    with located(f"the scheduler of {teacher}"):
        noise = noise_of(scheduler)
    architecture = architecture_of(folder, family)
    backbone = untrained_backbone(family, architecture)
    prediction = "flow" if isinstance(noise, FlowNoise) else str(scheduler.get("prediction_type", "epsilon"))
    side = architecture.config.get("sample_size")
    return TeacherFacts(
        name=teacher,
        pipeline=index["_class_name"],
        family=family,
        architecture=architecture,
        noise=noise,
        prediction=prediction,
        side=side * architecture.vae_factor if isinstance(side, int) and not backbone.moving else None,
        multiple=backbone.size_multiple,
        guidance=default_guidance(index["_class_name"]),
    )


def configuration_folder(teacher: str) -> Path:
    """Return a folder with a teacher's configurations; those of a repository are fetched from the Hub, or its cache.

    Raises:
        RMDError: there is no such folder or repository, or it cannot be reached.
    """
    source = teacher_source(teacher)
    if isinstance(source, Path):
        if not source.is_dir():
            raise RMDError(f"there is no folder {source}: give the folder of a diffusers pipeline")
        return source
    with hub_errors(source, "the configurations"):
        folder = Path(snapshot_download(source, allow_patterns=list(CONFIGURATIONS)))
    if not (folder / INDEX).is_file():
        raise RMDError(f"{source} is not a diffusers pipeline: the repository has no {INDEX}")
    return folder


def default_guidance(pipeline: str) -> float | None:
    """Return the guidance scale that a pipeline of diffusers uses by default; None if it has none."""
    kind: Any = getattr(diffusers, pipeline, None)
    parameter = None if kind is None else inspect.signature(kind.__call__).parameters.get("guidance_scale")
    return float(parameter.default) if parameter is not None and isinstance(parameter.default, int | float) else None


def known_facts(recipe: Recipe) -> TeacherFacts:
    """Return the facts of a published teacher whose size RMD knows and whose noise a packaged recipe spells out.

    Raises:
        RMDError: the recipe's teacher is not one of these.
    """
    family = family_class(recipe.family)
    if recipe.teacher not in family.architectures or isinstance(recipe.noise, str):
        raise RMDError(f"RMD does not know the sizes of {recipe.teacher}: give its folder")
    architecture = family.architectures[recipe.teacher]
    return TeacherFacts(
        name=recipe.teacher, pipeline=None, family=family, architecture=architecture, noise=recipe.noise,
        prediction=None, side=None, multiple=untrained_backbone(family, architecture).size_multiple, guidance=None,
    )  # fmt: skip
