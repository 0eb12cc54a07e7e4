"""The `rmd` command: its verbs, and how an error becomes one sentence and an exit status.

A verb is a function in a module of its own, which is registered below. Such a module imports torch, and whatever
imports torch, inside its functions only, so that `rmd --help` and a mistyped option are answered at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

INTERRUPTED = 130  # the status that shells report for a program that Ctrl-C ended

try:
    import typer

    from rmd.cli.bench import bench
    from rmd.cli.cache import cache
    from rmd.cli.calibrate import calibrate
    from rmd.cli.compare import compare
    from rmd.cli.compbench import compbench
    from rmd.cli.demo import demo
    from rmd.cli.ending import BROKEN_PIPE, FAILED, check_folder, complete_output, prepare_streams, say
    from rmd.cli.evals import evals
    from rmd.cli.export import export
    from rmd.cli.generate import generate
    from rmd.cli.help import DISTIL, JUDGE, RESEARCH, START, USE, Verbs, tidy
    from rmd.cli.hours import hours
    from rmd.cli.init import init
    from rmd.cli.paper import table
    from rmd.cli.plan import plan
    from rmd.cli.probe import probe
    from rmd.cli.recipes import recipes
    from rmd.cli.scenes import scenes
    from rmd.cli.serve import serve
    from rmd.cli.study import study
    from rmd.cli.train import train
    from rmd.cli.ui import ui
    from rmd.cli.vbench import vbench
    from rmd.cli.videos import videos
    from rmd.common.errors import RMDError
    from rmd.common.version import __version__
    from rmd.common.workers import WorkerError, is_first
except KeyboardInterrupt:  # `main`, which handles interruptions otherwise, does not exist yet
    sys.exit(INTERRUPTED)

app = typer.Typer(
    name="rmd",
    cls=Verbs,
    help="Distil a diffusion model into a few-step student whose first steps run at low resolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench.command("hours")(hours)
evals.command("calibrate")(calibrate)
evals.command("table")(table)
evals.command("videos")(videos)
evals.add_typer(vbench, name="vbench")
evals.add_typer(compbench, name="compbench")
app.command("demo", rich_help_panel=START)(demo)
app.command("recipes", rich_help_panel=START)(recipes)
app.command("init", rich_help_panel=START)(init)
app.command("probe", rich_help_panel=DISTIL)(probe)
app.command("plan", rich_help_panel=DISTIL)(plan)
app.command("cache", rich_help_panel=DISTIL)(cache)
app.command("train", rich_help_panel=DISTIL)(train)
app.command("generate", rich_help_panel=USE)(generate)
app.command("ui", rich_help_panel=USE)(ui)
app.command("serve", rich_help_panel=USE)(serve)
app.command("export", rich_help_panel=USE)(export)
app.add_typer(evals, name="eval", rich_help_panel=JUDGE)
app.add_typer(study, name="study", rich_help_panel=JUDGE)
app.add_typer(bench, name="bench", rich_help_panel=JUDGE)
app.command("compare", rich_help_panel=RESEARCH)(compare)
app.add_typer(scenes, name="scenes", rich_help_panel=RESEARCH)


@dataclass
class Options:
    """Options of the command as a whole; `main` needs them when a verb has failed."""

    debug: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rmd {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the whole traceback of an error.")] = False,
) -> None:
    """Options of the command itself; its help is that of the app."""
    context.ensure_object(Options).debug = debug
    check_folder()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    An error is printed on standard error: as one sentence, or with `--debug` as a traceback.

    Args:
        arguments: the arguments of the command; None: those of the process.

    Returns:
        0 for success, 1 for an error, 2 for a wrong option or verb, 130 for an interruption, and 141 if the reader of
        the output has closed it.
    """
    prepare_streams()
    options = Options()
    try:
        with complete_output():
            command = typer.main.get_command(app)
            tidy(command)
            command(args=arguments, prog_name="rmd", obj=options)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:
        if isinstance(error, RMDError) and not isinstance(error, WorkerError) and not is_first():
            return FAILED  # all processes have this error, and the first one on a machine prints it
        if options.debug:
            traceback.print_exc()
        else:
            say(error)
        return FAILED
    return 0
