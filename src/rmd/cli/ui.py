"""`rmd ui`: a page in the browser to try students, to compare them blind, to watch a run, and to open tables."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import AnyDevice, Half, Variant
from rmd.common.errors import RMDError

if TYPE_CHECKING:
    from rmd.ui.contents import Contents

DEMO = Path("runs/demo")
"""The folder whose student and run the page shows if nothing is given."""
GRACE = 2
"""Seconds for which requests under way may go on after Ctrl-C; an open page never ends its own."""


Students = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STUDENT",
        help="Students to try and to compare, given as folders or as repositories on the Hub. If nothing is given at "
        "all, the page shows the student and the run of rmd demo.",
    ),
]
TeacherPlace = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The teacher of the students. By default, the one that the first names."),
]
RunFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The folder of a run to watch, while it goes on or afterwards.")
]
Pages = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help="A folder of rmd compare, or an .html file such as those of rmd eval table, to open. Can be given more "
        "than once.",
    ),
]
Answers = Annotated[
    Path, typer.Option(metavar="DIR", help="The folder for the samples and votes of blind comparisons.")
]
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="The address to listen at. All but this machine's own need a password, which is taken from the "
        "environment variable RMD_UI_PASSWORD.",
    ),
]


def ui(
    student: Students = None,
    teacher: TeacherPlace = None,
    run: RunFolder = None,
    compare: Pages = None,
    answers: Answers = Path("runs/ui"),
    device: AnyDevice = None,
    half: Half = False,
    variant: Variant = None,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 is any free one.")] = 7860,
    host: Host = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Leave opening the page to you.")] = False,
) -> None:
    """Serve a page to try students, compare them blind, watch a run and open tables, until you press Ctrl-C."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    contents = _contents(student or [], teacher, run, compare or [], answers, device, half, variant)
    try:
        from rmd.common.web import address, bind
        from rmd.common.web import run as serve
        from rmd.ui.guard import PASSWORD, check_host, is_loopback

        password = os.environ.get(PASSWORD, "")
        check_host(host, password)
        with bind(host, port) as listener:
            from rmd.ui.serving import make_app

            app = make_app(contents, password=password, local=is_loopback(host))
            url = address(host, listener)
            typer.echo(f"page: {url}   (Ctrl-C ends it)")
            if not no_browser and is_loopback(host) and _has_screen():
                webbrowser.open(url)
            serve(app, listener, grace=GRACE)
    except ImportError as error:
        raise RMDError("the page needs more packages: pip install 'rmd[ui]'") from error
    typer.echo("stopped")


def _contents(
    students: list[str], teacher: str | None, run: Path | None, compare: list[str], answers: Path, device: str | None,
    half: bool, variant: str | None,
) -> Contents:  # fmt: skip
    """Check everything that was given, and return the contents of the page; no weights are loaded yet."""
    from rmd.cli.start import start

    where = start(device, kinds=("cpu", "cuda", "mps"))
    import torch

    from rmd.ui.comparing import Comparisons
    from rmd.ui.contents import Contents
    from rmd.ui.models import Models
    from rmd.ui.pages import find_pages
    from rmd.ui.watching import RunWatch

    if not students and run is None and not compare:
        if not (DEMO / "student").is_dir():
            raise RMDError(
                "there is nothing to show: give a student, --run DIR or --compare DIR; or make a student with rmd demo"
            )
        students, run = [str(DEMO / "student")], DEMO / "run"
    if teacher is not None and not students:
        raise RMDError("--teacher is for students: give one, or leave it out")
    models = Models(
        students, teacher=teacher, device=where, dtype=torch.bfloat16 if half else torch.float32, variant=variant
    )
    watch = None if run is None else RunWatch(run)
    return Contents(models, Comparisons(answers), watch, find_pages(compare))


def _has_screen() -> bool:
    """Return whether a browser has a screen to appear on; without one, some systems would start one in the terminal."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
