"""Files written whole or not at all, and where a training of the scenes' own models goes on after a kill."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from rmd.common.errors import RMDError
from rmd.common.files import reason, replacing


class Stateful(Protocol):
    """A network, an optimiser or a learning-rate schedule."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


def write_whole(state: Mapping[str, object], path: Path) -> None:
    """Save tensors, numbers and texts to `path`, which is replaced when all is written.

    Raises:
        RMDError: nothing could be written (full disk, no permission); an earlier file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:  # given a path, torch would hide the cause
            torch.save(dict(state), file)
    except OSError as error:
        raise RMDError(f"cannot save {path}: {reason(error)}; put that right and run the command again") from error


def read_whole(path: Path) -> dict[str, Any]:
    """Read what `write_whole` saved: tensors, numbers and texts, and nothing that could run code.

    Raises:
        RMDError: the file cannot be read, is damaged, or holds something else.
    """
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True)
    except OSError as error:
        raise RMDError(f"cannot read {path}: {reason(error)}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RMDError(f"{path} is damaged: remove it and run the command again") from error
    return found


class Checkpoint:
    """The state of a training in one file, and the time that the training has taken; no path, no file."""

    def __init__(self, path: Path | None, every: int, **parts: Stateful) -> None:
        """Keep `parts` in `path`, after every `every` steps."""
        self.path, self.every, self.parts = path, every, parts
        self._earlier, self._began = 0.0, time.perf_counter()

    def restore(self) -> int:
        """Load what was kept into the parts; returns the step to begin with, 0 when nothing was kept.

        Raises:
            RMDError: the file is damaged, or belongs to another training.
        """
        self._began = time.perf_counter()
        if self.path is None or not self.path.exists():
            return 0
        state = read_whole(self.path)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            step, self._earlier = int(state["step"]), float(state["seconds"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise RMDError(
                f"{self.path} is a checkpoint of another training: remove it or choose another folder"
            ) from error
        return step

    @property
    def seconds(self) -> float:
        """Time the training has taken, that before a kill included."""
        return self._earlier + time.perf_counter() - self._began

    def after(self, done: int) -> None:
        """Keep the state when `done` steps are a multiple of `every`."""
        if self.path is not None and done % self.every == 0:
            kept = {name: part.state_dict() for name, part in self.parts.items()}
            write_whole({"step": done, "seconds": self.seconds, **kept}, self.path)
