"""The moving scenes' judge: reads every frame's attributes and where its object is, how large and how far turned.

It sees single clean frames when it is trained, and knows nothing of motion or of any generator; motion is read from
the track that it follows through a clip (`rmd.scenes.moving.motion`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmd.errors import RMDError
from rmd.randomness import generator
from rmd.scenes.dataset import BatchOrder
from rmd.scenes.fitting import fit
from rmd.scenes.judge import EMBEDDING, Judge
from rmd.scenes.moving.dataset import ClipSet
from rmd.scenes.moving.grammar import FRAME_ATTRIBUTES, SYMMETRY

FILE_NAME = "frame-judge.safetensors"
_WIDTHS = (24, 48, 72, 72)
FEATURES = EMBEDDING + 2 * sum(_WIDTHS[:3])
_CENTRE, _SCALE, _RADIUS = 32.0, 16.0, 10.0
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
                    _CENTRE + _SCALE * place[..., :2],
                    _RADIUS * place[..., 2].exp(),
                    torch.atan2(place[..., 4], place[..., 3]),
                    features.unflatten(0, shape),
                )
            )
        return Track(*(torch.cat([getattr(p, name) for p in parts]) for name in Track.__dataclass_fields__))


def train_frame_judge(
    judge: FrameJudge, clips: ClipSet, *, iterations: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0,
    checkpoint: FilePath | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train on single frames, one of each clip of a batch, with a little noise against overfitting.

    Args:
        checkpoint: file that a killed run goes on from, kept after every `every` iterations.

    Returns:
        Seconds the training took, those before a kill included.
    """
    judge.train()
    order = BatchOrder(len(clips), batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        chosen, g = order.at(step), generator(seed, "frame-judge", step)
        time = torch.randint(clips.videos.shape[2], (batch_size,), generator=g)
        frames = clips.videos[chosen, :, time].float() / 127.5 - 1
        logits, place, _ = judge.read(frames + 0.03 * torch.randn(frames.shape, generator=g))
        return frame_loss(logits, place, clips, chosen, time)

    seconds = fit(judge, loss, name="judge", iterations=iterations, lr=lr, checkpoint=checkpoint, every=every, log=log)
    judge.eval()
    return seconds


def frame_loss(logits: dict[str, Tensor], place: Tensor, clips: ClipSet, index: Tensor, time: Tensor) -> Tensor:
    """Cross-entropies of the attributes, and squared errors of place, size and (where it can be seen) turning."""
    attributes = clips.attributes[index]
    loss = sum(
        (F.cross_entropy(logits[name], attributes[:, i]) for i, name in enumerate(FRAME_ATTRIBUTES)), place.sum() * 0
    )
    centre = (clips.path.centre[index, time] - _CENTRE) / _SCALE
    size = (clips.path.radius[index, time] / _RADIUS).log()
    fold = torch.tensor(SYMMETRY)[attributes[:, 1]]
    phase = fold * clips.path.angle[index, time]
    seen = (fold > 0).float()
    turned = (place[:, 3] - phase.cos()) ** 2 + (place[:, 4] - phase.sin()) ** 2
    still = 4 * F.mse_loss(place[:, :2], centre) + 4 * F.mse_loss(place[:, 2], size)
    return loss + still + (seen * turned).sum() / seen.sum().clamp(min=1)


def save_frame_judge(judge: FrameJudge, folder: FilePath) -> None:
    """Write frame-judge.safetensors in half precision; an earlier one is replaced when all is written."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE_NAME}.partial"
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, partial)
    partial.replace(folder / FILE_NAME)


def load_frame_judge(folder: FilePath) -> FrameJudge:
    """Read a judge written by `save_frame_judge`, in float32 and ready to follow clips."""
    path = folder / FILE_NAME
    if not path.exists():
        raise RMDError(f"no judge of moving scenes in {folder}: build one with `rmd scenes train-judge --moving`")
    judge = FrameJudge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
