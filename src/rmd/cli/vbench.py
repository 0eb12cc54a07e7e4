"""`rmd eval vbench`: plan VBench's videos, check them, run VBench in its own environment, and print its totals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.benchmarks import (
    FirstSeed,
    OtherPrompts,
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

vbench = typer.Typer(
    help="Measure clips by VBench: plan, check, run, report.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Dimensions = Annotated[
    str, typer.Option(metavar="NAMES", help="VBench's dimensions, separated by commas. By default: all of them.")
]


@vbench.command("plan")
def plan(
    info: Annotated[Path, typer.Argument(metavar="INFO", help="Your copy of VBench's VBench_full_info.json.")],
    out: PlanOut,
    prompts: OtherPrompts = None,
    seed: FirstSeed = 0,
    dimensions: Dimensions = "",
) -> None:
    """Plan VBench's videos, from its own list of prompts: 5 of each, and 25 for temporal flickering."""
    from rmd.scores.vbench_plan import PROMPTS, plan_vbench

    planned = plan_vbench(info, prompts=prompts, seed=seed, dimensions=parts(dimensions))
    save_plan(planned, out)
    if planned.prompts.count != PROMPTS:
        typer.echo(f"note: VBench's list has {PROMPTS} prompts, and {info} has {planned.prompts.count}", err=True)


@vbench.command("check")
def check(plan: PlanFile, videos: VideosPlace) -> None:
    """Compare a folder of videos with a plan: what is missing, of another prompt or seed, or superfluous."""
    check_folder(plan, videos)


@vbench.command("run")
def run(
    plan: PlanFile,
    info: Annotated[
        Path, typer.Option(metavar="FILE", help="VBench's VBench_full_info.json, from which the plan was made.")
    ],
    python: Annotated[
        Path, typer.Option(metavar="PATH", help="The interpreter of VBench's environment (integrations/vbench).")
    ],
    videos: VideosDir,
    out: ResultsDir,
    dimensions: Dimensions = "",
    timeout: Timeout = None,
) -> None:
    """Run VBench, one process for each dimension; a dimension that has a result is not measured again."""
    from rmd.cli.progress import progress_bar
    from rmd.sample.plans import read_plan
    from rmd.scores.upstream import Calls
    from rmd.scores.vbench_plan import EACH
    from rmd.scores.vbench_run import STATIC, run_vbench, static_counts

    planned = read_plan(plan)
    with progress_bar() as report_progress:
        results = run_vbench(
            plan, planned, info, videos, python, Calls(out, timeout), dimensions=parts(dimensions),
            progress=report_progress,
        )  # fmt: skip
    if (out / STATIC).is_file():
        counts = static_counts(out / STATIC, planned)
        few = sum(count < EACH for count in counts.values())
        if few:
            typer.echo(
                f"note: {few} of {len(counts)} prompts of temporal flickering have fewer than {EACH} videos that stand "
                "still, which VBench leaves out",
                err=True,
            )
    typer.echo(
        f"{len(results)} dimensions in {out}; print the totals with: rmd eval vbench report {out}/*_eval_results.json"
    )


@vbench.command("report")
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="The *_eval_results.json files that VBench wrote.")
    ],
    out: TotalsOut = None,
) -> None:
    """Print VBench's totals from what VBench wrote; a missing dimension is an error, and not 0."""
    from rmd.cli.console import table_console
    from rmd.scores.text import vbench_text
    from rmd.scores.vbench import read_scores, totals

    scores = read_scores(files)
    result = totals(scores)
    write_totals(out, result.model_dump_json(indent=1))
    table_console(110).print(vbench_text(scores, result))
