"""`rmd scenes`: render the captioned pictures and clips that the packaged teachers were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

scenes = typer.Typer(
    help="Render scenes like those that the packaged teachers were trained on.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

World = Annotated[
    str, typer.Option(metavar="NAME", help="What to render: scenes, vistas, moving-scenes, or an installed world.")
]


@scenes.command("render")
def render(
    count: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Number of scenes.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Seed of the scenes.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")] = Path("runs/scenes-render"),
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=8, max=1024, help="Side of the pictures in pixels. By default, it is that of the teachers."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="CAPTION", help="Render only scenes of this caption.")] = None,
    world: World = "scenes",
) -> None:
    """Render captioned pictures to PNG files, or clips to WebP, with their captions and a contact sheet."""
    from rmd.worlds.registry import WORLDS

    chosen = WORLDS.get(world)
    sheet = chosen.draw(count, seed=seed, text=text, folder=out, size=chosen.side if size is None else size)
    typer.echo(f"{count} {chosen.noun}: {out} (captions.jsonl); all at a glance: {sheet}")
