"""Runs a table: computes its cells one after another and summarises them as one frozen result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from rmd.common.errors import RMDError
from rmd.common.files import read_model, replacing
from rmd.common.typed import Strict
from rmd.compare.cells import Bench, Budget, Cell, CellResult, make_cell
from rmd.compare.settings import Setting, Table
from rmd.evaluation.metrics import Metric, metric, part
from rmd.evaluation.rows import Measured, Row
from rmd.evaluation.statistics import summarise
from rmd.evaluation.versions import versions


class Number(Strict):
    """A metric of a row over its seeds."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None if one seed gives no interval."""
    high: float | None
    difference: float | None
    """Difference from the row it is compared with; None for that row itself."""
    p: float | None
    """Two-sided p of the hypothesis that there is no difference; None if it cannot be tested."""
    level: float | None = None
    """P of the hypothesis that the difference exceeds the metric's margin; None if it cannot be tested."""
    values: tuple[float, ...]
    """The value of each seed."""


class Line(Strict):
    """A row of a table for one backbone."""

    name: str
    label: str
    plan: str
    """Stages and steps: `32x32 x2, 64x64 x2`."""
    nfe: float
    """Network evaluations per image."""
    seconds_per_image: float
    """Denoiser seconds, from calls at each side that were timed together for the whole table."""
    speedup: float
    """Speed-up over the slowest row of the table, in these seconds."""
    iterations: int | None
    evaluations: float | None
    """Network evaluations in training per sample of a batch; mean over seeds."""
    numbers: dict[str, Number]
    """The values by the name of the metric, in the order of the columns."""
    parts: dict[str, Number]
    """The share of samples with each attribute alone right."""
    paper: dict[str, str]
    prompts: tuple[str, ...]
    """Captions of its pictures, which are those of the first seed."""
    picture: str | None
    """Name of the picture file; None if the folder no longer has it."""


class TableResult(Strict):
    """A table as it was measured."""

    name: str
    title: str
    source: str
    question: str
    against: str
    budget: str
    """Name of the budget."""
    evaluations: int
    seeds: tuple[int, ...]
    samples: int
    backbones: dict[str, tuple[Line, ...]]
    versions: dict[str, str]


def budget_of(table: Table, budget: Budget) -> Budget:
    """Return the budget with the table's own number of seeds, unless it has one seed only, and at most its samples."""
    if table.seeds is not None and len(budget.seeds) > 1:
        budget = replace(budget, seeds=tuple(range(table.seeds)))
    return budget if table.samples is None else replace(budget, samples=min(budget.samples, table.samples))


def run_table(table: Table, budget: Budget, bench: Bench, *, backbones: Sequence[str], folder: Path) -> TableResult:
    """Compute the missing cells of a table and summarise all of them; pictures are copied into `folder`.

    Backbones that the folder's table already shows stay in it if all of their cells exist.

    Raises:
        RMDError: a teacher is missing, or a setting does not fit it.
        Stopped: a signal stopped a training.
    """
    budget = budget_of(table, budget)
    backbones = [name for name in table.backbones if name in backbones or _whole(table, budget, bench, name, folder)]
    cells = {
        backbone: {
            row.name: [make_cell(row, backbone, seed, budget) for seed in budget.seeds]
            for row in table.rows_of(backbone)
        }
        for backbone in backbones
    }
    results = _compute([cell for rows in cells.values() for its in rows.values() for cell in its], table, bench)
    lines = {}
    for backbone, rows in cells.items():
        scores = {name: [results[backbone, name, cell.seed] for cell in row] for name, row in rows.items()}
        seconds = dict(zip(rows, bench.seconds([row[0] for row in rows.values()]), strict=True))
        lines[backbone] = tuple(
            _line(row, rows[row.name], scores, table.against, bench, seconds,
                  folder / "pictures" / f"{table.name}-{backbone}-{row.name}.png")
            for row in table.rows_of(backbone)
        )  # fmt: skip
    result = TableResult(
        name=table.name, title=table.title, source=table.source, question=table.question, against=table.against,
        budget=budget.name, evaluations=budget.evaluations, seeds=budget.seeds, samples=budget.samples,
        backbones=lines, versions=versions(),
    )  # fmt: skip
    before = read_results(folder).get(table.name)
    # A table whose every value was measured before keeps the versions that measured it.
    known = before is not None and _values(before).items() >= _values(result).items()
    return result.model_copy(update={"versions": before.versions}) if before is not None and known else result


