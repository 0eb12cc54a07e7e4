"""Tests whether `rmd plan --fit` predicts the quality of a plan: what it predicts beside what trained students reach.

`python -m research.findings.splits` measures the packaged teacher's spectrum and prints both tables of this check with
their rank correlations. Only orders can be compared: the predictions are about the teacher's latents, and the kernel
distance is that of a student's pictures. Beside the planner's loss and its missing bits stands the ranking that needs
no planner, by the number of steps below the full resolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats
from torch import Tensor

from rmd.common.markdown import markdown_lines, markdown_text
from rmd.compare.cells import BUDGETS, make_cell
from rmd.compare.run import Line, TableResult, read_results
from rmd.compare.settings import BACKBONES, RMD
from rmd.compare.tables import TABLES
from rmd.compare.write import number_text
from rmd.core.fit import missing_bits, plan_loss
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import StepPlan, build_plan
from rmd.data.prompts import load_prompts
from rmd.evaluation.metrics import metric
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.report.tables import fixed
from rmd.sample.spectrum import teacher_spectrum

TABLES_OF_SPLITS = ("thresholds", "stages")
"""The tables whose rows differ only in their split, apart from the naive cascade's rows."""
COMPARED = ("attributes", "kernel_distance")
"""The metrics whose order is compared with the prediction."""
PICTURES = 32
"""Number of pictures that the teacher makes, as for `rmd plan --fit`."""
_MARK = re.compile(r"(<!-- (splits|times) (\w+) -->).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Foreseen:
    """Predictions about a plan that need no trained student.

    Attributes:
        loss: the planner's loss in bits per latent value (`rmd.core.fit.plan_loss`).
        missing: its part at the crossings (`rmd.core.fit.missing_bits`).
        low: number of steps below the full resolution.
    """

    loss: float
    missing: float
    low: int


@dataclass(frozen=True)
class SplitRow:
    """A split that RMD was measured with, its prediction, and its measured row."""

    split: str
    foreseen: Foreseen
    line: Line


@dataclass(frozen=True)
class Run:
    """A student trained without matching across resolutions: TDM at one resolution, or a naive cascade.

    Attributes:
        split: number of steps in each stage.
        sides: sides of the stages in pixels.
        times: teacher times of the steps; empty for uniform ones.
        row: table and row of docs/findings from which its kernel distance is read, with seed 0.
    """

    split: tuple[int, ...]
    sides: tuple[int, ...]
    row: tuple[str, str]
    times: tuple[float, ...] = ()


RUNS = (
    Run((4,), (64,), ("main", "tdm")),
    Run((4,), (64,), ("screening", "tdm-700"), (1000.0, 850.0, 700.0, 350.0)),
    Run((2, 2), (32, 64), ("main", "naive")),
    Run((2, 2), (32, 64), ("prescreening", "warm-own-700"), (1000.0, 850.0, 700.0, 350.0)),
    Run((2, 2), (32, 64), ("prescreening", "warm-own"), (1000.0, 900.0, 750.0, 375.0)),
    Run((2, 2), (32, 64), ("prescreening", "warm-own-850"), (1000.0, 925.0, 850.0, 425.0)),
    Run((2, 2), (32, 64), ("prescreening", "warm-own-450"), (1000.0, 900.0, 750.0, 450.0)),
    Run((1, 1, 2), (16, 32, 64), ("stages", "naive-1+1+2")),
    Run((2, 1, 1), (16, 32, 64), ("stages", "naive-2+1+1")),
)
"""Trained students of the SDXL type, all with table main's budget and seed 0."""


def fill_splits(text: str, results: Mapping[str, TableResult], powers: Mapping[str, Tensor]) -> str:
    """Fill in the tables between `<!-- splits BACKBONE -->` or `<!-- times BACKBONE -->` and `<!-- end -->`.

    Args:
        text: a Markdown text.
        results: the results of the comparisons by name.
        powers: power spectra of the teachers' latents by backbone, see `scenes_power`.
    """

    def replaced(mark: re.Match[str]) -> str:
        head, kind, backbone, end = mark.groups()
        power = powers[backbone]
        if kind == "splits":
            return f"{head}\n{splits_markdown(split_rows(results, backbone, power))}{end}"
        return f"{head}\n{runs_markdown(results, backbone, power)}{end}"

    return _MARK.sub(replaced, text)


def scenes_power(backbone: str) -> Tensor:
    """Return the power spectrum that `rmd plan --fit` estimates from pictures of a backbone's packaged teacher."""
    recipe = load_recipe(BACKBONES[backbone])
    prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, PICTURES)[0]
    return teacher_spectrum(
        load_teacher(recipe), recipe.plan.sides[-1], prompts, seed=recipe.train.seed, guidance=recipe.method.guidance
    )


