"""Judges a student of the scenes while it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rmd.core.metrics import kernel_distance, standardise
from rmd.core.plan import StepPlan
from rmd.data.prompts import scene_captions
from rmd.models.base import Backbone
from rmd.models.generate import sample_images
from rmd.worlds.assets import assets_folder
from rmd.worlds.references import load_references
from rmd.worlds.still.accuracy import accuracy
from rmd.worlds.still.grammar import parse
from rmd.worlds.still.judge import load_judge

SEED = 41
"""Of the captions: neither those of training nor those of the demo."""


def scene_watcher(
    backbone: Backbone, plan: StepPlan, *, samples: int, seed: int
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that samples with a student's network and judges it, always on the same captions and noise.

    Returns:
        `judge/all_right`, the share of samples with every attribute of their caption, and `judge/kernel_distance` to
        renders.

    Raises:
        RMDError: the judge's weights are not there.
    """
    judge, references = load_judge(assets_folder()), load_references(assets_folder())
    captions = scene_captions(samples, seed=SEED, training=False)
    asked = torch.tensor([found.to_tuple() for text in captions if (found := parse(text)) is not None])

    def watch(network: nn.Module) -> dict[str, float]:
        images = sample_images(backbone, network, plan, captions, seed=seed, guidance=1.0)
        right, features = judge.assess(images.float().cpu(), asked)
        ours, renders = standardise(features, references.renders)
        return {
            "judge/all_right": accuracy(right, asked).all_right.value,
            "judge/kernel_distance": kernel_distance(ours, renders).value,
        }

    return watch
