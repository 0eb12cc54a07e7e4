"""The parts of the page that show something, as HTML from the templates beside this file; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmd.common.files import read_errors
from rmd.report.curves import DARK, LIGHT, charts, draw
from rmd.report.html import HtmlTable, TableRow, cells, environment
from rmd.report.tables import duration, fixed, significant
from rmd.study.analysis import Analysis
from rmd.train.panels import PANEL_ROWS
from rmd.ui.comparing import results_tables
from rmd.ui.shelf import Shelf, is_small
from rmd.ui.trying import Tried
from rmd.ui.watching import Records, RunView

_TEMPLATES = environment(Path(__file__).parent / "templates")
STATES = {
    "starting": "The run is starting: it has not finished an iteration yet.",
    "running": "The run goes on.",
    "finished": "The run has finished.",
    "stopped": "The run has stopped before its last iteration, and can be continued with --resume.",
}
"""Sentences for the states of a run."""


@dataclass(frozen=True)
class Side:
    """One column of the results of a try.

    Attributes:
        title: name of the model.
        seconds, network, evaluations: as in `Tried`.
        views: for every view, its text and the addresses of its pictures.
        small: whether the pictures are so small that they are enlarged without smoothing.
    """

    title: str
    seconds: float
    network: float
    evaluations: float
    views: tuple[tuple[str, tuple[str, ...]], ...]
    small: bool = False


def side(title: str, tried: Tried, shelf: Shelf, *, fps: int) -> Side:
    """Put what a model made on the shelf, and return its column."""
    views = tuple((view.text, tuple(shelf.show(each, fps=fps) for each in view.media)) for view in tried.views)
    small = is_small(tried.views[-1].media[0])
    return Side(title, tried.seconds, tried.network, tried.evaluations, views, small)


def tried_html(prompt: str, sides: Sequence[Side], step: int) -> str:
    """Return the samples of a student after one of its steps, counted from 1, beside the result of its teacher."""
    columns = []
    for each in sides:
        text, addresses = each.views[min(step, len(each.views)) - 1]
        columns.append({
            "title": each.title, "text": text, "addresses": addresses, "seconds": significant(each.seconds),
            "evaluations": f"{each.evaluations:g}", "network": significant(each.network),
        })  # fmt: skip
    faster = None if len(sides) < 2 else significant(sides[1].seconds / sides[0].seconds, 2)
    return _render("tried.html.j2", prompt=prompt, columns=columns, faster=faster, small=sides[0].small)


def pair_html(task: Mapping[str, Any], question: str, prefix: str, *, small: bool) -> str:
    """Return a pair that is to be judged.

    Args:
        task: the answer of `rmd.study.server.Desk.next`.
        question: the question as raters read it.
        prefix: the beginning of the addresses of the study's files.
        small: whether the pictures are so small that they are enlarged without smoothing.
    """
    left, right = (f"{prefix}/{task[side].rpartition('/')[2]}" for side in ("left", "right"))
    number = f"{task['done'] + 1} of {task['tasks']}"
    return _render(
        "pair.html.j2", prompt=task["prompt"], question=question, left=left, right=right, number=number, small=small
    )


def results_html(analysis: Analysis | None) -> str:
    """Return the tallies of a comparison; None: there are no votes yet."""
    tables = [] if analysis is None else results_tables(analysis)
    return _render("results.html.j2", tables=tables, analysis=analysis)


def missing_html(text: str) -> str:
    """Return a whole page that says what is not there, for a frame."""
    return _render("missing.html.j2", title="RMD", text=text)


def note_html(text: str) -> str:
    """Return a sentence in small print."""
    return _render("note.html.j2", text=text)


def frame_html(address: str, title: str) -> str:
    """Return a frame that shows a page of results without letting it run anything."""
    return _render("frame.html.j2", address=address, title=title)


def run_html(view: RunView, drawn: Sequence[Mapping[str, str]], shelf: Shelf) -> str:
    """Return the state of a run, its curves and its marks.

    Args:
        view: the run.
        drawn: its curves, from `drawn_curves`.
        shelf: keeps the chart of the marks.
    """
    marks = None if view.marks is None else _kept(view.marks, shelf)
    return _render("run.html.j2", view=view, state=STATES[view.state], facts=_facts(view), drawn=drawn, marks=marks)


def pictures_html(view: RunView, shelf: Shelf, iteration: int | None) -> str:
    """Return the pictures of one iteration of a run; None, or an iteration without any: the newest."""
    chosen = iteration if iteration in view.pictures else max(view.pictures, default=None)
    files = {} if chosen is None else view.pictures[chosen]
    pictures = {kind: _kept(path, shelf) for kind, path in files.items()}
    return _render("pictures.html.j2", chosen=chosen, pictures=pictures, rows=PANEL_ROWS)


def drawn_curves(history: Records, shelf: Shelf) -> list[dict[str, str]]:
    """Draw the curves of a history for light and for dark pages, and return their titles, captions and addresses."""
    return [
        {"title": chart.title, "caption": chart.caption}
        | {name: shelf.put(draw(chart, theme), "svg") for name, theme in (("light", LIGHT), ("dark", DARK))}
        for chart in charts(history)
    ]


def _facts(view: RunView) -> HtmlTable:
    """Return the iteration, the time and the last checkpoint of a run."""
    facts = {"Iteration": f"{view.done}" if view.total is None else f"{view.done} of {view.total}"}
    if view.left is not None:
        facts["Left"] = f"about {duration(view.left)}"
    if view.seconds is not None:
        facts["An iteration"] = f"{significant(view.seconds)} s"
    if view.checkpoint is None:
        facts["Last checkpoint"] = "none yet"
    else:
        iteration, age = view.checkpoint
        facts["Last checkpoint"] = f"iteration {iteration}, {duration(age)} ago"
    return HtmlTable((), [TableRow(cells(name, text)) for name, text in facts.items()])


def _kept(path: Path, shelf: Shelf) -> str:
    """Return the address of a file of a run."""
    with read_errors(path):
        return shelf.put(path.read_bytes(), path.suffix[1:])


def _render(template: str, **values: object) -> str:
    return _TEMPLATES.get_template(template).render(values, fixed=fixed)
