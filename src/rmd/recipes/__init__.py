"""Recipe files: find a packaged or own YAML recipe, follow `extends`, and lay overrides on top.

This module knows files and plain mappings only; `rmd.config` gives them types. A recipe is a stack
of layers, root first; a later layer wins, mappings merge key by key and everything else is replaced, as is a mapping
by one of another `kind`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from rmd.errors import RMDError, did_you_mean
from rmd.files import user_path

PACKAGED = Path(__file__).parent
ROOT = "base"  # what every packaged recipe extends; not complete on its own


@dataclass(frozen=True)
class Layer:
    """One source of recipe values: `label` is how messages call it, such as `sdxl.yaml`."""

    label: str
    values: Mapping[str, object]


class _Loader(yaml.SafeLoader):
    """YAML as people write it: keys are text, 1e-5 is a number, a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            text = str(key.value)
            if text in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {text} is there twice", key.start_mark)
            seen.add(text)
        return {str(key): value for key, value in super().construct_mapping(node, deep=deep).items()}


# YAML 1.1 reads 1e-5 as a string because it has no dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def recipe_names() -> list[str]:
    """The packaged recipes that can be run, in alphabetical order."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml") if path.stem != ROOT)


def read_layers(name_or_path: str, overrides: Sequence[str] = ()) -> list[Layer]:
    """The layers of a recipe: the root it extends first, then the file itself, then each override.

    `name_or_path` is the name of a packaged recipe or the path of a YAML file; overrides look like
    `optim.student_lr=1e-5`, their values being YAML. The name of the recipe, where its own file gives
    none, is the file's. Raises RMDError when something cannot be found or read, or extends itself.
    """
    path = _find(name_or_path, Path())
    return [*_read_chain(path, ()), *(_override(text) for text in overrides)]


def merge(layers: Sequence[Layer]) -> dict[str, object]:
    """The values of all layers in one nested mapping."""
    merged: dict[str, object] = {}
    for layer in layers:
        merged = _merge(merged, layer.values)
    return merged


def origin(layers: Sequence[Layer], keys: Sequence[str]) -> str:
    """The label of the last layer that gives the value at `keys`, or, if none does, of the recipe's file."""
    for layer in reversed(layers):
        if _holds(layer.values, keys):
            return layer.label
    return next(layer.label for layer in reversed(layers) if not layer.label.startswith("override "))


def _find(name_or_path: str, folder: Path) -> Path:
    """The file of a recipe; a relative path starts at `folder`."""
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = folder / user_path(name_or_path)
        if not path.is_file():
            raise RMDError(f"there is no recipe file {path}; check the path, or name one of {_listed()}")
        return path
    path = PACKAGED / f"{name_or_path}.yaml"
    if name_or_path != "" and path.is_file():
        return path
    raise RMDError(
        f"there is no recipe {name_or_path!r}{did_you_mean(name_or_path, recipe_names())}; "
        f"the recipes are {_listed()}, and one of your own is given by its path, ending in .yaml"
    )


def _listed() -> str:
    return ", ".join(recipe_names())


def _read_chain(path: Path, children: tuple[Path, ...]) -> list[Layer]:
    resolved = path.resolve()
    if resolved in children:
        circle = [*children[children.index(resolved) :], resolved]
        raise RMDError(f"recipes extend each other in a circle: {' extends '.join(p.name for p in circle)}")
    values = _read_file(path)
    parent = values.pop("extends", None)
    values.setdefault("name", path.stem)
    layer = Layer(label=path.name, values=values)
    if parent is None:
        return [layer]
    if not isinstance(parent, str):
        raise RMDError(f"{path.name}: extends should be the name or the path of one recipe, but is {parent!r}")
    return [*_read_chain(_find(parent, path.parent), (*children, resolved)), layer]


def _read_file(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RMDError(f"the recipe file {path} cannot be read: {error}") from error
    values = _parse(text, path.name)
    if values is None:
        raise RMDError(f"{path.name} is empty; a recipe needs at least `extends: {ROOT}` and its own values")
    return _mapping(values, path.name)


def _parse(text: str, label: str) -> object:
    try:
        # A subclass of SafeLoader: it builds plain values only.
        value: object = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RMDError(f"{label}{where}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RMDError(f"{label}: this is not YAML: {' '.join(str(error).split())}") from error
    return value


def _mapping(values: object, label: str) -> dict[str, object]:
    if not isinstance(values, dict):
        raise RMDError(f"{label}: expected `key: value` lines, but it holds {values!r}")
    return values


def _override(text: str) -> Layer:
    dotted, equals, value_text = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise RMDError(f"the override {text!r} should look like key=value, for example optim.student_lr=1e-5")
    if keys[0] == "extends":
        raise RMDError("extends can only stand in a recipe file; to run another recipe, name that one")
    label = f"override {text}"
    value = _parse(value_text, label)
    for key in reversed(keys):
        value = {key: value}
    return Layer(label=label, values=_mapping(value, label))


def _merge(under: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict):
            if isinstance(below, dict) and "kind" in below.keys() & value.keys() and below["kind"] != value["kind"]:
                below = None  # its other keys belong to its kind
            # Merging into nothing copies, so that no two recipes ever share a mapping.
            merged[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _holds(values: Mapping[str, object], keys: Sequence[str]) -> bool:
    here: object = values
    for key in keys:
        if not isinstance(here, Mapping) or key not in here:
            return False
        here = here[key]
    return True
