"""`rmd eval videos`: score clips by features of their frames and by pixels."""

from __future__ import annotations

from typing import Annotated

import typer

from rmd.cli.evals import AllowMissing, Dtype, Licence, Name, Nfe, Out, Prompts, Seconds, Share
from rmd.cli.options import Device, Weights, parts
from rmd.cli.scoring import score
from rmd.cli.start import start_local
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
    from rmd.scores.kinds import CLIPS
    from rmd.scores.metrics import chosen
    from rmd.scores.video import VIDEO_METRICS

    wanted = chosen(list(VIDEO_METRICS) if metrics is None else parts(metrics), VIDEO_METRICS)
    score(
        place, wanted, kind=CLIPS, prompts=prompts, out=out, name=name, weights=weights, licence=licence, batch_size=1,
        dtype=dtype, allow_missing=allow_missing, nfe=nfe, seconds=seconds, worker=share, device=where,
    )  # fmt: skip
