"""The registry of model families: finds the backbone of a pipeline, loads it and wraps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from rmd.common.errors import RMDError, one_of
from rmd.common.files import user_path
from rmd.models.base import Backbone, Conditioning
from rmd.models.hub import read_object
from rmd.models.loading import INDEX as INDEX
from rmd.models.loading import load_checked, model_index

ENTRY_POINTS = "rmd.models"
_GIVEN_MORE = ("Img2Img", "Inpaint", "InstructPix2Pix", "ControlNet", "Adapter", "ImageToVideo", "VideoToVideo", "VACE")
"""Parts of the class names of pipelines that take a picture or a video as input."""
BackboneType = TypeVar("BackboneType", bound=type[Backbone])
_REGISTRY: dict[str, type[Backbone]] = {}


def register(backbone: BackboneType) -> BackboneType:
    """Class decorator: make a family known by its pipelines' class names."""
    for name in backbone.pipeline_classes:
        _REGISTRY[name] = backbone
    return backbone


def load_backbone(
    source: str | Path, *, dtype: torch.dtype = torch.float32, conditioning: Conditioning | None = None, **options: Any
) -> Backbone:
    """Load a pipeline folder (or Hub id) and wrap it in its family's backbone.

    Args:
        options: go to `DiffusionPipeline.from_pretrained`.

    Raises:
        RMDError: the folder is no diffusers pipeline, or of a family that no backbone is registered for; or the Hub's
            repository is absent, gated, or out of reach.
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
        RMDError: the folder is no diffusers pipeline; the repository on the Hub is absent, gated or unreachable; a part
            has a class that the family cannot use, or one that is not from diffusers or transformers; or its files are
            damaged, or do not hold exactly the weights of its network.
    """
    return load_checked(source, dtype=dtype, check=_check_family, **options)


def _check_family(folder: Path, index: Mapping[str, Any]) -> dict[str, None]:
    """Check a folder's configurations by its family, if it has one; return the optional parts that it lacks, as None.

    Raises:
        RMDError: a part or the denoiser is of a kind that the family cannot use.
    """
    _register_all()
    family = _REGISTRY.get(index["_class_name"])
    if family is None:
        return {}
    for part, kinds in family.part_classes.items():
        _check_class(family, part, (index.get(part) or [None, None])[1], kinds, str(folder))
    paths = {part: folder / part / "config.json" for part in index if not part.startswith("_")}
    configs = {part: read_object(path) for part, path in paths.items() if path.is_file()}
    with _naming(str(folder)):
        family.check_network(configs)
    return dict.fromkeys(part for part in family.optional_parts if not any(index.get(part) or ()))


def _check_class(family: type[Backbone], part: str, name: str | None, kinds: tuple[str, ...], where: str) -> None:
    if name is not None and name not in kinds:
        raise RMDError(
            f"{where}: the {part} is of the class {name}, and {family.family} works with {' or '.join(kinds)}: give a "
            "pipeline with one of these"
        )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Begin the errors of the block with the location of the pipeline."""
    try:
        yield
    except RMDError as error:
        raise RMDError(f"{where}: {error}") from error


def class_of_pipeline(folder: Path) -> type[Backbone]:
    """Return the backbone for a pipeline's folder; raise RMDError if it is no pipeline or has no registered family."""
    return _family_of(model_index(folder)["_class_name"])


def wrap(pipe: DiffusionPipeline, conditioning: Conditioning | None = None) -> Backbone:
    """Put a loaded pipeline into its family's backbone.

    Raises:
        RMDError: no family is registered for it, or its networks are of a kind that the family cannot use.
    """
    family = _family_of(type(pipe).__name__)
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    for part, kinds in family.part_classes.items():
        if part in networks:
            # torch.compile and FSDP wrap the network: look behind them for its own class.
            names = [kind.__name__ for kind in type(getattr(networks[part], "_orig_mod", networks[part])).__mro__]
            name = next((name for name in names if name in kinds), names[0])
            _check_class(family, part, name, kinds, "this pipeline")
    configs = {name: getattr(part, "config", None) for name, part in networks.items()}
    with _naming("this pipeline"):
        family.check_network({name: _plain(config) for name, config in configs.items() if config is not None})
    return family(pipe, conditioning)


def _plain(config: Any) -> dict[str, Any]:
    """Return a network's configuration as a mapping, whichever library the network comes from."""
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def family_class(family: str) -> type[Backbone]:
    """The backbone of a family by its name; RMDError if none is registered."""
    _register_all()
    known = {backbone.family: backbone for backbone in _REGISTRY.values()}
    return known[one_of("family", family, tuple(known))]


def _register_all() -> None:
    """Import our families, and those of installed packages that name theirs as entry points of `ENTRY_POINTS`."""
    import rmd.models.pixart
    import rmd.models.sd3
    import rmd.models.sdxl
    import rmd.models.wan  # noqa: F401  (they register themselves)

    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def _family_of(class_name: str) -> type[Backbone]:
    _register_all()
    if class_name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        more = ""
        if any(word in class_name for word in _GIVEN_MORE):
            more = "; it is given more than a prompt, and RMD distils text-to-image and text-to-video models"
        raise RMDError(f"no backbone is registered for {class_name}: registered are {known}{more}")
    return _REGISTRY[class_name]
