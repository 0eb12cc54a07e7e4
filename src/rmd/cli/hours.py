"""`rmd bench hours`: compute how long runs take on other cards, from measured iterations."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Json
from rmd.cli.start import resolved_recipe

if TYPE_CHECKING:
    from rmd.bench.hours import Hours

Names = Annotated[
    list[str], typer.Argument(metavar="RECIPE...", help="Names of packaged recipes, or paths of YAML files.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")]


def hours(recipes: Names, markdown: Markdown = False, as_json: Json = False) -> None:
    """Compute how many hours runs take on one card; this counts FLOPs, and measures nothing."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.bench.cards import CARDS
    from rmd.bench.hours import run_hours
    from rmd.bench.measured import measured

    loaded = [resolved_recipe(name) for name in recipes]
    names = [card.name for card in CARDS]
    times = {recipe.name: dict(zip(names, run_hours(recipe, CARDS), strict=True)) for recipe in loaded}
    if as_json:
        values = {name: {card: asdict(each) for card, each in row.items()} for name, row in times.items()}
        typer.echo(json.dumps(values, indent=1))
        return
    rows = [
        [recipe.name, f"{recipe.train.iterations} x {recipe.train.batch_size}"]
        + [hours_text(times[recipe.name][name]) for name in names]
        for recipe in loaded
    ]
    headings = ["recipe", "iterations x batch", *names]
    if markdown:
        for row in (headings, ["---"] * len(headings), *rows):
            typer.echo(f"| {' | '.join(row)} |")
        return
    from rmd.cli.console import ruled_table, table_console

    justify = {heading: "left" if index == 0 else "right" for index, heading in enumerate(headings)}
    table = ruled_table("Hours on one card, computed and not measured", justify)
    for row in rows:
        table.add_row(*row)
    console = table_console()
    console.print(table)
    console.print(
        f"Computed from the FLOPs of the runs and from iterations that were measured on an {measured().gpu}; other "
        "cards are scaled by the makers' figures. Whether a run fits a card is another question: see rmd recipes.",
    )


def hours_text(hours: Hours) -> str:
    """Return hours with two significant digits, as a range if the two ends differ."""
    ends = list(dict.fromkeys(f"{float(f'{value:.2g}'):,g}" for value in (hours.least, hours.most)))
    return " to ".join(ends)
