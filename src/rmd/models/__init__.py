"""Backbones: one file per model family, each wrapping unmodified diffusers modules behind one protocol."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmd.models.base import Backbone
    from rmd.models.cond import Cond
    from rmd.models.registry import load_backbone, register

__all__ = ["Backbone", "Cond", "load_backbone", "register"]
_PLACES = {"Backbone": "base", "Cond": "cond", "load_backbone": "registry", "register": "registry"}


def __getattr__(name: str) -> Any:
    # Imported on first use, because torch and diffusers take seconds, and `rmd plan` needs neither of them.
    if name in _PLACES:
        return getattr(import_module(f"rmd.models.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
