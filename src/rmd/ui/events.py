"""Options of the page's events, and how an error becomes a message on the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from rmd.common.errors import RMDError

ON_DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
"""Events that compute with a model wait for each other: one job at a time, for all visitors together."""
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Events that are answered at once."""


@contextmanager
def shown_errors() -> Iterator[None]:
    """Turn an RMDError of the block into a message on the page."""
    try:
        yield
    except RMDError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def whole(name: str, value: float | None) -> int:
    """Return the number in a field; raise RMDError, naming the field, if it is empty or no integer."""
    if value is None or value != int(value):
        raise RMDError(f"{name} must be a whole number: fill in the field")
    return int(value)
