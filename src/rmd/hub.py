"""Why something could not be fetched from the Hugging Face Hub, in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but imported there for its users

from rmd.errors import RMDError


@contextmanager
def hub_errors(source: str | Path, what: str) -> Iterator[None]:
    """Raise RMDError for what the Hub's and the Hub-using libraries raise while they load `what` from `source`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RMDError(_sentence(str(source), what, error)) from error


def _sentence(source: str, what: str, error: BaseException) -> str:
    causes = list(_causes(error))

    def is_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if Path(source).exists():
        return f"cannot load {what} {source}: {str(error).strip().splitlines()[0]}"
    if not _is_name(source):
        return f"there is no folder {source}, and a repository on the Hub cannot be called so: check the name"
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
            f"{source} is no folder and not in the cache of the Hub, which cannot be reached: go online (is "
            "HF_HUB_OFFLINE set?), or give a folder"
        )
    return f"cannot load {what} {source}: {str(error).strip().splitlines()[0]}"


def _is_name(source: str) -> bool:
    """Whether a repository could be called so."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def no_connection(error: BaseException) -> bool:
    """Whether an HTTP library gave up; which one depends on the version of huggingface_hub."""
    libraries = ("httpx", "httpcore", "requests", "urllib3")
    return any(type(cause).__module__.startswith(libraries) for cause in _causes(error))
