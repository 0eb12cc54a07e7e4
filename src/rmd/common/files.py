"""Writes files atomically and under locks, and reads back and validates what RMD wrote."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError

from rmd.common.errors import RMDError, located, shown
from rmd.common.typed import Strict, explain

LOCK = ".rmd.lock"
"""Name of the lock file in a folder to which only one process at a time may write."""
MAX_JSON = 64 * 2**20
"""Largest size, in bytes, of a JSON file that is read as a model; RMD's own files are far smaller."""
Model = TypeVar("Model", bound=Strict)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` if the block ends without an exception.

    A reader sees either the old file or the new one, never a part. The file or folder that the block writes gets the
    permissions that the umask allows (safetensors writes files that only their owner can read). A folder that already
    exists at `path` is removed once the new one is in its place.
    """
    partial, previous = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "previous"))
    _remove(partial)
    if previous.exists() and not path.exists():  # the process was killed between the two renames below
        previous.rename(path)
    try:
        yield partial
        mask = _umask()
        for part in (partial, *partial.rglob("*")) if partial.is_dir() else (partial,):
            if part.is_file() and not part.is_symlink():
                part.chmod(0o666 & ~mask)
        if path.is_dir():  # a folder that is not empty cannot be replaced in one step
            _remove(previous)
            path.rename(previous)
            try:
                partial.rename(path)
            except OSError:
                previous.rename(path)
                raise
            _remove(previous)
        else:
            partial.replace(path)
    finally:
        _remove(partial)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path, name: str = LOCK, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder during the block, so that no other process writes there.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        folder: the folder, which is created if necessary.
        name: the name of the lock file in it.
        wait: seconds to wait for another process that holds the lock.

    Raises:
        RMDError: another process holds the lock, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name, timeout=wait)
        lock.acquire()
    except Timeout:
        raise RMDError(
            f"another process is writing to {folder}: wait until it has finished, or choose another folder"
        ) from None
    except OSError as error:
        raise RMDError(f"cannot write to {folder}: {reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Return whether a process holds the lock of a folder (`locked`); nothing is created or written.

    A process that locks the folder in the very moment of this question would be refused, so ask seldom. On Windows,
    where no run can write either, the answer is no.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with (folder / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or the file system knows no locks
        return False
    return False


def user_path(name: str) -> Path:
    """Return the path that a user names, with `~` expanded to the home folder; raise RMDError if it is not a path."""
    try:
        if b"\0" in os.fsencode(name):
            raise ValueError("it contains a zero byte")
        return Path(name).expanduser()
    except (RuntimeError, ValueError) as error:
        raise RMDError(f"{shown(name)} is not a path: {str(error)[:100]}") from error


def read_model(path: Path, kind: type[Model]) -> Model:
    """Read a JSON file that RMD wrote from a model, and return the model.

    Unknown keys, values of another type, numbers that are not finite, and other versions of the format are refused.

    Args:
        path: the file.
        kind: the class of the model.

    Raises:
        RMDError: the file cannot be read, or RMD did not write it; the message names the file and the key.
    """
    with read_errors(path):
        if path.is_file() and path.stat().st_size > MAX_JSON:
            raise RMDError(f"{path} is too large: JSON files of RMD have at most {MAX_JSON // 2**20} MB")
        content = path.read_bytes() if path.is_file() else None
    if content is None:
        raise RMDError(f"there is no file {path}")
    return parse_model(content, kind, str(path))


def parse_model(content: bytes | str, kind: type[Model], where: str) -> Model:
    """Parse JSON that is in memory just as `read_model` parses a file; `where` names it in errors."""
    try:
        values = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise RMDError(f"{where} is not valid JSON: {error}") from error
    current = kind.current_version()
    if current is not None and isinstance(values, dict):
        version = values.get("version", 1)
        if version != current:
            newer = isinstance(version, int) and version > current
            advice = "update RMD to read it" if newer else "write it again"
            raise RMDError(f"{where} has version {version!r:.40}, but this RMD reads version {current}: {advice}")
    with located(where):  # also for errors of the model's own validators
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            raise RMDError(explain(error, kind)) from error


@contextmanager
def read_errors(path: Path, prefix: str = "") -> Iterator[None]:
    """Turn an error of the disk while `path` is read within the block into an RMDError that begins with `prefix`."""
    try:
        yield
    except FileNotFoundError:
        raise RMDError(f"{prefix}there is no file {path}") from None
    except OSError as error:
        raise RMDError(f"{prefix}cannot read {path}: {reason(error)}") from error


@contextmanager
def disk_errors(place: Path, advice: str = "put that right and run the command again") -> Iterator[None]:
    """Turn an error of the disk within the block into an RMDError.

    Args:
        place: the file or folder to which the block writes.
        advice: what the user should do.

    Raises:
        RMDError: the operating system, or a library that writes safetensors, raised an error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot write to {place}: {reason(error)}; {advice}") from error


def reason(error: BaseException) -> str:
    """Return why a file could not be written or read, as a clause such as "the disk is full".

    Libraries that write files hide the operating system's error behind their own, so the causes of an error are
    searched as well.
    """
    last: BaseException = error
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(cause):
            return "the disk is full"
        last, cause = cause, cause.__cause__ or cause.__context__
    for each in (error, last):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _umask() -> int:
    """Return the process's umask: the permissions that new files do not get."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    # On other systems than Linux it can only be read by setting it, which affects all threads for a moment.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block has filled it; disk errors become RMDError."""
    with disk_errors(folder), replacing(folder) as partial:
        yield partial


def check_place(folder: Path, *, replace: bool = False) -> Path:
    """Check that a folder could be created and written to; nothing is created.

    Args:
        folder: the folder.
        replace: whether a folder that exists will be replaced, for which its parent must be writable.

    Returns:
        The folder itself, or the part of its path that exists.

    Raises:
        RMDError: it could not.
    """
    place = folder.resolve()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise RMDError(f"cannot write to {folder}: {there} is a file; choose another --out")
    written = place.parent if replace and there == place else there
    if not os.access(written, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise RMDError(f"cannot write to {folder}: you may not write there ({written}); choose another --out")
    return there


def check_new_folder(folder: Path) -> None:
    """Raise RMDError if a folder that a command is to write contains something, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RMDError(f"{folder} exists and is not an empty folder: choose another --out")
