"""RMD: cross-resolution distribution matching distillation for few-step diffusion.

Everything that is listed in `__all__` is public and follows semantic versioning (docs/api.md); other names may change
in any release.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rmd.common.version import __version__

if TYPE_CHECKING:
    from rmd.common.errors import RMDError
    from rmd.core.plan import StepPlan, build_plan
    from rmd.evaluation.metrics import Metric
    from rmd.evaluation.run import evaluate
    from rmd.methods import Method
    from rmd.models import Backbone, register
    from rmd.recipes.schema import Recipe, load_recipe
    from rmd.sample.pipeline import RMDPipeline
    from rmd.train.distil import distil
    from rmd.train.loop import Trainer


__all__ = [
    "Backbone", "Method", "Metric", "RMDError", "RMDPipeline", "Recipe", "StepPlan", "Trainer", "__version__",
    "build_plan", "distil", "evaluate", "load_recipe", "register",
]  # fmt: skip

_PLACES = {
    "Backbone": "rmd.models",
    "Method": "rmd.methods",
    "Metric": "rmd.evaluation.metrics",
    "RMDError": "rmd.common.errors",
    "RMDPipeline": "rmd.sample.pipeline",
    "Recipe": "rmd.recipes.schema",
    "StepPlan": "rmd.core.plan",
    "Trainer": "rmd.train.loop",
    "build_plan": "rmd.core.plan",
    "distil": "rmd.train.distil",
    "evaluate": "rmd.evaluation.run",
    "load_recipe": "rmd.recipes.schema",
    "register": "rmd.models",
}


def __getattr__(name: str) -> Any:
    # Imported when they are first used, so that `import rmd` and `rmd --help` do not wait for torch and diffusers.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
