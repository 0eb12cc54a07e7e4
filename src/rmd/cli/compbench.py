"""`rmd eval compbench`: plan T2V-CompBench's videos, check them, run its scripts, and print the means."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.benchmarks import (
    FirstSeed,
    PlanFile,
    PlanOut,
    ResultsDir,
    Timeout,
    TotalsOut,
    VideosDir,
    VideosPlace,
    check_folder,
    save_plan,
    write_totals,
)
from rmd.cli.options import parts
from rmd.common.errors import RMDError, one_of

compbench = typer.Typer(
    help="Measure clips by T2V-CompBench: plan, check, run, report.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Categories = Annotated[
    str, typer.Option(metavar="NAMES", help="Its categories, separated by commas. By default: all of them.")
]


@compbench.command("plan")
def plan(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="The folder `prompts` of T2V-CompBench's repository.")
    ],
    out: PlanOut,
    seed: FirstSeed = 0,
    categories: Categories = "",
) -> None:
    """Plan T2V-CompBench's videos, one of each prompt: 700 of its first version, 1,400 of its second."""
    from rmd.scores.compbench import plan_compbench

    save_plan(plan_compbench(prompts, seed=seed, categories=parts(categories)), out)


@compbench.command("check")
def check(plan: PlanFile, videos: VideosPlace) -> None:
    """Compare a folder of videos with a plan: what is missing, of another prompt or seed, or superfluous."""
    check_folder(plan, videos)


@compbench.command("run")
def run(
    plan: PlanFile,
    checkout: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder of the tools with the benchmark's scripts, and of meta_data."),
    ],
    python: Annotated[
        list[str],
        typer.Option(
            metavar="[TOOL=]PATH",
            help="An interpreter, of LLaVA, Grounded-Segment-Anything, Depth-Anything or dot, or else of all others. "
            "Give it for every environment.",
        ),
    ],
    videos: VideosDir,
    out: ResultsDir,
    categories: Categories = "",
    arguments: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT=TEXT", help="More arguments of a script, such as the place of its network."),
    ] = None,
    timeout: Timeout = None,
) -> None:
    """Run T2V-CompBench's scripts; a category that has results is not measured again."""
    from rmd.cli.progress import progress_bar
    from rmd.sample.plans import read_plan
    from rmd.scores.compbench_run import TOOLS, run_compbench
    from rmd.scores.upstream import Calls

    pythons = _by_name(python, "--python", default="")
    more = {name: _words(text) for name, text in _by_name(arguments or (), "--arguments").items()}
    for tool in filter(None, pythons):
        one_of("tool", tool, TOOLS)
    with progress_bar() as report_progress:
        results = run_compbench(
            plan, read_plan(plan), videos, checkout, {tool: Path(path) for tool, path in pythons.items()},
            Calls(out, timeout), more=more, categories=parts(categories), progress=report_progress,
        )  # fmt: skip
    typer.echo(f"{len(results)} files in {out}; print the means with: rmd eval compbench report {out}/*.csv")


@compbench.command("report")
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="The CSV files that T2V-CompBench wrote.")],
    out: TotalsOut = None,
) -> None:
    """Print the means of T2V-CompBench's categories from what it wrote; a missing category is an error."""
    from rmd.cli.console import table_console
    from rmd.scores.compbench import read_results, totals
    from rmd.scores.text import compbench_text

    result = totals(read_results(files))
    write_totals(out, result.model_dump_json(indent=1))
    table_console(110).print(compbench_text(result))


def _by_name(texts: Sequence[str], option: str, default: str | None = None) -> dict[str, str]:
    """Return the values of NAME=VALUE by name; a value without a name gets the default one."""
    values: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign and default is not None:
            name, value = default, text
        if not value or (not sign and default is None):
            raise RMDError(f"{option} {text}: write it as NAME=VALUE")
        if name in values:
            raise RMDError(f"{option} names {name or 'an interpreter for all others'} twice: leave out one of them")
        values[name] = value
    return values


def _words(text: str) -> list[str]:
    """Return the words of a text, as a shell divides it."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RMDError(
            f"--arguments {text}: its words cannot be told ({str(error).lower()}); close the quotation"
        ) from error
