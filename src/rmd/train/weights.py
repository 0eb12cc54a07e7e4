"""Loads teachers that are too large for one process: first a network without weights, then each process's shards.

If it were loaded as usual, each process would first hold the full network, and three copies of it in full mode.

torch's `HuggingFaceStorageReader` does not fit: it reads every safetensors file in a folder (a variant such as fp16
lies beside the plain files), and converts a weight straight to the parameter's dtype, where a run of a single process
rounds it to the teacher's dtype first.
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


class WeightReader(ExitStack):
    """Reads weights by name from safetensors files, each of which is opened once; a context manager."""

    def __init__(self, files: dict[str, Path]) -> None:
        """Read from `files`: the path of each weight's file, by the weight's name."""
        super().__init__()
        self.files = files
        self._opened: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return a weight as safetensors' slice, whose parts are read when it is indexed.

        Raises:
            RMDError: no file has the weight, or its file cannot be read.
        """
        if name not in self.files:
            raise RMDError(f"the teacher's files lack the weight {name}: save the teacher again with diffusers")
        path = self.files[name]
        try:
            if path not in self._opened:
                self._opened[path] = self.enter_context(safe_open(path, framework="pt"))
            return self._opened[path].get_slice(name)
        except (OSError, SafetensorError) as error:
            raise RMDError(f"cannot read the weights in {path}: {error}") from error


@dataclass(frozen=True)
class TeacherWeights:
    """The files that hold the weights of a network, and the dtypes in which to load them."""

    files: dict[str, Path]
    dtypes: dict[str, torch.dtype]

    def drop(self, network: nn.Module) -> None:
        """Replace the placeholders of weights by meta tensors, which FSDP shards without allocating memory."""
        for module, name, parameter in _named_parameters(network):
            if ".lora_" not in name:  # adapters hold their values already
                empty = torch.empty_like(parameter, device=_META, memory_format=torch.contiguous_format)
                module.register_parameter(name.rpartition(".")[2], nn.Parameter(empty, parameter.requires_grad))

    def fill(self, network: nn.Module) -> None:
        """Read this process's shard of every weight of a network that has been sharded.

        Raises:
            RMDError: a file lacks a weight, has one of another shape, or cannot be read.
        """
        with WeightReader(self.files) as stored:
            state: dict[str, Tensor] = {}
            for name, parameter in network.named_parameters():
                if parameter.device == _META:
                    base = _base_name(name)
                    state[name] = _shard(stored[base], parameter, self.dtypes[base], name)
            for name, buffer in network.named_buffers():
                if _base_name(name) in self.files:
                    state[name] = stored[_base_name(name)][:].to(buffer)
            # With assign=True, as FSDP expects it for weights that are loaded after sharding.
            network.load_state_dict(state, strict=False, assign=True)


def load_sharded_teacher(recipe: Recipe) -> tuple[Backbone, TeacherWeights]:
    """Load the recipe's teacher as `load_teacher` does, but without its denoiser's weights.

    Returns:
        The backbone, and where the denoiser's weights are stored.

    Raises:
        RMDError: as `load_teacher`; or the denoiser's weights are not in safetensors files.
    """
    named = teacher_source(recipe.teacher)
    source, variant = fetch_pipeline(named, recipe.variant)
    family = class_of_pipeline(source)
    denoiser_name = family.denoiser_name
    variant = check_folder(source, model_index(source), variant, given={})
    folder = source / denoiser_name
    kind = _class_of(folder / "config.json", family)
    with init_empty_weights():
        network: nn.Module = kind.from_config(kind.load_config(folder)).eval()
    weights = TeacherWeights(_files(folder, variant, network), _dtypes(network, DTYPES[recipe.train.dtype]))
    _place_empty_weights(network, weights.dtypes, adapters=recipe.roles.mode == "lora")
    with TemporaryDirectory() as rest:
        _link_without(denoiser_name, source, Path(rest))
        backbone = load_teacher(recipe, rest, **{denoiser_name: network})
    backbone.pipe.register_to_config(_name_or_path=str(named))
    return backbone, weights


def _dtypes(network: nn.Module, wanted: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype of each parameter: the wanted one, or float32 where diffusers keeps it."""
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    return {
        name: torch.float32 if set(name.split(".")) & set(kept) else wanted for name, _ in network.named_parameters()
    }


def _place_empty_weights(network: nn.Module, dtypes: dict[str, torch.dtype], *, adapters: bool) -> None:
    """Give a network's parameters their dtypes without allocating them.

    Args:
        adapters: whether adapters will be put on the network. PEFT creates an adapter on its layer's device and would
            leave those of meta tensors uninitialised, so the layers get an expanded zero on the CPU.
    """
    for module, name, parameter in list(_named_parameters(network)):
        empty = torch.empty(parameter.shape, dtype=dtypes[name], device=_META)
        if adapters:
            empty = torch.zeros((), dtype=dtypes[name]).expand(parameter.shape)
        module.register_parameter(name.rpartition(".")[2], nn.Parameter(empty, requires_grad=False))


def _link_without(part: str, source: Path, folder: Path) -> None:
    """Fill a folder with links to a pipeline's parts except one, and with an index that does not list it.

    diffusers would load a part even if it is given one.
    """
    for path in source.iterdir():
        if path.name not in (part, INDEX):
            (folder / path.name).symlink_to(path.resolve())
    parts = json.loads((source / INDEX).read_text(encoding="utf-8"))
    (folder / INDEX).write_text(json.dumps(parts | {part: [None, None]}), encoding="utf-8")


def _class_of(path: Path, family: type[Backbone]) -> Any:
    """Return the diffusers class that a denoiser's configuration names."""
    name = read_object(path).get("_class_name")
    wanted = family.part_classes.get(family.denoiser_name, (str(name),))
    # The others are earlier names of the first, and are loaded as the first.
    kind = getattr(diffusers, wanted[0], None) if name in wanted else None
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise RMDError(f"{path} names no network of diffusers: save the teacher again")
    return kind


def _files(folder: Path, variant: str | None, network: nn.Module) -> dict[str, Path]:
    """Return the file that holds each weight, by the weight's name.

    Raises:
        RMDError: a file cannot be read, or the files do not hold exactly the network's weights.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder, STEMS["diffusers"], variant):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise RMDError(f"cannot read the weights in {path}: {error}") from error
        files |= dict.fromkeys(names, path)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    report = {
        "missing_keys": wanted.keys() - shapes.keys(),
        "unexpected_keys": shapes.keys() - wanted.keys(),
        "mismatched_keys": [
            (name, shapes[name], shape) for name, shape in wanted.items() if shapes.get(name, shape) != shape
        ],
    }
    refuse_incomplete(folder, network, report)
    return {name: path for name, path in files.items() if name in wanted}


def _shard(stored: Any, parameter: nn.Parameter, dtype: torch.dtype, name: str) -> Tensor:
    """Return this process's shard of a stored weight, rounded to `dtype` and then to the parameter's dtype."""
    if tuple(stored.get_shape()) != tuple(parameter.shape):
        raise RMDError(f"the teacher's files hold the weight {name} in another shape than its config.json says")
    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    rows = stored[offset[0] : offset[0] + shape[0]]
    local = rows.to(dtype).to(mesh.device_type, parameter.dtype).contiguous()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def _named_parameters(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield every parameter with the module that holds it and its full name."""
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, f"{prefix}.{name}" if prefix else name, parameter


def _base_name(name: str) -> str:
    """Return the name that a weight had before adapters were put beside it."""
    return name.replace(".base_layer.", ".")
