"""`rmd eval model MODEL --suite`: make the pictures of a benchmark's prompts, and score them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rmd.cli.options import parts
from rmd.cli.scoring import conclude
from rmd.common.workers import ALONE

if TYPE_CHECKING:
    import torch

PICTURES = "pictures"
"""Folder of the pictures in a result's folder."""


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """The pictures of a benchmark by one model, and their scores.

    Attributes:
        model, name: the model, and what it is called.
        suite: hpdv2, a folder of prompts in its layout, or a file of prompts.
        metrics: names of metrics, separated by commas.
        weights: folder with the metrics' networks, and with HPDv2's prompts; None: the Hub.
        out: folder for the result, with the pictures in a folder of their own.
        steps, guidance: sampling of a pipeline that is no student.
        seed: seed of the first picture.
        base: the location of a student's teacher, if it has moved.
        batch_size: number of pictures that are made and scored at once.
        variant: the variant of the model's weight files.
        device: where everything computes.
    """

    model: str
    name: str
    suite: str
    metrics: str
    weights: Path | None
    out: Path
    steps: int | None
    guidance: float | None
    seed: int
    base: str | None
    batch_size: int
    variant: str | None
    device: torch.device


def run_suite(run: SuiteRun) -> None:
    """Make the pictures that are not there yet, score them, and print and write the result.

    Raises:
        RMDError: the prompts or a network cannot be found, or pictures of other settings lie in the folder.
    """
    import torch

    from rmd.cli.progress import progress_bar
    from rmd.models.student import holds_student
    from rmd.sample.job import Request, make, prepared
    from rmd.sample.progress import running_total
    from rmd.scores.making import making_of
    from rmd.scores.metrics import METRICS, Place, chosen
    from rmd.scores.result import tables
    from rmd.scores.run import find_pictures, score_pictures
    from rmd.scores.suites import suite_folder, suite_prompts

    wanted = chosen(parts(run.metrics), METRICS)
    tables()  # without them, nothing could be written in the end
    place = suite_folder(run.suite, run.weights)
    folder = run.out / PICTURES
    request = Request(
        model=run.model, student=holds_student(run.model), prompts=suite_prompts(place), out=folder, seed=run.seed,
        batch_size=run.batch_size, steps=run.steps, guidance=run.guidance, teacher=run.base, variant=run.variant,
        device=run.device, dtype=torch.float32,
    )  # fmt: skip
    with prepared(request) as (sampler, album), progress_bar() as report:
        make(request, sampler, album, partial(running_total, report))
    expected = find_pictures(str(folder), place)
    with progress_bar() as report:
        found = score_pictures(
            expected, wanted, Place(run.weights, device=run.device), run.out,
            making=making_of(run.name, str(folder), expected.paths), prompt_set=run.suite,
            batch_size=run.batch_size, progress=report,
        )  # fmt: skip
    conclude(found, ALONE, run.out)
