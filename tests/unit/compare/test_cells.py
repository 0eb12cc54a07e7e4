"""Cells on the packaged teacher: computed once, reproducible, and computed anew after an interruption."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from rmd.compare.cells import SHOWN, Bench, Budget, CellResult, Stopped, make_cell
from rmd.compare.run import TableResult, budget_of, run_table
from rmd.compare.settings import TDM, UNDISTILLED, Setting, Table
from rmd.compare.write import write_tables
from rmd.core.fit import Side
from rmd.core.noise import VPSchedule
from rmd.models import Backbone
from rmd.recipes import schema

BUDGET = Budget("small", 20, (0,), 6)
pytestmark = pytest.mark.usefixtures("small_panels")

LIGHT = ("train.batch_size=2", "method.guidance=2.0")
OURS = Setting("rmd", "ours", changes=LIGHT)
TABLE = Table("tiny", "Tiny", "none", "Does it run?", (OURS, UNDISTILLED), against="rmd")


def quiet(what: str, done: int, total: int) -> None:
    """Ignore progress."""


def stop(what: str, done: int, total: int) -> None:
    """Interrupt a training after its first iteration."""
    if what == "distilling" and done == 1:
        os.kill(os.getpid(), signal.SIGINT)


def numbers(result: CellResult) -> dict[str, object]:
    """Return everything but times."""
    row = result.row.model_dump(exclude={"seconds_per_image", "seconds_end_to_end", "speedup"})
    return {**row, "right": result.right, "training": result.training}


def untimed(table: TableResult) -> dict[str, object]:
    """Return everything of a table except its rows' times, which are measured again."""
    return table.model_dump(exclude={"backbones": {"sdxl": {"__all__": {"seconds_per_image", "speedup"}}}})


def test_a_table_is_run_once_and_anew_after_a_stop_gives_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    bench = Bench(tmp_path / "a", lambda what, done, total: said.append(what))
    first = run_table(TABLE, BUDGET, bench, backbones=["sdxl"], folder=tmp_path / "a")
    assert {"distilling", "sampling", "table tiny"} <= set(said)
    said.clear()
    again = Bench(tmp_path / "a", lambda what, done, total: said.append(what))
    second = run_table(TABLE, BUDGET, again, backbones=["sdxl"], folder=tmp_path / "a")
    assert untimed(second) == untimed(first)
    assert all(line.seconds_per_image > 0 for line in second.backbones["sdxl"])
    assert set(said) == {"table tiny"}  # nothing was computed
    cell = make_cell(OURS, "sdxl", 0, BUDGET)
    with pytest.raises(Stopped):
        Bench(tmp_path / "b", stop).result(cell)
    assert not Bench(tmp_path / "b", quiet).path(cell).exists()
    assert not list(tmp_path.glob("b/students/*"))
    anew = Bench(tmp_path / "b", quiet).result(cell)
    assert numbers(anew) == numbers(bench.result(cell))
    training = anew.training
    assert training is not None and training.iterations == cell.recipe.train.iterations == 3
    assert abs(training.evaluations - BUDGET.evaluations) < 2 * 6.5  # a few draws differ from their average
    page = write_tables([first], tmp_path / "a")
    assert page.read_text(encoding="utf-8").count("data:image/png") == 2
    line = first.backbones["sdxl"][0]
    picture = Image.open(tmp_path / "a" / "pictures" / line.picture)
    assert picture.size == (64 * min(SHOWN, 3), 64) and len(line.prompts) == 3


def test_a_table_may_have_more_seeds_and_fewer_samples_than_the_budget() -> None:
    default = Budget("default", 975, (0, 1, 2), 1024)
    own = replace(TABLE, seeds=6, samples=256)
    assert budget_of(TABLE, default) == default
    assert budget_of(own, default) == replace(default, seeds=(0, 1, 2, 3, 4, 5), samples=256)
    assert budget_of(own, BUDGET) == BUDGET  # a budget of one seed keeps it, and its fewer samples