def foresee(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> Foreseen:
    """Return the predictions for a plan.

    Args:
        power: power spectrum of the teacher's latents at full resolution (`rmd.sample.spectrum.teacher_spectrum`).
    """
    low = sum(step.stage < len(plan.stages) for step in plan.steps)
    return Foreseen(plan_loss(plan, schedule, power), missing_bits(plan, schedule, power), low)


def split_rows(results: Mapping[str, TableResult], backbone: str, power: Tensor) -> list[SplitRow]:
    """Return every split that RMD was measured with at uniform times, ordered by missing bits."""
    by_split: dict[str, SplitRow] = {}
    for name in TABLES_OF_SPLITS:
        lines = {line.name: line for line in results[name].backbones[backbone]}
        for row in TABLES[name].rows_of(backbone):
            if row.changes == RMD.changes:
                cell = make_cell(row, backbone, 0, BUDGETS[results[name].budget])
                split = "+".join(map(str, row.split if len(row.split) > 1 else (0, *row.split)))
                foreseen = foresee(cell.plan, cell.recipe.schedule(), power)
                by_split[split] = SplitRow(split, foreseen, lines[row.name])
    return sorted(by_split.values(), key=lambda row: row.foreseen.missing)


def splits_markdown(rows: Sequence[SplitRow]) -> str:
    """Return a table of the splits, and the agreement of their orders."""
    heads = ("split", "stages and steps", "loss x1000", "missing bits x1000", *(metric(m).title for m in COMPARED))
    cells = []
    for row in rows:
        numbers = (number_text(metric(name), row.line.numbers[name]) for name in COMPARED)
        cells.append((row.split, markdown_text(row.line.plan), *_predicted(row.foreseen), *numbers))
    agreements = [
        agreement(metric(name).title, [row.foreseen for row in rows], [row.line.numbers[name].mean for row in rows])
        for name in COMPARED
    ]
    return f"{markdown_lines(heads, cells, left=2)}\n\n" + "\n".join(agreements) + "\n"


def runs_markdown(results: Mapping[str, TableResult], backbone: str, power: Tensor) -> str:
    """Return a table of the students with free times (`RUNS`), and the agreement of their orders."""
    schedule = load_recipe(BACKBONES[backbone]).schedule()
    rows = []
    for run in RUNS:
        times = run.times or schedule.grid(sum(run.split))
        plan = build_plan(schedule, times=times, sides=[(side, side) for side in run.sides], split=run.split)
        rows.append((run, foresee(plan, schedule, power), _distance(run, results, backbone)))
    rows.sort(key=lambda row: row[1].loss)
    heads = ("split", "sides", "times", "loss x1000", "missing bits x1000", metric("kernel_distance").title)
    cells = [
        (
            "+".join(map(str, run.split)),
            ", ".join(map(str, run.sides)),
            ", ".join(f"{t:g}" for t in run.times) or "uniform",
            *_predicted(foreseen),
            fixed(distance, 1),
        )
        for run, foreseen, distance in rows
    ]
    agreed = agreement(metric("kernel_distance").title, [row[1] for row in rows], [row[2] for row in rows])
    return f"{markdown_lines(heads, cells, left=3)}\n\n{agreed}\n"


def agreement(title: str, foreseen: Sequence[Foreseen], measured: Sequence[float]) -> str:
    """Return a sentence with the rank correlations, Kendall's tau-b, of the predictions with a measured number."""
    predictions = {
        "loss": [each.loss for each in foreseen],
        "missing bits": [each.missing for each in foreseen],
        "number of low-resolution steps": [float(each.low) for each in foreseen],
    }
    parts = [
        f"{fixed(float(stats.kendalltau(values, measured).statistic), 2)} of {name}"
        for name, values in predictions.items()
    ]
    return f"Kendall's tau-b with '{title}' over {len(measured)} rows: {', '.join(parts)}."


def _predicted(foreseen: Foreseen) -> tuple[str, str]:
    return fixed(1000 * foreseen.loss, 1), fixed(1000 * foreseen.missing, 1)


def _distance(run: Run, results: Mapping[str, TableResult], backbone: str) -> float:
    """Return the kernel distance of a run."""
    table, name = run.row
    (line,) = (line for line in results[table].backbones[backbone] if line.name == name)
    return line.numbers["kernel_distance"].values[0]


if __name__ == "__main__":
    measured = read_results(Path(__file__).parents[2] / "docs" / "findings")
    spectrum = scenes_power("sdxl")
    print(splits_markdown(split_rows(measured, "sdxl", spectrum)))
    print(runs_markdown(measured, "sdxl", spectrum))
