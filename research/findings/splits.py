"""Tests whether `rmd plan --fit` predicts the quality of a split: predicted missing bits beside measured quality.

A plan with more missing bits should do worse. Only the order can be compared: the bits are those of the teacher's
latents, while the kernel distance is that of a student's pictures.
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
from rmd.evaluation.metrics import metric
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.report.tables import fixed
from rmd.sample.spectrum import teacher_spectrum

TABLES_OF_SPLITS = ("thresholds", "stages")
"""The tables whose rows differ only in their split, apart from the naive cascade's rows."""
COMPARED = ("attributes", "kernel_distance")
"""The metrics whose order is compared with the prediction."""
PICTURES = 16
"""Number of pictures that the teacher makes, as for `rmd plan --fit`."""
_MARK = re.compile(r"(<!-- splits (\w+) -->).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Foreseen:
    """A split, its missing bits per latent number (`rmd.core.fit.missing_bits`), and its measured row."""

    split: str
    missing: float
    line: Line


def fill_splits(text: str, results: Mapping[str, TableResult], powers: Mapping[str, Tensor]) -> str:
    """Fill in the table of splits between `<!-- splits BACKBONE -->` and `<!-- end -->` in a Markdown text.

    Args:
        powers: power spectra of the teachers' latents by backbone, see `scenes_power`.
    """

    def replaced(mark: re.Match[str]) -> str:
        head, backbone, end = mark.groups()
        return f"{head}\n{as_markdown(foreseen(results, backbone, powers[backbone]))}{end}"

    return _MARK.sub(replaced, text)


def scenes_power(backbone: str) -> Tensor:
    """Return the power spectrum that `rmd plan --fit` estimates from pictures of a backbone's packaged teacher."""
    recipe = load_recipe(BACKBONES[backbone])
    prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, PICTURES)[0]
    return teacher_spectrum(
        load_teacher(recipe), recipe.plan.sides[-1], prompts, seed=recipe.train.seed, guidance=recipe.method.guidance
    )


def foreseen(results: Mapping[str, TableResult], backbone: str, power: Tensor) -> list[Foreseen]:
    """Return every split that RMD was measured with, ordered by missing bits.

    Args:
        power: power spectrum of the teacher's latents at full resolution (`rmd.sample.spectrum.teacher_spectrum`).
    """
    by_split: dict[str, Foreseen] = {}
    for name in TABLES_OF_SPLITS:
        lines = {line.name: line for line in results[name].backbones[backbone]}
        for row in TABLES[name].rows_of(backbone):
            if row.changes == RMD.changes:
                cell = make_cell(row, backbone, 0, BUDGETS[results[name].budget])
                missing = missing_bits(cell.plan, cell.recipe.schedule(), power)
                split = "+".join(map(str, row.split if len(row.split) > 1 else (0, *row.split)))
                by_split[split] = Foreseen(split, missing, lines[row.name])
    return sorted(by_split.values(), key=lambda plan: plan.missing)


def as_markdown(plans: list[Foreseen]) -> str:
    """Return a table of the splits and the agreement of the orders: Kendall's tau with its exact two-sided p."""
    heads = ("split", "stages and steps", "missing bits x1000", *(metric(name).title for name in COMPARED))
    rows = []
    for plan in plans:
        numbers = (number_text(metric(name), plan.line.numbers[name], star=False) for name in COMPARED)
        rows.append((plan.split, markdown_text(plan.line.plan), fixed(1000 * plan.missing, 1), *numbers))
    return f"{markdown_lines(heads, rows, left=2)}\n\n{_agreement(plans)}\n"


def _agreement(plans: list[Foreseen]) -> str:
    missing, parts = [plan.missing for plan in plans], []
    for name in COMPARED:
        tau = stats.kendalltau(missing, [plan.line.numbers[name].mean for plan in plans], method="exact")
        p = p_text(float(tau.pvalue))
        parts.append(f"{fixed(float(tau.statistic), 2)} with '{metric(name).title}' (p {p})")
    return f"Kendall's tau of missing bits over {len(plans)} splits: {', '.join(parts)}."
