"""Names of repositories on the Hugging Face Hub, sentences for failed downloads, and checks of downloaded files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but imported there for its users
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open

from rmd.common.errors import RMDError, shown
from rmd.common.files import MAX_JSON, read_errors

HUB = "hf:"
"""Prefix of the name of a dataset on the Hub: hf:OWNER/NAME."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
"""Largest size of a git-LFS pointer in bytes."""


def is_repository(name: str) -> bool:
    """Return whether a name has the form OWNER/NAME of a repository on the Hub."""
    return _is_valid(name) and name.count("/") == 1 and name.isascii()


def check_hub_id(what: str, name: str) -> str:
    """Return `name` if it has the form OWNER/NAME of a repository on the Hub; raise RMDError otherwise."""
    if not is_repository(name):
        raise RMDError(f"{what} must be the name of a repository of the Hub, as OWNER/NAME, got {shown(name)}")
    return name


def shared_prompts(prompts: str) -> str:
    """Return a source of prompts without its parent folders; a dataset on the Hub keeps its full name."""
    if prompts.startswith(HUB) and is_repository(prompts.removeprefix(HUB)):
        return prompts
    return PureWindowsPath(prompts).name  # handles both separators


def _is_valid(name: str) -> bool:
    """Return whether the Hub allows a repository of this name, with or without an owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextmanager
def hub_errors(source: str | Path, what: str) -> Iterator[None]:
    """Turn the exceptions of the libraries that load `what` from `source` within the block into RMDError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RMDError(_sentence(str(source), what, error)) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file, written by another program, that contains one object.

    Raises:
        RMDError: the file is missing, cannot be read, or contains something else.
    """
    with read_errors(path):
        if path.stat().st_size > MAX_JSON:
            raise RMDError(f"{path} is too large for a configuration: at most {MAX_JSON // 2**20} MB are read")
        refuse_pointer(path)
        content = path.read_bytes()
    try:
        values = from_json(content)
    except ValueError as error:
        raise RMDError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise RMDError(f"{path} should contain a JSON object, with its keys in braces")
    return values


def refuse_pointer(path: Path) -> None:
    """Raise RMDError if a file is the pointer that git-LFS leaves in place of a large file that was not fetched."""
    if path.stat().st_size > _POINTER_BYTES:
        return
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise RMDError(
                f"{path} is a git-LFS pointer and not the file itself: run `git lfs pull` in its folder, or download "
                "it again"
            )


def check_weights(path: Path) -> None:
    """Check that a file is a complete safetensors file; its tensors are not read.

    Raises:
        RMDError: the file is missing, empty, truncated, a git-LFS pointer, a web page, or of another format.
    """
    with read_errors(path):
        refuse_pointer(path)
        with path.open("rb") as file:
            beginning = file.read(64).lstrip().lower()
    if not beginning:
        raise RMDError(f"{path} is empty: download it again")
    if beginning.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise RMDError(f"{path} is a web page and not weights, as a failed download leaves one: download it again")
    try:
        with read_errors(path), safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise RMDError(
            f"{path} is not a complete safetensors file ({error}): it may have been cut off; download it again"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or the error's class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sentence(source: str, what: str, error: BaseException) -> str:
    """Return one sentence about why `what` could not be loaded from `source`, and what to do."""
    causes = list(_causes(error))

    def is_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if Path(source).exists():
        return f"cannot load {what} {source}: {first_line(error)}"
    if not _is_valid(source):
        return f"there is no folder {source}, and a repository on the Hub cannot have this name: check the name"
    if is_of(GatedRepoError):
        return (
            f"{source} is gated: accept its licence at https://huggingface.co/{source}, then log in with "
            "`hf auth login` and run this again"
        )
    if is_of(RemoteEntryNotFoundError):
        return f"the Hub's {source} holds no {what.removeprefix('the ')}: check the name"
    if is_of(RepositoryNotFoundError):
        return (
            f"there is no {source}, neither a folder nor a repository on the Hub that you may read: check the name, "
            "or log in with `hf auth login` if it is private"
        )
    if is_of(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) or no_connection(error):
        return (
            f"{source} is neither a folder nor in the cache of the Hub, and the Hub cannot be reached: go online (is "
            "HF_HUB_OFFLINE set?), or give a folder"
        )
    return f"cannot load {what} {source}: {first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def no_connection(error: BaseException) -> bool:
    """Return whether an HTTP library failed; which library it is depends on the version of huggingface_hub."""
    libraries = ("httpx", "httpcore", "requests", "urllib3")
    return any(type(cause).__module__.startswith(libraries) for cause in _causes(error))
