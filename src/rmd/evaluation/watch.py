"""Judges a student while it is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rmd.core.plan import StepPlan
from rmd.evaluation.protocol import PlanContender
from rmd.evaluation.run import evaluate
from rmd.models.base import Backbone
from rmd.worlds.base import World

SEED = 41
"""Seed of the captions, which are neither those of training nor those of the demo."""
RECORDED = {"attributes": "judge/all_right", "kernel_distance": "judge/kernel_distance"}
"""The metrics that are recorded, and their names in the training's records."""


def student_watcher(
    world: World, backbone: Backbone, plan: StepPlan, *, samples: int, seed: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that samples with a student's network and judges it, on the same captions and noise every time.

    Args:
        world: the world of the training prompts.
        samples: number of captions, each of which is sampled once.
        seed: seed of the sampling noise.

    Returns:
        A function of the network. It returns `judge/all_right`, the share of samples with every attribute of their
        caption, and `judge/kernel_distance`, the distance to renders.

    Raises:
        RMDError: the judge's weights are missing.
    """
    judge, captions = world.judge(), world.captions(samples, seed=SEED, training=False)

    def watch(network: nn.Module) -> dict[str, float]:
        contender = PlanContender("student", "student", backbone, network, plan)
        row = evaluate(
            contender, world, judge, captions, seed=seed, size=plan.stages[-1], samples_per_prompt=1,
            metrics=tuple(RECORDED),
        ).row  # fmt: skip
        return {key: row.value(name) for name, key in RECORDED.items()}

    return watch
