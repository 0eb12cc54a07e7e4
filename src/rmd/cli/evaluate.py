"""`rmd eval model`: measure any student or diffusers pipeline on the scenes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Device, Guidance, Steps, Variant, Weights, check_options
from rmd.cli.start import start
from rmd.common.errors import RMDError, check_text, finite, one_of, shown

if TYPE_CHECKING:
    import torch

    from rmd.evaluation.protocol import SamplerContender
    from rmd.evaluation.store import Evaluation

Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="The name of the row. By default, it is the last part of MODEL.")
]
Samples = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=6, max=100_000, help="The number of pictures, two per caption. By default, it is 384."
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="The seed of the captions and the noise.")]
Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The packaged teacher whose samples are the reference: scenes, scenes-pixart, scenes-sd3 or vistas. By "
        "default, it is the student's own, or else scenes.",
    ),
]
Base = Annotated[
    str | None, typer.Option(metavar="DIR", help="The folder of a LoRA student's teacher, if it has moved since.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The folder for the rows, runs/eval by default. The rows that it already contains are printed, too. With "
        "--suite, the folder for the pictures and their result, runs/scores/NAME by default.",
    ),
]
SuiteName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Make pictures of a benchmark's prompts instead, and score them as `rmd eval images` does: hpdv2, a "
        "folder of prompts in its layout, or a file of prompts.",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="With --suite: metrics of `rmd eval images`. By default, they are hps,aesthetic,clip."
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="The number of pictures per batch.")]
DENOISERS = ("unet", "transformer", "transformer_2")
"""Parts of a diffusers pipeline whose calls are counted and timed."""


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A student or any diffusers pipeline: a folder, or a repository on the Hub."
        ),
    ],
    name: Name = None,
    steps: Steps = None,
    guidance: Guidance = None,
    samples: Samples = None,
    seed: Seed = 0,
    teacher: Teacher = None,
    base: Base = None,
    out: Out = None,
    batch_size: BatchSize = 64,
    suite: SuiteName = None,
    metrics: Metrics = None,
    weights: Weights = None,
    device: Device = None,
    variant: Variant = None,
) -> None:
    """Measure how well a model draws a packaged world, or what a benchmark's metrics say of its pictures."""
    where = start(device)
    for option, text in (("MODEL", model), ("--out", str(out)), ("--base", base or "")):
        check_text(option, text)
    if guidance is not None:
        finite("--guidance", guidance)
    row = _row_name(model, name)
    _check_suite(suite, {"--samples": samples is not None, "--teacher": teacher is not None},
                 {"--metrics": metrics is not None, "--weights": weights is not None})  # fmt: skip
    if suite is None:
        load = partial(
            _load, model, row, teacher, steps=steps, guidance=guidance, base=base, variant=variant, where=where
        )
        out = out or Path("runs/eval")
        _measure_beside_others(load, out, samples=samples or 384, seed=seed, batch_size=batch_size)
        return
    from rmd.cli.suite import SuiteRun, run_suite

    run_suite(SuiteRun(
        model=model, name=row, suite=suite, metrics=metrics or "hps,aesthetic,clip", weights=weights,
        out=out or Path("runs/scores") / row, steps=steps, guidance=guidance, seed=seed, base=base,
        batch_size=batch_size, variant=variant, device=where,
    ))  # fmt: skip


def _measure_beside_others(
    load: Callable[[], tuple[SamplerContender, str]], out: Path, *, samples: int, seed: int, batch_size: int
) -> None:
    """Measure a model on its packaged world, and print it beside those in the folder."""
    from rmd.cli.console import table_console
    from rmd.evaluation.store import all_evaluations, comparable_rows
    from rmd.report import print_rows

    if out.exists() and not out.is_dir():
        raise RMDError(f"{out} is a file: give a folder as --out")
    all_evaluations(out)  # a file that is not an evaluation is reported before anything is computed
    contender, reference = load()
    evaluation = _measure(contender, reference, samples=samples, seed=seed, batch_size=batch_size, out=out)
    print_rows(comparable_rows(out, evaluation), table_console(110))
    typer.echo(f"row: {out / contender.name}.json   pictures: {out / contender.name}.png")


