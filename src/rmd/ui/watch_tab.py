"""The tab "Watch": the state, curves and pictures of a run, which a timer keeps up to date."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from rmd.common.errors import RMDError
from rmd.ui.contents import Contents
from rmd.ui.events import AT_ONCE
from rmd.ui.fragments import drawn_curves, note_html, pictures_html, run_html
from rmd.ui.watching import Records, RunView, RunWatch

EVERY = 5.0
"""Seconds between two looks at the run."""
NEWEST = "newest"


class WatchTab:
    """Draws the tab inside the current Blocks, and answers its events."""

    def __init__(self, contents: Contents, page: Any) -> None:
        """Draw the tab.

        Args:
            contents: the contents of the page.
            page: the Blocks, whose loading shows the run at once.
        """
        self._shelf, self._lock = contents.shelf, threading.Lock()
        self._drawn: tuple[Records, list[dict[str, str]]] = ([], [])
        if contents.run is None:
            gr.HTML(note_html("There is no run to watch: start the page with “--run DIR”, the folder of rmd train."),
                    elem_classes="rmd")  # fmt: skip
            return
        self._run: RunWatch = contents.run
        shown = gr.HTML("", elem_classes="rmd", elem_id="run")
        iteration = gr.Dropdown(
            [NEWEST], value=NEWEST, label="Pictures of iteration", visible=False, elem_id="iteration"
        )
        pictures = gr.HTML("", elem_classes="rmd", elem_id="pictures")
        before, timer = gr.State(""), gr.Timer(EVERY)
        outputs = [before, shown, iteration, pictures]
        page.load(self.look, [before, iteration], outputs, **AT_ONCE)
        timer.tick(self.look, [before, iteration], outputs, **AT_ONCE)
        iteration.input(self.look, [before, iteration], outputs, **AT_ONCE)

    def look(self, before: str, chosen: str) -> tuple[Any, ...]:
        """Read the run, and return what is shown; nothing changes on the page if it is what was shown before."""
        try:
            view = self._run.view()
            run = run_html(view, self._curves(view), self._shelf)
            pictures = pictures_html(view, self._shelf, None if chosen == NEWEST else int(chosen))
        except RMDError as error:  # a message every few seconds would cover the page
            return "", note_html(str(error)), gr.skip(), ""
        if run + pictures == before:
            return (gr.skip(),) * 4
        choices = [NEWEST, *(str(iteration) for iteration in sorted(view.pictures, reverse=True))]
        return run + pictures, run, gr.Dropdown(choices, visible=len(choices) > 2), pictures

    def _curves(self, view: RunView) -> list[dict[str, str]]:
        """Draw the curves if there are new records."""
        with self._lock:
            if view.history != self._drawn[0]:
                self._drawn = (view.history, drawn_curves(view.history, self._shelf))
            return self._drawn[1]
