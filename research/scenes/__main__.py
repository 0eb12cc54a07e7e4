"""Command line that builds the packaged weights, one command per part: `python -m research.scenes --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.options import Threads
from rmd.cli.start import start
from rmd.common.errors import RMDError, one_of
from rmd.common.files import disk_errors, write_text

app = typer.Typer(
    help="Build the packaged weights of the scenes: VAE, teacher, judge and references.",
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder for the result. Its build.json records how it was made.")
]
Cache = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Folder for renders and checkpoints, from which an interrupted build resumes."),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=2**63 - 1, help="Seed of the initial weights and of the training. The data have seeds of their own."
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        min=2, max=10**9, metavar="N", help="Number of optimiser steps. By default: as for the packaged weights."
    ),
]
World = Annotated[str, typer.Option(help="World of the part: scenes, vistas or moving-scenes.")]
WORLDS = ("scenes", "vistas", "moving-scenes")
OUT, CACHE = Path("runs/scenes-build"), Path("runs/scenes-cache")


@app.command("train-vae")
def train_vae(
    out: Out = OUT,
    seed: Seed = 0,
    iterations: Iterations = None,
    world: World = "scenes",
    cache: Cache = CACHE,
    threads: Threads = None,
) -> None:
    """Train the VAE of the scenes."""
    start(threads=threads)
    if one_of("world", world, WORLDS) == "moving-scenes":
        from research.scenes.moving.build import CLIP_VAE_ITERATIONS, build_clip_vae_weights

        steps = CLIP_VAE_ITERATIONS if iterations is None else iterations
        typer.echo(f"vae: {build_clip_vae_weights(out, cache=cache, seed=seed, iterations=steps, log=_log)}")
        return
    from research.scenes.build import build_vae_weights
    from research.scenes.kits import KITS

    folder = build_vae_weights(out, cache=cache, kit=KITS[world], seed=seed, iterations=iterations, log=_log)
    typer.echo(f"vae: {folder}")


@app.command("train-teacher")
def train_teacher(
    out: Out = OUT,
    seed: Seed = 0,
    iterations: Iterations = None,
    world: World = "scenes",
    family: Annotated[
        str | None,
        typer.Option(
            help="Type of the pipeline: sdxl (the default), or for scenes also pixart or sd3; for moving scenes wan."
        ),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of a VAE from train-vae. By default: train the default VAE first."),
    ] = None,
    imitate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Teacher to imitate, with its VAE. By default, for pixart and sd3: the packaged teacher.",
        ),
    ] = None,
    cache: Cache = CACHE,
    threads: Threads = None,
) -> None:
    """Train a teacher of the scenes: an ordinary diffusers pipeline."""
    start(threads=threads)
    from research.scenes.build import build_teacher, curriculum_of
    from research.scenes.families import FAMILIES
    from research.scenes.kits import KITS
    from research.scenes.moving.build import CLIP_CURRICULUM, build_clip_teacher

    families = {"scenes": tuple(FAMILIES), "vistas": ("sdxl",), "moving-scenes": ("wan",)}
    known = families[one_of("world", world, WORLDS)]
    family = one_of(f"family of {world}", family or known[0], known)
    if world == "moving-scenes":
        if imitate is not None:
            raise RMDError(
                "the teacher of moving scenes is trained on clips and cannot imitate another one: leave --imitate out"
            )
        curriculum = curriculum_of(iterations, seed=seed, usual=CLIP_CURRICULUM)
        folder = build_clip_teacher(out, cache=cache, seed=seed, vae=vae, curriculum=curriculum, log=_log)
        typer.echo(f"teacher: {folder}")
        return
    folder = build_teacher(
        out, cache=cache, kit=KITS[world], family=family, seed=seed, iterations=iterations, vae=vae, imitate=imitate,
        log=_log,
    )  # fmt: skip
    typer.echo(f"teacher: {folder}")


@app.command("refine-teacher")
def refine_teacher(
    teacher: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the teacher's pipeline.")],
    out: Out = OUT,
    seed: Seed = 0,
    iterations: Iterations = None,
    world: Annotated[str, typer.Option(help="World of the teacher: vistas.")] = "vistas",
    cache: Cache = CACHE,
    threads: Threads = None,
) -> None:
    """Train a teacher further, with most of the loss on the objects."""
    start(threads=threads)
    from research.scenes.build import refine_teacher
    from research.scenes.kits import KITS

    kit = KITS[one_of("world", world, tuple(name for name, each in KITS.items() if each.refinement))]
    folder = refine_teacher(
        out, teacher=teacher, cache=cache, kit=kit, seed=seed, iterations=iterations, log=_log
    )  # fmt: skip
    typer.echo(f"teacher: {folder}")


@app.command("train-judge")
def train_judge(
    out: Out = OUT,
    seed: Seed = 0,
    iterations: Iterations = None,
    world: World = "scenes",
    cache: Cache = CACHE,
    threads: Threads = None,
) -> None:
    """Train the judge, a classifier of all attributes, and test it on unseen scenes."""
    start(threads=threads)
    if one_of("world", world, WORLDS) == "moving-scenes":
        from research.scenes.moving.build import CLIP_JUDGE_ITERATIONS, build_frame_judge

        steps = CLIP_JUDGE_ITERATIONS if iterations is None else iterations
        measures = build_frame_judge(out, cache=cache, seed=seed, iterations=steps, log=_log)
        typer.echo(f"judge: {out / 'frame-judge.safetensors'}")
        typer.echo(
            f"unseen clips: frames with all attributes right {measures['attributes'].value:.4f}; motion right "
            f"{measures['motion'].value:.4f}; motion and speed right {measures['speed'].value:.4f}"
        )
        return
    from research.scenes.build import build_judge
    from research.scenes.kits import KITS

    scores = build_judge(out, cache=cache, kit=KITS[world], seed=seed, iterations=iterations, log=_log)
    typer.echo(f"judge: {out / 'judge.safetensors'}")
    typer.echo(
        f"unseen pictures with all attributes right: {scores.value:.4f} (95 % {scores.low:.4f} to {scores.high:.4f})"
    )
    typer.echo("by attribute: " + ", ".join(f"{name} {share:.4f}" for name, share in scores.parts.items()))


@app.command("references")
def references(
    out: Out = OUT,
    teacher: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the teacher's pipeline. By default: teacher in --out.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the judge's weights. By default: --out.")
    ] = None,
    world: World = "scenes",
    cache: Cache = CACHE,
    threads: Threads = None,
) -> None:
    """Compute the features of fresh renders and of teacher samples, with which students are compared."""
    start(threads=threads)
    if one_of("world", world, WORLDS) == "moving-scenes":
        from research.scenes.moving.build import build_clip_references
        from rmd.worlds.references import CLIP_FILE_NAME

        clips = build_clip_references(out, cache=cache, teacher=teacher, judge=judge, log=_log)
        typer.echo(f"references: {out / CLIP_FILE_NAME} ({len(clips['render_changes'])} renders and teacher samples)")
        return
    from research.scenes.build import build_references
    from research.scenes.kits import KITS

    pictures = build_references(out, cache=cache, kit=KITS[world], teacher=teacher, judge=judge, log=_log)
    count = len(pictures["renders"])
    typer.echo(
        f"references: {out / 'references.safetensors'} ({count} renders, {len(pictures['teacher'])} teacher samples)"
    )


@app.command("gates")
def gates(
    teacher: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the teacher's pipeline.")],
    judge: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the judge's weights.")],
    world: World = "scenes",
    samples: Annotated[int, typer.Option(min=16, help="Number of captions.")] = 256,
    steps: Annotated[int, typer.Option(min=5, help="Sampling steps of the teacher.")] = 25,
    guidance: Annotated[float, typer.Option(min=1.0, help="Guidance scale of the teacher.")] = 3.0,
    crossing: Annotated[
        float, typer.Option(min=1.0, max=989.0, help="Teacher time at which cascades leave the low resolution.")
    ] = 500.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of captions, pictures and samples.")] = 41,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="A JSON file for the result.")] = None,
    threads: Threads = None,
) -> None:
    """Measure whether a world and its teacher are fit for the paper's question, and print a table of the conditions."""
    start(threads=threads)
    from research.scenes.build import teacher_folder_at
    from research.scenes.gates import GateReport, gates_markdown, measure_gates, open_bench
    from research.scenes.kits import KITS

    kit = KITS[one_of("world", world, tuple(KITS))]
    bench = open_bench(
        kit, teacher_folder_at(teacher), judge, samples=samples, steps=steps, guidance=guidance, seed=seed
    )
    result = GateReport(
        world=world, samples=samples, steps=steps, guidance=guidance, crossing=crossing, seed=seed,
        gates=tuple(measure_gates(bench, crossing=crossing, log=_log)),
    )  # fmt: skip
    if report is not None:
        with disk_errors(report):
            write_text(report, result.model_dump_json(indent=1) + "\n")
    typer.echo(gates_markdown(result.gates), nl=False)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
