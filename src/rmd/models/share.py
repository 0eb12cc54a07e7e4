"""Shares a student: uploads it to the Hub, under names that others can use and without paths of this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi

from rmd.common.errors import RMDError
from rmd.common.files import reason
from rmd.models.hub import check_hub_id, is_repository, shared_prompts
from rmd.models.resolve import is_packaged
from rmd.models.student_config import CONFIG_NAME, read_student

_NAMES = ("_name_or_path", "name_or_path")
"""Keys of diffusers' and transformers' configs that record where a part was loaded from."""


def upload(
    folder: Path, repo_id: str, *, private: bool = True, token: str | None = None, base_model: str | None = None
) -> str:
    """Upload a student's folder to a repository on the Hub, created if necessary, and return its address.

    The upload contains no path of this machine; the folder itself stays as it is.

    Args:
        base_model: the teacher's repository on the Hub, OWNER/NAME, if the student's config names none.

    Raises:
        RMDError: the teacher is a local folder and `base_model` is not given, the folder's card names it, or the Hub
            does not accept the upload.
    """
    check_hub_id("the repository", repo_id)
    config = read_student(folder)
    values = shared_values(config.values, required_teacher(config.teacher, base_model))
    with shared_copy(folder) as copy:
        (copy / CONFIG_NAME).write_text(json.dumps(values, indent=1), encoding="utf-8")
        check_cards(copy, config.teacher)
        try:
            api = HfApi(token=token)
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo_id, folder_path=copy)
        except (OSError, ValueError) as error:
            raise RMDError(
                f"cannot upload to {repo_id}: {reason(error)}; check the name, the connection, and `hf auth login`"
            ) from error
    return address


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


def shared_values(values: Mapping[str, Any], teacher: str | None) -> dict[str, Any]:
    """Return the content of a student's config for sharing, with the teacher's name that `shared_teacher` gives."""
    return {**values, "teacher": teacher, "prompts": shared_prompts(str(values["prompts"]))}


def without_paths(folder: Path) -> None:
    """Remove the paths of this machine from a folder's JSON files, where diffusers and transformers write them.

    The recorded locations of parts are removed, unless they are repositories on the Hub, and so is every other text
    that is the absolute path of something that exists here. Only configurations are searched: vocabularies and weight
    indices stay as they are.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name not in ("config.json", "model_index.json") and not path.name.endswith("_config.json"):
            continue
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


def _is_shared(name: str) -> bool:
    """Return whether a teacher's name means the same on every machine."""
    return is_packaged(name) or (is_repository(name) and not os.path.exists(name))


def _without_paths(value: Any) -> Any:
    """Return a JSON value without the entries that `without_paths` removes."""
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
    """Return whether a text is the absolute path, with more than one component, of something that exists."""
    return os.path.isabs(text) and text.rstrip("/\\").count(os.sep) > 1 and os.path.exists(text)
