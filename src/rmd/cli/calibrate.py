"""`rmd eval calibrate`: score pictures whose scores are published, and print both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.evals import AllowMissing, BatchSize, Dtype, Share
from rmd.cli.options import Device, Weights, parts
from rmd.cli.scoring import DTYPES, say_unfinished
from rmd.cli.start import start_local
from rmd.common.errors import check_text, one_of
from rmd.common.workers import started_worker

Pictures = Annotated[
    str, typer.Argument(metavar="DIR", help="A model's folder in HPDv2's benchmark, with a folder for each style.")
]
Metrics = Annotated[str, typer.Option(metavar="NAMES", help="Metrics, separated by commas: hps, hps-legacy, hps-v2.0.")]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The folder with the prompts, STYLE.json. By default, it is two above DIR."),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The model, as its authors call its folder. By default: the last part of DIR."),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder for the values of all pictures. By default: runs/calibration/MODEL."),
]


def calibrate(
    place: Pictures,
    metrics: Metrics = "hps,hps-legacy",
    prompts: Prompts = None,
    model: Model = None,
    out: Out = None,
    weights: Weights = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    allow_missing: AllowMissing = False,
    worker: Share = None,
    device: Device = None,
) -> None:
    """Score pictures that HPSv2's authors publish, and print the means of the styles beside the published ones."""
    share, where = started_worker(worker), start_local(device)
    import torch

    from rmd.cli.console import table_console
    from rmd.cli.progress import progress_bar
    from rmd.scores.calibrate import calibrate as calibrated
    from rmd.scores.metrics import METRICS, Place, chosen
    from rmd.scores.text import calibration_text

    check_text("DIR", place)
    folder = Path(place).resolve()
    name = folder.name if model is None else model
    networks = Place(weights, device=where, dtype=getattr(torch, one_of("dtype", dtype, DTYPES)))
    with progress_bar() as report_progress:
        found = calibrated(
            place, str(folder.parent.parent if prompts is None else prompts), chosen(parts(metrics), METRICS), networks,
            Path("runs/calibration") / name if out is None else out, model=name, batch_size=batch_size,
            allow_missing=allow_missing, worker=share, progress=report_progress,
        )  # fmt: skip
    if found is None:
        say_unfinished(share)
        return
    table_console(110).print(calibration_text(found))
