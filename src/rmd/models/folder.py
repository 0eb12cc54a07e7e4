"""Check the files in a diffusers pipeline's folder before anything is loaded from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import ModelMixin
from transformers import PreTrainedModel

from rmd.common.errors import RMDError, shown
from rmd.models.hub import check_weights, read_object, refuse_pointer

INDEX = "model_index.json"
"""File that makes a folder a diffusers pipeline."""
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Names of weight files without their endings, by the library of the network."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PIPELINES = frozenset(
    path.name
    for path in (Path(str(diffusers.__file__)).parent / "pipelines").iterdir()
    if path.is_dir() and path.name.isidentifier() and not path.name.startswith("_")
)
"""Subpackages of diffusers with parts that a single pipeline uses, such as Stable Diffusion's safety checker."""


def model_index(folder: Path) -> dict[str, Any]:
    """Return a pipeline's index, after checking that it names only classes of diffusers and transformers.

    Raises:
        RMDError: the folder has no index, or the index names something else.
    """
    path = folder / INDEX
    if not path.is_file():
        raise RMDError(f"{folder} is not a diffusers pipeline: it has no {INDEX}")
    index = read_object(path)
    check_index(index, str(path))
    return index


def check_index(index: Mapping[str, Any], where: str) -> None:
    """Check an index that has been read already, as `model_index` does; `where` names it in errors."""
    if "_class_name" not in index:
        raise RMDError(f"{where} is not readable as a diffusers model index: it has no _class_name")
    if not isinstance(index["_class_name"], str):
        raise RMDError(
            f"{where} names the pipeline {shown(index['_class_name'])}, which is not a class of diffusers: RMD runs no "
            "code that comes with weights"
        )
    for part, entry in index.items():
        if not part.startswith("_") and isinstance(entry, list):
            _class_of(entry, f"{where}: {part}")


def check_folder(
    folder: Path, index: Mapping[str, Any], variant: str | None, *, given: Mapping[str, Any]
) -> str | None:
    """Check the files of every part of a pipeline that is not `given`; return the variant to load.

    Raises:
        RMDError: a part has no safetensors files or a damaged one, or there are several variants and none was chosen.
    """
    chosen = variant
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or part in given:
            continue
        kind = _class_of(entry, f"{folder / INDEX}: {part}")
        if kind is None:
            continue
        _check_part(folder / part)
        if issubclass(kind, (ModelMixin, PreTrainedModel)):
            used = _check_part_weights(folder / part, kind, variant)
            if used is not None and chosen not in (None, used):
                raise RMDError(
                    f"{folder / part} holds weights in the variant {used} only, and another part in {chosen} only: "
                    "save the pipeline again with one of them"
                )
            chosen = chosen or used
    return chosen


def _check_part_weights(folder: Path, kind: type, variant: str | None) -> str | None:
    """Check the weight files of a part of a class; return the variant of those that are there."""
    stem = STEMS["diffusers" if issubclass(kind, ModelMixin) else "transformers"]
    names = [path.name for path in folder.iterdir()]
    used = variant if variant in variants(names, stem) else _only(folder, names, stem)
    for path in weight_files(folder, stem, used):
        check_weights(path)
    return used


def variants(names: list[str], stem: str) -> list[str | None]:
    """Return the variants among weight files of these names; None stands for the plain files."""
    pattern = re.compile(
        rf"{re.escape(stem)}(?:\.(?P<one>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
        r"(?:\.index(?:\.(?P<sharded>[^.]+))?\.json)?"
    )
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return list(dict.fromkeys(match["one"] or match["sharded"] for match in matches))


def weight_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """Return the safetensors files that hold a network's weights: a single file, or those that an index names.

    Raises:
        RMDError: there are none, or the index names a file that is missing or outside the folder.
    """
    mark = "" if variant is None else f".{variant}"
    single, index = folder / f"{stem}{mark}.safetensors", folder / f"{stem}.safetensors.index{mark}.json"
    if index.is_file():
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise RMDError(f"{index} names no files: download it again")
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name:
                raise RMDError(f"{index} names {shown(name)}, which is not a file beside it: download it again")
            if not (folder / name).is_file():
                raise RMDError(f"{index} names {name}, and there is no such file beside it: download it again")
        return [folder / name for name in names]
    return [single]


def _class_of(entry: list[Any], where: str) -> type | None:
    """Return the class that an index names as [library, class], or None if the pipeline does without the part."""
    if entry == [None, None] or entry == [None, None, None]:
        return None
    if len(entry) == 2 and all(isinstance(name, str) and name.isidentifier() for name in entry):
        library, name = entry
        home: Any = {"diffusers": diffusers, "transformers": transformers}.get(library)
        if home is None and library in _PIPELINES:
            home = getattr(diffusers.pipelines, library)
        kind = None if home is None or name.startswith("_") else getattr(home, name, None)
        if isinstance(kind, type):
            return kind
    raise RMDError(
        f"{where} is {shown(entry)}, which is not a class of the installed diffusers or transformers: RMD runs no code "
        "that comes with weights"
    )


def _check_part(folder: Path) -> None:
    """Raise RMDError if a part's folder is missing, contains git-LFS pointers, or asks for code of its own."""
    if not folder.is_dir():
        raise RMDError(f"there is no folder {folder}, which {INDEX} beside it names: download the pipeline again")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            refuse_pointer(path)
            if path.suffix == ".json" and "auto_map" in read_object(path):
                raise RMDError(f"{path} asks for code of its own (auto_map): RMD runs no code that comes with weights")


def _only(folder: Path, names: list[str], stem: str) -> str | None:
    """Return the variant to load if the requested one is missing: the plain files, or the only variant there is."""
    held = variants(names, stem)
    if None in held:
        return None
    if len(held) == 1:
        return held[0]
    if held:
        raise RMDError(
            f"{folder} holds weights in the variants {', '.join(map(str, held))}: choose one with --variant, or "
            "variant= in Python"
        )
    pickled = [name for name in names if name.endswith(_PICKLES)]
    if pickled:
        raise RMDError(
            f"{folder} holds its weights as {pickled[0]}, a pickle, which can run code when it is loaded: convert them "
            "to safetensors (save_pretrained of diffusers and transformers writes these)"
        )
    raise RMDError(f"{folder} holds no weights: there is no {stem}.safetensors; download it again")