def test_clips_are_shown_by_three_frames(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quiet)
    cell = make_cell(UNDISTILLED, "wan", 0, BUDGET)
    bench.result(cell)
    with Image.open(bench.path(cell).with_suffix(".png")) as picture:
        assert picture.size == (3 * 64, 3 * 64)


def test_a_backbone_that_is_whole_stays_in_its_table(tmp_path: Path) -> None:
    table = Table("tiny", "Tiny", "none", "Does it run?", (UNDISTILLED,), UNDISTILLED.name, ("sdxl", "pixart"))
    bench = Bench(tmp_path, quiet)

    def run(*backbones: str) -> TableResult:
        result = run_table(table, BUDGET, bench, backbones=backbones, folder=tmp_path)
        write_tables([result], tmp_path)
        return result

    assert list(run("pixart").backbones) == ["pixart"]
    both = run("sdxl")
    assert list(both.backbones) == ["sdxl", "pixart"]
    bench.path(make_cell(UNDISTILLED, "pixart", 0, BUDGET)).unlink()
    assert list(run("sdxl").backbones) == [
        "sdxl"
    ]  # the other backbone would have to be computed, which was not requested


def test_a_row_costs_its_calls_and_guidance_costs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[Side]] = []

    def measured(backbone: Backbone, sides: Sequence[Side], prompts: Sequence[str], **_: Any) -> dict[Side, float]:
        asked.append(sides)
        return {(32, 32): 1.0, (64, 64): 5.0}

    monkeypatch.setattr("rmd.sample.timing.side_seconds", measured)
    guided = make_cell(UNDISTILLED, "sdxl", 0, BUDGET)
    full = make_cell(Setting("full", "full", split=(4,), sides=(64,), changes=LIGHT), "sdxl", 0, BUDGET)
    cells = [make_cell(OURS, "sdxl", 0, BUDGET), make_cell(OURS, "sdxl", 1, BUDGET), guided, full]
    assert Bench(tmp_path, quiet).seconds(cells) == [12.0, 12.0, 24.0, 20.0]
    assert asked == [[(32, 32), (64, 64)]]  # all sides in one measurement


def test_the_switched_student_is_the_one_of_full_resolution(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quiet)
    tdm = Setting("tdm", "tdm", split=(4,), sides=(64,), changes=(*TDM.changes, *LIGHT))
    switched = Setting("switched", "switched", tdm.split, tdm.sides, tdm.changes, switched=((2, 2), (32, 64)))
    results = [bench.result(make_cell(row, "sdxl", 0, BUDGET)) for row in (tdm, switched)]
    assert len(list((tmp_path / "students").glob("*.safetensors"))) == 1
    assert results[0].training == results[1].training
    assert results[0].row.value("kernel_distance") != results[1].row.value("kernel_distance")


def test_another_processor_finds_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, ours = Bench(tmp_path, quiet), make_cell(OURS, "sdxl", 0, BUDGET)
    exact = VPSchedule.logsnr
    monkeypatch.setattr(schema, "_build_plan", schema._build_plan.__wrapped__)  # plans are cached by their settings
    monkeypatch.setattr(VPSchedule, "logsnr", lambda schedule, t: exact(schedule, t) + 1e-7)
    again = make_cell(OURS, "sdxl", 0, BUDGET)
    assert again.plan != ours.plan and bench.path(again) == bench.path(ours)
    other = make_cell(replace(OURS, sampled=("crossing.beta=0.3",)), "sdxl", 0, BUDGET)
    assert bench.path(other) != bench.path(ours)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    bench, cell = Bench(tmp_path, quiet), make_cell(UNDISTILLED, "sdxl", 0, BUDGET)
    lock = tmp_path / "running" / f"{bench.path(cell).stem}.lock"
    lock.parent.mkdir()
    with FileLock(lock):  # as if another process held it
        assert Bench(tmp_path, quiet).result(cell, wait=False) is None
    stored = bench.result(cell, wait=False)
    assert stored is not None and bench.result(cell) == stored
