"""Teachers too large for one process: networks without weights, then each process's part of them from the files.

Loaded as usual, every process would first hold the whole network, and three of them in full mode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rmd.common.errors import RMDError
from rmd.models.base import Backbone
from rmd.models.folder import INDEX, STEMS, check_folder, model_index, weight_files
from rmd.models.hub import read_object
from rmd.models.loading import fetch_pipeline, refuse_incomplete
from rmd.models.registry import class_of_pipeline
from rmd.models.teacher import DTYPES, load_teacher, teacher_source
from rmd.recipes.schema import Recipe

_META = torch.device("meta")


@dataclass(frozen=True)
class TeacherWeights:
    """Where the weights of a network lie, and in which precision they are wanted."""

    files: dict[str, Path]
    dtypes: dict[str, torch.dtype]

    def drop(self, network: nn.Module) -> None:
        """Turn the placeholders of weights into meta tensors, which FSDP spreads without allocating them."""
        for module, name, parameter in _own_parameters(network):
            if not _is_adapters(name):
                empty = torch.empty_like(parameter, device=_META, memory_format=torch.contiguous_format)
                module.register_parameter(name.rpartition(".")[2], nn.Parameter(empty, parameter.requires_grad))

    def fill(self, network: nn.Module) -> None:
        """Read this process's part of every weight; the network has been spread.

        Raises:
            RMDError: a file lacks a weight, has one of another shape, or cannot be read.
        """
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}

            def stored(name: str) -> Any:
                if name not in self.files:
                    raise RMDError(f"the teacher's files have no weight {name}: save it anew with diffusers")
                path = self.files[name]
                try:
                    if path not in opened:
                        opened[path] = stack.enter_context(safe_open(path, framework="pt"))
                    return opened[path].get_slice(name)
                except (OSError, SafetensorError) as error:
                    raise RMDError(f"cannot read the weights in {path}: {error}") from error

            found: dict[str, Tensor] = {}
            for name, parameter in network.named_parameters():
                if parameter.device == _META:
                    found[name] = _part(stored(_base_name(name)), parameter, self.dtypes[_base_name(name)], name)
            for name, buffer in network.named_buffers():
                if _base_name(name) in self.files:
                    found[name] = stored(_base_name(name))[:].to(buffer)
            # assigned, as FSDP expects of weights that come after it
            network.load_state_dict(found, strict=False, assign=True)


def load_spread_teacher(recipe: Recipe) -> tuple[Backbone, TeacherWeights]:
    """The recipe's teacher as `load_teacher` gives it, but for its denoiser's weights.

    Raises:
        RMDError: as `load_teacher`; or the denoiser's weights are not in safetensors files.
    """
    named = teacher_source(recipe.teacher)
    source, variant = fetch_pipeline(named, recipe.variant)
    family = class_of_pipeline(source)
    name, index = family.denoiser_name, model_index(source)
    variant = check_folder(source, index, variant, given={})
    folder = source / name
    kind = _class_of(folder / "config.json", family)
    with init_empty_weights():
        network: nn.Module = kind.from_config(kind.load_config(folder)).eval()
    files = _files(folder, variant, network)
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    wanted = DTYPES[recipe.train.dtype]
    dtypes = {
        name: torch.float32 if set(name.split(".")) & set(kept) else wanted for name, _ in network.named_parameters()
    }
    for module, full, parameter in list(_own_parameters(network)):
        dtype = dtypes[full]
        # PEFT puts an adapter where its layer lies, and would leave those of meta tensors without values: one zero seen
        # as a matrix lies on the CPU
        empty = torch.empty(parameter.shape, dtype=dtype, device=_META)
        if recipe.roles.mode == "lora":
            empty = torch.zeros((), dtype=dtype).expand(parameter.shape)
        module.register_parameter(full.rpartition(".")[2], nn.Parameter(empty, requires_grad=False))
    with TemporaryDirectory() as rest:
        _link_without(name, source, Path(rest))
        backbone = load_teacher(recipe, rest, **{name: network})
    backbone.pipe.register_to_config(_name_or_path=str(named))
    return backbone, TeacherWeights(files, dtypes)


def _link_without(part: str, source: Path, folder: Path) -> None:
    """A pipeline's folder that lacks a part: diffusers would load one that it is given, too, where it is optional."""
    for path in source.iterdir():
        if path.name not in (part, INDEX):
            (folder / path.name).symlink_to(path.resolve())
    parts = json.loads((source / INDEX).read_text(encoding="utf-8"))
    (folder / INDEX).write_text(json.dumps(parts | {part: [None, None]}), encoding="utf-8")


def _class_of(path: Path, family: type[Backbone]) -> Any:
    """Return the class of diffusers that a denoiser's configuration names."""
    name = read_object(path).get("_class_name")
    wanted = family.part_classes.get(family.denoiser_name, (str(name),))
    # The others are earlier names of the first, and are loaded as the first.
    kind = getattr(diffusers, wanted[0], None) if name in wanted else None
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise RMDError(f"{path} names no network of diffusers: save the teacher anew")
    return kind


def _files(folder: Path, variant: str | None, network: nn.Module) -> dict[str, Path]:
    """Return the file that holds each weight, by the weight's name.

    Raises:
        RMDError: a file cannot be read, or the files do not hold exactly the network's weights.
    """
    found: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder, STEMS["diffusers"], variant):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise RMDError(f"cannot read the weights in {path}: {error}") from error
        found |= dict.fromkeys(names, path)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    report = {
        "missing_keys": wanted.keys() - shapes.keys(),
        "unexpected_keys": shapes.keys() - wanted.keys(),
        "mismatched_keys": [
            (name, shapes[name], shape) for name, shape in wanted.items() if shapes.get(name, shape) != shape
        ],
    }
    refuse_incomplete(folder, network, report)
    return {name: path for name, path in found.items() if name in wanted}


def _part(stored: Any, parameter: nn.Parameter, dtype: torch.dtype, name: str) -> Tensor:
    """This process's part of a stored weight, in the parameter's dtype after the teacher's."""
    if tuple(stored.get_shape()) != tuple(parameter.shape):
        raise RMDError(f"the teacher's files hold a weight {name} of another shape than its config says")
    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    rows = stored[offset[0] : offset[0] + shape[0]]
    local = rows.to(dtype).to(mesh.device_type, parameter.dtype).contiguous()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def _own_parameters(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter with the module that owns it and its full name."""
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, f"{prefix}.{name}" if prefix else name, parameter


def _base_name(name: str) -> str:
    """The name of a weight before adapters were put beside it."""
    return name.replace(".base_layer.", ".")


def _is_adapters(name: str) -> bool:
    return ".lora_" in name
