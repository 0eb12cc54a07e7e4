"""The tab "Tables": pages of results, each in a frame that can run nothing."""

from __future__ import annotations

import gradio as gr

from rmd.ui.contents import Contents
from rmd.ui.events import AT_ONCE
from rmd.ui.fragments import frame_html, note_html


class TablesTab:
    """Draws the tab inside the current Blocks, and answers its events."""

    def __init__(self, contents: Contents) -> None:
        """Draw the tab."""
        self._contents, names = contents, list(contents.pages)
        if not names:
            gr.HTML(
                note_html(
                    "There are no tables: start the page with “--compare DIR”, the folder of rmd compare, or an .html "
                    "file that rmd eval table --out wrote."
                ),
                elem_classes="rmd",
            )
            return
        name = gr.Dropdown(names, value=names[0], label="Page", visible=len(names) > 1, elem_id="page-name")
        frame = gr.HTML(self.open(names[0]), elem_classes="rmd", elem_id="table")
        name.input(self.open, [name], [frame], **AT_ONCE)

    def open(self, name: str) -> str:
        """Return the frame of a page."""
        return frame_html(self._contents.page_address(name), name)
