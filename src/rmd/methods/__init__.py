"""Distillation methods, one file each: RMD, and the baselines TDM and DMD2.

`METHODS` finds a method's class by its name, including those that other packages provide.
"""

from __future__ import annotations

from rmd.methods.base import Batch, Method, Real, Rollout, Sample
from rmd.methods.dmd2 import DMD2
from rmd.methods.rmd import RMD
from rmd.methods.tdm import TDM
from rmd.recipes.methods import METHODS

__all__ = ["DMD2", "METHODS", "RMD", "TDM", "Batch", "Method", "Real", "Rollout", "Sample"]
