"""Files that RMD writes and reads back: written atomically, by one process at a time, and validated when read."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError

from rmd.common.errors import RMDError, shown
from rmd.common.typed import Strict, explain

LOCK = ".rmd.lock"
"""Name of the lock file in a folder that one process at a time may write to."""
MAX_JSON = 64 * 2**20
"""Largest JSON file, in bytes, that is read as a model; RMD's own files are far smaller."""
Model = TypeVar("Model", bound=Strict)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` if the block ends without an exception.

    A reader sees the old file or the new one, never half of one. The file or folder that the block writes gets the
    permissions of the umask (safetensors writes files that only their owner can read). A folder that already exists at
    `path` is removed when the new one is in its place.
    """
    partial, previous = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "previous"))
    _remove(partial)
    if previous.exists() and not path.exists():  # a kill came between the two renames below
        previous.rename(path)
    try:
        yield partial
        mask = _umask()
        for part in (partial, *partial.rglob("*")) if partial.is_dir() else (partial,):
            if part.is_file() and not part.is_symlink():
                part.chmod(0o666 & ~mask)
        if path.is_dir():  # the place of a folder that is not empty cannot be taken in one step
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
    """Write UTF-8 text to a file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path, name: str = LOCK, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, which is created if necessary, so that no other process writes there meanwhile.

    The operating system releases the lock when the process ends, however it ends: a killed run blocks nobody.

    Args:
        folder: the folder.
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


def user_path(name: str) -> Path:
    """Return the path that a user means, with `~` for the home folder; raise RMDError if the name is no valid path."""
    try:
        if b"\0" in os.fsencode(name):
            raise ValueError("it holds a zero byte")
        return Path(name).expanduser()
    except (RuntimeError, ValueError) as error:
        raise RMDError(f"{shown(name)} is no path: {str(error)[:100]}") from error


def read_model(path: Path, kind: type[Model]) -> Model:
    """Read a JSON file that RMD wrote, as the model it was written from.

    Unknown keys, values of another type, and numbers that are not finite are refused, and so is a file whose `version`
    is not the model's own.

    Raises:
        RMDError: the file cannot be read, or RMD did not write it; the message names the file and the key.
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_JSON:
            raise RMDError(f"{path} is too large to be a file of RMD: at most {MAX_JSON // 2**20} MB are read")
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise RMDError(f"cannot read {path}: {reason(error)}") from error
    if content is None:
        raise RMDError(f"there is no file {path}")
    return parse_model(content, kind, str(path))


def parse_model(content: bytes | str, kind: type[Model], where: str) -> Model:
    """Parse JSON that is already in memory, as `read_model` does; `where` names it in errors."""
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
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RMDError(f"{where}: {explain(error, kind)}") from error
    except RMDError as error:  # from a check within the model, such as that of a plan
        raise RMDError(f"{where}: {error}") from error


@contextmanager
def disk_errors(place: Path, advice: str = "put that right and run the command again") -> Iterator[None]:
    """Turn an error of the disk within the block into an RMDError of one sentence.

    Args:
        place: the file or folder that is written.
        advice: what the user should do.

    Raises:
        RMDError: the operating system, or a library that writes safetensors, raised an error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot write to {place}: {reason(error)}; {advice}") from error


def reason(error: BaseException) -> str:
    """Return why a file could not be written or read, as part of a sentence, for instance "the disk is full".

    Libraries that write files hide the operating system's error behind their own, so the causes of an error are
    searched, too.
    """
    last: BaseException = error
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(cause):
            return "the disk is full"
        last, cause = cause, cause.__cause__ or cause.__context__
    for found in (error, last):
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _umask() -> int:
    """Return the permissions that new files do not get."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    # Elsewhere than on Linux it cannot be read without being set, which affects all threads for a moment.
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
    """A temporary folder that takes the place of `folder` when the block has filled it."""
    with disk_errors(folder), replacing(folder) as partial:
        yield partial


def check_new_folder(folder: Path) -> None:
    """RMDError when a folder that is to be written holds something, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RMDError(f"{folder} exists and is not an empty folder: choose another --out")
