"""The moving scenes' judge: reads every frame's attributes and where its object is, how large and how far turned.

It sees single clean frames when it is trained, and knows nothing of motion or of any generator; motion is read from
the track that it follows through a clip (`rmd.worlds.moving.motion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.worlds.moving.grammar import FRAME_ATTRIBUTES
from rmd.worlds.still.judge import EMBEDDING, Judge

FILE_NAME = "frame-judge.safetensors"
_WIDTHS = (24, 48, 72, 72)
FEATURES = EMBEDDING + 2 * sum(_WIDTHS[:3])
CENTRE, SCALE, RADIUS = 32.0, 16.0, 10.0
"""Centres are read relative to the middle in units of a quarter canvas, radii as logarithms relative to this one."""


@dataclass(frozen=True)
class Track:
    """What was read in n clips of T frames.

    named: (n, T, 3) background, shape and colour of every frame. centre (n, T, 2), radius (n, T): in canvas units.
    phase: (n, T) SYMMETRY times the angle of the shape, in radians; of no meaning for round shapes. features:
    (n, T, 384).
    """

    named: Tensor
    centre: Tensor
    radius: Tensor
    phase: Tensor
    features: Tensor


class FrameJudge(Judge):
    """Frames (B, 3, 64, 64) in [-1, 1]: attributes and features as the still scenes' judge, and five numbers of place.

    The five are centre x and y, log radius, and cosine and sine of the phase.
    """

    def __init__(self) -> None:
        super().__init__(FRAME_ATTRIBUTES, _WIDTHS)
        self.place = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, 5))

    def read(self, frames: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Logits by attribute, the five numbers (B, 5), features (B, 384)."""
        logits, features = self(frames)
        return logits, self.place(features[:, :EMBEDDING]), features

    @torch.no_grad()
    def follow(self, videos: Tensor, *, chunk: int = 16) -> Track:
        """Read clips (n, 3, T, 64, 64) in [-1, 1] frame by frame."""
        parts = []
        for part in videos.split(chunk):
            logits, place, features = self.read(part.transpose(1, 2).flatten(0, 1))
            shape = (len(part), part.shape[2])
            named = torch.stack([logits[name].argmax(1) for name in FRAME_ATTRIBUTES], 1)
            place = place.unflatten(0, shape)
            parts.append(
                Track(
                    named.unflatten(0, shape),
                    CENTRE + SCALE * place[..., :2],
                    RADIUS * place[..., 2].exp(),
                    torch.atan2(place[..., 4], place[..., 3]),
                    features.unflatten(0, shape),
                )
            )
        return Track(*(torch.cat([getattr(p, name) for p in parts]) for name in Track.__dataclass_fields__))


def load_frame_judge(folder: FilePath) -> FrameJudge:
    """Read a judge written by `save_frame_judge`, in float32 and ready to follow clips."""
    path = folder / FILE_NAME
    if not path.exists():
        raise RMDError(
            f"no judge of moving scenes in {folder}: build one with `python -m research.scenes train-judge --moving`"
        )
    judge = FrameJudge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
