"""Runs a table: its cells one after another, and what they come to as one frozen result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rmd.common.errors import RMDError
from rmd.common.files import read_model, replacing
from rmd.common.typed import Strict
from rmd.compare.cells import Bench, Budget, Cell, CellResult, make_cell
from rmd.compare.tables import Setting, Table
from rmd.evaluate.statistics import MEASURES, Measure, part, summarise
from rmd.evaluate.versions import versions


class Number(Strict):
    """A measure of a row over its seeds."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None where one seed gives none."""
    high: float | None
    difference: float | None
    """From the row it is compared with; None for that row itself."""
    p: float | None
    """Two-sided, that the difference is none; None where it cannot be tested."""
    values: tuple[float, ...]
    """Of each seed."""


class Line(Strict):
    """A row of a table for one backbone."""

    name: str
    label: str
    plan: str
    """Stages and steps: `32x32 x2, 64x64 x2`."""
    nfe: float
    """Network evaluations per image."""
    seconds_per_image: float
    """Of the denoiser: its calls at each side, timed together for the whole table."""
    speedup: float
    """Over the slowest row of the table, in these seconds."""
    iterations: int | None
    evaluations: float | None
    """Of networks in the training, for every sample of a batch; mean over seeds."""
    numbers: dict[str, Number]
    parts: dict[str, Number]
    """Of each attribute alone, the share of samples in which it is right."""
    paper: dict[str, str]
    prompts: tuple[str, ...]
    """Of its pictures, of the first seed."""
    picture: str | None
    """File name of these, side by side; None where the folder has them no more."""


class TableResult(Strict):
    """A table as measured."""

    name: str
    title: str
    source: str
    question: str
    against: str
    budget: str
    """Its name."""
    evaluations: int
    seeds: tuple[int, ...]
    samples: int
    backbones: dict[str, tuple[Line, ...]]
    versions: dict[str, str]


def run_table(table: Table, budget: Budget, bench: Bench, *, backbones: Sequence[str], folder: Path) -> TableResult:
    """Compute what is missing of a table's cells, and summarise them; pictures are copied into `folder`.

    Backbones that the folder's table has already stay in it, if their cells are all there.

    Raises:
        RMDError: a teacher is not there, or a setting does not fit it.
        Stopped: a signal ended a training.
    """
    backbones = [name for name in table.backbones if name in backbones or _whole(table, budget, bench, name, folder)]
    cells = {
        backbone: {
            row.name: [make_cell(row, backbone, seed, budget) for seed in budget.seeds]
            for row in table.rows_of(backbone)
        }
        for backbone in backbones
    }
    results = _compute([cell for rows in cells.values() for found in rows.values() for cell in found], table, bench)
    lines = {}
    for backbone, rows in cells.items():
        found = {name: [results[backbone, name, cell.seed] for cell in row] for name, row in rows.items()}
        seconds = dict(zip(rows, bench.seconds([row[0] for row in rows.values()]), strict=True))
        lines[backbone] = tuple(
            _line(row, rows[row.name], found, table.against, bench, seconds,
                  folder / "pictures" / f"{table.name}-{backbone}-{row.name}.png")
            for row in table.rows_of(backbone)
        )  # fmt: skip
    return TableResult(
        name=table.name, title=table.title, source=table.source, question=table.question, against=table.against,
        budget=budget.name, evaluations=budget.evaluations, seeds=budget.seeds, samples=budget.samples,
        backbones=lines, versions=versions(),
    )  # fmt: skip


def read_results(folder: Path) -> dict[str, TableResult]:
    """The tables that `rmd compare --out FOLDER` wrote there, by name; RMDError where a file is none."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = read_model(path, TableResult)
        except RMDError as error:
            raise RMDError(f"{path} is no table of rmd compare: make it anew, or move it away ({error})") from error
        found[result.name] = result
    return found


def _whole(table: Table, budget: Budget, bench: Bench, backbone: str, folder: Path) -> bool:
    """Whether the folder's table shows a backbone, and nothing of it would have to be computed."""
    before = read_results(folder).get(table.name)
    if before is None or backbone not in before.backbones:
        return False
    cells = (make_cell(row, backbone, seed, budget) for row in table.rows_of(backbone) for seed in budget.seeds)
    return all(bench.path(cell).is_file() for cell in cells)


def _compute(cells: Sequence[Cell], table: Table, bench: Bench) -> dict[tuple[str, str, int], CellResult]:
    """Results by backbone, row and seed; what another process is at comes last."""
    results: dict[tuple[str, str, int], CellResult] = {}
    left = list(cells)
    for wait in (False, True):
        for cell in tuple(left):
            found = bench.result(cell, wait=wait)
            if found is not None:
                results[cell.backbone, cell.setting.name, cell.seed] = found
                left.remove(cell)
                bench.progress(f"table {table.name}", len(cells) - len(left), len(cells))
    return results


def _line(
    row: Setting, cells: Sequence[Cell], found: Mapping[str, Sequence[CellResult]], against: str, bench: Bench,
    seconds: Mapping[str, float], picture: Path,
) -> Line:  # fmt: skip
    results, others = found[row.name], None if row.name == against else found[against]
    made = bench.path(cells[0]).with_suffix(".png")
    if made.is_file():
        picture.parent.mkdir(parents=True, exist_ok=True)
        with replacing(picture) as partial:
            partial.write_bytes(made.read_bytes())
    trainings = [result.training for result in results if result.training is not None]
    plan = cells[0].plan
    counts = [sum(step.stage == stage.index for step in plan.steps) for stage in plan.stages]
    return Line(
        name=row.name,
        label=row.label,
        plan=", ".join(f"{stage.size} x{count}" for stage, count in zip(plan.stages, counts, strict=True)),
        nfe=results[0].row.nfe,
        seconds_per_image=seconds[row.name],
        speedup=max(seconds.values()) / seconds[row.name],
        iterations=trainings[0].iterations if trainings else None,
        evaluations=fmean(training.evaluations for training in trainings) if trainings else None,
        numbers={measure.name: _number(measure, results, others) for measure in MEASURES},
        parts={name: _number(part(name), results, others) for name in _attributes(found)},
        paper=dict(row.paper.get(cells[0].backbone, {})),
        prompts=results[0].prompts,
        picture=picture.name if made.is_file() else None,
    )


def _number(measure: Measure, results: Sequence[CellResult], others: Sequence[CellResult] | None) -> Number:
    values = tuple(measure.read(result.row) for result in results)
    return Number(**asdict(summarise(measure, results, others)), values=values)


def _attributes(found: Mapping[str, Sequence[CellResult]]) -> list[str]:
    """Attributes that every cell's captions ask for somewhere."""
    rows = [result.row for results in found.values() for result in results]
    return [name for name in rows[0].attributes_by_name if all(name in row.attributes_by_name for row in rows)]
