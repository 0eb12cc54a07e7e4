"""Model families by name, and by the class of their pipelines: finds a pipeline's backbone, loads it and wraps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from rmd.common.errors import RMDError, located, shown
from rmd.common.files import user_path
from rmd.common.plugins import Registry
from rmd.models.base import Backbone, Conditioning
from rmd.models.folder import model_index
from rmd.models.hub import read_object
from rmd.models.loading import load_checked

MODELS: Registry[type[Backbone]] = Registry(
    "rmd.models",
    "model family",
    {
        "sdxl": "rmd.models.sdxl:SDXLBackbone",
        "sd": "rmd.models.sd:StableDiffusionBackbone",
        "pixart": "rmd.models.pixart:PixArtBackbone",
        "sd3": "rmd.models.sd3:SD3Backbone",
        "flux": "rmd.models.flux:FluxBackbone",
        "wan": "rmd.models.wan:WanBackbone",
    },
)
BackboneType = TypeVar("BackboneType", bound=type[Backbone])
_GIVEN_MORE = ("Img2Img", "Inpaint", "InstructPix2Pix", "ControlNet", "Adapter", "ImageToVideo", "VideoToVideo", "VACE")
"""Parts of the class names of pipelines that take a picture or a video as input."""


def register(backbone: BackboneType) -> BackboneType:
    """Add a family in this process; to be used as a class decorator. Other packages name theirs as entry points.

    Raises:
        RMDError: the family's name, or one of its pipeline classes, belongs to another family.
    """
    place = f"{backbone.__module__}:{backbone.__qualname__}"
    if any(entry.name == backbone.family and entry.value == place for entry in entry_points(group=MODELS.group)):
        return backbone  # an entry point already provides this class
    for name in backbone.pipeline_classes if _takes_all(backbone) else ():
        for owner in _takers({"_class_name": name}):
            if owner.family != backbone.family and _takes_all(owner):
                raise RMDError(f"pipelines of the class {name} belong to the family {owner.family}: leave it out")
    MODELS.register(backbone.family, backbone)
    return backbone


def family_class(family: str) -> type[Backbone]:
    """Return the backbone class of a family.

    Raises:
        RMDError: there is no family of this name, or the package that provides it is at fault.
    """
    backbone = MODELS.get(family)
    if not (isinstance(backbone, type) and issubclass(backbone, Backbone) and backbone.family == family):
        raise RMDError(
            f"the entry point {shown(family)} of {MODELS.group} must name a subclass of Backbone whose `family` is "
            f"{shown(family)}, as my_package.my_module:MyBackbone: update or uninstall the package that provides it"
        )
    return backbone


def load_backbone(
    source: str | Path, *, dtype: torch.dtype = torch.float32, conditioning: Conditioning | None = None, **options: Any
) -> Backbone:
    """Load a pipeline's folder, or its repository on the Hub, and wrap it in its family's backbone.

    Args:
        options: passed on to `DiffusionPipeline.from_pretrained`.

    Raises:
        RMDError: the folder is not a diffusers pipeline, or has no registered family; or the repository on the Hub is
            absent, gated or unreachable.
    """
    folder = user_path(str(source))
    if folder.exists():
        class_of_pipeline(folder)  # raises before any weights are read
    return wrap(load_pipeline(source, dtype=dtype, **options), conditioning)


def load_pipeline(source: str | Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> DiffusionPipeline:
    """Load a diffusers pipeline of any family from a folder or the Hub.

    Args:
        options: passed on to `DiffusionPipeline.from_pretrained`. `variant` chooses the weight files, such as "fp16";
            by default the plain files are loaded, or the only variant that is there.

    Raises:
        RMDError: the folder is not a diffusers pipeline; the repository on the Hub is absent, gated or unreachable; a
            part has a class that the family cannot use, or one that is not from diffusers or transformers; or its files
            are damaged, or do not hold exactly the weights of its network.
    """
    return load_checked(source, dtype=dtype, check=_check_family, **options)


def class_of_pipeline(folder: Path) -> type[Backbone]:
    """Return the backbone class for a pipeline's folder; raise RMDError if it is no pipeline or of no known family."""
    return family_of(model_index(folder))


