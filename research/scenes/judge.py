"""Training of the judges of still pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from research.scenes.dataset import BatchOrder
from research.scenes.optimisation import train_adamw
from rmd.common.files import replacing
from rmd.core.crossing import upsample
from rmd.core.randomness import generator
from rmd.worlds.batch import NONE
from rmd.worlds.dataset import SceneSet
from rmd.worlds.judge import Judge


def train_judge(
    judge: Judge, scenes: SceneSet, *, iterations: int, batch_size: int = 64, blurred: float = 0.0, seed: int = 0,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the judge to classify the attributes of renders, with a little noise on them against overfitting.

    Args:
        judge: the network to train.
        scenes: the training data.
        iterations, batch_size: number of optimiser steps, and of scenes in each.
        blurred: share of the pictures that are shown as samples of half the size are, that is, enlarged bilinearly.
        seed: seed of the training.
        checkpoint: file from which an interrupted training resumes; written every `every` iterations.
        log: receives progress messages.

    Returns:
        Seconds of training, including those before an interruption.
    """
    order = BatchOrder(len(scenes), batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        chosen = order.at(step)
        images = scenes.pixels(chosen)
        g = generator(seed, "judge", step)
        images = images + 0.03 * torch.randn(images.shape, generator=g)
        if blurred:
            soft = torch.rand(len(images), generator=g) < blurred
            images[soft] = enlarged(images[soft])
        return attribute_loss(judge(images)[0], scenes.attributes[chosen])

    return train_classifier(judge, loss, iterations=iterations, checkpoint=checkpoint, every=every, log=log)


def enlarged(images: Tensor) -> Tensor:
    """Return images (n, 3, s, s) that were reduced to half their size and enlarged bilinearly."""
    return upsample(F.avg_pool2d(images, 2), (images.shape[-2], images.shape[-1]), "bilinear")


def train_classifier(
    judge: Judge, loss: Callable[[int], Tensor], *, iterations: int, checkpoint: Path | None, every: int,
    log: Callable[[str], None],
) -> float:  # fmt: skip
    """Minimise the loss of a judge of any kind; the other arguments and the result are those of `train_judge`."""
    judge.train()
    seconds = train_adamw(judge, loss, name="judge", iterations=iterations, checkpoint=checkpoint, every=every, log=log)
    judge.eval()
    return seconds


def attribute_loss(logits: dict[str, Tensor], attributes: Tensor) -> Tensor:
    """Return the sum over the attributes of the mean cross-entropy over the scenes that have the attribute."""
    total = torch.zeros(())
    for column, name in enumerate(logits):
        truth = attributes[:, column]
        if bool((truth != NONE).any()):
            total = total + F.cross_entropy(logits[name], truth, ignore_index=NONE)
    return total


def save_judge(judge: Judge, path: Path) -> None:
    """Save a judge of any kind in half precision; an earlier file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, partial)
