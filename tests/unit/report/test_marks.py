"""The chart of a run's marks, and the sentence that says when nothing is gained any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import make_recipe, tiny_sdxl, write_prompts
from torch import nn

from rmd.report.marks import CURVE, MarksReport, draw_marks, standstill_text
from rmd.train.loop import Trainer
from rmd.train.marks import MarkBook, Marks


def test_a_chart_has_a_panel_for_every_mark(tmp_path: Path) -> None:
    book = MarkBook(tmp_path, start=0)
    for iteration in (5, 10):
        values = (float(iteration), 2.0, 3.0)
        book.add(iteration, Marks({"scores/clip": 1.0, "judge/all_right": 1.0}, {"scores/clip": values, "b": values}))
    picture = draw_marks(book)
    assert picture.startswith(b"<?xml") and picture == draw_marks(book)
    assert picture.count(b'id="axes_') == 2


@pytest.mark.heavy
def test_a_training_draws_its_chart_and_says_once_that_nothing_is_gained(tmp_path: Path) -> None:
    marks = iter([(0.1, 0.2, 0.3), *[(0.5, 0.6, 0.71)] * 5])
    said: list[str] = []
    recipe = make_recipe(write_prompts(tmp_path), evaluation={"every": 1}, train={"iterations": 6})
    trainer = Trainer(recipe, tiny_sdxl(), tmp_path / "run", callbacks=[MarksReport(said.append)])

    def judge(network: nn.Module) -> Marks:
        values = next(marks)
        return Marks({"scores/clip": sum(values) / 3}, {"scores/clip": values}, "k")

    trainer.judge = judge
    trainer.train()
    assert (
        said == [standstill_text("scores/clip", 2)] == ["no gain in scores/clip beyond noise since iteration 2: stop?"]
    )
    assert (tmp_path / "run" / CURVE).is_file()
    assert trainer.best is not None and (trainer.best.iteration, trainer.best.metric) == (2, "scores/clip")
