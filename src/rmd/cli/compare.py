"""`rmd compare`: the paper's tables in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.common.errors import one_of

ALL = "all"


def compare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="main, components, thresholds, stages, reinjection, mapping, warmup, roles, remedies; or all.",
        ),
    ],
    budget: Annotated[
        str, typer.Option(help="default: three seeds, a day on two cores; or small: one seed, to see that it runs.")
    ] = "default",
    out: Annotated[Path, typer.Option(help="Folder of results; what is there already is not computed again.")] = Path(
        "runs/compare"
    ),
    backbones: Annotated[
        list[str] | None, typer.Option("--backbone", help="Of table main, to compute: sdxl, pixart, sd3. Default: all.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPU threads. By default: torch's own choice.")
    ] = None,
) -> None:
    """Train and judge every row of a table under one budget; a comparison that was stopped goes on where it was."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.cli.console import table_console
    from rmd.cli.device import prepare_cpu
    from rmd.cli.progress import progress_bar
    from rmd.compare.cells import BUDGETS, Bench, Stopped
    from rmd.compare.run import read_results, run_table
    from rmd.compare.tables import BACKBONES, TABLES
    from rmd.compare.write import as_text, write_tables

    one_of("table", name, (*TABLES, ALL))
    one_of("budget", budget, tuple(BUDGETS))
    for backbone in backbones or ():
        one_of("backbone", backbone, tuple(BACKBONES))
    read_results(out)  # what cannot be shown beside the new tables is said before they are computed
    prepare_cpu(threads)
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
                typer.echo(f"stopped; what is done is kept in {out}, run the same command to go on")
                return
    console = table_console(150)
    for result in results:
        for family in result.backbones:
            console.print(as_text(result, family))
    console.print(f"tables: {out}/*.json, .csv, .tex   page: {page}")
