"""Save a distilled student so that stock diffusers loads it, and load it back with its plan.

A full student is an ordinary pipeline folder; a LoRA student is `pytorch_lora_weights.safetensors` for the teacher's
pipeline. Beside either lies `rmd_config.json`: the plan with its final times, and where the student comes from.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rmd.backbones.base import Backbone, Conditioning, load_backbone
from rmd.config import Recipe, config_hash
from rmd.errors import RMDError
from rmd.plan import StepPlan

CONFIG_NAME = "rmd_config.json"


@dataclass(frozen=True)
class Student:
    """A loaded student: its backbone (the denoiser is the student's) and the plan it was distilled for."""

    backbone: Backbone
    plan: StepPlan


@torch.no_grad()
def save_student(backbone: Backbone, state: dict[str, Tensor], recipe: Recipe, folder: Path) -> Path:
    """Write a student into `folder`, whole or not at all; a student that is there already is replaced.

    Args:
        backbone: the teacher's backbone; its pipeline gives everything but the denoiser.
        state: the student's trainable tensors by name, as `Roles.state` gives them.

    Raises:
        RMDError: the folder holds something else, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_NAME).is_file():
        raise RMDError(f"{folder} holds something that is no student: remove it, or choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if recipe.roles.mode == "full":
            _save_pipeline(backbone, state, partial)
        else:
            _save_lora(backbone, state, recipe, partial)
        config = {
            "version": 1,
            "method": recipe.method.name,
            "mode": recipe.roles.mode,
            "teacher": recipe.teacher,
            "family": recipe.family,
            "recipe": recipe.name,
            "recipe_hash": config_hash(recipe),
            "conditioning": asdict(backbone.conditioning),
            "plan": recipe.build_plan().to_dict(),
        }
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RMDError(f"cannot save the student to {folder}: {reason}") from error
    return folder


def load_student(folder: Path) -> Student:
    """Load a full student written by `save_student`.

    Raises:
        RMDError: the folder has no plan, or is no pipeline (a LoRA student goes into its teacher's).
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise RMDError(f"{folder} holds no student: it has no {CONFIG_NAME}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        plan, mode, teacher = StepPlan.from_dict(config["plan"]), config["mode"], config["teacher"]
        conditioning = Conditioning(**config["conditioning"])
    except (ValueError, KeyError, TypeError) as error:
        raise RMDError(f"{path} is not readable ({error}): save the student again") from error
    if mode == "lora":
        raise RMDError(f"{folder} holds a LoRA student: load it into its teacher, {teacher}, with load_lora_weights")
    return Student(load_backbone(folder, conditioning=conditioning), plan)


def _save_pipeline(backbone: Backbone, state: dict[str, Tensor], folder: Path) -> None:
    denoiser = backbone.denoiser
    teacher = {name: value.clone() for name, value in denoiser.state_dict().items()}
    try:
        denoiser.load_state_dict({**teacher, **state})
        backbone.pipe.save_pretrained(folder)
    finally:
        denoiser.load_state_dict(teacher)


def _save_lora(backbone: Backbone, state: dict[str, Tensor], recipe: Recipe, folder: Path) -> None:
    metadata = {
        "r": recipe.roles.rank,
        "lora_alpha": recipe.roles.alpha,
        "target_modules": list(backbone.lora_targets),
    }
    part = backbone.denoiser_name
    if hasattr(backbone.pipe, "save_lora_weights"):
        layers: dict[str, Any] = {f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": metadata}
        backbone.pipe.save_lora_weights(str(folder), **layers, safe_serialization=True)
        return
    # diffusers has no LoRA for PixArt: the same file, written here
    header = {"format": "pt", "lora_adapter_metadata": json.dumps({f"{part}.{k}": v for k, v in metadata.items()})}
    folder.mkdir(parents=True)
    tensors = {f"{part}.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata=header)
