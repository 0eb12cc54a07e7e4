"""Marks a student while it is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rmd.core.plan import StepPlan
from rmd.evaluation.metrics import METRICS
from rmd.evaluation.protocol import PlanContender
from rmd.models.base import Backbone
from rmd.train.marks import Marks
from rmd.train.parallel import Parallel
from rmd.worlds.base import World

SEED = 41
"""Seed of a world's captions, which are neither those of training nor those of the demo."""
RECORDED = {"attributes": "judge/all_right", "kernel_distance": "judge/kernel_distance"}
"""The metrics of a judge that are recorded, and their names in the training's records."""


class Grader(Protocol):
    """Marks samples."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Marks:
        """Return the marks of pictures (n, 3, H, W) or clips (n, 3, T, H, W) in [-1, 1] of n prompts."""


def judge_grader(world: World) -> Grader:
    """Return a grader that is a world's judge.

    It records `judge/all_right`, the share of samples with every attribute of their caption (of clips, of frames), and
    `judge/kernel_distance`, the distance to renders. The mark of a sample says whether it is right.

    Raises:
        RMDError: the judge's weights are missing.
    """
    judge = world.judge()

    def grade(images: Tensor, prompts: Sequence[str]) -> Marks:
        assessment = judge.assess(images, prompts, samples_per_prompt=1)
        recorded = {key: METRICS.get(name).compute(assessment).value for name, key in RECORDED.items()}
        return Marks(recorded, {RECORDED["attributes"]: tuple(assessment.right.float().tolist())})

    return grade


def student_watcher(
    backbone: Backbone, plan: StepPlan, prompts: Sequence[str], graders: Sequence[Grader], *, seed: int,
    parallel: Parallel | None = None,
) -> Callable[[nn.Module], Marks]:  # fmt: skip
    """Return a function that samples with a student's network and marks it, on the same prompts and noise every time.

    Args:
        prompts: the prompts, each of which is sampled once.
        graders: mark the samples; those of the first decide which iteration is the best. Only the first process uses
            its own.
        seed: seed of the sampling noise.
        parallel: the place of this process among those that hold the network; by default it is the only one.
    """
    parallel = Parallel() if parallel is None else parallel
    sampled = hashlib.sha256(json.dumps([seed, list(prompts)]).encode()).hexdigest()[:16]

    @torch.no_grad()
    def watch(network: nn.Module) -> Marks:
        contender = PlanContender("student", "student", backbone, network, plan)
        images = contender.sample(prompts, seed=seed, size=plan.stages[-1]).images
        found = parallel.result_from_main(lambda: [grade(images, prompts) for grade in graders])
        return Marks(
            {name: value for marks in found for name, value in marks.recorded.items()},
            {name: values for marks in found for name, values in marks.samples.items()},
            sampled,
        )

    return watch
