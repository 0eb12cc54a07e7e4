"""Backbones: one file a model family, each wrapping unmodified diffusers modules behind one protocol."""

from __future__ import annotations

from rmd.models.base import Backbone, Cond
from rmd.models.registry import load_backbone, register

__all__ = ["Backbone", "Cond", "load_backbone", "register"]
