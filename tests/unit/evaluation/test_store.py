"""Evaluations on disk: what is written is read back, and rows of the same conditions are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparisons import row_of
from PIL import Image

from rmd.common.errors import RMDError
from rmd.evaluation.store import COLUMNS, SHOWN, Evaluation, all_evaluations, comparable_rows, save_evaluation


def evaluation(name: str, seconds: float, *, seed: int = 0) -> Evaluation:
    row = row_of(name, seconds=seconds)
    return Evaluation(row=row, making={"steps": 4}, teacher="scenes", samples=64, seed=seed, versions={"rmd": "1"})


def test_rows_of_the_same_captions_are_sorted_by_time_and_compared_with_the_slowest(tmp_path: Path) -> None:
    images = torch.rand(64, 3, 16, 16) * 2 - 1
    ours = evaluation("ours", 0.02)
    for each in (ours, evaluation("slow", 0.08), evaluation("elsewhere", 1.0, seed=1)):
        save_evaluation(each, images, tmp_path)
    assert [each.row.name for each in all_evaluations(tmp_path)] == ["elsewhere", "ours", "slow"]
    assert all_evaluations(tmp_path)[1] == ours
    rows = comparable_rows(tmp_path, ours)
    assert [(row.name, row.speedup) for row in rows] == [("slow", 1.0), ("ours", 4.0)]
    with Image.open(tmp_path / "ours.png") as grid:
        assert grid.size == (COLUMNS * 20 - 4, SHOWN // COLUMNS * 20 - 4)


def test_a_file_that_is_no_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"a": 1}')
    with pytest.raises(RMDError, match=r"notes\.json: there is no key a"):
        all_evaluations(tmp_path)
