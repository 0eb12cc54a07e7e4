"""Recipes as typed settings: every setting of a run, checked before any weight is loaded.

`load_recipe` turns a packaged name or a YAML file, plus overrides, into one frozen `Recipe`. Whatever is wrong in it
becomes one sentence (RMDError) that names the key and the file. Torch is imported only by the functions that need it,
so that an error in a recipe is reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from rmd.common.errors import RMDError
from rmd.common.typed import Strict
from rmd.recipes.explain import Explainer, check_texts
from rmd.recipes.groups import (
    ConditioningConfig,
    CrossingConfig,
    DataConfig,
    EvaluationConfig,
    FlowNoise,
    Noise,
    OptimConfig,
    ParallelConfig,
    PlanConfig,
    RolesConfig,
    TimeMap,
    TrainConfig,
    VPNoise,
    parse_side,
)
from rmd.recipes.layers import merge, read_layers
from rmd.recipes.methods import AnyMethodConfig

if TYPE_CHECKING:
    from rmd.core.noise import NoiseSchedule
    from rmd.core.plan import StepPlan

__all__ = [
    "DataConfig", "FlowNoise", "Recipe", "TimeMap", "VPNoise", "load_recipe", "parse_side", "steps_overrides",
    "to_yaml",
]  # fmt: skip


def folder_name(text: str) -> str:
    """Return the text if it is a valid folder name; raise ValueError otherwise."""
    if "/" in text or "\\" in text or text in (".", ".."):
        raise ValueError("should be a name without slashes, because the run's folder is called so")
    return text


class Recipe(Strict):
    """Everything that decides a run."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(folder_name)]
    """Name of the run, and of its folder: runs/NAME."""
    family: Annotated[str, Field(min_length=1)]
    """Backbone adapter that reads the teacher: sdxl, pixart, sd3, wan, or one that another package adds."""
    teacher: Annotated[str, Field(min_length=1)]
    """A model id on the Hugging Face Hub, a folder, or `scenes` for the packaged teacher."""
    variant: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Variant of the teacher's weight files, such as fp16; empty: the plain files, or the only variant there is."""
    frames: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Length of a sample in video frames; 1 for images."""
    noise: Noise = "teacher"
    """Noise schedule of the teacher, on which the thresholds are defined. `teacher` reads it from the teacher's
    scheduler; if it is written out, plans can be made without the teacher."""
    plan: PlanConfig
    crossing: CrossingConfig = CrossingConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    method: AnyMethodConfig
    roles: RolesConfig = RolesConfig()
    optim: OptimConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    def schedule(self) -> NoiseSchedule:
        """Return the teacher's noise schedule at the final size, with the flow shift of `plan.shift` if it is given.

        Raises:
            RMDError: the noise is left to the teacher and has not been read from it (`resolve_noise`), or
                `plan.shift` is given for a schedule that has no shift.
        """
        return _schedule(self.noise, self.plan, self.frames)

    def build_plan(self) -> StepPlan:
        """Return the step plan of this recipe; equal settings share one plan, which is built once.

        Raises:
            RMDError: the settings do not fit each other.
        """
        return _build_plan(self.noise, self.plan, self.crossing, self.frames)


def _schedule(noise: VPNoise | FlowNoise | str, settings: PlanConfig, frames: int) -> NoiseSchedule:
    if isinstance(noise, str):
        raise RMDError(
            "the recipe's noise is that of its teacher, which has not been read: resolve_noise(recipe) "
            "returns a recipe with it"
        )
    if not isinstance(noise, FlowNoise):
        if settings.shift is not None:
            raise RMDError("plan.shift is for noise of kind flow, and this recipe's is of kind vp: leave it out")
        return noise.schedule()
    if settings.shift is not None:
        noise = noise.model_copy(update={"shift": settings.shift, "use_dynamic_shifting": False})
    return noise.schedule(settings.multiple).for_size(*(settings.match_side or settings.sides[-1]), frames)


# Keyed by the settings and not stored on the recipe, since `model_copy` would copy a stored plan to changed recipes.
@lru_cache(maxsize=64)
def _build_plan(
    noise: VPNoise | FlowNoise | str, settings: PlanConfig, crossing: CrossingConfig, frames: int
) -> StepPlan:
    from rmd.core.plan import Crossing, build_plan

    schedule = _schedule(noise, settings, frames)
    times = _times(settings, schedule)
    rule = crossing.rule if crossing.train_rule is None else crossing.train_rule
    beta = crossing.beta if crossing.train_beta is None else crossing.train_beta
    sampled = Crossing(
        upsample=crossing.upsample, taps=crossing.taps, rule=crossing.rule, beta=crossing.beta,
        within=crossing.within, eta=crossing.eta,
    )  # fmt: skip
    return build_plan(
        schedule,
        sides=settings.sides,
        steps=settings.step_count,
        times=times,
        thresholds=settings.thresholds,
        split=settings.split,
        time_map=settings.map,
        crossing=sampled,
        training_crossing=replace(sampled, rule=rule, beta=beta),
        grid_end=settings.grid_end,
        multiple=settings.multiple,
        frames=frames,
        match_side=settings.match_side,
    )


def _times(settings: PlanConfig, schedule: NoiseSchedule) -> Sequence[float]:
    """Return the teacher times of a plan's steps, or none for uniform ones."""
    from rmd.core.times import logsnr_at, stage_times

    if settings.cross_at is None:
        return settings.times
    levels = settings.cross_at.logsnr or [logsnr_at(value) for value in settings.cross_at.sigma]
    return stage_times(schedule, settings.split, levels, settings.grid_end)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a packaged name or a YAML file.

    Args:
        name_or_path: the name of a packaged recipe or the path of a YAML file.
        overrides: settings such as `optim.student_lr=1e-5`, which take effect in the given order.

    Raises:
        RMDError: something in the recipe is wrong; one sentence names the key and where it is set.
    """
    layers = read_layers(name_or_path, overrides, is_text=_is_text)
    for layer in layers:
        check_texts(layer.values, layer.label)
    try:
        return Recipe.model_validate(merge(layers))
    except ValidationError as error:
        raise RMDError(Explainer(Recipe, layers).sentence(error)) from error


def steps_overrides(recipe: Recipe, steps: int) -> list[str]:
    """Return the overrides that give a recipe another number of steps; a split keeps its proportions.

    Raises:
        RMDError: the recipe gives the time of every step.
    """
    plan = recipe.plan
    if steps == plan.step_count:
        return []
    if plan.times:
        raise RMDError(
            f"the recipe gives the times of {len(plan.times)} steps, so it cannot make {steps}: set plan.times"
        )
    if not plan.split:
        return [f"plan.steps={steps}"]
    if 0 < steps < len(plan.split):
        raise RMDError(f"{len(plan.split)} stages need at least {len(plan.split)} steps, got {steps}")
    # Whole numbers near the proportions; a stage that would get no step takes one of the longest.
    ends = [round(steps * sum(plan.split[: k + 1]) / sum(plan.split)) for k in range(len(plan.split))]
    split = [max(1, end - start) for start, end in pairwise([0, *ends])]
    while sum(split) > steps > 0:
        split[split.index(max(split))] -= 1
    return [f"plan.split={split}" if steps > 0 else f"plan.steps={steps}"]


def _is_text(keys: Sequence[str]) -> bool:
    """Return whether the setting at these keys is a text, possibly an optional one."""
    kinds: tuple[object, ...] = (Recipe,)
    for key in keys:
        groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fields = [group.model_fields[key] for group in groups if key in group.model_fields]
        kinds = tuple(kind for field in fields for kind in _alternatives(field.annotation))
    return str in kinds and set(kinds) <= {str, type(None)}


def _alternatives(annotation: object) -> tuple[object, ...]:
    """Return the types that a value may have: the members of a union, including nested unions."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    return _alternatives(get_args(annotation)[0]) if get_origin(annotation) is Annotated else (annotation,)


def to_yaml(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, from which `load_recipe` reads an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes mappings in block style but lists on one line, such as [512, 1024]."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