def wrap(pipe: DiffusionPipeline, conditioning: Conditioning | None = None) -> Backbone:
    """Put a loaded pipeline into its family's backbone.

    Raises:
        RMDError: no family is registered for it, or its networks are of a kind that the family cannot use.
    """
    family = family_of({**pipe.config, "_class_name": type(pipe).__name__})
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    for part, kinds in family.part_classes.items():
        if part in networks:
            # torch.compile and FSDP wrap the network: look behind them for its own class.
            names = [kind.__name__ for kind in type(getattr(networks[part], "_orig_mod", networks[part])).__mro__]
            name = next((name for name in names if name in kinds), names[0])
            _check_class(family, part, name, kinds, "this pipeline")
    configs = {name: getattr(part, "config", None) for name, part in networks.items()}
    with located("this pipeline"):
        family.check_network({name: _plain(config) for name, config in configs.items() if config is not None})
    return family(pipe, conditioning)


def _check_family(folder: Path, index: Mapping[str, Any]) -> dict[str, None]:
    """Check a folder's configurations by its family, if it has one; return the optional parts that it lacks, as None.

    Raises:
        RMDError: a part or the denoiser is of a kind that the family cannot use.
    """
    takers = _takers(index)
    if not takers:
        return {}
    family = _only(takers, index)
    for part, kinds in family.part_classes.items():
        _check_class(family, part, (index.get(part) or [None, None])[1], kinds, str(folder))
    paths = {part: folder / part / "config.json" for part in index if not part.startswith("_")}
    configs = {part: read_object(path) for part, path in paths.items() if path.is_file()}
    with located(str(folder)):
        family.check_network(configs)
    return dict.fromkeys(part for part in family.optional_parts if not any(index.get(part) or ()))


def _check_class(family: type[Backbone], part: str, name: str | None, kinds: tuple[str, ...], where: str) -> None:
    """Raise RMDError if a part's class is known and not among those that a family works with."""
    if name is not None and name not in kinds:
        raise RMDError(
            f"{where}: the {part} is of the class {name}, and {family.family} works with {' or '.join(kinds)}: give a "
            "pipeline with one of these"
        )


def _plain(config: Any) -> dict[str, Any]:
    """Return a network's configuration as a mapping, whichever library the network comes from."""
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def family_of(index: Mapping[str, Any]) -> type[Backbone]:
    """Return the family that works with a pipeline.

    Args:
        index: the content of the pipeline's model_index.json, or its class alone, as `_class_name`.

    Raises:
        RMDError: no family takes the pipeline, or two do.
    """
    takers = _takers(index)
    if takers:
        return _only(takers, index)
    name = str(index["_class_name"])
    known = ", ".join(sorted(each for family in MODELS.names() for each in family_class(family).pipeline_classes))
    more = ""
    if any(word in name for word in _GIVEN_MORE):
        more = "; it is given more than a prompt, and RMD distils text-to-image and text-to-video models"
    raise RMDError(f"no backbone is registered for {name}: registered are {known}{more}")


def _takes_all(family: type[Backbone]) -> bool:
    """Return whether a family takes all pipelines of its classes, as it does if it does not define `takes`."""
    return not any("takes" in vars(kind) for kind in family.__mro__ if kind is not Backbone)


def _takers(index: Mapping[str, Any]) -> list[type[Backbone]]:
    """Return the families that take a pipeline; a package at fault counts only if no other family takes it."""
    takers, fault = [], None
    for name in MODELS.names():
        try:
            family = family_class(name)
        except RMDError as error:
            fault = error
            continue
        if family.takes(index):
            takers.append(family)
    if fault is not None and not takers:
        raise fault
    return takers


def _only(takers: Sequence[type[Backbone]], index: Mapping[str, Any]) -> type[Backbone]:
    """Return the one family that takes a pipeline; raise RMDError if there are several."""
    if len(takers) > 1:
        names = " and ".join(family.family for family in takers)
        raise RMDError(
            f"the families {names} both take pipelines of the class {index['_class_name']}: uninstall the package that "
            "provides one of them, or make its `takes` stricter"
        )
    return takers[0]
