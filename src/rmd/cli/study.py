"""`rmd study`: a blind preference study of pictures or clips, from the samples to the analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.common.errors import RMDError, one_of

if TYPE_CHECKING:
    from rmd.study.store import StoredVote

study = typer.Typer(
    help="Ask people which of several models' pictures or clips they prefer, without their knowing which is which.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(metavar="STUDY", help="The folder of a study that `rmd study build` wrote.")]
System = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=DIR",
        help="A model's name, and a folder of its samples or a pattern of files. Give it for every model. Samples of "
        "`rmd generate` are matched by prompt and seed, and all others by file name.",
    ),
]
Tasks = Annotated[
    int,
    typer.Option(metavar="N", min=1, max=1000, help="Pairs for each rater in each question, at most one per prompt."),
]
Repeats = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=100, help="Pairs in each question that come back with exchanged sides."),
]
Checks = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=12, help="Attention checks in each question: pairs of which one is spoilt."),
]
MostMissed = Annotated[
    float,
    typer.Option(metavar="N", min=0, max=1, help="Leave out raters who miss a larger share of their attention checks."),
]
MinSeconds = Annotated[
    float,
    typer.Option(metavar="N", min=0, max=60, help="Seconds for which a pair must be looked at before a vote counts."),
]
FORMATS = ("csv", "label-studio")


@study.command("build")
def build(
    system: System,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the study.")] = Path("runs/study"),
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The prompts of samples that do not name them, in the order of their names."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare this model with each other one, instead of all pairs.")
    ] = None,
    title: Annotated[str, typer.Option(metavar="TEXT", help="The title of the page.")] = "Which one do you prefer?",
    tasks: Tasks = 30,
    repeats: Repeats = 2,
    checks: Checks = 2,
    most_missed: MostMissed = 0.5,
    min_seconds: MinSeconds = 1.0,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Seed of orders, sides and file names.")
    ] = 0,
) -> None:
    """Write a study: files without names or metadata, the design, and the key that says what is what."""
    from rmd.cli.progress import progress_bar
    from rmd.study.build import build_study
    from rmd.study.statistics import votes_needed

    sources = [_named(text) for text in system]
    with progress_bar() as report_progress:
        design = build_study(
            sources, out, title=title, prompts=prompts, against=against, tasks=tasks, repeats=repeats, checks=checks,
            min_seconds=min_seconds, most_missed=most_missed, seed=seed,
            progress=lambda done, total: report_progress("copying", done, total),
        )  # fmt: skip
    needed = votes_needed(0.55) * len(design.pairs)
    typer.echo(
        f"study: {out}   {len(design.prompts)} prompts, {len(design.pairs)} pairs of models, "
        f"{len(design.questions)} questions, {design.tasks} pairs for each rater in each\n"
        f"raters: {-(-needed // design.tasks)} would show a preference of 55 % with a probability of 80 %, if votes "
        f"were independent and nobody were undecided\n"
        f"start it with: rmd study serve {out}   (keep {out / 'key.json'} from raters)"
    )


@study.command("serve")
def serve(
    folder: Folder,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen at; 0.0.0.0 is every one of this machine.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 is any free one.")] = 8000,
) -> None:
    """Serve the page of a study until you press Ctrl-C; votes are stored in the study's folder."""
    try:
        from rmd.common.web import address, bind, run
        from rmd.study.server import make_app
    except ImportError as error:
        raise RMDError("the server of a study needs more packages: pip install 'rmd[study]'") from error
    from rmd.study.folder import open_study
    from rmd.study.store import FILE_NAME, Store

    opened = open_study(folder)
    with bind(host, port) as listener:
        store = Store(folder / FILE_NAME, opened.hash)
        typer.echo(f"study: {address(host, listener)}   votes: {folder / FILE_NAME}")
        try:
            run(make_app(opened, store), listener)
        finally:
            store.close()
    typer.echo(f"stopped; see what it says with: rmd study analyse {folder}")


@study.command("analyse")
def analyse(
    folder: Folder,
    draws: Annotated[int, typer.Option(metavar="N", min=100, max=100_000, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Print what raters preferred, and write it to analysis.json and analysis.md in the study's folder."""
    from rmd.common.files import disk_errors, write_text
    from rmd.study.analysis import analyse as analysed
    from rmd.study.analysis import as_markdown
    from rmd.study.folder import open_study

    opened = open_study(folder)
    result = analysed(opened, opened.key(), _votes(folder, opened.hash), draws=draws, seed=seed)
    text = as_markdown(result)
    with disk_errors(folder):
        write_text(folder / "analysis.json", result.model_dump_json(indent=1) + "\n")
        write_text(folder / "analysis.md", text)
    typer.echo(text, nl=False)


@study.command("export")
def export(
    folder: Folder,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="csv, or label-studio for the pairs as its tasks.")] = "csv",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file. By default: votes.csv or tasks.json in STUDY.")
    ] = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="Where Label Studio finds the study's folder.")
    ] = "/data/local-files/?d=study",
) -> None:
    """Write the votes as CSV, or the pairs as tasks of Label Studio."""
    from rmd.common.files import disk_errors, write_text
    from rmd.study.export import label_studio, votes_csv
    from rmd.study.folder import open_study

    one_of("format", to, FORMATS)
    opened = open_study(folder)
    if to == "csv":
        path, text = out or folder / "votes.csv", votes_csv(opened, opened.key(), _votes(folder, opened.hash))
    else:
        path, text = out or folder / "tasks.json", label_studio(opened, url=url)
    with disk_errors(path):
        write_text(path, text)
    typer.echo(f"written: {path}")


def _named(text: str) -> tuple[str, str]:
    """Return the name and the place of NAME=DIR."""
    name, sign, place = text.partition("=")
    if not sign or not name.strip() or not place:
        raise RMDError(f"--system {text}: write it as NAME=DIR, such as teacher=out/teacher")
    return name.strip(), place


def _votes(folder: Path, design: str) -> list[StoredVote]:
    """Return all votes of a study."""
    from rmd.study.store import FILE_NAME, Store

    if not (folder / FILE_NAME).is_file():
        raise RMDError(f"{folder} has no votes yet: collect some with `rmd study serve {folder}`")
    store = Store(folder / FILE_NAME, design)
    try:
        return store.votes()
    finally:
        store.close()
