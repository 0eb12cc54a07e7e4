"""`rmd cache`: encode prompts once, for runs without text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rmd.cli.options import Column, Device, Settings, Variant
from rmd.cli.start import start
from rmd.common.errors import RMDError, check_text
from rmd.common.workers import worker_of

if TYPE_CHECKING:
    import torch

    from rmd.data.captions import Keys
    from rmd.recipes.schema import DataConfig

PromptSource = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPTS",
        help="A file or pattern of files, hf:OWNER/NAME, scenes, vistas, or an installed prompt source. By default, "
        "the recipe's.",
    ),
]
TeacherName = Annotated[
    str | None,
    typer.Option(metavar="ID", help="The teacher, a diffusers pipeline: a folder, or a repository on the Hub."),
]
FromRecipe = Annotated[
    str | None,
    typer.Option(metavar="RECIPE", help="Take the teacher, prompts, filters and precision from this recipe."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or a cache to continue.")]
Half = Annotated[bool, typer.Option("--half", help="Encode in bfloat16. With --recipe, train.dtype decides.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="The number of prompts in one batch.")]
ShardSize = Annotated[int, typer.Option(metavar="N", min=1, help="The number of prompts in one file of the cache.")]
Worker = Annotated[
    str,
    typer.Option(metavar="I/N", help="Encode one of N shares of the prompts, counted from 0; run N such processes."),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Encode nothing, but compare the files in --out with their checksums.")
]


class _Plan(NamedTuple):
    """The prompts to encode, and the teacher that encodes them."""

    data: DataConfig
    seed: int
    teacher: str
    variant: str | None
    dtype: torch.dtype
    keys: Keys


def cache(
    prompts: PromptSource = None,
    teacher: TeacherName = None,
    recipe: FromRecipe = None,
    overrides: Settings = None,
    column: Column = None,
    out: Out = Path("runs/cache"),
    half: Half = False,
    batch_size: BatchSize = 32,
    shard: ShardSize = 1024,
    worker: Worker = "0/1",
    verify: Verify = False,
    device: Device = None,
    variant: Variant = None,
) -> None:
    """Encode prompts with a teacher's text encoders, into a folder that a recipe then names as data.cache."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.data.cache import build_cache, verify_cache

    if verify:
        typer.echo(f"{out}: {verify_cache(out)} shards match their checksums")
        return
    where = start(device)
    from rmd.cli.progress import progress_bar
    from rmd.data.prompts import load_prompts
    from rmd.models import load_backbone
    from rmd.models.teacher import teacher_source

    plan = _plan(prompts, teacher, recipe, overrides or [], column, variant, half=half)
    share = worker_of(worker)
    texts = load_prompts(plan.data, seed=plan.seed, keys=plan.keys).texts
    backbone = load_backbone(teacher_source(plan.teacher), dtype=plan.dtype, variant=plan.variant)
    backbone.pipe.to(where)
    with progress_bar() as report:
        complete = build_cache(
            backbone, texts, out, shard_prompts=shard, batch_size=batch_size, worker=share,
            progress=lambda done, total: report("prompts", done, total),
        )  # fmt: skip
    rest = f"; use it with data.cache={out}" if complete else "; other workers have not finished yet"
    typer.echo(f"{len(texts)} prompts in {out}{rest}")


def _plan(
    prompts: str | None, teacher: str | None, recipe: str | None, overrides: list[str], column: str | None,
    variant: str | None, *, half: bool,
) -> _Plan:  # fmt: skip
    """Combine the options with those of the recipe, if one is given."""
    import torch

    from rmd.data.captions import RECIPE_KEYS, Keys
    from rmd.models.teacher import DTYPES
    from rmd.recipes.schema import DataConfig, load_recipe

    for option, text in (("PROMPTS", prompts or ""), ("--column", column or "")):
        check_text(option, text)
    if recipe is not None:
        if half:
            raise RMDError("--half goes with --teacher alone: a recipe sets its precision with train.dtype")
        loaded = load_recipe(recipe, overrides)
        changes = {name: value for name, value in (("prompts", prompts), ("column", column)) if value is not None}
        return _Plan(
            loaded.data.model_copy(update=changes), loaded.train.seed, loaded.teacher if teacher is None else teacher,
            loaded.variant if variant is None else variant, DTYPES[loaded.train.dtype], RECIPE_KEYS,
        )  # fmt: skip
    if not prompts or teacher is None:
        raise RMDError("give PROMPTS and --teacher ID, or --recipe RECIPE")
    if overrides:
        raise RMDError("--set changes a recipe: give --recipe, too")
    dtype = torch.bfloat16 if half else torch.float32
    keys = Keys(column="--column", skip=None)
    return _Plan(DataConfig(prompts=prompts, column=column), 0, teacher, variant, dtype, keys)
