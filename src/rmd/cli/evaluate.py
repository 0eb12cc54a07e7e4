"""`rmd eval`: any student or diffusers pipeline as a row of numbers on the scenes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.options import Device, Guidance, Steps, Variant, check_options
from rmd.common.errors import RMDError, check_text, finite, one_of, shown


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A student, or any diffusers pipeline: a folder, or a Hub repository."),
    ],
    name: Annotated[str | None, typer.Option(help="Of the row. By default: the end of MODEL.")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    samples: Annotated[int, typer.Option(min=6, max=100_000, help="Pictures to make, two per caption.")] = 384,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the captions and the noise.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Whose samples are the reference: scenes, scenes-pixart, scenes-sd3. Default: a student's own."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of a LoRA student's teacher, if it has moved.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Rows that are there already stand beside this one.")] = Path(
        "runs/eval"
    ),
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Pictures made at once.")] = 64,
    device: Device = None,
    variant: Variant = None,
) -> None:
    """Judge a model's pictures of the scenes' captions; models that were judged before stand in the same table."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.cli.console import table_console
    from rmd.cli.device import find_device, prepare_cpu
    from rmd.cli.progress import counter, progress_bar
    from rmd.evaluate.protocol import Entry
    from rmd.evaluate.run import DENOISERS, all_evaluations, evaluate, read_evaluations, save_evaluation
    from rmd.models.registry import load_pipeline
    from rmd.models.student import holds_student
    from rmd.report import print_rows
    from rmd.sample.pipeline import RMDPipeline
    from rmd.sample.samplers import PipelineSampler, Sampler, StudentSampler
    from rmd.worlds.assets import TEACHERS

    for option, text in (("MODEL", model), ("--out", str(out)), ("--base", base or "")):
        check_text(option, text)
    if guidance is not None:
        finite("--guidance", guidance)
    prepare_cpu()
    where = find_device(device)
    called = re.split(r"[/\\]", model.rstrip("/\\"))[-1] if name is None else name
    if not re.fullmatch(r"[\w.+-]{1,100}", called):
        raise RMDError(
            f"a row cannot be called {shown(called)}: give --name with up to 100 letters, digits and . _ + - only"
        )
    if out.exists() and not out.is_dir():
        raise RMDError(f"{out} is a file: give a folder as --out")
    all_evaluations(out)  # a file that is not one is reported before anything is computed
    if teacher is not None:
        one_of("teacher", teacher, tuple(TEACHERS))
    maker: Sampler
    if holds_student(model):
        check_options(model, True, {}, {"--steps": steps is not None, "--guidance": guidance is not None})
        student = RMDPipeline.from_pretrained(model, teacher=base, variant=variant).to(where)
        student.pipe.set_progress_bar_config(disable=True)
        maker, pipe = StudentSampler(student), student.pipe
        reference = teacher or (student.config.teacher if student.config.teacher in TEACHERS else "scenes")
    else:
        check_options(model, False, {"--base": base is not None}, {})
        pipe = load_pipeline(model, variant=variant).to(where)
        maker = PipelineSampler(pipe, model, steps=steps, guidance=guidance)
        reference = teacher or "scenes"
    if maker.moving:
        raise RMDError(f"{model} makes clips, but the scenes' judge looks at single pictures")
    networks = [pipe.components[part] for part in DENOISERS if pipe.components.get(part) is not None]
    with progress_bar() as report:
        found, images = evaluate(
            maker, networks, Entry(called, called), teacher=reference, samples=samples, seed=seed,
            batch_size=batch_size, progress=counter(report, "pictures", samples),
        )  # fmt: skip
    save_evaluation(found, images, out)
    print_rows(read_evaluations(out, found), table_console(110))
    typer.echo(f"row: {out / called}.json   pictures: {out / called}.png")
