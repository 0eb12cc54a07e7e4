"""`rmd init`: write a recipe for a teacher that fits a card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rmd.common.errors import RMDError

if TYPE_CHECKING:
    from rmd.bench.choice import Choice
    from rmd.bench.first import FirstRecipe

Pipeline = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE",
        help="The teacher: the folder of a diffusers pipeline, its name on the Hub, or a packaged teacher.",
    ),
]
Gpu = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        min=1,
        max=4096,
        help="The memory of the card in GB, as in --gpu 24. By default, the GPU is asked.",
    ),
]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The recipe to write.")]
PromptSource = Annotated[
    str | None, typer.Option(metavar="FILE", help="The prompts to train with, as in data.prompts of a recipe.")
]
Mode = Annotated[
    Literal["lora", "full"] | None,
    typer.Option(help="Train adapters or all weights. By default, it is what the family's recipe does, if it fits."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=65536, help="The prompts of an iteration. By default, as the family's recipe."
    ),
]
StageSides = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="The sizes of the stages, as in --sides=512,1024. By default, the teacher's and half of it."
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="N",
        min=0,
        help="The teacher's guidance scale. By default, the paper's for its teachers, and else the pipeline's own.",
    ),
]


Replace = Annotated[bool, typer.Option("--replace", help="Write the recipe even if the file exists.")]


def init(
    pipeline: Pipeline,
    gpu: Gpu = None,
    out: Out = Path("recipe.yaml"),
    prompts: PromptSource = None,
    mode: Mode = None,
    batch: BatchSize = None,
    sides: StageSides = None,
    guidance: GuidanceScale = None,
    replace: Replace = False,
) -> None:
    """Write a recipe for a teacher that fits a card; only configurations are read, and no weights."""
    if out.exists() and not replace:
        raise RMDError(f"{out} exists: choose another --out, or add --replace")
    if out.suffix not in (".yaml", ".yml"):
        raise RMDError(f"{out} should end in .yaml, as recipes do: choose another --out")
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.bench.first import Wishes, first_recipe, write_recipe

    wishes = Wishes(prompts=prompts, mode=mode, batch=batch, sides=sides, guidance=guidance)
    first = first_recipe(pipeline, wishes)
    card, room = ("a CPU or any GPU", None) if first.small else _card(gpu)
    choice = first.fitted(room, typer.echo)
    write_recipe(out, first, choice, card, room)
    _report(out, first, choice, card, room)


def _card(gpu: float | None) -> tuple[str, float | None]:
    """Return the card that was named or found, and its usable bytes."""
    from rmd.bench.cards import usable_bytes

    if gpu is not None:
        return f"a card with {gpu:g} GB", usable_bytes(gpu)
    import torch

    if not torch.cuda.is_available():
        raise RMDError("torch finds no GPU here: say how much memory the card will have, as in --gpu 24")
    found = torch.cuda.get_device_properties(0)
    return f"{found.name} with {found.total_memory / 1e9:.1f} GB", float(found.total_memory)


def _report(out: Path, first: FirstRecipe, choice: Choice, card: str, room: float | None) -> None:
    """Print what was chosen and why, the memory by part, and the commands that come next."""
    from rmd.bench.first import reasons
    from rmd.cli.console import ruled_table, table_console
    from rmd.cli.memory import at_once, memory_lines

    console = table_console()
    table = ruled_table(f"{out}: {first.name} on {card}", {"setting": "left", "value": "left", "why": "left"})
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in reasons(first, choice, room):
        table.add_row(*row)
    console.print(table)
    if room is not None:
        usable = f"{room / 1e9:.1f} GB of the card are usable"
        console.print(f"Memory, with {at_once(choice.needed.samples)} ({usable}):", soft_wrap=True)
        for line in memory_lines(choice.needed):
            console.print(line, soft_wrap=True)
    console.print("Next:", soft_wrap=True)
    for words in next_commands(out, choice):
        console.print(f"  {words}", soft_wrap=True)


def next_commands(out: Path, choice: Choice) -> list[str]:
    """Return the commands that come after the recipe: encode the prompts if need be, rehearse the run, and train."""
    recipe, run = str(out), f"runs/{out.stem}"
    cache = f"runs/{out.stem}-cache"
    lines = [["rmd", "plan", recipe, "--memory"]]
    more: list[str] = []
    if choice.encoders == "cache":
        lines.append(["rmd", "cache", "--recipe", recipe, "--out", cache])
        more = ["--set", f"data.cache={cache}"]
    lines.append(["rmd", "train", recipe, *more, "--dry-run"])
    lines.append(["rmd", "train", recipe, *more, "--out", run])
    return [shlex.join(words) for words in lines]
