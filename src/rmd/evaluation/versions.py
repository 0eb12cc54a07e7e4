"""Versions of the packages that decide numbers."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from rmd.common.version import __version__

PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Return the versions of RMD, Python and the packages that decide numbers, and the number of CPU threads."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    threads = str(torch.get_num_threads())
    return {"rmd": __version__, "python": platform.python_version(), "threads": threads, **packages}
