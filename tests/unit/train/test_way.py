"""The files of RMD that a student's update runs through, as ARCHITECTURE.md lists them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from unittest import mock

from helpers import make_recipe, tiny_sdxl, write_prompts

import rmd
from rmd.train.callbacks import Callback
from rmd.train.loop import Trainer
from rmd.train.run import Run

ROOT = Path(rmd.__file__).parent


class Stop(Callback):
    """Ends the recording once the optimiser has taken its step."""

    def after_student_update(self, run: Run) -> None:
        sys.setprofile(None)


def test_the_gradients_way_is_the_documented_one(tmp_path: Path) -> None:
    recipe = make_recipe(write_prompts(tmp_path))
    trainer = Trainer(recipe, tiny_sdxl(), tmp_path / "run")
    trainer.callbacks = [Stop()]
    iteration = next(i for i in range(100) if trainer.method.draw_step(i).stage == len(trainer.plan.stages))
    batches = trainer.batches(iteration)
    entered: set[str] = set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and frame.f_code.co_name != "<module>":
            entered.add(path.relative_to(ROOT).as_posix())

    with mock.patch.object(trainer, "batches", return_value=batches):
        sys.setprofile(record)
        try:
            trainer.iterate(iteration)
        finally:
            sys.setprofile(None)
    text = (ROOT.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"^To follow a gradient.*?\n\n", text, re.DOTALL | re.MULTILINE)
    assert entered == {*re.findall(r"`([\w/]+\.py)`", paragraph), "models/sdxl.py"}  # the family's own
