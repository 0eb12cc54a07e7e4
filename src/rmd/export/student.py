"""Save a distilled student so that stock diffusers loads it, and load it back with its plan.

A full student is an ordinary pipeline folder; a LoRA student is `pytorch_lora_weights.safetensors` for the teacher's
pipeline. Beside either lies `rmd_config.json`: the plan with its final times, and where the student comes from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rmd.backbones.base import INDEX, Backbone, Conditioning, load_backbone
from rmd.config import Recipe, config_hash
from rmd.errors import RMDError
from rmd.hub import hub_errors
from rmd.plan import StepPlan
from rmd.teacher import teacher_source

CONFIG_NAME = "rmd_config.json"
LORA_NAME = "pytorch_lora_weights.safetensors"
ADAPTER = "rmd"
"""Name of a loaded LoRA student among a network's adapters."""


@dataclass(frozen=True)
class StudentConfig:
    """What `rmd_config.json` says of a student: the plan it was distilled for, and where it comes from."""

    source: str
    mode: Literal["lora", "full"]
    family: str
    teacher: str
    guidance: float
    """Of the teacher, distilled into the student."""
    conditioning: Conditioning
    plan: StepPlan
    values: dict[str, Any]
    """The file's whole content."""


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
    """Write a student into `folder`, whole or not at all; a student that is there already is replaced.

    Args:
        backbone: the teacher's backbone; its pipeline gives everything but the denoiser.
        state: the student's trainable tensors by name, as `Roles.state` gives them.

    Raises:
        RMDError: the folder holds something else, or cannot be written.
    """
    with student_folder(folder) as partial:
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
            "guidance": recipe.method.guidance,
            "prompts": Path(recipe.data.prompts).name,
            "conditioning": asdict(backbone.conditioning),
            "plan": recipe.build_plan().to_dict(),
        }
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


@contextmanager
def student_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder`, empty or an earlier student, when the block has filled it.

    Raises:
        RMDError: the folder holds something else, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_NAME).is_file():
        raise RMDError(f"{folder} holds something that is no student: remove it, or choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RMDError(f"cannot save the student to {folder}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_student(
    source: str | Path, *, dtype: torch.dtype = torch.float32, teacher: str | Path | None = None, **options: Any
) -> Student:
    """Load a student written by `save_student`, from a folder or a repository of the Hub.

    Args:
        teacher: base of a LoRA student, where it is not what it was distilled from by name.
        options: go to `DiffusionPipeline.from_pretrained`.

    Raises:
        RMDError: there is no student, or its weights do not fit the teacher.
    """
    config = read_student(source)
    if config.mode == "full":
        return Student(load_backbone(source, dtype=dtype, conditioning=config.conditioning, **options), config)
    base = teacher_source(config.teacher if teacher is None else str(teacher))
    backbone = load_backbone(base, dtype=dtype, conditioning=config.conditioning, **options)
    apply_student(backbone, config)
    return Student(backbone, config)


def holds_student(source: str | Path) -> bool:
    """Whether a folder or a repository of the Hub holds a student, and not a diffusers pipeline alone.

    Raises:
        RMDError: it holds neither, or cannot be reached.
    """
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
    """Read `rmd_config.json` of a folder or a repository of the Hub; RMDError if there is none."""
    path = Path(source) / CONFIG_NAME
    if not Path(source).exists():
        with hub_errors(source, "the student"):
            path = Path(hf_hub_download(str(source), CONFIG_NAME))
    if not path.is_file():
        raise RMDError(f"{source} holds no student: it has no {CONFIG_NAME}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return StudentConfig(
            source=str(source),
            mode=values["mode"],
            family=values["family"],
            teacher=values["teacher"],
            guidance=values["guidance"],
            conditioning=Conditioning(**values["conditioning"]),
            plan=StepPlan.from_dict(values["plan"]),
            values=values,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RMDError(f"{path} is not readable ({error}): save the student again") from error


def apply_student(backbone: Backbone, config: StudentConfig) -> None:
    """Put a LoRA student's adapter on its teacher's pipeline, under the name `ADAPTER`.

    Raises:
        RMDError: it is a full student, of another family, or made for another network.
    """
    if config.mode == "full":
        raise RMDError(f"{config.source} is a full student, not an adapter: load it with RMDPipeline.from_pretrained")
    if config.family != backbone.family:
        raise RMDError(
            f"the student {config.source} is of the family {config.family}, but the pipeline is of {backbone.family}"
        )
    apply_lora_file(backbone, config.source)


def apply_lora_file(backbone: Backbone, source: str | Path) -> None:
    """Put the adapter of a folder or repository on a pipeline; RMDError if it was made for another network."""
    try:
        _check_layers(backbone, lora_file(str(source)))
        if hasattr(backbone.pipe, "load_lora_weights"):
            backbone.pipe.load_lora_weights(str(source), weight_name=LORA_NAME, adapter_name=ADAPTER)
        else:
            _inject(backbone, str(source))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RMDError(f"the LoRA of {source} does not fit this base: {reason}") from error


def _check_layers(backbone: Backbone, path: Path) -> None:
    """ValueError where the file adapts a layer that the network lacks, which diffusers would leave out silently."""
    prefix, network = f"{backbone.denoiser_name}.", backbone.denoiser
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            name, mark, _ = key.removeprefix(prefix).partition(".lora_A.")
            if not (key.startswith(prefix) and mark):
                continue
            if name not in layers:
                raise ValueError(f"it has no layer {name}")
            wanted, there = file.get_slice(key).get_shape()[1:], list(layers[name].weight.shape[1:])
            if wanted != there:
                raise ValueError(f"{name} takes {_shown(there)} numbers, not {_shown(wanted)}")


def _shown(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def lora_file(source: str) -> Path:
    """The adapter's file of a LoRA student; OSError where it cannot be had."""
    return Path(source) / LORA_NAME if Path(source).exists() else Path(hf_hub_download(source, LORA_NAME))


def _inject(backbone: Backbone, source: str) -> None:
    """What `load_lora_weights` does, for PixArt, of which diffusers knows no LoRA."""
    with safe_open(lora_file(source), "pt") as file:
        prefix = f"{backbone.denoiser_name}."
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        state = {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = LoraConfig(**{name.removeprefix(prefix): value for name, value in header.items()})
    inject_adapter_in_model(config, backbone.denoiser, adapter_name=ADAPTER)
    outcome: Any = set_peft_model_state_dict(backbone.denoiser, state, adapter_name=ADAPTER)
    if outcome.unexpected_keys:
        raise ValueError(f"{outcome.unexpected_keys[0]} is not in the network")
    backbone.denoiser.requires_grad_(False)


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


def write_lora(backbone: Backbone, state: dict[str, Tensor], metadata: dict[str, Any], folder: Path) -> None:
    """Write an adapter's tensors as diffusers does, with what PEFT must know of it in the header."""
    part = backbone.denoiser_name
    header = {"format": "pt", "lora_adapter_metadata": json.dumps({f"{part}.{k}": v for k, v in metadata.items()})}
    tensors = {f"{part}.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / LORA_NAME, metadata=header)


def upload(folder: Path, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a folder to a repository of the Hub, made if need be; returns its address."""
    api = HfApi(token=token)
    address = str(api.create_repo(repo_id, private=private, exist_ok=True))
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return address
