"""Students in ComfyUI's model folders, and their weights on ComfyUI's models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.sd
import comfy.utils
import folder_paths

from .adapter import DENOISERS, LORA_NAME, read_adapter, wan_names
from .plan import CONFIG_NAME, Plan, PlanError, read_config, read_plan

FOLDER = "rmd_students"
"""The folder of students among ComfyUI's model folders."""
CLASSES = {"sdxl": comfy.model_base.SDXL, "sd3": comfy.model_base.SD3, "wan": comfy.model_base.WAN21}
"""ComfyUI's classes of the families."""
WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Student:
    """The files of a student: its config, and its adapter or, for a full student, the files of its network."""

    config: Path
    files: tuple[Path, ...]
    full: bool = False

    @property
    def plan(self) -> Plan:
        """The plan for which the student was distilled."""
        plan = read_plan(self.config)
        if plan.family not in CLASSES:
            raise PlanError(f"students of the family {plan.family} do not run in ComfyUI: use RMD's own pipeline")
        return plan

    @property
    def fingerprint(self) -> str:
        """A text that changes if one of the files does."""
        return repr([(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in (self.config, *self.files)])


def register() -> None:
    """Add `models/rmd_students` to ComfyUI's model folders."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def names() -> list[str]:
    """Return the students: folders with a config, and LoRA files with a config beside them."""
    return sorted(_configs())


def find(name: str) -> Student:
    """Return the files of a student.

    Args:
        name: one of `names`; no other path is opened.

    Raises:
        PlanError: there is no such student, or it lacks its weights.
    """
    config = _configs().get(name)
    if config is None:
        raise PlanError(f"there is no student {name!r}: put its folder into models/{FOLDER}")
    if config.name != CONFIG_NAME:
        return Student(config, (config.with_name(_lora_of(config.name)),))
    values = read_config(config)
    if values.get("mode") != "full":
        return Student(config, (_existing(config.with_name(LORA_NAME), name),))
    part = DENOISERS.get(str(values.get("family")), "transformer")
    return Student(config, tuple(_network(config.parent / part, name)), full=True)


def load(student: Student, model: Any) -> Any:
    """Return the model of a student.

    Args:
        student: the files.
        model: the teacher's model, which a LoRA student needs; a full student has its own network.

    Raises:
        PlanError: the student belongs to another model, or needs one.
    """
    family = student.plan.family
    if student.full:
        return _full(student, family)
    if model is None:
        raise PlanError("this student is a LoRA: connect the model from which it was distilled")
    check_family(model, family)
    return _with_adapter(model, read_adapter(student.files[0], family), student.files[0].name)


def check_family(model: Any, family: str) -> None:
    """Raise PlanError unless a model is of a student's family."""
    if not isinstance(model.model, CLASSES[family]):
        raise PlanError(f"this student was distilled from {family}, but the model is {type(model.model).__name__}")


def family_of(model: Any) -> str:
    """Return the family of a model; raise PlanError if it is none of RMD's."""
    for family, kind in CLASSES.items():
        if isinstance(model.model, kind):
            return family
    raise PlanError(f"cascades run with {', '.join(CLASSES)}, but the model is {type(model.model).__name__}")


def _configs() -> dict[str, Path]:
    """Return the config of every student, by the student's name."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths(FOLDER):
        for folder, _, files in os.walk(root, followlinks=True):
            if CONFIG_NAME in files and folder != root:
                name = Path(folder).relative_to(root).as_posix()
                found.setdefault(name, Path(folder) / CONFIG_NAME)
    for name in folder_paths.get_filename_list("loras"):
        path = folder_paths.get_full_path("loras", name)
        if name.endswith(".safetensors") and path is not None:
            config = Path(path).with_name(f"{Path(path).stem}.{CONFIG_NAME}")
            if config.is_file():
                found.setdefault(name, config)
    return found


def _lora_of(config: str) -> str:
    """Return the name of the LoRA file beside which a config lies."""
    return config.removesuffix(f".{CONFIG_NAME}") + ".safetensors"


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        raise PlanError(f"the student {name!r} has no {path.name}: copy the whole folder")
    return path


def _network(folder: Path, name: str) -> list[Path]:
    """Return the files of a full student's network: one, or the parts into which it was divided."""
    plain = folder / f"{WEIGHTS}.safetensors"
    found = [plain] if plain.is_file() else sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
    if not found:
        raise PlanError(f"the student {name!r} has no {folder.name}/{plain.name}: copy the whole folder")
    return found


def _full(student: Student, family: str) -> Any:
    """Return the model of a full student."""
    tensors: dict[str, Any] = {}
    for path in student.files:
        tensors |= comfy.utils.load_torch_file(str(path), safe_load=True)
    if family == "wan":
        tensors = wan_names(tensors)
    model = comfy.sd.load_diffusion_model_state_dict(tensors)
    if model is None:
        raise PlanError(f"ComfyUI does not know the network of {student.config.parent.name}")
    check_family(model, family)
    return model


def _with_adapter(model: Any, tensors: dict[str, Any], where: str) -> Any:
    """Return a model with an adapter, all of whose layers must be there; its scale is 1."""
    layers = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = model.model.state_dict()
    for name, tensor in tensors.items():
        layer, mark, part = name.rpartition(".lora_")
        if not mark:  # the layer's alpha
            continue
        if layer not in layers:
            raise PlanError(f"{where} belongs to another model: this one has no layer {layer}")
        if _size(weights, layers[layer], part) != _end(tensor, part):
            raise PlanError(f"{where} belongs to another model: the layer {layer} has another size")
    result = model.clone()
    patches = comfy.lora.load_lora(tensors, layers, log_missing=False)
    left = set(patches) - set(result.add_patches(patches, 1.0))
    if left:
        raise PlanError(f"{where} belongs to another model: {len(left)} of its layers are not in this one")
    return result


def _size(weights: dict[str, Any], layer: Any, part: str) -> int:
    """Return the number of inputs (for the first matrix) or outputs of a layer, or of a part of it."""
    key, offset = (layer, None) if isinstance(layer, str) else layer[:2]
    if part.startswith("down"):
        return int(weights[key].shape[1])
    return int(weights[key].shape[0] if offset is None else offset[2])


def _end(matrix: Any, part: str) -> int:
    """Return the number of inputs or outputs that a matrix of an adapter has."""
    return int(matrix.shape[1] if part.startswith("down") else matrix.shape[0])
