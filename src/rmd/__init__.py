"""RMD: cross-resolution distribution matching distillation for few-step diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmd.sample.pipeline import RMDPipeline

__version__ = "0.1.0"
__all__ = ["RMDPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # torch and diffusers are imported when they are needed: `rmd --help` answers at once
    if name == "RMDPipeline":
        from rmd.sample.pipeline import RMDPipeline

        return RMDPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
