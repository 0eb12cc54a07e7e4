"""`rmd generate`: pictures or clips from a distilled student, or from any diffusers pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmd.cli.options import Guidance, Steps, Variant, check_options
from rmd.common.errors import RMDError, check_text, finite, one_of

if TYPE_CHECKING:
    from rmd.models import Backbone
    from rmd.sample.album import Album
    from rmd.sample.samplers import PipelineSampler, StudentSampler


def generate(
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="One or several prompts.")] = None,
    model: Annotated[
        str,
        typer.Option(metavar="DIR", help="A student, or any diffusers pipeline: a folder, or a repository of the Hub."),
    ] = "runs/demo/student",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One prompt a line; or .json, .jsonl, .csv, .parquet, .tar.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of --prompts with the prompts. By default: prompt, caption or text."),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=10**6, help="Pictures per prompt.")] = 1,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**64 - 1, help="Seed of the first picture; each further picture gets the next one."),
    ] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Finished pictures in it are not made again. For one clip, also a file.")
    ] = Path("runs/pictures"),
    height: Annotated[
        int | None, typer.Option(min=1, max=16384, help="Height in pixels. By default: the model's.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, max=16384, help="Width in pixels. By default: the model's.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Frames of a clip. By default: the model's.")
    ] = None,
    fps: Annotated[int, typer.Option(min=1, max=1000, help="Frames per second at which clips play.")] = 16,
    clips: Annotated[
        str | None, typer.Option("--format", help="Of clips: mp4, webp or gif. By default: as --out ends, or mp4.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Pictures made at once.")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    stages: Annotated[bool, typer.Option("--stages", help="Also save what every stage ended with.")] = False,
    compare_teacher: Annotated[
        bool, typer.Option("--compare-teacher", help="Also make each picture with the teacher.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the teacher is. By default: where it was distilled.")
    ] = None,
    teacher_steps: Annotated[int, typer.Option(min=1, max=10_000, help="Sampling steps of the teacher.")] = 25,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. By default: cuda if there is one.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Work in bfloat16.")] = False,
    variant: Variant = None,
) -> None:
    """Make pictures of prompts with a distilled student, or with any diffusers pipeline beside it."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    import torch

    from rmd.cli.device import find_device, prepare_cpu
    from rmd.cli.progress import counter, progress_bar
    from rmd.common.clips import SUFFIXES, check_fps
    from rmd.data.captions import check_prompts
    from rmd.data.prompts import read_prompts
    from rmd.models import load_backbone
    from rmd.models.registry import family_class, load_pipeline
    from rmd.models.student import base_of, holds_student, read_student
    from rmd.sample.album import make_album, plan_album, writing
    from rmd.sample.pipeline import RMDPipeline
    from rmd.sample.samplers import PipelineSampler, Sampler, StudentSampler

    if bool(prompt) == (prompts is not None):
        raise RMDError("give prompts either as arguments or in a file with --prompts FILE")
    if column is not None and prompts is None:
        raise RMDError("--column names a column of the file that --prompts names: give both")
    for option, text in (("--model", model), ("--out", str(out)), ("--teacher", teacher or "")):
        check_text(option, text)
    if guidance is not None:
        finite("--guidance", guidance)
    if clips is not None:
        one_of("--format", clips, tuple(suffix[1:] for suffix in SUFFIXES))
    texts = check_prompts(prompt) if prompt else read_prompts(prompts or Path(), column)
    prepare_cpu()
    where = find_device(device, kinds=("cpu", "cuda", "mps"))
    dtype = torch.bfloat16 if half else torch.float32
    student = holds_student(model)
    check_options(
        model, student, {"--stages": stages, "--compare-teacher": compare_teacher, "--teacher": teacher is not None},
        {"--steps": steps is not None, "--guidance": guidance is not None},
    )  # fmt: skip
    size: dict[str, Any] = {"height": height, "width": width, "frames": frames, "fps": fps}

    def plan(moving: bool) -> Album:
        if clips is not None and not moving:
            raise RMDError(f"--format is of clips, but {model} makes single pictures: leave it out")
        suffix = _suffix(out, clips) if moving else ".png"
        if moving:
            check_fps(suffix, fps)
        return plan_album(texts, out, count=count, seed=seed, suffix=suffix)

    maker: Sampler
    with ExitStack() as stack:
        if student:
            config = read_student(model)
            pictures = plan(family_class(config.family).moving)
            base = base_of(config, teacher) if compare_teacher else ""
            stack.enter_context(writing(pictures))
            pipe = RMDPipeline.from_pretrained(model, dtype=dtype, teacher=teacher, variant=variant).to(where)
            pipe.pipe.set_progress_bar_config(disable=True)
            maker = StudentSampler(pipe, **size, stages=stages)
        else:
            found = load_pipeline(model, dtype=dtype, variant=variant).to(where)
            maker = PipelineSampler(found, model, steps=steps, guidance=guidance, **size)
            pictures = plan(maker.moving)
            stack.enter_context(writing(pictures))
        report = stack.enter_context(progress_bar())
        made = make_album(maker, pictures, batch_size=batch_size, progress=counter(report, "pictures", len(pictures)))
        if isinstance(maker, StudentSampler) and compare_teacher:
            official = load_backbone(base, dtype=dtype, variant=variant)
            official.pipe.to(where)
            teachers = _teacher_maker(maker, official, str(base), teacher_steps)
            beside = replace(pictures, beside="teacher")
            make_album(teachers, beside, batch_size=1, progress=counter(report, "teacher", len(beside)))
    there = len(pictures) - made
    what = ("clip" if maker.moving else "picture") + "s" * (made != 1)
    typer.echo(f"{made} {what} in {out}" + (f" ({there} were there already)" if there else ""))


def _teacher_maker(student: StudentSampler, teacher: Backbone, source: str, steps: int) -> PipelineSampler:
    """Return a maker of the teacher's samples at the student's size, with the guidance distilled into the student."""
    from rmd.sample.samplers import PipelineSampler

    config, plan = student.pipe.config, student.pipe.plan
    final, length = plan.stages[-1], student.frames or plan.frames
    return PipelineSampler(
        teacher.pipe, config.teacher or source, steps=steps, guidance=config.guidance,
        height=student.height or final.height, width=student.width or final.width,
        frames=length if teacher.moving else None, fps=student.fps, options=teacher.official_options(length),
    )  # fmt: skip


def _suffix(out: Path, wanted: str | None) -> str:
    """Of the clips' files: as asked for, or as a file given by --out has it."""
    from rmd.common.clips import SUFFIXES

    if wanted is not None:
        return f".{wanted}"
    return out.suffix.lower() if out.suffix.lower() in SUFFIXES else SUFFIXES[0]
