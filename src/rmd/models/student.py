"""Save a distilled student so that stock diffusers loads it, and load it back with its plan.

A full student is an ordinary pipeline folder; a LoRA student is `pytorch_lora_weights.safetensors` for the teacher's
pipeline. Beside either lies `rmd_config.json`: the plan with its final times, and where the student comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from pydantic import Field, PrivateAttr
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rmd.common.errors import RMDError
from rmd.common.files import locked, read_model, reason, replacing, user_path
from rmd.common.typed import Strict
from rmd.core.finite import check_module, check_tensors
from rmd.core.plan import StepPlan
from rmd.models.adapter import LORA_NAME, apply_lora_file, write_lora
from rmd.models.base import INDEX, Backbone, Conditioning
from rmd.models.hub import hub_errors
from rmd.models.registry import family_class, load_backbone
from rmd.models.share import (
    check_cards,
    check_hub_id,
    required_teacher,
    shared_copy,
    shared_prompts,
    shared_values,
)
from rmd.models.teacher import teacher_source
from rmd.recipes.hashes import config_hash
from rmd.recipes.schema import Recipe
from rmd.worlds.registry import packaged_teachers

CONFIG_NAME = "rmd_config.json"
Text = Annotated[str, Field(min_length=1)]


class StudentConfig(Strict):
    """What `rmd_config.json` says of a student: the plan it was distilled for, and where it comes from."""

    version: Literal[1] = 1
    method: Text
    mode: Literal["lora", "full"]
    """`lora`: an adapter for the teacher's pipeline; `full`: a whole pipeline."""
    teacher: Text | None
    """A folder, a repository on the Hub or a packaged teacher; None if the student was exported without a name."""
    family: Text
    recipe: str
    recipe_hash: str
    guidance: Annotated[float, Field(ge=0)]
    """Guidance scale of the teacher, which is distilled into the student."""
    prompts: str
    conditioning: Conditioning
    plan: StepPlan
    _source: str = PrivateAttr("")

    @property
    def source(self) -> str:
        """Folder or repository that the config was read from; empty if it was created here."""
        return self._source

    @property
    def values(self) -> dict[str, Any]:
        """Return the file's content as JSON values."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Student:
    """A loaded student: its backbone (the denoiser is the student's) and what its config says."""

    backbone: Backbone
    config: StudentConfig

    @property
    def plan(self) -> StepPlan:
        return self.config.plan


@torch.no_grad()
def save_student(backbone: Backbone, state: dict[str, Tensor], recipe: Recipe, folder: Path) -> Path:
    """Write a student into `folder`, whole or not at all; a student that is already there is replaced.

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
        config = StudentConfig(
            method=recipe.method.name,
            mode=recipe.roles.mode,
            teacher=stored_teacher(recipe.teacher),
            family=recipe.family,
            recipe=recipe.name,
            recipe_hash=config_hash(recipe),
            guidance=recipe.method.guidance,
            prompts=shared_prompts(recipe.data.prompts),
            conditioning=backbone.conditioning,
            plan=recipe.build_plan(),
        )
        write_config(config, partial)
    return folder


def stored_teacher(name: str) -> str:
    """Return a teacher's name as a student's config stores it: for a folder, the absolute path.

    Packaged teachers and repositories on the Hub keep their names.
    """
    folder = user_path(name)
    return str(folder.resolve()) if name not in packaged_teachers() and folder.exists() else name


def write_config(config: StudentConfig, folder: Path) -> None:
    """Write `rmd_config.json` into a folder that is being filled."""
    (folder / CONFIG_NAME).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")


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
    if folder.exists() and not folder.is_dir():
        raise RMDError(f"{folder} is a file: a student needs a folder of its own")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_NAME).is_file():
        raise RMDError(f"{folder} holds something that is no student: remove it, or choose another folder")


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
    for stage in config.plan.stages:
        if stage.height % multiple or stage.width % multiple:
            raise RMDError(
                f"{where}: stage {stage.index} is {stage.size}, but this model's sides are multiples of {multiple}"
            )
    try:
        backbone.check_frames(config.plan.frames)
    except RMDError as error:
        raise RMDError(f"{where}: {error}") from error
    if config.conditioning.pos_rescale and config.family != "sd3":
        raise RMDError(f"{where}: conditioning.pos_rescale is for sd3 only, and this is a model of {config.family}")


def holds_student(source: str | Path) -> bool:
    """Whether a folder or a repository of the Hub holds a student, and not a diffusers pipeline alone.

    Raises:
        RMDError: it holds neither, or cannot be reached.
    """
    if not str(source):
        raise RMDError("the name of the model is empty: give a folder, or a repository of the Hub")
    folder = Path(source)
    if folder.exists():
        if not (folder / CONFIG_NAME).is_file() and not (folder / INDEX).is_file():
            raise RMDError(
                f"{source} holds neither a student nor a diffusers pipeline: it has no {CONFIG_NAME} and no {INDEX}"
            )
        return (folder / CONFIG_NAME).is_file()
    with hub_errors(source, "the student"):
        try:
            hf_hub_download(str(source), CONFIG_NAME)
        except RemoteEntryNotFoundError:
            return False
        except LocalEntryNotFoundError:
            if not isinstance(try_to_load_from_cache(str(source), INDEX), str):
                raise
            return False
    return True


def read_student(source: str | Path) -> StudentConfig:
    """Read `rmd_config.json` of a folder or a repository on the Hub.

    Raises:
        RMDError: there is none, RMD did not write it, or the files beside it belong to another kind of student.
    """
    folder = Path(source)
    if not folder.exists():
        with hub_errors(source, "the student"):
            folder = Path(hf_hub_download(str(source), CONFIG_NAME)).parent
    if not (folder / CONFIG_NAME).is_file():
        raise RMDError(f"{source} holds no student: it has no {CONFIG_NAME}")
    config = read_model(folder / CONFIG_NAME, StudentConfig)
    config._source = str(source)
    family_class(config.family)
    needed = INDEX if config.mode == "full" else LORA_NAME
    if Path(source).exists() and not (folder / needed).is_file():
        raise RMDError(f"{source} should hold a {config.mode} student, says its {CONFIG_NAME}, but it has no {needed}")
    return config


def apply_student(backbone: Backbone, config: StudentConfig) -> None:
    """Load a LoRA student's adapter onto its teacher's pipeline, under the name `rmd`.

    Raises:
        RMDError: the student is a full one, of another family, or made for another network.
    """
    if config.mode == "full":
        raise RMDError(f"{config.source} is a full student, not an adapter: load it with RMDPipeline.from_pretrained")
    check_fits(backbone, config)
    apply_lora_file(backbone, config.source)


def _save_pipeline(backbone: Backbone, state: dict[str, Tensor], folder: Path) -> None:
    """The teacher's pipeline with the student's weights, in the precision of the teacher's."""
    teacher: Any = backbone.denoiser
    dtypes = {name: tensor.dtype for name, tensor in teacher.named_parameters()}
    # the class of the network itself, where FSDP has put its own in front
    kind: Any = next(kind for kind in type(teacher).__mro__ if not issubclass(kind, FSDPModule))
    with init_empty_weights():
        student = kind.from_config(teacher.config)
    weights = {name: tensor.to("cpu", dtypes[name]) for name, tensor in state.items()}
    buffers = {name: tensor for name, tensor in teacher.state_dict().items() if name not in dtypes}
    student.load_state_dict({**buffers, **weights}, assign=True)
    setattr(backbone.pipe, backbone.denoiser_name, student)
    try:
        backbone.pipe.save_pretrained(folder)
    finally:
        setattr(backbone.pipe, backbone.denoiser_name, teacher)


def _save_lora(backbone: Backbone, state: dict[str, Tensor], recipe: Recipe, folder: Path) -> None:
    metadata = {
        "r": recipe.roles.rank,
        "lora_alpha": recipe.roles.alpha,
        "target_modules": list(backbone.adapted(recipe.roles.layers)),
    }
    folder.mkdir(parents=True)
    write_lora(backbone, state, metadata, folder)


def upload(
    folder: Path, repo_id: str, *, private: bool = True, token: str | None = None, base_model: str | None = None
) -> str:
    """Upload a student's folder to a repository on the Hub, created if necessary, and return its address.

    The upload contains no path of this machine; the folder itself stays as it is.

    Args:
        base_model: the teacher's repository on the Hub, OWNER/NAME, if the student's config names none.

    Raises:
        RMDError: the teacher is a local folder and `base_model` is not given, the folder's card names it, or the Hub
            does not accept the upload.
    """
    check_hub_id("the repository", repo_id)
    config = read_student(folder)
    values = shared_values(config.values, required_teacher(config.teacher, base_model))
    with shared_copy(folder) as copy:
        (copy / CONFIG_NAME).write_text(json.dumps(values, indent=1), encoding="utf-8")
        check_cards(copy, config.teacher)
        try:
            api = HfApi(token=token)
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo_id, folder_path=copy)
        except (OSError, ValueError) as error:
            raise RMDError(
                f"cannot upload to {repo_id}: {reason(error)}; check the name, the connection, and `hf auth login`"
            ) from error
    return address
