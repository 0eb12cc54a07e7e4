"""Versions of what decides numbers."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import rmd

PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Of this package, Python and the packages that matter, and how many CPU threads there are."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    threads = str(torch.get_num_threads())
    return {"rmd": rmd.__version__, "python": platform.python_version(), "threads": threads, **found}
