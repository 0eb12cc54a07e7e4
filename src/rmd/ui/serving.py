"""The application of the page: gradio, the page's own addresses, and the guard in front of both."""

from __future__ import annotations

from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from rmd.ui.contents import Contents
from rmd.ui.guard import Guard
from rmd.ui.page import build_page, script, style, theme
from rmd.ui.routes import Files


def make_app(contents: Contents, *, password: str = "", local: bool = True) -> Any:
    """Return the application of a page.

    Args:
        contents: what it shows.
        password: the password that browsers ask for; empty: none.
        local: whether it answers to requests for this machine's loopback addresses only.
    """
    guard = Middleware(Guard, password=password, local=local)
    app = FastAPI(
        routes=list(Files(contents).routes), middleware=[guard], openapi_url=None, docs_url=None, redoc_url=None
    )
    return gr.mount_gradio_app(
        app, build_page(contents), path="/", allowed_paths=[], max_file_size=0, footer_links=[], run_history=False,
        ssr_mode=False, mcp_server=False, enable_monitoring=False, pwa=False, theme=theme(), head=style(), js=script(),
    )  # fmt: skip
