"""Whether `rmd plan --fit` foresees what a split costs: the bits it says are missing, beside what was measured.

A plan with more missing bits should do worse. Only the order is asked for: the bits are of the teacher's latents, the
kernel distance of a student's pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from rmd.common.markdown import markdown_lines, markdown_text
from rmd.compare.cells import BUDGETS, make_cell
from rmd.compare.run import Line, TableResult
from rmd.compare.tables import BACKBONES, RMD, TABLES
from rmd.compare.write import number_text, p_text
from rmd.core.fit import missing_bits
from rmd.data.prompts import load_prompts
from rmd.evaluate.statistics import MEASURES
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.report.tables import fixed
from rmd.sample.spectrum import teacher_spectrum

TABLES_OF_SPLITS = ("thresholds", "stages")
"""The tables whose rows differ by their split alone, but for the naive cascade's."""
PICTURES = 16
"""That the teacher makes, as for `rmd plan --fit`."""
_MARK = re.compile(r"(<!-- splits (\w+) -->).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Foreseen:
    """A split, the bits per latent number that it misses (`missing_bits`), and the measured row."""

    split: str
    missing: float
    line: Line


def fill_splits(text: str, results: Mapping[str, TableResult], powers: Mapping[str, Tensor]) -> str:
    """A Markdown text with the table of splits between `<!-- splits sdxl -->` and `<!-- end -->`, by backbone."""

    def replaced(mark: re.Match[str]) -> str:
        head, backbone, end = mark.groups()
        return f"{head}\n{as_markdown(foreseen(results, backbone, powers[backbone]))}{end}"

    return _MARK.sub(replaced, text)


def scenes_power(backbone: str) -> Tensor:
    """The power spectrum that `rmd plan --fit` finds for a backbone's scenes; the teacher makes pictures for it."""
    recipe = load_recipe(BACKBONES[backbone])
    prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, PICTURES)[0]
    return teacher_spectrum(
        load_teacher(recipe), recipe.plan.sides[-1], prompts, seed=recipe.train.seed, guidance=recipe.method.guidance
    )


def foreseen(results: Mapping[str, TableResult], backbone: str, power: Tensor) -> list[Foreseen]:
    """Every split that RMD was measured with, those that miss least first.

    Args:
        power: of the teacher's latents at the full resolution (`rmd.sample.spectrum.teacher_spectrum`).
    """
    found: dict[str, Foreseen] = {}
    for name in TABLES_OF_SPLITS:
        lines = {line.name: line for line in results[name].backbones[backbone]}
        for row in TABLES[name].rows_of(backbone):
            if row.changes == RMD.changes:
                cell = make_cell(row, backbone, 0, BUDGETS[results[name].budget])
                missing = missing_bits(cell.plan, cell.recipe.schedule(), power)
                split = "+".join(map(str, row.split if len(row.split) > 1 else (0, *row.split)))
                found[split] = Foreseen(split, missing, lines[row.name])
    return sorted(found.values(), key=lambda plan: plan.missing)


def as_markdown(found: list[Foreseen]) -> str:
    """A table of the splits, and how far the two orders agree (Kendall's tau, with its exact two-sided p)."""
    heads = ("split", "stages and steps", "missing bits x1000", *(measure.title for measure in MEASURES[:2]))
    rows = []
    for plan in found:
        numbers = (number_text(measure, plan.line.numbers[measure.name], star=False) for measure in MEASURES[:2])
        rows.append((plan.split, markdown_text(plan.line.plan), fixed(1000 * plan.missing, 1), *numbers))
    return f"{markdown_lines(heads, rows, left=2)}\n\n{_agreement(found)}\n"


def _agreement(found: list[Foreseen]) -> str:
    missing = [plan.missing for plan in found]
    said = []
    for measure in MEASURES[:2]:
        agreed = stats.kendalltau(missing, [plan.line.numbers[measure.name].mean for plan in found], method="exact")
        said.append(f"{fixed(float(agreed.statistic), 2)} with '{measure.title}' (p {p_text(float(agreed.pvalue))})")
    return f"Kendall's tau of missing bits over {len(found)} splits: {', '.join(said)}."
