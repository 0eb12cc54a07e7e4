"""Recipe files as layers: find a packaged recipe or a YAML file, follow `extends`, and add overrides on top.

This module handles files and plain mappings; `rmd.recipes.schema` gives them types. A recipe is a stack of layers: the
root that it extends comes first, and every override is a layer of its own. A later layer takes precedence. Mappings are
merged key by key, and everything else is replaced. Three rules serve settings that depend on a choice:

* a mapping with another `kind` (the noise) replaces the whole mapping below it;
* a layer that changes `method.name` keeps the keys of `method` from the layers below, except those that only the
  earlier method has. Keys that the new method lacks are an error in the same layer or a later one;
* a layer that sets one of the `ALTERNATIVES` drops the others from the layers below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rmd.common.errors import RMDError, did_you_mean, shown
from rmd.common.files import reason, user_path
from rmd.recipes.loader import MAX_BYTES, parse
from rmd.recipes.methods import DEFAULT, method_keys

PACKAGED = Path(__file__).parent
"""Folder of the packaged recipes."""
ROOT = "base"
"""The recipe that every packaged one extends; it is not complete on its own."""
MAX_FILES = 20
"""Largest number of recipe files that may extend one another."""
MAX_KEYS = 10
"""Largest number of dotted keys in an override: recipes are three levels deep."""
ALTERNATIVES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "plan": {
        "steps": frozenset({"times"}),
        "times": frozenset({"steps", "cross_at", "grid_end"}),
        "cross_at": frozenset({"times", "thresholds"}),
        "thresholds": frozenset({"split", "cross_at"}),
        "split": frozenset({"steps", "thresholds"}),
    },
    "plan.cross_at": {"sigma": frozenset({"logsnr"}), "logsnr": frozenset({"sigma"})},
}
"""Settings by the dotted name of their group, each with those of the group that would say the same in another way."""
IsText = Callable[[Sequence[str]], bool]
"""Tells whether the setting at a sequence of keys is a text."""


@dataclass(frozen=True)
class Layer:
    """Values from one source, such as a file or an override."""

    label: str
    """Name of the source in error messages, such as `sdxl.yaml`."""
    values: Mapping[str, object]


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes that can be run, in alphabetical order."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml") if path.stem != ROOT)


def read_layers(
    name_or_path: str, overrides: Sequence[str] = (), *, is_text: IsText = lambda keys: False
) -> list[Layer]:
    """Return the layers of a recipe: the root that it extends first, then the file itself, then each override.

    If the recipe's own file gives no name, the recipe is named after the file.

    Args:
        name_or_path: the name of a packaged recipe or the path of a YAML file.
        overrides: settings such as `optim.student_lr=1e-5`; their values are YAML.
        is_text: tells which settings have text values. These are taken literally instead of as YAML, without spaces at
            both ends; quotes around the whole value are removed, and nothing at all stands for an empty value.

    Raises:
        RMDError: something cannot be found or read, is larger than any recipe, or extends itself.
    """
    path = _find(name_or_path, Path())
    return [*_read_chain(path), *(_override(text, is_text) for text in overrides)]


def merge(layers: Sequence[Layer]) -> dict[str, object]:
    """Return the values of all layers in one nested mapping, by the rules above."""
    merged: dict[str, object] = {}
    for layer in layers:
        kept = _without_alternatives(_without_keys_of_another_method(merged, layer.values), layer.values)
        merged = _merge(kept, layer.values)
    return merged


def origin(layers: Sequence[Layer], keys: Sequence[str]) -> str:
    """Return the label of the last layer that sets the value at `keys`, or of the recipe's own file if none does."""
    for layer in reversed(layers):
        if _holds(layer.values, keys):
            return layer.label
    return next(layer.label for layer in reversed(layers) if not layer.label.startswith("override "))


def _find(name_or_path: str, folder: Path) -> Path:
    """Return the file of a recipe; a relative path starts at `folder`."""
    called = shown(name_or_path)
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        try:
            path = folder / user_path(name_or_path)
            is_file, exists = path.is_file(), path.exists()
        except OSError as error:  # the name is too long
            raise RMDError(f"{called} cannot be the path of a recipe: {reason(error)}") from error
        if is_file:
            return path
        if exists and not path.is_dir():
            raise RMDError(f"{called} is not an ordinary file: give the path of a YAML file")
        raise RMDError(f"there is no recipe file {path}; check the path, or use one of {_listed()}")
    if name_or_path in (*recipe_names(), ROOT):
        return PACKAGED / f"{name_or_path}.yaml"
    raise RMDError(
        f"there is no recipe {called}{did_you_mean(name_or_path, recipe_names())}; "
        f"the recipes are {_listed()}; for a recipe of your own, give its path, ending in .yaml"
    )


