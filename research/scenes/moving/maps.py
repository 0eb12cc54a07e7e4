"""Labels of every token of a clip, from which the teacher of moving scenes gets hints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS, SYMMETRY
from rmd.worlds.moving.path import Path
from rmd.worlds.still.grammar import BACKGROUNDS, COLOURS, SHAPES
from rmd.worlds.still.render import CANVAS

TIMES = 2
"""Frames per latent frame, except the first latent frame, which stands for one."""


def clip_maps(attributes: Tensor, path: Path, side: int) -> Tensor:
    """Return the labels of clips with 2 t - 1 frames.

    Inside the object, they are: its shape, its colour, and its motion and speed, one-hot; a one; the logarithm of its
    size; its rotation, up to its symmetry; the step to its next position; and the position of the token in the object.
    Outside the object, these are zero. The background, one-hot, is given everywhere.

    Args:
        attributes: (n, 5); columns as in `CLIP_ATTRIBUTES`.
        path: path of each object, frame by frame.
        side: number of tokens per side.

    Returns:
        (n, t * side * side, 40), in half precision.
    """
    centre, radius, angle = (part[:, ::TIMES] for part in (path.centre, path.radius, path.angle))
    cell = CANVAS / side
    axis = (torch.arange(side) + 0.5) * cell
    x, y = (axis.view(shape) - centre[..., i, None, None] for i, shape in enumerate(((1, side), (side, 1))))
    inside = ((radius[..., None, None] - torch.hypot(x, y)) / cell + 0.5).clamp(0, 1)  # (n, t, side, side)
    background, shape, colour, motion, speed = attributes.unbind(1)
    named = torch.cat(
        [
            F.one_hot(shape, len(SHAPES)),
            F.one_hot(colour, len(COLOURS)),
            F.one_hot(motion * len(SPEEDS) + speed, len(MOTIONS) * len(SPEEDS)),
        ],
        1,
    ).float()
    fold = torch.tensor(SYMMETRY)[shape][:, None]
    visible = (fold > 0).float()
    step = centre.diff(dim=1)
    step = torch.cat([step, step[:, -1:]], 1)
    state = torch.stack(
        [
            torch.ones_like(radius),
            radius.log(),
            visible * (fold * angle).cos(),
            visible * (fold * angle).sin(),
            *step.unbind(-1),
        ],
        -1,
    )
    of_object = torch.cat([named[:, None].expand(-1, radius.shape[1], -1), state], -1)
    here = torch.stack([part.expand_as(inside) / radius[..., None, None] for part in (x, y)], -1)
    around = F.one_hot(background, len(BACKGROUNDS)).float()[:, None, None, None].expand(*inside.shape, -1)
    within = torch.cat([of_object[:, :, None, None].expand(*inside.shape, -1), here], -1)
    return torch.cat([inside[..., None] * within, around], -1).flatten(1, 3).half()
