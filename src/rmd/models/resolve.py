"""Finds a recipe's teacher, and reads its noise schedule from its folder or repository if the recipe leaves it open.

Only the scheduler's configuration is read, so that a plan can be made at once, without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rmd.common.errors import RMDError, located, one_of
from rmd.common.files import user_path
from rmd.models.hub import hub_errors, read_object
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise
from rmd.worlds.assets import pipeline_folder
from rmd.worlds.registry import packaged_teachers

if TYPE_CHECKING:
    from rmd.core.noise import FlowSchedule

SCHEDULER = "scheduler/scheduler_config.json"
"""Path of the scheduler's configuration within a pipeline."""
_VP_KEYS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr")


def is_packaged(name: str) -> bool:
    """Return whether a teacher comes with RMD."""
    return name in packaged_teachers()


def teacher_source(name: str) -> Path | str:
    """Return the location of a teacher: the folder of a packaged one, another folder, or else a repository on the Hub.

    A folder takes precedence over a repository of the same name, and `~` stands for the home folder.

    Raises:
        RMDError: the name is empty.
    """
    if is_packaged(name):
        return pipeline_folder(packaged_teachers()[name])
    if not name:
        raise RMDError("the teacher's name is empty: give a folder, a repository of the Hub, or a packaged teacher")
    path = user_path(name)
    return path if path.exists() or name.startswith("~") else name


def resolve_noise(recipe: Recipe, scheduler: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe with its noise schedule spelt out where it says `noise: teacher`.

    Args:
        scheduler: the configuration of the teacher's scheduler; by default it is read from the teacher.

    Raises:
        RMDError: the teacher's scheduler cannot be read, or a recipe cannot express its noise.
    """
    if not isinstance(recipe.noise, str):
        return recipe
    if scheduler is None:
        scheduler = _read_scheduler(recipe.teacher)
    token_frames = 1
    if scheduler.get("use_dynamic_shifting"):
        from rmd.models.registry import family_class

        token_frames = family_class(recipe.family).token_frames
    with located(f"noise: the teacher {recipe.teacher}"):
        return recipe.model_copy(update={"noise": noise_of(scheduler, token_frames)})


def flow_noise(schedule: FlowSchedule) -> FlowNoise:
    """Return a flow schedule in the form that recipes use."""
    noise = {
        "kind": "flow", "shift": schedule.shift, "num_train_timesteps": schedule.train_steps,
        "shift_terminal": schedule.terminal,
    }  # fmt: skip
    rule = schedule.dynamic
    if rule is not None:
        noise |= {
            "use_dynamic_shifting": True, "base_shift": rule.base_shift, "max_shift": rule.max_shift,
            "base_image_seq_len": int(rule.base_tokens), "max_image_seq_len": int(rule.max_tokens),
            "time_shift_type": rule.kind, "token_frames": rule.token_frames,
        }  # fmt: skip
    return FlowNoise.model_validate(noise)


def noise_of(scheduler: Mapping[str, object], token_frames: int = 1) -> VPNoise | FlowNoise:
    """Return the noise of a diffusers scheduler's configuration in the form that recipes use.

    Args:
        scheduler: the configuration.
        token_frames: frames of a clip for each latent frame, which a dynamic flow shift counts.

    Raises:
        RMDError: the scheduler is neither variance preserving nor a flow, or it lists its betas one by one.
    """
    from rmd.core.betas import BETA_SCHEDULES
    from rmd.core.noise import FlowSchedule, schedule_from_config

    schedule = schedule_from_config(scheduler, token_side=1, token_frames=token_frames)
    if isinstance(schedule, FlowSchedule):
        return flow_noise(schedule)
    if scheduler.get("trained_betas") is not None:
        raise RMDError("its scheduler lists its betas one by one (trained_betas), which a recipe cannot express")
    values = {key: scheduler[key] for key in _VP_KEYS if scheduler.get(key) is not None}
    name = one_of("beta_schedule", values.get("beta_schedule", "linear"), BETA_SCHEDULES)
    values["beta_schedule"] = "squaredcos_cap_v2" if name == "cosine" else name
    return VPNoise.model_validate({"kind": "vp", **values})


def _read_scheduler(teacher: str) -> dict[str, object]:
    """Read the configuration of a teacher's scheduler from its folder, or from the Hub or its cache."""
    from huggingface_hub import hf_hub_download

    source = teacher_source(teacher)
    try:
        if isinstance(source, Path):
            if not source.is_dir():
                raise RMDError(f"there is no folder {source}")
            return read_object(source / SCHEDULER)
        with hub_errors(source, "the scheduler's configuration"):
            return read_object(Path(hf_hub_download(source, SCHEDULER)))
    except RMDError as error:
        raise RMDError(
            f"noise is the teacher's, which cannot be read: {error}; or spell the noise out in the recipe, as in "
            "noise: {kind: flow, shift: 3.0}"
        ) from error
