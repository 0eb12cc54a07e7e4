"""Checkpoints from which an interrupted training resumes, and atomic files of tensors."""

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
    """Save tensors, numbers and strings to a file, which is replaced atomically.

    Raises:
        RMDError: the file cannot be written, for example because the disk is full; an earlier file is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(path) as partial,
            partial.open("wb") as file,
        ):  # torch hides the cause of an error if it opens the file itself
            torch.save(dict(state), file)
    except OSError as error:
        raise RMDError(f"cannot save {path}: {reason(error)}; put that right and run the command again") from error


def read_whole(path: Path) -> dict[str, Any]:
    """Read a file of `write_whole`: tensors, numbers and strings, and nothing that could run code.

    Raises:
        RMDError: the file cannot be read, is damaged, or contains anything else.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except OSError as error:
        raise RMDError(f"cannot read {path}: {reason(error)}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RMDError(f"{path} is damaged: remove it and run the command again") from error
    return state


class Checkpoint:
    """The state of a training in one file, and the time that the training has taken.

    Without a path, nothing is saved.
    """

    def __init__(self, path: Path | None, every: int, **parts: Stateful) -> None:
        """Save `parts` to `path` every `every` steps."""
        self.path, self.every, self.parts = path, every, parts
        self._earlier, self._began = 0.0, time.perf_counter()

    def restore(self) -> int:
        """Load the saved state into the parts.

        Returns:
            The step to begin with; 0 if there is no saved state.

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
        """Seconds of training, including those before an interruption."""
        return self._earlier + time.perf_counter() - self._began

    def after(self, done: int) -> None:
        """Save the state if the number of completed steps is a multiple of `every`."""
        if self.path is not None and done % self.every == 0:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            write_whole({"step": done, "seconds": self.seconds, **states}, self.path)
