"""Training of the judge of moving scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath

import torch
import torch.nn.functional as F
from torch import Tensor

from research.scenes.dataset import BatchOrder
from research.scenes.judge import train_classifier
from research.scenes.moving.dataset import ClipSet
from rmd.core.randomness import generator
from rmd.worlds.moving.grammar import FRAME_ATTRIBUTES, SYMMETRY
from rmd.worlds.moving.judge import CENTRE, RADIUS, SCALE, FrameJudge


def train_frame_judge(
    judge: FrameJudge, clips: ClipSet, *, iterations: int, batch_size: int = 64, seed: int = 0,
    checkpoint: FilePath | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the judge on single frames, one per clip of a batch, with a little noise against overfitting.

    Args:
        judge: the network to train.
        clips: the training data.

    The other arguments and the result are those of `research.scenes.judge.train_judge`.
    """
    order = BatchOrder(len(clips), batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        chosen, g = order.at(step), generator(seed, "frame-judge", step)
        time = torch.randint(clips.videos.shape[2], (batch_size,), generator=g)
        frames = clips.videos[chosen, :, time].float() / 127.5 - 1
        logits, place, _ = judge.read(frames + 0.03 * torch.randn(frames.shape, generator=g))
        return frame_loss(logits, place, clips, chosen, time)

    return train_classifier(judge, loss, iterations=iterations, checkpoint=checkpoint, every=every, log=log)


def frame_loss(logits: dict[str, Tensor], place: Tensor, clips: ClipSet, index: Tensor, time: Tensor) -> Tensor:
    """Return the cross-entropies of the attributes plus squared errors of position, size and, if visible, rotation."""
    attributes = clips.attributes[index]
    loss = sum(
        (F.cross_entropy(logits[name], attributes[:, i]) for i, name in enumerate(FRAME_ATTRIBUTES)), place.sum() * 0
    )
    centre = (clips.path.centre[index, time] - CENTRE) / SCALE
    size = (clips.path.radius[index, time] / RADIUS).log()
    fold = torch.tensor(SYMMETRY)[attributes[:, 1]]
    phase = fold * clips.path.angle[index, time]
    visible = (fold > 0).float()
    rotation = (place[:, 3] - phase.cos()) ** 2 + (place[:, 4] - phase.sin()) ** 2
    geometry = 4 * F.mse_loss(place[:, :2], centre) + 4 * F.mse_loss(place[:, 2], size)
    return loss + geometry + (visible * rotation).sum() / visible.sum().clamp(min=1)
