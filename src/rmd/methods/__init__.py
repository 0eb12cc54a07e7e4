"""Distillation methods: what differs between them, one file each."""

from __future__ import annotations

from rmd.methods.base import Batch, Method, Real, Rollout
from rmd.methods.dmd2 import DMD2
from rmd.methods.rmd import RMD
from rmd.methods.stagewise import Stagewise
from rmd.methods.tdm import TDM

METHODS: dict[str, type[Method]] = {"rmd": RMD, "tdm": TDM, "dmd2": DMD2, "stagewise": Stagewise}

__all__ = ["DMD2", "METHODS", "RMD", "TDM", "Batch", "Method", "Real", "Rollout", "Stagewise"]
