"""`rmd eval videos`: score clips by features of their frames and by pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.evals import DTYPES, AllowMissing, Dtype, Licence, Name, Nfe, Out, Prompts, Seconds, Share
from rmd.cli.options import Device, Weights, parts
from rmd.cli.scoring import conclude, model_name
from rmd.cli.start import start_local
from rmd.common.errors import one_of
from rmd.common.workers import started_worker

Clips = Annotated[str, typer.Argument(metavar="DIR", help="A folder of clips (mp4, webp or gif), or a pattern.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Metrics, separated by commas: vbench-lite-subject-consistency, vbench-lite-background-consistency, "
        "vbench-lite-temporal-flickering, vbench-lite-dynamic-degree, vbench-lite-aesthetic. By default: all of them.",
    ),
]


def videos(
    place: Clips,
    metrics: Metrics = None,
    prompts: Prompts = None,
    out: Out = None,
    name: Name = None,
    weights: Weights = None,
    licence: Licence = None,
    dtype: Dtype = "float32",
    allow_missing: AllowMissing = False,
    nfe: Nfe = None,
    seconds: Seconds = None,
    worker: Share = None,
    device: Device = None,
) -> None:
    """Score clips by features of their frames and by pixels, which is near to VBench's dimensions, but not VBench."""
    share, where = started_worker(worker), start_local(device)
    import torch

    from rmd.cli.progress import progress_bar
    from rmd.scores.kinds import CLIPS
    from rmd.scores.making import making_of
    from rmd.scores.metrics import Place, chosen
    from rmd.scores.result import tables
    from rmd.scores.run import find_pictures, score_pictures
    from rmd.scores.video import VIDEO_METRICS

    wanted = chosen(list(VIDEO_METRICS) if metrics is None else parts(metrics), VIDEO_METRICS)
    called = model_name(place, name)
    tables()  # without them, nothing could be written in the end
    folder = Path("runs/scores") / called if out is None else out
    expected = find_pictures(place, prompts, kind=CLIPS)
    making = making_of(called, place, expected.paths, nfe=nfe, seconds=seconds)
    networks = Place(weights, device=where, dtype=getattr(torch, one_of("dtype", dtype, DTYPES)))
    with progress_bar() as report_progress:
        found = score_pictures(
            expected, wanted, networks, folder, making=making,
            prompt_set=Path(prompts).name if prompts else "the clips' own", licence=licence,
            batch_size=1, allow_missing=allow_missing, worker=share, progress=report_progress,
        )  # fmt: skip
    conclude(found, share, folder)
