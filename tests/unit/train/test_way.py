"""The files of RMD that a gradient passes through, and those that an update enters, as ARCHITECTURE.md lists them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from helpers import make_recipe, tiny_sdxl, write_prompts
from torch import Tensor
from torch.overrides import TorchFunctionMode

import rmd
from rmd.train.callbacks import Callback
from rmd.train.loop import Trainer
from rmd.train.run import Run

ROOT = Path(rmd.__file__).parent
FAMILY = {"models/sdxl.py"}  # the file of the tested family


class Stop(Callback):
    """Ends the recording once the optimiser has taken its step."""

    def after_student_update(self, run: Run) -> None:
        sys.setprofile(None)


class GradientFiles(TorchFunctionMode):
    """Collects the files whose functions call operations that a gradient flows through, or the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if _differentiable(output) or function is Tensor.backward:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and _file(frame) is None:
                frame = frame.f_back
            if frame is not None:
                self.files.add(str(_file(frame)))
        return output


def _differentiable(output: object) -> bool:
    if isinstance(output, Tensor):
        return output.grad_fn is not None
    return isinstance(output, tuple | list) and any(map(_differentiable, output))


def _file(frame: FrameType) -> str | None:
    """Return the file of a function of RMD, relative to the package, or None for other code."""
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None


@contextmanager
def _entered() -> Iterator[set[str]]:
    """Collect the files of RMD whose functions are called."""
    files: set[str] = set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>" and (file := _file(frame)):
            files.add(file)

    sys.setprofile(record)
    try:
        yield files
    finally:
        sys.setprofile(None)


def _documented(opening: str) -> set[str]:
    text = (ROOT.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(rf"^{opening}.*?\n\n", text, re.DOTALL | re.MULTILINE)
    return {*re.findall(r"`([\w/]+\.py)`", paragraph)}


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    made = Trainer(make_recipe(write_prompts(tmp_path)), tiny_sdxl(), tmp_path / "run")
    made.callbacks = [Stop()]
    return made


def test_a_gradient_passes_through_at_most_eight_files(trainer: Trainer) -> None:
    files: set[str] = set()
    for stage in (1, 2):
        iteration = next(i for i in range(100) if trainer.method.draw_step(i).stage == stage)
        with GradientFiles() as mode:
            trainer.iterate(iteration)
        files |= mode.files
    assert files == _documented("A gradient passes") | FAMILY
    assert len(files) <= 8


def test_an_update_enters_the_documented_files(trainer: Trainer) -> None:
    iteration = next(i for i in range(100) if trainer.method.draw_step(i).stage == len(trainer.plan.stages))
    batches = trainer.batches(iteration)
    with mock.patch.object(trainer, "batches", return_value=batches), _entered() as files:
        trainer.iterate(iteration)
    assert files == _documented("A gradient passes") | _documented("Around them") | FAMILY