def _listed() -> str:
    return ", ".join(recipe_names())


def _read_chain(path: Path) -> list[Layer]:
    """Return the layers of a file and of those it extends, root first."""
    layers: list[Layer] = []
    seen: list[Path] = []
    while True:
        resolved = path.resolve()
        if resolved in seen:
            circle = [*seen[seen.index(resolved) :], resolved]
            raise RMDError(f"recipes extend each other in a circle: {' extends '.join(p.name for p in circle)}")
        if len(seen) == MAX_FILES:
            raise RMDError(f"{seen[0].name} extends more than {MAX_FILES - 1} recipes, one after another: use fewer")
        seen.append(resolved)
        values = _read_file(path)
        parent = values.pop("extends", None)
        values.setdefault("name", path.stem)
        layers.insert(0, Layer(label=path.name, values=values))
        if parent is None:
            return layers
        if not isinstance(parent, str):
            raise RMDError(f"{path.name}: extends should be the name or the path of one recipe, but is {shown(parent)}")
        path = _find(parent, path.parent)


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RMDError(f"the recipe file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RMDError(f"the recipe file {path} cannot be read: line {line} is not UTF-8 text") from error
    if len(content) > MAX_BYTES:
        raise RMDError(f"{path} is too large to be a recipe: at most {MAX_BYTES // 2**20} MB are read")
    values = deepcopy(_parsed(text, path.name))
    if values is None:
        raise RMDError(f"{path.name} is empty; a recipe needs at least `extends: {ROOT}` and its own values")
    return _mapping(values, path.name)


@lru_cache(maxsize=32)
def _parsed(text: str, label: str) -> object:
    """Parse a text once: hundreds of cells of a comparison read the same packaged recipes, whose YAML takes longest."""
    return parse(text, label)


def _mapping(values: object, label: str) -> dict[str, object]:
    if not isinstance(values, dict):
        raise RMDError(f"{label}: expected `key: value` lines, but it holds {shown(values)}")
    return values


def _override(text: str, is_text: IsText) -> Layer:
    dotted, equals, value_text = text.partition("=")
    keys = [key.strip() for key in dotted.split(".", MAX_KEYS)]
    if not equals or not all(keys) or "." in keys[-1]:
        raise RMDError(f"the override {shown(text)} should look like key=value, for example optim.student_lr=1e-5")
    if keys[0] == "extends":
        raise RMDError("extends can only be used in a recipe file; to run another recipe, give its name")
    label = f"override {text if len(text) <= 100 else f'{text[:97]}...'}"
    if len(value_text) > MAX_BYTES:
        raise RMDError(f"{label}: the value is too long: at most {MAX_BYTES // 2**20} MB are read")
    value = _plain_text(value_text) if is_text(keys) else parse(value_text, label)
    for key in reversed(keys):
        value = {key: value}
    return Layer(label=label, values=_mapping(value, label))


def _plain_text(written: str) -> str | None:
    """Return a text setting as it is written on a command line, or None if there is nothing.

    Quotes around the whole value are removed: they are YAML's, for texts that YAML would read as something else. Quotes
    that do not enclose the whole text stay.
    """
    text = written.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        try:
            value = parse(text, "")
        except RMDError:
            return text
        return value if isinstance(value, str) else text
    return text or None


def _without_keys_of_another_method(under: Mapping[str, object], over: Mapping[str, object]) -> Mapping[str, object]:
    """Drop the keys of `method` that only the method below has, if the layer above changes `method.name`."""
    below, above = under.get("method"), over.get("method")
    if not (isinstance(below, dict) and isinstance(above, dict) and "name" in above):
        return under
    old, new = method_keys(below.get("name", DEFAULT)), method_keys(above["name"])
    if not new:
        return under  # an unknown method: the error should be about its name
    return {**under, "method": {key: value for key, value in below.items() if key in new or key not in old}}


def _without_alternatives(under: Mapping[str, object], over: Mapping[str, object]) -> Mapping[str, object]:
    """Drop the settings that the layer above gives in another way."""
    kept = _merge({}, under)
    for group, alternatives in ALTERNATIVES.items():
        below, above = _group(kept, group), _group(over, group)
        given = [key for key in above if above[key] is not None]
        for key in frozenset[str]().union(*(alternatives.get(key, frozenset()) for key in given)):
            below.pop(key, None)
    return kept


def _group(values: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the mapping at a dotted name, or an empty one if there is none."""
    here: object = values
    for key in name.split("."):
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, dict) else {}


def _merge(under: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict):
            if isinstance(below, dict) and "kind" in below.keys() & value.keys() and below["kind"] != value["kind"]:
                below = None  # the other keys belong to that kind
            # Merging into an empty mapping copies, so that recipes never share a mapping.
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
