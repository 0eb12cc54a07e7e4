"""`rmd cache`: encode prompts once, for runs without text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.options import Device, Variant
from rmd.common.errors import RMDError, shown


def cache(
    prompts: Annotated[
        str | None, typer.Argument(metavar="[PROMPTS]", help="A file or pattern, hf:OWNER/NAME, scenes, or a recipe's.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="ID", help="A pipeline: a folder, or its name on the Hub.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Take teacher, prompts, filters and precision from a recipe.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of PROMPTS that holds the prompts. By default: prompt, caption or text."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or a cache to go on with.")] = Path(
        "runs/cache"
    ),
    half: Annotated[bool, typer.Option("--half", help="Encode in bfloat16 (without a recipe).")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts encoded at once.")] = 32,
    shard: Annotated[int, typer.Option(min=1, help="Prompts in a file.")] = 1024,
    worker: Annotated[str, typer.Option(metavar="I/N", help="Which of how many processes this one is.")] = "0/1",
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare the files of --out with their checksums.")
    ] = False,
    device: Device = None,
    variant: Variant = None,
) -> None:
    """Encode prompts with a teacher's text encoders into a folder that `data.cache` of a recipe names."""
    from rmd.data.cache import build_cache, verify_cache

    if verify:
        typer.echo(f"{out}: {verify_cache(out)} shards are as they were written")
        return
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    import torch

    from rmd.cli.device import find_device, prepare_cpu
    from rmd.cli.progress import progress_bar
    from rmd.data.captions import Keys
    from rmd.data.prompts import load_prompts
    from rmd.models import load_backbone
    from rmd.models.teacher import DTYPES, teacher_source
    from rmd.recipes.schema import DataConfig, load_recipe

    keys = Keys()
    if recipe is not None:
        if half:
            raise RMDError("--half goes with --teacher alone: a recipe says its precision with train.dtype")
        loaded = load_recipe(recipe, overrides or ())
        data, seed, dtype = loaded.data, loaded.train.seed, DTYPES[loaded.train.dtype]
        data = data.model_copy(
            update={name: value for name, value in (("prompts", prompts), ("column", column)) if value is not None}
        )
        source = loaded.teacher if teacher is None else teacher
        variant = loaded.variant if variant is None else variant
    elif prompts and teacher is not None:
        if overrides:
            raise RMDError("--set changes a recipe: give --recipe, too")
        data, seed, source = DataConfig(prompts=prompts, column=column), 0, teacher
        dtype = torch.bfloat16 if half else torch.float32
        keys = Keys(column="--column", skip=None)
    else:
        raise RMDError("give PROMPTS and --teacher ID, or --recipe RECIPE")
    which = _worker(worker)
    prepare_cpu()
    texts = load_prompts(data, seed=seed, keys=keys).texts
    backbone = load_backbone(teacher_source(source), dtype=dtype, variant=variant)
    backbone.pipe.to(find_device(device))
    with progress_bar() as report:
        complete = build_cache(
            backbone, texts, out, shard_prompts=shard, batch_size=batch_size, worker=which,
            progress=lambda done, total: report("prompts", done, total),
        )  # fmt: skip
    rest = f"; use it with data.cache={out}" if complete else "; other workers have not finished yet"
    typer.echo(f"{len(texts)} prompts in {out}{rest}")


def _worker(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise RMDError(f"--worker should be I/N with I from 0 to N - 1, but is {shown(text)}")
