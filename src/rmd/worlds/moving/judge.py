"""The moving scenes' judge: reads from every frame the attributes, and the object's place, size and rotation.

It is trained on single clean frames and knows nothing of motion or of any generator. Motion is read from the track that
it follows through a clip (`rmd.worlds.moving.motion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.worlds.judge import EMBEDDING, Judge
from rmd.worlds.moving.grammar import FRAME_ATTRIBUTES

FILE_NAME = "frame-judge.safetensors"
_WIDTHS = (24, 48, 72, 72)
FEATURES = EMBEDDING + 2 * sum(_WIDTHS[:3])
CENTRE, SCALE, RADIUS = 32.0, 16.0, 10.0
"""Centres are predicted relative to the middle in units of a quarter canvas, radii as the logarithm over `RADIUS`."""


@dataclass(frozen=True)
class Track:
    """The judge's reading of n clips of T frames.

    Attributes:
        named: (n, T, 3), background, shape and colour of every frame.
        centre: (n, T, 2), in canvas units.
        radius: (n, T), in canvas units.
        phase: (n, T), the shape's angle in radians times its `SYMMETRY`; meaningless for round shapes.
        features: (n, T, 384).
    """

    named: Tensor
    centre: Tensor
    radius: Tensor
    phase: Tensor
    features: Tensor


class FrameJudge(Judge):
    """The still scenes' judge for frames (B, 3, 64, 64) in [-1, 1], with another head, which reads five numbers.

    They are centre x and y, the logarithm of the radius, and cosine and sine of the phase.
    """

    def __init__(self) -> None:
        super().__init__(FRAME_ATTRIBUTES, _WIDTHS)
        self.place = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, 5))

    def read(self, frames: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the logits by attribute, the five numbers (B, 5), and the features (B, 384)."""
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
    """Load the judge of a folder in float32, in evaluation mode.

    Raises:
        RMDError: the folder has none.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise RMDError(
            f"no judge of moving scenes in {folder}: build one with "
            "`python -m research.scenes train-judge --world moving-scenes`"
        )
    judge = FrameJudge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
