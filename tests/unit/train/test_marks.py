"""The marks of a run: a book that survives interruptions, and the last gain beyond noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rmd.common.errors import RMDError
from rmd.train.marks import PATIENCE, MarkBook, Marks, last_gain, read_marks, standstill


def marks(*values: float, sampled: str = "a") -> Marks:
    return Marks({"x": sum(values) / len(values)}, {"x": values}, sampled)


def test_a_book_keeps_the_marks_of_every_sample(tmp_path: Path) -> None:
    book = MarkBook(tmp_path / "run", start=0)
    assert book.names == () and book.series("x") == [] and not (tmp_path / "run").exists()
    for iteration in (10, 20, 30):
        book.add(iteration, marks(iteration, 2.0))
    assert book.names == ("x",)
    resumed = MarkBook(tmp_path / "run", start=20)
    assert resumed.series("x") == [(10, (10.0, 2.0)), (20, (20.0, 2.0))]
    resumed.add(30, marks(31.0, 2.0))
    assert MarkBook(tmp_path / "run", start=40).series("x")[-1] == (30, (31.0, 2.0))
    assert MarkBook(tmp_path / "run", start=0).records == []  # a run that begins anew
    assert read_marks(tmp_path / "run" / "marks.jsonl") == []


def test_marks_of_other_prompts_or_noise_are_not_compared(tmp_path: Path) -> None:
    book = MarkBook(tmp_path, start=0)
    book.add(10, marks(1.0, 2.0, sampled="other"))
    book.add(20, marks(3.0, 4.0))
    assert book.series("x") == [(20, (3.0, 4.0))] and book.series("y") == []


def test_a_damaged_line_is_an_error_unless_it_is_the_last(tmp_path: Path) -> None:
    book, path = MarkBook(tmp_path, start=0), tmp_path / "marks.jsonl"
    book.add(10, marks(1.0, 2.0))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"iteration": 20, "sam')
    assert [record.iteration for record in read_marks(path)] == [10]
    path.write_text("x\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(RMDError, match=r"marks\.jsonl is damaged in line 1: remove the file$"):
        read_marks(path)


def course(*means: float, noise: float = 0.0, count: int = 64) -> list[tuple[int, list[float]]]:
    g = torch.Generator().manual_seed(0)
    common = torch.randn(count, generator=g, dtype=torch.float64)  # what samples differ by, in every evaluation alike
    return [
        (10 * index, (mean + common + noise * torch.randn(count, generator=g, dtype=torch.float64)).tolist())
        for index, mean in enumerate(means, start=1)
    ]


def test_the_last_gain_in_closed_form() -> None:
    """The samples differ far more from each other than two evaluations do, but both see the same ones."""
    assert last_gain(course(0.0, 0.1, 0.2, 0.2, 0.15, 0.2)) == 30
    assert last_gain(course(0.3, 0.1, 0.2, 0.3)) == 10
    assert last_gain([(5, [1.0, 2.0, 3.0])]) == 5
    # A mean gain of 1 with a standard error of 1 is noise (t of 4.3 for three samples), one of 5 is none.
    gaps = [1 - 3**0.5, 1.0, 1 + 3**0.5]
    assert last_gain([(1, [0.0, 0.0, 0.0]), (2, gaps)]) == 1
    assert last_gain([(1, [0.0, 0.0, 0.0]), (2, [gap + 4 for gap in gaps])]) == 2


def test_slow_gains_add_up() -> None:
    slow = course(*(0.1 * step for step in range(12)), noise=0.5)
    assert last_gain(slow[:2]) == 10 and last_gain(slow) > 50


def test_noise_alone_is_seldom_a_gain() -> None:
    found = [last_gain(course(0.0, 0.0, noise=1.0, count=24 + extra)) == 20 for extra in range(100)]
    assert sum(found) <= 8  # 2.5 expected


def test_a_run_stands_still_after_some_evaluations_without_a_gain() -> None:
    assert standstill([]) is None
    means = (0.0, 1.0, *[1.0] * PATIENCE)
    assert standstill(course(*means)) == 20 and standstill(course(*means[:-1])) is None
