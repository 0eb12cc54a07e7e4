"""`rmd scenes`: render the captioned scenes that the packaged teachers were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

scenes = typer.Typer(
    help="Render scenes like those that the packaged teachers were trained on.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Moving = Annotated[bool, typer.Option("--moving", help="Render moving scenes instead of still ones.")]


@scenes.command("render")
def render(
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of scenes.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the scenes.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")] = Path("runs/scenes-render"),
    size: Annotated[int, typer.Option(min=8, max=1024, help="Side of the pictures in pixels.")] = 64,
    text: Annotated[str | None, typer.Option(metavar="CAPTION", help="Render only scenes of this caption.")] = None,
    moving: Moving = False,
) -> None:
    """Render captioned scenes to PNG files, or moving ones to WebP, with their captions and a contact sheet."""
    from rmd.worlds.registry import world_of_kind

    world = world_of_kind(moving=moving)
    sheet = world.draw(count, seed=seed, text=text, folder=out, size=size)
    typer.echo(f"{count} {world.noun}: {out} (captions.jsonl); all at a glance: {sheet}")
