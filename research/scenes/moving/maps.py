"""What is to be seen where in a clip, token by token: what a network of moving scenes gets as a hint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS, SYMMETRY
from rmd.worlds.moving.path import Path
from rmd.worlds.still.grammar import BACKGROUNDS, COLOURS, SHAPES
from rmd.worlds.still.render import CANVAS

TIMES = 2
"""Frames to a frame of the latents, but for the first, which stands for one."""


def clip_maps(attributes: Tensor, path: Path, side: int) -> Tensor:
    """Maps (n, t * side * side, 40) of clips of 2 t - 1 frames, in half precision.

    Within the object: its shape, its colour, and its motion with its speed, each as ones and zeros; that it is there;
    its size; how it is turned, as far as its symmetry lets one see it; where it goes next; where in it the token lies.
    Outside these are zero. Everywhere: the background.

    Args:
        attributes: (n, 5), columns as `CLIP_ATTRIBUTES`.
        path: of the objects, frame by frame.
        side: tokens to a side.
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
    seen = (fold > 0).float()
    step = centre.diff(dim=1)
    step = torch.cat([step, step[:, -1:]], 1)
    state = torch.stack(
        [
            torch.ones_like(radius),
            radius.log(),
            seen * (fold * angle).cos(),
            seen * (fold * angle).sin(),
            *step.unbind(-1),
        ],
        -1,
    )
    of_object = torch.cat([named[:, None].expand(-1, radius.shape[1], -1), state], -1)
    here = torch.stack([part.expand_as(inside) / radius[..., None, None] for part in (x, y)], -1)
    around = F.one_hot(background, len(BACKGROUNDS)).float()[:, None, None, None].expand(*inside.shape, -1)
    within = torch.cat([of_object[:, :, None, None].expand(*inside.shape, -1), here], -1)
    return torch.cat([inside[..., None] * within, around], -1).flatten(1, 3).half()
