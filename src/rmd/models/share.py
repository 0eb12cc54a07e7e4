"""Prepares a student for use elsewhere: with names that others can use, and without paths of this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but imported there for its users

from rmd.common.errors import RMDError, shown
from rmd.models.hub import HUB
from rmd.worlds.registry import packaged_teachers

_NAMES = ("_name_or_path", "name_or_path")
"""Keys of diffusers' and transformers' configs that record where a part was loaded from."""


def check_hub_id(what: str, name: str) -> str:
    """Return `name` if it is a valid repository name on the Hub, OWNER/NAME; raise RMDError otherwise."""
    if not _is_hub_id(name):
        raise RMDError(f"{what} must be the name of a repository of the Hub, as OWNER/NAME, got {shown(name)}")
    return name


def shared_teacher(teacher: str | None, base_model: str | None = None) -> str | None:
    """Return the name by which others find a student's teacher, or None if it is a local folder or unknown.

    Args:
        teacher: the teacher in the student's config: a packaged teacher, a repository on the Hub, or a folder.
        base_model: the teacher's repository on the Hub, which takes precedence.

    Raises:
        RMDError: `base_model` is no name of a repository.
    """
    if base_model is not None:
        return check_hub_id("the base model", base_model)
    return teacher if teacher is not None and _is_shared(teacher) else None


def required_teacher(teacher: str | None, base_model: str | None) -> str:
    """Return the name that `shared_teacher` gives, which an upload must have.

    Raises:
        RMDError: the teacher has no name that others could use, and `base_model` is not given.
    """
    name = shared_teacher(teacher, base_model)
    if name is None:
        what = "does not name its teacher" if teacher is None else f"names a folder of this machine, {teacher}"
        raise RMDError(
            f"the student cannot be uploaded because its config {what}: give the teacher's repository on the Hub with "
            '--base-model OWNER/NAME (in Python: base_model="OWNER/NAME")'
        )
    return name


def check_cards(folder: Path, teacher: str | None) -> None:
    """Raise RMDError if a card in a folder names a teacher that is a local folder."""
    if teacher is None or _is_shared(teacher):
        return
    for path in folder.rglob("*.md"):
        if teacher in path.read_text(encoding="utf-8", errors="replace"):
            raise RMDError(
                f"{path.name} names the folder {teacher} of this machine: export the student again with --base-model"
            )


def shared_prompts(prompts: str) -> str:
    """Return a source of prompts without its parent folders; a dataset on the Hub keeps its full name."""
    if prompts.startswith(HUB) and _is_hub_id(prompts.removeprefix(HUB)):
        return prompts
    return PureWindowsPath(prompts).name  # handles both separators


def shared_values(values: Mapping[str, Any], teacher: str | None) -> dict[str, Any]:
    """Return the content of a student's config for sharing, with the teacher's name that `shared_teacher` gives."""
    return {**values, "teacher": teacher, "prompts": shared_prompts(str(values["prompts"]))}


def without_paths(folder: Path) -> None:
    """Remove the paths of this machine from a folder's JSON files, where diffusers and transformers write them.

    The recorded locations of parts are removed, unless they are repositories on the Hub, and so is every other text
    that is the absolute path of something that exists here. Only configurations are searched: vocabularies and weight
    indices stay as they are.
    """
    for path in sorted(path for path in folder.rglob("*.json") if _is_config(path.name)):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # neither RMD nor a library writes such a file
            continue
        cleaned = _without_paths(values)
        if cleaned != values:
            path.write_text(json.dumps(cleaned, indent=2) + "\n", encoding="utf-8")


@contextmanager
def shared_copy(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder with all files of `folder`, without paths in its JSON files; large files are linked."""
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "student"
        copy.mkdir()
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            place = copy / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                shutil.copyfile(path, place)
            else:
                place.symlink_to(path.resolve())
        without_paths(copy)
        yield copy


def _is_config(name: str) -> bool:
    return name in ("config.json", "model_index.json") or name.endswith("_config.json")


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and name.isascii()


def _is_shared(name: str) -> bool:
    """Return whether a teacher's name means the same on every machine."""
    return name in packaged_teachers() or (_is_hub_id(name) and not os.path.exists(name))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_paths(item)
            for key, item in value.items()
            if not (isinstance(item, str) and (_is_path(item) or (key in _NAMES and not _is_shared(item))))
        }
    if isinstance(value, list):
        return [_without_paths(item) for item in value if not (isinstance(item, str) and _is_path(item))]
    return value


def _is_path(text: str) -> bool:
    """Return whether a text is an absolute path with more than one component that exists."""
    return os.path.isabs(text) and text.rstrip("/\\").count(os.sep) > 1 and os.path.exists(text)