def read_results(folder: Path) -> dict[str, TableResult]:
    """Return the tables that `rmd compare` wrote to a folder, by name.

    Raises:
        RMDError: a JSON file of the folder is not a table.
    """
    tables = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = read_model(path, TableResult)
        except RMDError as error:
            raise RMDError(
                f"{path} is not a table of rmd compare: move it away, or delete it to compute it again ({error})"
            ) from error
        tables[result.name] = result
    return tables


def _values(result: TableResult) -> dict[tuple[str, str, str], tuple[float, ...]]:
    """Return the values of a table's seeds by backbone, row and measure."""
    return {
        (backbone, line.name, name): number.values
        for backbone, lines in result.backbones.items()
        for line in lines
        for name, number in line.numbers.items()
    }


def _whole(table: Table, budget: Budget, bench: Bench, backbone: str, folder: Path) -> bool:
    """Return whether the folder's table shows a backbone and nothing of it would have to be computed."""
    before = read_results(folder).get(table.name)
    if before is None or backbone not in before.backbones:
        return False
    cells = (make_cell(row, backbone, seed, budget) for row in table.rows_of(backbone) for seed in budget.seeds)
    return all(bench.path(cell).is_file() for cell in cells)


def _compute(cells: Sequence[Cell], table: Table, bench: Bench) -> dict[tuple[str, str, int], CellResult]:
    """Return the results by backbone, row and seed; cells that another process is computing come last."""
    results: dict[tuple[str, str, int], CellResult] = {}
    left = list(cells)
    for wait in (False, True):
        for cell in tuple(left):
            result = bench.result(cell, wait=wait)
            if result is not None:
                results[cell.backbone, cell.setting.name, cell.seed] = result
                left.remove(cell)
                bench.progress(f"table {table.name}", len(cells) - len(left), len(cells))
    return results


def _line(
    row: Setting, cells: Sequence[Cell], scores: Mapping[str, Sequence[CellResult]], against: str, bench: Bench,
    seconds: Mapping[str, float], picture: Path,
) -> Line:  # fmt: skip
    results, others = scores[row.name], None if row.name == against else scores[against]
    made = bench.path(cells[0]).with_suffix(".png")
    if made.is_file():
        picture.parent.mkdir(parents=True, exist_ok=True)
        with replacing(picture) as partial:
            partial.write_bytes(made.read_bytes())
    # The attributes that occur in the captions of every cell.
    attributes = _common([_parts(result.row) for each in scores.values() for result in each])
    parts = _numbers(results, others, _parts, part)
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
        numbers=_numbers(results, others, lambda row: row.measures, metric),
        parts={name: parts[name] for name in attributes},
        paper=dict(row.paper.get(cells[0].backbone, {})),
        prompts=results[0].prompts,
        picture=picture.name if made.is_file() else None,
    )


def _numbers(
    results: Sequence[CellResult], others: Sequence[CellResult] | None, read: Callable[[Row], Mapping[str, Measured]],
    of: Callable[[str], Metric],
) -> dict[str, Number]:  # fmt: skip
    """Summarise what every one of a row's results has; `others` are those of the row that it is compared with.

    Args:
        read: what is summarised of a row, by name.
        of: the metric of a name.
    """
    numbers = {}
    rows, bases = ([read(result.row) for result in its or ()] for its in (results, others))
    outcomes = [(ours.right, theirs.right) for ours, theirs in zip(results, others or (), strict=others is not None)]
    for name in _common(rows):
        ours = [row[name] for row in rows]
        theirs = [base[name] for base in bases] if bases and all(name in base for base in bases) else None
        summary = summarise(of(name), ours, theirs, outcomes)
        numbers[name] = Number(**asdict(summary), values=tuple(each.value for each in ours))
    return numbers


def _parts(row: Row) -> dict[str, Measured]:
    """Return the shares of single attributes by name."""
    parts = (each for measured in row.measures.values() for each in measured.parts.items())
    return {name: Measured(value=share) for name, share in parts}


def _common(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the keys that all rows have, in the order of the first."""
    return [name for name in rows[0] if all(name in row for row in rows)]
