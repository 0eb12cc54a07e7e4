"""Backbones with random weights, or with none at all, in the sizes of real teachers.

On the meta device they need no memory, no accelerator and nothing from the Hub: enough to count parameters, FLOPs and
activations.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from rmd.common.errors import RMDError, shown
from rmd.common.files import user_path
from rmd.core.plan import Stage
from rmd.models.base import Architecture, Backbone, Conditioning
from rmd.models.cond import Cond
from rmd.models.folder import INDEX, model_index
from rmd.models.hub import first_line, read_object
from rmd.models.published import Part
from rmd.models.registry import wrap

META = torch.device("meta")
MOST_LAYERS = 1000
"""Largest number of layers in a configuration from which a network is built; a damaged one could ask for any number."""
_NONSENSE = (
    TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError,
)  # fmt: skip
"""Exceptions that constructors of networks raise for values that make no sense."""


def architecture_of(teacher: str | Path, family: type[Backbone]) -> Architecture:
    """Return a teacher's architecture: a published one, or that of a pipeline's folder.

    Raises:
        RMDError: the teacher is neither, or the configurations in its folder cannot be read.
    """
    folder = user_path(str(teacher))
    if str(teacher) in family.architectures and not folder.exists():
        return family.architectures[str(teacher)]
    path = folder / family.denoiser_name / "config.json"
    if not path.is_file():
        names = "".join(f", or {name}" for name in family.architectures)
        raise RMDError(
            f"the size of the teacher {teacher} is unknown: give the folder of a pipeline of the family "
            f"{family.family}{names}"
        )
    config = {key: value for key, value in read_object(path).items() if not key.startswith("_")}
    place = folder / "vae" / "config.json"
    try:
        return replace(family.architecture_from(config, read_object(place)), parts=_other_parts(folder, family))
    except (KeyError, TypeError, ValueError) as error:
        raise RMDError(f"{place} does not say by what factor the VAE downsamples pictures ({error})") from error


def _other_parts(folder: Path, family: type[Backbone]) -> dict[str, Part]:
    """Return the classes and configurations of a folder's networks besides the denoiser; none if it has no index."""
    if not (folder / INDEX).is_file():
        return {}
    entries = {name: entry for name, entry in model_index(folder).items() if isinstance(entry, list) and entry[1]}
    return {
        name: (entry[1], read_object(folder / name / "config.json"))
        for name, entry in entries.items()
        if name != family.denoiser_name and (folder / name / "config.json").is_file()
    }


def meta_part(architecture: Architecture, name: str, dtype: torch.dtype) -> nn.Module | None:
    """Return a part of a teacher's pipeline on the meta device, such as its VAE; None if its size is unknown.

    Raises:
        RMDError: no network can be built from its configuration.
    """
    if name not in architecture.parts:
        return None
    class_name, config = architecture.parts[name]
    kind: Any = getattr(diffusers, class_name, None) or getattr(transformers, class_name, None)
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    _check_layers(given, name)
    try:
        with META, _silent():
            network: nn.Module = (
                kind(kind.config_class.from_dict(given))
                if issubclass(kind, transformers.PreTrainedModel)
                else kind.from_config(given)
            )
    except _NONSENSE as error:
        raise RMDError(
            f"no {class_name} can be built from the configuration of the {name}: {first_line(error)}"
        ) from error
    return nn.Module.to(network, dtype)


def untrained_backbone(
    family: type[Backbone],
    architecture: Architecture,
    *,
    scheduler: Any = None,
    device: torch.device = META,
    dtype: torch.dtype = torch.bfloat16,
    conditioning: Conditioning | None = None,
) -> Backbone:
    """Return a backbone with a denoiser of full size, a small VAE and no text encoders.

    Args:
        scheduler: a diffusers scheduler; by default that of a rectified flow, which does not affect sizes.
        device: on the meta device, the networks have no weights; elsewhere, the denoiser's are small and random.
        dtype: precision of the denoiser.

    Raises:
        RMDError: the family cannot be built without a teacher, or not with this configuration.
    """
    network = _denoiser(family, architecture, dtype)
    with torch.device(device):
        vae = family.small_vae(architecture)
    kind = getattr(diffusers, family.pipeline_classes[0])
    required = [name for name, given in inspect.signature(kind).parameters.items() if given.default is given.empty]
    parts: dict[str, Any] = dict.fromkeys(required) | {
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler,
        family.denoiser_name: network if device == META else _with_random_weights(network, device),
    }
    return wrap(kind(**parts), conditioning)


def blank_pass(backbone: Backbone, architecture: Architecture, height: int, width: int, frames: int = 1) -> Tensor:
    """Call the denoiser of an untrained backbone once, on zeros in the shapes of one sample; return its output.

    Args:
        height: height of the picture in pixels.
        width: width of the picture in pixels.
    """
    weight = next(backbone.denoiser.parameters())

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype)

    stage = Stage(1, height, width)
    cond = Cond({name: zeros(*shape) for name, shape in backbone.cond_shapes(architecture).items()})
    latents = zeros(*backbone.latent_shape(1, height, width, frames)[1:])
    timestep = torch.zeros(1, device=weight.device)
    return backbone.forward(backbone.denoiser, latents, timestep, backbone.stage_cond(cond, stage, stage))


def _denoiser(family: type[Backbone], architecture: Architecture, dtype: torch.dtype) -> nn.Module:
    """Return the denoiser on the meta device."""
    names = family.part_classes.get(family.denoiser_name, ("",))
    kind = getattr(diffusers, names[0], None)
    if kind is None:
        raise RMDError(f"the family {family.family} does not name its denoiser's class in diffusers (`part_classes`)")
    _check_layers(architecture.config, family.denoiser_name)
    try:
        with META, _silent():
            network: nn.Module = kind(**architecture.config)
    except _NONSENSE as error:
        raise RMDError(f"no {family.family} denoiser can be built from this configuration: {error}") from error
    return nn.Module.to(network, dtype)  # diffusers' own `to` warns about modules that no configuration here has


def _check_layers(config: Mapping[str, Any], part: str) -> None:
    """Raise RMDError if a configuration asks for more layers than any network has."""
    for key, value in config.items():
        counts = value if isinstance(value, list | tuple) else [value]
        if ("layers" in key or "blocks" in key) and any(isinstance(n, int) and n > MOST_LAYERS for n in counts):
            raise RMDError(
                f"the configuration of the {part} has {key} = {shown(value)}, and no network has more than "
                f"{MOST_LAYERS} layers: download it again"
            )


@contextmanager
def _silent() -> Iterator[None]:
    """Within the block, say nothing of sizes that are zero, which other checks refuse."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        yield


@torch.no_grad()
def _with_random_weights(network: nn.Module, device: torch.device) -> nn.Module:
    """Allocate a network of the meta device: small random weights, and norms that change nothing."""
    network = network.to_empty(device=device).eval()
    g = torch.Generator(device).manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim > 1:
            tensor.normal_(0, 0.02, generator=g)
        else:
            tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network
