"""The page: four tabs, in the colours of the reports, for light and dark screens."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gradio as gr

from rmd.report.html import TEMPLATES
from rmd.ui.compare_tab import CompareTab
from rmd.ui.contents import Contents
from rmd.ui.tables_tab import TablesTab
from rmd.ui.try_tab import TryTab
from rmd.ui.watch_tab import WatchTab

HERE = Path(__file__).parent
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace")
_COLOURS = {
    "body_background_fill": "paper", "body_text_color": "ink", "body_text_color_subdued": "soft",
    "background_fill_primary": "paper", "background_fill_secondary": "tint", "border_color_primary": "line",
    "border_color_accent": "mark", "color_accent": "mark", "color_accent_soft": "tint", "link_text_color": "mark",
    "block_background_fill": "paper", "block_border_color": "line", "block_label_text_color": "soft",
    "block_label_background_fill": "paper", "block_title_text_color": "ink", "block_info_text_color": "soft",
    "input_background_fill": "paper", "input_background_fill_focus": "paper", "input_border_color": "line",
    "input_border_color_focus": "mark", "input_placeholder_color": "soft", "panel_background_fill": "paper",
    "checkbox_background_color": "paper", "checkbox_background_color_selected": "mark", "checkbox_border_color": "soft",
    "checkbox_border_color_selected": "mark", "checkbox_label_background_fill": "paper",
    "checkbox_label_background_fill_hover": "tint", "checkbox_label_background_fill_selected": "tint",
    "checkbox_label_border_color": "line", "checkbox_label_text_color": "ink",
    "checkbox_label_text_color_selected": "ink", "accordion_text_color": "ink", "slider_color": "mark",
    "loader_color": "mark", "button_primary_background_fill": "mark", "button_primary_background_fill_hover": "mark",
    "button_primary_text_color": "paper", "button_primary_border_color": "mark",
    "button_secondary_background_fill": "tint", "button_secondary_background_fill_hover": "line",
    "button_secondary_text_color": "ink", "button_secondary_border_color": "line",
}  # fmt: skip
"""The colours of gradio's components as names of the palette that the reports use."""
_LINES = {
    "block_border_width": "0", "block_padding": "0", "input_border_width": "1px", "input_padding": "8px 10px",
    "block_shadow": "none", "input_shadow": "none", "layout_gap": "14px", "form_gap_width": "0",
    "button_large_padding": "9px 18px", "button_large_text_size": "1rem", "block_title_text_weight": "500",
}  # fmt: skip
"""Lines and spaces: fields have a border, and groups of fields have none."""


def theme() -> Any:
    """Return the theme: system fonts, and the palette of the reports, which follows the screen's setting."""
    base = gr.themes.Base(font=FONT, font_mono=MONO, radius_size="sm", spacing_size="md", text_size="md")
    known = inspect.signature(base.set).parameters  # some colours have no other value for dark screens
    names = {f"{name}{kind}": colour for name, colour in _COLOURS.items() for kind in ("", "_dark")}
    colours = {name: f"var(--{colour})" for name, colour in names.items() if name in known}
    return base.set(**colours, **_LINES)


def style() -> str:
    """Return the style of the page for its head: the palette of the reports, and the rules of `page.css`.

    gradio's own option for styles changes the rules that depend on the screen.
    """
    files = (TEMPLATES / "palette.css", HERE / "page.css")
    return f"<style>{''.join(file.read_text(encoding='utf-8') for file in files)}</style>"


def script() -> str:
    """Return the script of the page, with which pairs can be judged by keyboard."""
    return (HERE / "page.js").read_text(encoding="utf-8")


def build_page(contents: Contents) -> Any:
    """Return the page as gradio's Blocks; nothing is computed yet."""
    tabs = {
        "try": bool(contents.models.students), "compare": False, "watch": contents.run is not None,
        "tables": bool(contents.pages),
    }  # fmt: skip
    first = next((name for name, filled in tabs.items() if filled), "try")
    with gr.Blocks(title="RMD", analytics_enabled=False) as page, gr.Tabs(selected=first):
        with gr.Tab("Try", id="try"):
            TryTab(contents)
        with gr.Tab("Compare", id="compare"):
            CompareTab(contents, page)
        with gr.Tab("Watch", id="watch"):
            WatchTab(contents, page)
        with gr.Tab("Tables", id="tables"):
            TablesTab(contents)
    return page
