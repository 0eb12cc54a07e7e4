"""Distillation methods: what differs between them, one file each."""

from __future__ import annotations

from rmd.methods.base import Batch, Method, Rollout
from rmd.methods.rmd import RMD
from rmd.methods.tdm import TDM

METHODS: dict[str, type[Method]] = {"rmd": RMD, "tdm": TDM}

__all__ = ["METHODS", "RMD", "TDM", "Batch", "Method", "Rollout"]
