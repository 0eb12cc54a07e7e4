"""`rmd recipes`: the packaged recipes, what each is for, and the card that it fits."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from rmd.cli.options import Json


def recipes(as_json: Json = False) -> None:
    """List the packaged recipes: what each is for, and the card that it fits."""
    from rmd.recipes.catalog import catalog

    entries = catalog()
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    from rmd.cli.console import ruled_table, table_console

    table = ruled_table("The packaged recipes", {"recipe": "left", "card": "right", "purpose": "left"})
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for entry in entries:
        table.add_row(entry.name, entry.card, entry.purpose)
    console = table_console()
    console.print(table)
    console.print(
        "card: the smallest on which a run fits, by the estimate of rmd plan RECIPE --memory. Most need further "
        "settings for it, such as train.gradient_accumulation_steps, which --json lists and the recipe's file states.",
    )
