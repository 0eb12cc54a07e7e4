"""The tables: rows that can be run on every backbone, with the splits and budgets that they name."""

from __future__ import annotations

import pytest

from rmd.bench.training import evaluations
from rmd.compare.cells import BUDGETS, Budget, Cell, make_cell
from rmd.compare.settings import BACKBONES, SHIPPED, SIDE, Setting, Table
from rmd.compare.tables import TABLES
from rmd.recipes.hashes import settings_hash
from rmd.recipes.methods import CascadeConfig
from rmd.recipes.schema import load_recipe

BUDGET = BUDGETS["default"]
CASES = [
    (table, backbone, row)
    for table in TABLES.values()
    for backbone in table.backbones
    for row in table.rows_of(backbone)
]
IDS = [f"{table.name}-{backbone}-{row.name}" for table, backbone, row in CASES]


def row_of(table: str, name: str) -> Setting:
    return next(row for row in TABLES[table].rows if row.name == name)


def decides(cell: Cell) -> tuple[object, ...]:
    return settings_hash(cell.recipe), cell.recipe.train.iterations, cell.plan


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_rows_have_names_of_their_own_and_one_is_compared_with(table: Table) -> None:
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names)
    assert table.against in names
    assert len({row.label for row in table.rows}) == len(names)


def test_each_backbone_stands_beside_the_papers_number_for_it() -> None:
    ours = {"sdxl": {"HPSv2.1": "31.99"}, "pixart": {"HPSv2.1": "32.23"}, "sd3": {"HPSv2.1": "30.56"}}
    assert row_of("main", "rmd").paper == ours
    assert row_of("stages", "1+1+2").paper == {"sdxl": {"speed-up": "1.73x"}}
    assert row_of("main", "naive").paper == {}


def test_the_papers_numbers_on_the_split_are_said_to_be_pixarts() -> None:
    """Its Tab. 4 names no backbone, but begins with PixArt's TDM of Tab. 1, and 1.68x is PixArt's 21.0x over 12.5x."""
    without = row_of("thresholds", "0+4").paper["sdxl"]
    assert without == {
        "HPSv2.1 of PixArt": row_of("main", "tdm").paper["pixart"]["HPSv2.1"],
        "speed-up of PixArt": "1.00x",
    }
    assert row_of("thresholds", "rmd").paper["sdxl"]["speed-up of PixArt"] == f"{21.0 / 12.5:.2f}x"
    assert all(set(row.paper["sdxl"]) == set(without) for row in TABLES["thresholds"].rows)


@pytest.mark.parametrize(("table", "backbone", "row"), CASES, ids=IDS)
def test_every_row_is_a_recipe_with_its_split_and_an_equal_budget(table: Table, backbone: str, row: Setting) -> None:
    cell = make_cell(row, backbone, 3, BUDGET)
    split, sides = (row.split, row.sides) if row.switched is None else row.switched
    counts = tuple(sum(step.stage == stage.index for step in cell.plan.steps) for stage in cell.plan.stages)
    assert counts == split
    scale = load_recipe(BACKBONES[backbone]).build_plan().stages[-1].height // SIDE
    assert tuple(stage.height for stage in cell.plan.stages) == tuple(scale * side for side in sides)
    assert cell.recipe.train.seed == 3
    assert cell.guidance == (1.0 if row.trained else cell.recipe.method.guidance)
    if row.trained:
        iterations, method = cell.recipe.train.iterations, cell.recipe.method
        plan = cell.recipe.build_plan()
        stages = [[step.index for step in plan.steps if step.stage == stage.index] for stage in plan.stages]
        means = [sum(indices) / len(indices) for indices in stages]
        cascade = isinstance(method, CascadeConfig)
        draws = (method.stage_draws if cascade else ()) or (1,) * len(means)
        usual = sum(n * mean for n, mean in zip(draws, means, strict=True)) / sum(draws)
        warm = method.warmup_steps if cascade else 0
        student = (warm * means[0] + (iterations - warm) * usual) / iterations
        one = evaluations(
            student, fake_updates=method.fake_updates, branches=method.teacher_branches, adversarial=method.needs_images
        )
        assert abs(iterations * one - row.budget * BUDGET.evaluations) <= one


@pytest.mark.parametrize("backbone", TABLES["shipped"].backbones)
def test_what_is_measured_as_shipped_is_what_the_recipe_does(backbone: str) -> None:
    cell, recipe = make_cell(SHIPPED, backbone, 0, BUDGET), load_recipe(BACKBONES[backbone])
    assert cell.recipe.method == recipe.method
    assert cell.recipe.crossing == recipe.crossing and cell.recipe.optim == recipe.optim
    assert cell.recipe.build_plan() == recipe.build_plan()


def test_tables_share_their_cells() -> None:
    def cell(table: str, row: str) -> tuple[object, ...]:
        return decides(make_cell(row_of(table, row), "sdxl", 0, BUDGET))

    ours = cell("main", "rmd")
    same = [("components", "rmd"), ("thresholds", "rmd"), ("stages", "rmd"), ("roles", "rmd"), ("mapping", "map-lower")]
    assert all(cell(*other) == ours for other in [*same, ("warmup", "warm-up-0.2"), ("reinjection", "block-0.2-0.2")])
    assert cell("main", "naive") == cell("components", "naive") != ours
    assert cell("stages", "0+4") == cell("thresholds", "0+4")


def test_one_training_is_sampled_at_every_beta() -> None:
    rows = [row for row in TABLES["reinjection"].rows if row.name.startswith("plain-0.5-")]
    cells = [make_cell(row, "sdxl", 0, BUDGET) for row in rows]
    assert len({settings_hash(cell.recipe) for cell in cells}) == 1
    assert [cell.plan.crossing.beta for cell in cells] == [0.0, 0.2, 0.5, 1.0]
    assert {cell.plan.training_crossing.beta for cell in cells} == {0.5}


def test_a_warm_up_is_a_share_of_the_run() -> None:
    budget = Budget("b", 6500, (0,), 8)
    by_share = {row.warm_up: make_cell(row, "sdxl", 0, budget).recipe for row in TABLES["warmup"].rows}
    for share, recipe in by_share.items():
        assert recipe.method.warmup_steps == pytest.approx(share * recipe.train.iterations, abs=0.5)
    tdm = make_cell(row_of("main", "tdm"), "sdxl", 0, budget).recipe
    assert not isinstance(tdm.method, CascadeConfig)  # it has no warm-up


def test_diffusers_own_switching_is_a_row_of_rectified_flows_alone() -> None:
    main = TABLES["main"]
    assert {row.name for row in main.rows_of("sd3")} - {row.name for row in main.rows_of("sdxl")} == {
        "switched-official"
    }
    ours, official = (make_cell(row_of("main", name), "sd3", 0, BUDGET) for name in ("switched", "switched-official"))
    assert decides(ours) == decides(official)
