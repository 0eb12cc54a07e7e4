"""`rmd scenes`: render captioned scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

scenes = typer.Typer(
    help="Render the scenes that the packaged teachers draw.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Moving = Annotated[bool, typer.Option("--moving", help="Of the moving scenes, not of the still ones.")]


@scenes.command("render")
def render(
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of scenes.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the scenes.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")] = Path("runs/scenes-render"),
    size: Annotated[int, typer.Option(min=8, max=1024, help="Side of the pictures in pixels.")] = 64,
    text: Annotated[str | None, typer.Option(metavar="CAPTION", help="Only scenes of this caption.")] = None,
    moving: Moving = False,
) -> None:
    """Render captioned scenes to PNG files, or moving ones to WebP, with their captions and a contact sheet."""
    if moving:
        from rmd.worlds.moving.pictures import SHEET, draw_clips, write_clips

        folder = write_clips(draw_clips(count, seed=seed, text=text), out, size=size)
        typer.echo(f"{count} clips: {folder} (captions.jsonl); all at a glance: {folder / SHEET}")
        return
    from rmd.worlds.still.pictures import SHEET_NAME, draw_scenes, write_scenes

    folder = write_scenes(draw_scenes(count, seed=seed, text=text), out, size=size)
    typer.echo(f"{count} scenes: {folder} (captions.jsonl); all at a glance: {folder / SHEET_NAME}")
