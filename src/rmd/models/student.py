"""Saves a distilled student so that stock diffusers loads it, and loads it back with its plan.

A full student is an ordinary pipeline folder; a LoRA student is `pytorch_lora_weights.safetensors` for the teacher's
pipeline. Either folder also contains `rmd_config.json`: the plan with its final times, and the student's origin.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rmd.common.errors import RMDError, located
from rmd.common.files import locked, reason, replacing, user_path
from rmd.core.finite import check_module, check_tensors
from rmd.core.plan import StepPlan
from rmd.models.adapter import ADAPTER, LORA_NAME, apply_lora_file, write_lora
from rmd.models.base import Backbone
from rmd.models.hub import shared_prompts
from rmd.models.registry import load_backbone
from rmd.models.resolve import is_packaged, teacher_source
from rmd.models.student_config import CONFIG_NAME, StudentConfig, holds_student, read_student, write_config
from rmd.recipes.hashes import config_hash
from rmd.recipes.schema import Recipe

__all__ = [
    "CONFIG_NAME", "LORA_NAME", "UNNAMED", "Student", "StudentConfig", "apply_lora_file", "apply_student", "base_of",
    "check_fits", "holds_student", "load_student", "read_student", "save_student", "student_config", "student_folder",
    "write_config", "write_standalone",
]  # fmt: skip
STANDALONE, BLOCK, BLOCK_CONFIG = "pipeline.py", "block.py", "modular_config.json"
"""Names of the files by which diffusers runs a student without RMD, as diffusers expects them: code of a pipeline, of a
block of modular diffusers, and where that block is."""
UNNAMED = "a pipeline in memory"
"""Name of a teacher that was given as a pipeline which does not say where it was loaded from."""


@dataclass(frozen=True)
class Student:
    """A loaded student: its config, and its backbone, whose denoiser is the student's."""

    backbone: Backbone
    config: StudentConfig

    @property
    def plan(self) -> StepPlan:
        """The plan that the student was distilled for."""
        return self.config.plan


@torch.no_grad()
def save_student(backbone: Backbone, state: dict[str, Tensor], recipe: Recipe, folder: Path) -> Path:
    """Write a student into `folder`, completely or not at all; a student that is already there is replaced.

    Args:
        backbone: the teacher's backbone; its pipeline provides everything but the denoiser.
        state: the student's trainable tensors by name, as `Roles.state` returns them.

    Raises:
        RMDError: the folder holds something else, is being written to, or cannot be written; or a tensor is not finite.
    """
    check_tensors(state.items(), "this student is not saved")
    with student_folder(folder) as partial:
        if recipe.roles.mode == "full":
            _save_pipeline(backbone, state, partial)
        else:
            _save_lora(backbone, state, recipe, partial)
        config = student_config(backbone, recipe)
        write_config(config, partial)
        write_standalone(backbone, config, partial)
    return folder


def student_config(backbone: Backbone, recipe: Recipe) -> StudentConfig:
    """Return what `rmd_config.json` says of the student that a recipe makes of a teacher."""
    return StudentConfig(
        method=recipe.method.name,
        mode=recipe.roles.mode,
        teacher=None if recipe.teacher == UNNAMED else stored_teacher(recipe.teacher),
        family=recipe.family,
        recipe=recipe.name,
        recipe_hash=config_hash(recipe),
        guidance=recipe.method.guidance,
        prompts=shared_prompts(recipe.data.prompts),
        conditioning=backbone.conditioning,
        plan=recipe.build_plan(),
    )


def write_standalone(backbone: Backbone, config: StudentConfig, folder: Path) -> None:
    """Write the code by which diffusers runs the student without RMD, if it can be run so."""
    if config.runs_alone:
        here, base = Path(__file__), type(backbone.pipe).__name__
        code = here.with_name("standalone.py").read_text(encoding="utf-8")
        block = here.with_name("standalone_block.py").read_text(encoding="utf-8").replace(".standalone", ".pipeline")
        pipeline = code.replace("StableDiffusionXLPipeline as Base", f"{base} as Base")
        place = {"_class_name": "RMDBlock", "auto_map": {"ModularPipelineBlocks": "block.RMDBlock"}}
        for name, text in ((STANDALONE, pipeline), (BLOCK, block), (BLOCK_CONFIG, json.dumps(place, indent=1) + "\n")):
            (folder / name).write_text(text, encoding="utf-8")


def stored_teacher(name: str) -> str:
    """Return a teacher's name as a student's config stores it: for a folder, the absolute path.

    Packaged teachers and repositories on the Hub keep their names.
    """
    folder = user_path(name)
    return str(folder.resolve()) if not is_packaged(name) and folder.exists() else name


