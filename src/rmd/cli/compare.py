"""`rmd compare`: the paper's tables in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.options import Threads
from rmd.cli.start import start
from rmd.common.errors import one_of

ALL = "all"

Name = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help="The table: main, components, thresholds, stages, reinjection, mapping, warmup, roles, remedies, "
        "screening, prescreening, shipped, confirm, matching, matching-16, vistas, vistas-three, vistas-components, "
        "vistas-thresholds, vistas-stages, vistas-reinjection, moving, or all.",
    ),
]
BudgetName = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="default: three seeds, which takes a day on two cores; or small: one seed, as a test."
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="DIR", help="The folder for the results. Existing ones are not computed again.")
]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="Compute only this backbone: sdxl, pixart, sd3, vistas or wan; can be given several times.",
    ),
]


def compare(
    name: Name,
    budget: BudgetName = "default",
    out: Out = Path("runs/compare"),
    backbones: Backbones = None,
    threads: Threads = None,
) -> None:
    """Train and evaluate the rows of a table under one budget; run the command again to continue."""
    start(threads=threads)
    from rmd.cli.console import table_console
    from rmd.cli.progress import progress_bar
    from rmd.compare.cells import BUDGETS, Bench, Stopped
    from rmd.compare.run import read_results, run_table
    from rmd.compare.settings import BACKBONES
    from rmd.compare.tables import TABLES
    from rmd.compare.write import as_text, write_tables

    one_of("table", name, (*TABLES, ALL))
    one_of("budget", budget, tuple(BUDGETS))
    for backbone in backbones or ():
        one_of("backbone", backbone, tuple(BACKBONES))
    read_results(out)  # an error in the folder is reported before anything is computed
    chosen = list(TABLES.values()) if name == ALL else [TABLES[name]]
    results = []
    with progress_bar() as report:
        bench = Bench(out, report)
        for table in chosen:
            wanted = [family for family in table.backbones if not backbones or family in backbones]
            try:
                results.append(run_table(table, BUDGETS[budget], bench, backbones=wanted, folder=out))
                page = write_tables(results[-1:], out)
            except Stopped:
                typer.echo(f"stopped; finished results are in {out}, run the same command to continue")
                return
    console = table_console(150)
    for result in results:
        for family in result.backbones:
            console.print(as_text(result, family))
    console.print(f"tables: {out}/*.json, .csv, .tex   page: {page}")
