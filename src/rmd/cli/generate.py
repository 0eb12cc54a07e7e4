"""`rmd generate`: pictures or clips from a distilled student, or from any diffusers pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import AnyDevice, Column, Guidance, Half, Steps, Teacher, Variant, check_options
from rmd.cli.start import start_local
from rmd.common.errors import RMDError, check_text, finite, one_of
from rmd.common.workers import started_worker

if TYPE_CHECKING:
    from rmd.sample.job import Request
    from rmd.sample.plans import VideoPlan

Prompt = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="One or more prompts.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="DIR", help="A student or any diffusers pipeline, given as a folder or as a repository on the Hub."
    ),
]
PromptFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Read the prompts from a file instead: text with one prompt per line, or .json, .jsonl, .csv, .parquet or "
        ".tar.",
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Make the clips of a benchmark's plan (`rmd eval vbench plan`), which names prompts, seeds and files.",
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="I/N",
        help="Make one of N shares of the pictures, counted from 0; run N such processes with the same other options. "
        "Processes of torchrun have a share each anyway.",
    ),
]
Count = Annotated[
    int, typer.Option("-n", "--count", metavar="N", min=1, max=10**6, help="The number of pictures per prompt.")
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=2**64 - 1,
        help="The seed of the first picture; each further picture uses the next seed.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="The folder for the pictures, or a file for a single clip. Pictures that it already contains are kept.",
    ),
]
Height = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=16384, help="Height in pixels. By default, the model's own.")
]
Width = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=16384, help="Width in pixels. By default, the model's own.")
]
Frames = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=10_000, help="The number of frames of a clip. By default, the model's own."),
]
Fps = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Frames per second at which clips play.")]
ClipFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="The file format of clips: mp4, webp or gif. By default, the ending of --out decides, or else it is mp4.",
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="The number of pictures in one batch.")]
Stages = Annotated[bool, typer.Option("--stages", help="Also save the result of every stage of a student's cascade.")]
CompareTeacher = Annotated[
    bool, typer.Option("--compare-teacher", help="Also make each picture with the student's teacher.")
]
TeacherSteps = Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="The teacher's sampling steps.")]


def generate(
    prompt: Prompt = None,
    model: Model = "runs/demo/student",
    prompts: PromptFile = None,
    column: Column = None,
    plan: Plan = None,
    worker: Share = None,
    count: Count = 1,
    seed: Seed = 0,
    out: Out = Path("runs/pictures"),
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    fps: Fps = 16,
    clips: ClipFormat = None,
    batch_size: BatchSize = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    stages: Stages = False,
    compare_teacher: CompareTeacher = False,
    teacher: Teacher = None,
    teacher_steps: TeacherSteps = 25,
    device: AnyDevice = None,
    half: Half = False,
    variant: Variant = None,
) -> None:
    """Make pictures or clips from prompts with a distilled student, or with any diffusers pipeline.

    The files record how they were made. A command that was stopped continues when it is run again.
    """
    _check_words(model, out, teacher, guidance)
    share, where = started_worker(worker), start_local(device, kinds=("cpu", "cuda", "mps"))
    import torch

    from rmd.models.student import holds_student
    from rmd.sample.job import Request

    said = {"PROMPT": prompt, "--prompts": prompts, "--column": column, "--count": count != 1, "--seed": seed,
            "--format": clips, "--stages": stages, "--compare-teacher": compare_teacher}  # fmt: skip
    texts, videos = ([], _videos(plan, said)) if plan else (_prompts(prompt, prompts, column, clips), None)
    student = holds_student(model)
    for_pipelines = {"--steps": steps is not None, "--guidance": guidance is not None}
    for_students = {"--stages": stages, "--compare-teacher": compare_teacher, "--teacher": teacher is not None}
    check_options(model, student, for_students, for_pipelines)
    _make(Request(
        model=model, student=student, prompts=texts, videos=videos, worker=share, out=out, count=count,
        seed=seed, height=height, width=width, frames=frames, fps=fps, clip_format=clips, batch_size=batch_size,
        steps=steps, guidance=guidance, stages=stages, teacher_steps=teacher_steps if compare_teacher else None,
        teacher=teacher, variant=variant, device=where, dtype=torch.bfloat16 if half else torch.float32,
    ))  # fmt: skip


def _check_words(model: str, out: Path, teacher: str | None, guidance: float | None) -> None:
    """Refuse texts that no file can hold, and numbers that are not finite."""
    for option, text in (("--model", model), ("--out", str(out)), ("--teacher", teacher or "")):
        check_text(option, text)
    if guidance is not None:
        finite("--guidance", guidance)


def _videos(plan: Path, options: Mapping[str, object]) -> VideoPlan:
    """Read a plan; refuse options that say what it says, or that write other files beside its own."""
    from rmd.sample.plans import read_plan

    given = next((option for option, value in options.items() if value), None)
    if given is not None:
        raise RMDError(f"--plan names the prompts, seeds and files, and nothing else is made: leave out {given}")
    return read_plan(plan)


def _prompts(prompt: list[str] | None, file: str | None, column: str | None, clips: str | None) -> list[str]:
    """Return the prompts of the arguments or of the file, after checking the options about them and about clips."""
    from rmd.common.clips import SUFFIXES
    from rmd.data.captions import check_prompts
    from rmd.data.prompts import read_prompts

    if bool(prompt) == (file is not None):
        raise RMDError("give prompts either as arguments or in a file with --prompts FILE")
    if column is not None and file is None:
        raise RMDError("--column names a column of the file that --prompts names: give both")
    if clips is not None:
        one_of("--format", clips, tuple(suffix[1:] for suffix in SUFFIXES))
    return check_prompts(prompt) if prompt else read_prompts(file or "", column)


def _make(request: Request) -> None:
    """Carry out the request, showing its progress, and print what was made."""
    from rmd.cli.progress import progress_bar
    from rmd.sample.job import make, prepared
    from rmd.sample.progress import running_total

    with prepared(request) as (sampler, pictures), progress_bar() as report:
        made = make(request, sampler, pictures, partial(running_total, report))
    existed = len(pictures) - made
    what = ("clip" if sampler.moving else "picture") + "s" * (made != 1)
    typer.echo(f"{made} {what} in {request.out}" + (f" ({existed} existed already)" if existed else ""))