@contextmanager
def student_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder`, which may be empty or an earlier student, when the block ends.

    Raises:
        RMDError: the folder holds something else, another process writes to it, or it cannot be written.
    """
    try:
        folder = folder.resolve()
        with locked(folder.parent, f".{folder.name}.lock"):
            _check_replaceable(folder)
            with replacing(folder) as partial:
                yield partial
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot save the student to {folder}: {reason(error)}") from error


def _check_replaceable(folder: Path) -> None:
    """Raise RMDError if a folder holds anything but a student."""
    if folder.exists() and not folder.is_dir():
        raise RMDError(f"{folder} is a file: a student needs a folder of its own")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_NAME).is_file():
        raise RMDError(f"{folder} holds something other than a student: remove it, or choose another folder")


def load_student(
    source: str | Path, *, dtype: torch.dtype = torch.float32, teacher: str | Path | None = None, **options: Any
) -> Student:
    """Load a student that `save_student` wrote, from a folder or a repository on the Hub.

    Args:
        teacher: the base of a LoRA student, if it is not the one that the student names.
        options: passed on to `DiffusionPipeline.from_pretrained`.

    Raises:
        RMDError: there is no student, it does not fit the teacher, or weights are not finite.
    """
    config = read_student(source)
    if config.mode == "full":
        backbone = load_backbone(source, dtype=dtype, conditioning=config.conditioning, **options)
    else:
        base = base_of(config, teacher)
        try:
            backbone = load_backbone(base, dtype=dtype, conditioning=config.conditioning, **options)
        except RMDError as error:
            if teacher is not None or Path(base).exists():
                raise
            raise RMDError(f"{error}; {_from_where(config)}") from error
    for name, part in backbone.pipe.components.items():
        if isinstance(part, nn.Module):
            check_module(part, f"{source if config.mode == 'full' else base}, {name}")
    check_fits(backbone, config)
    if config.mode == "lora":
        apply_student(backbone, config)
    return Student(backbone, config)


def base_of(config: StudentConfig, teacher: str | Path | None = None) -> str | Path:
    """Return the folder or repository of a student's teacher: the given one, or the one that the student names.

    Raises:
        RMDError: neither is there, or the folder that the student names no longer exists.
    """
    if teacher is not None:
        return teacher_source(str(user_path(str(teacher))))
    if config.teacher is None:
        raise RMDError(
            f"the student {config.source} names no teacher, as it was made for sharing: give its base by teacher=... "
            "or --teacher"
        )
    if Path(config.teacher).is_absolute() and not Path(config.teacher).exists():
        raise RMDError(f"there is no folder {config.teacher}; {_from_where(config)}")
    return teacher_source(config.teacher)


def _from_where(config: StudentConfig) -> str:
    """Return the end of an error's sentence: which teacher the student needs, and how to give another."""
    return (
        f"the student {config.source} was distilled from the teacher {config.teacher}: if that has moved, give "
        "teacher=... or --teacher (of rmd eval: --base)"
    )


def check_fits(backbone: Backbone, config: StudentConfig) -> None:
    """Raise RMDError unless a student's config fits the loaded model: its family, sides, frames and conditioning."""
    if config.family != backbone.family:
        raise RMDError(
            f"the student {config.source} is of the family {config.family}, but the pipeline is of {backbone.family}"
        )
    where = f"{CONFIG_NAME} of {config.source}"
    multiple = backbone.size_multiple
    for stage in (*config.plan.stages, config.plan.match_stage):
        if stage.height % multiple or stage.width % multiple:
            raise RMDError(
                f"{where}: stage {stage.index} is {stage.size}, but this model's sides are multiples of {multiple}"
            )
    with located(where):
        backbone.check_frames(config.plan.frames)
    if config.conditioning.pos_rescale and not backbone.rescales_positions:
        raise RMDError(f"{where}: models of the family {config.family} do not support conditioning.pos_rescale")


def apply_student(
    backbone: Backbone, config: StudentConfig, name: str = ADAPTER, *, others: Collection[str] = ()
) -> None:  # fmt: skip
    """Load a LoRA student's adapter onto its teacher's pipeline.

    Args:
        name: the adapter's name on the pipeline.
        others: names of other students, which become inactive.

    Raises:
        RMDError: the student is a full one, of another family, or made for another network.
    """
    if config.mode == "full":
        raise RMDError(f"{config.source} is a full student, not an adapter: load it with RMDPipeline.from_pretrained")
    check_fits(backbone, config)
    apply_lora_file(backbone, config.source, name, others=others)


def _save_pipeline(backbone: Backbone, state: dict[str, Tensor], folder: Path) -> None:
    """Write the teacher's pipeline with the student's weights, in the precision of the teacher's."""
    teacher: Any = backbone.denoiser
    own = dict(teacher.named_parameters())
    # The network's own class: FSDP puts another in front of it.
    kind: Any = next(kind for kind in type(teacher).__mro__ if not issubclass(kind, FSDPModule))
    with init_empty_weights():
        student = kind.from_config(teacher.config)
    weights = {name: tensor.to("cpu", own[name].dtype) for name, tensor in state.items()}
    # Buffers, and layers that are not trained (`Backbone.unread`), are the teacher's.
    kept = {name: tensor for name, tensor in teacher.state_dict().items() if name not in own or name not in state}
    student.load_state_dict({**kept, **weights}, assign=True)
    setattr(backbone.pipe, backbone.denoiser_name, student)
    try:
        backbone.pipe.save_pretrained(folder)
    finally:
        setattr(backbone.pipe, backbone.denoiser_name, teacher)


def _save_lora(backbone: Backbone, state: dict[str, Tensor], recipe: Recipe, folder: Path) -> None:
    """Write the student's adapter file."""
    metadata = {
        "r": recipe.roles.rank,
        "lora_alpha": recipe.roles.alpha,
        "target_modules": list(backbone.adapted(recipe.roles.layers)),
    }
    folder.mkdir(parents=True)
    write_lora(backbone, state, metadata, folder)