def _check_suite(suite: str | None, for_worlds: Mapping[str, bool], for_suites: Mapping[str, bool]) -> None:
    """Refuse options that belong to the other way of measuring."""
    strange = [option for option, given in (for_worlds if suite is not None else for_suites).items() if given]
    if strange and suite is not None:
        raise RMDError(f"{strange[0]} has no effect on the pictures of a --suite: leave it out")
    if strange:
        raise RMDError(f"{strange[0]} needs a --suite: add one, or leave it out")


def _row_name(model: str, name: str | None) -> str:
    """Return the name of the row, which is also that of its files."""
    row = re.split(r"[/\\]", model.rstrip("/\\"))[-1] if name is None else name
    if not re.fullmatch(r"[\w.+-]{1,100}", row):
        raise RMDError(
            f"a row cannot be called {shown(row)}: give --name with up to 100 letters, digits and . _ + - only"
        )
    return row


def _load(
    model: str,
    row: str,
    teacher: str | None,
    *,
    steps: int | None,
    guidance: float | None,
    base: str | None,
    variant: str | None,
    where: torch.device,
) -> tuple[SamplerContender, str]:
    """Load the model; return it with the name of the packaged teacher that is its reference."""
    import torch

    from rmd.evaluation.protocol import SamplerContender
    from rmd.models.registry import load_pipeline
    from rmd.models.student import holds_student
    from rmd.sample.samplers import PipelineSampler, Sampler, student_sampler
    from rmd.worlds.registry import packaged_teachers

    teachers = tuple(packaged_teachers())
    if teacher is not None:
        one_of("teacher", teacher, teachers)
    sampler: Sampler
    if holds_student(model):
        check_options(model, True, {}, {"--steps": steps is not None, "--guidance": guidance is not None})
        sampler = student_sampler(model, dtype=torch.float32, device=where, teacher=base, variant=variant)
        pipe, own = sampler.pipe, sampler.pipe.student.teacher
        own = own if own in teachers else None
    else:
        check_options(model, False, {"--base": base is not None}, {})
        pipe, own = load_pipeline(model, variant=variant).to(where), None
        sampler = PipelineSampler(pipe, model, steps=steps, guidance=guidance)
    if sampler.moving:
        raise RMDError(f"{model} makes clips, but the scenes' judge looks at single pictures")
    networks = [pipe.components[part] for part in DENOISERS if pipe.components.get(part) is not None]
    return SamplerContender(row, row, sampler, networks), teacher or own or teachers[0]


def _measure(
    contender: SamplerContender, teacher: str, *, samples: int, seed: int, batch_size: int, out: Path
) -> Evaluation:
    """Evaluate a model and save its row and pictures."""
    from rmd.cli.progress import progress_bar
    from rmd.evaluation.protocol import SAMPLING_SEED, evaluation_prompts
    from rmd.evaluation.run import evaluate
    from rmd.evaluation.store import Evaluation, save_evaluation
    from rmd.evaluation.versions import versions
    from rmd.sample.progress import running_total
    from rmd.worlds.registry import packaged_teachers, world_of_teacher

    world = world_of_teacher(teacher)
    if world.moving:
        stills = ", ".join(name for name in packaged_teachers() if not world_of_teacher(name).moving)
        raise RMDError(f"the teacher {teacher} makes clips, but {contender.name} makes pictures: use one of {stills}")
    prompts = evaluation_prompts(world, samples, seed=seed)
    with progress_bar() as report:
        result = evaluate(
            contender, world, world.judge(teacher), prompts,
            seed=SAMPLING_SEED + seed, batch_size=batch_size, progress=running_total(report, "pictures", samples),
        )  # fmt: skip
    evaluation = Evaluation(
        row=result.row, making=dict(contender.sampler.settings), teacher=teacher, samples=len(prompts), seed=seed,
        versions=versions(),
    )  # fmt: skip
    save_evaluation(evaluation, result.samples.images, out)
    return evaluation
