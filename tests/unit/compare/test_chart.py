"""The chart of a grid: one panel per rule, one line per training value, every number at its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from comparisons import result

from rmd.compare.cells import Bench, Budget, Cell, CellResult
from rmd.compare.chart import SHOWN, chart, draw
from rmd.compare.run import TableResult, run_table
from rmd.compare.tables import TABLES
from rmd.evaluation.metrics import metric
from rmd.report.curves import DARK, LIGHT

BETAS = (0.0, 0.2, 0.5, 1.0)


class Known(Bench):
    """A bench whose results follow from the betas of training and sampling."""

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.setting.name}.json"

    def result(self, cell: Cell, *, wait: bool = True) -> CellResult:
        trained, sampled = cell.recipe.crossing.train_beta, cell.plan.crossing.beta
        assert trained is not None
        return result(0.9 - sampled / 10, distance=100 * trained + cell.seed, name=cell.setting.name)

    def seconds(self, cells: Sequence[Cell]) -> list[float]:
        return [1.0] * len(cells)


def run(name: str, folder: Path) -> TableResult:
    budget = Budget("default", 975, (0, 1, 2), 8)
    return run_table(TABLES[name], budget, Known(folder, lambda *_: None), backbones=["sdxl"], folder=folder)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> TableResult:
    return run("reinjection", tmp_path_factory.mktemp("grid"))


def test_every_mean_and_seed_is_where_it_was_measured(grid: TableResult) -> None:
    figure = draw(grid, "sdxl", LIGHT)
    assert figure is not None
    shares, distances = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title() for axes in shares] == ["plain noise", "corrected noise", "block noise"]
    assert [axes.get_ylabel() for axes in (shares[0], distances[0])] == [metric(name).title for name in SHOWN]
    for axes in distances:
        means, seeds = axes.lines[::2], axes.lines[1::2]
        for trained, line, dots in zip((0.2, 0.5, 1.0), means, seeds, strict=True):
            assert line.get_label() == f"trained at beta {trained:g}"
            assert tuple(line.get_xdata()) == BETAS
            assert list(line.get_ydata()) == pytest.approx([100 * trained + 1] * 4)
            assert sorted(dots.get_ydata()) == pytest.approx(
                [100 * trained + seed for seed in (0, 1, 2) for _ in BETAS]
            )
    for line in shares[0].lines[::2]:
        assert list(line.get_ydata()) == pytest.approx([0.9 - beta / 10 for beta in BETAS])


def test_equal_tables_are_equal_files_and_pages_have_their_colours(grid: TableResult) -> None:
    made = chart(grid, "sdxl")
    assert made is not None and made.startswith(b"<?xml") and made == chart(grid, "sdxl")
    dark, png = chart(grid, "sdxl", theme=DARK), chart(grid, "sdxl", form="png")
    assert dark is not None and DARK.ink.encode() in dark and DARK.ink.encode() not in made
    assert png is not None and png.startswith(b"\x89PNG")


def test_a_table_that_is_no_grid_has_none(grid: TableResult, tmp_path: Path) -> None:
    assert chart(grid.model_copy(update={"name": "one's own"}), "sdxl") is None
    assert chart(run("mapping", tmp_path), "sdxl") is None
