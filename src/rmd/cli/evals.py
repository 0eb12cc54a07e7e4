"""`rmd eval`: measure a model on a packaged world, score pictures by published networks, and compare results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rmd.cli.evaluate import evaluate
from rmd.cli.options import Device, Weights, parts
from rmd.cli.scoring import DTYPES, score
from rmd.cli.start import start, start_local
from rmd.common.errors import one_of
from rmd.common.workers import started_worker

DEFAULT = "model"
"""The command that `rmd eval MODEL` stands for."""


class _Group(TyperGroup):
    """A group whose first command may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer's own copy of click has the type
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


evals = typer.Typer(
    cls=_Group,
    help="Measure models, pictures and clips. `rmd eval MODEL` is short for `rmd eval model MODEL`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evals.command(DEFAULT)(evaluate)


Pictures = Annotated[str, typer.Argument(metavar="DIR", help="A folder of pictures, or a pattern of files.")]
Metrics = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Metrics, separated by commas: hps, hps-legacy, hps-v2.0, aesthetic, aesthetic-v1, clip, clip-dmd2, "
        "pickscore, imagereward, hpsv3, diversity.",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The prompts that were asked for: a file, or a folder with HPDv2's lists of four styles. Pictures of "
        "`rmd generate` know theirs; all others belong to the lines in the order of their names.",
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="A folder for the result. By default: runs/scores/NAME.")]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="What to call the model. By default: the last part of DIR.")
]
Licence = Annotated[str | None, typer.Option(metavar="TEXT", help="The licence of the prompts.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="Pictures per batch.")]
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help="Type in which the networks compute: float32, float16 or bfloat16.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Score what is there, and say how much is missing.")
]
Nfe = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Network evaluations per picture, as a table shows them: 2+2. By default: as the pictures' files say.",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        min=1e-6,
        help="Measured seconds per picture in the denoiser, from which a table computes speed-ups.",
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Score one of N shares of the pictures, counted from 0; run N such processes. Processes of torchrun have "
        "a share each anyway.",
    ),
]


@evals.command("images")
def images(
    place: Pictures,
    metrics: Metrics = "hps,aesthetic,clip",
    prompts: Prompts = None,
    out: Out = None,
    name: Name = None,
    weights: Weights = None,
    licence: Licence = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    allow_missing: AllowMissing = False,
    nfe: Nfe = None,
    seconds: Seconds = None,
    worker: Share = None,
    device: Device = None,
) -> None:
    """Score pictures by published networks, and write the mean and interval of each metric, and every value."""
    share, where = started_worker(worker), start_local(device)
    from rmd.scores.kinds import PICTURES
    from rmd.scores.metrics import METRICS, chosen

    score(
        place, chosen(parts(metrics), METRICS), kind=PICTURES, prompts=prompts, out=out, name=name, weights=weights,
        licence=licence, batch_size=batch_size, dtype=dtype, allow_missing=allow_missing, nfe=nfe, seconds=seconds,
        worker=share, device=where,
    )  # fmt: skip


@evals.command("compare")
def compare(
    ours: Annotated[Path, typer.Argument(metavar="OURS", help="The folder of a result of `rmd eval`.")],
    theirs: Annotated[Path, typer.Argument(metavar="THEIRS", help="Another one, scored in the same way.")],
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare two results sample by sample; results of different protocols are refused."""
    from rmd.cli.console import table_console
    from rmd.scores.result import compare as compared
    from rmd.scores.result import read_result
    from rmd.scores.text import differences_text

    first, second = read_result(ours), read_result(theirs)
    found = compared(first, second, seed=seed)
    table_console(110).print(differences_text(first[0], second[0], found))


@evals.command("distance")
def distance(
    place: Pictures,
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="A folder of other pictures: real ones, or the teacher's.")
    ],
    metrics: Annotated[
        str, typer.Option(metavar="NAMES", help="Distances, separated by commas: cmmd, kid-dinov2, fd-dinov2.")
    ] = "cmmd,kid-dinov2,fd-dinov2",
    weights: Weights = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    device: Device = None,
) -> None:
    """Measure how far a set of pictures is from another one."""
    where = start(device)
    import torch

    from rmd.cli.console import table_console
    from rmd.cli.progress import progress_bar
    from rmd.scores.distances import DISTANCES, measure_distances
    from rmd.scores.metrics import Place, chosen
    from rmd.scores.text import distances_text

    wanted = chosen(parts(metrics), DISTANCES)
    networks = Place(weights, device=where, dtype=getattr(torch, one_of("dtype", dtype, DTYPES)))
    with progress_bar() as report_progress:
        found = measure_distances(
            place, reference, wanted, networks, batch_size=batch_size, progress=report_progress
        )  # fmt: skip
    table_console(110).print(distances_text(f"{place} from {reference}", found))
