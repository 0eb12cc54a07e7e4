"""The judge of pictures: a small classifier of all attributes whose features also serve the distances.

It is trained on renders only, so it knows nothing of any generator. Its accuracy against the caption plays the
part of a CLIP score. Its features (an embedding, and channel statistics at three depths, which respond to blur and
broken texture) play the part of Inception features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.metrics import Z95
from rmd.worlds.base import Measured, share_of
from rmd.worlds.batch import NONE

WIDTHS = (32, 64, 96, 96)
EMBEDDING = 96


@dataclass(frozen=True)
class Reading:
    """A judge's reading of n pictures, of which k attributes are asked.

    Attributes:
        right: (n, k) bool, whether each attribute is right; True where none is asked.
        odds: (n, k), log-odds of the value that is asked against all others; NaN where none is asked.
        features: (n, d).
    """

    right: Tensor
    odds: Tensor
    features: Tensor


class Judge(nn.Module):
    """Maps images (B, 3, 32 fold, 32 fold) in [-1, 1] to logits for every attribute, and to features (B, d)."""

    def __init__(self, attributes: Mapping[str, int], widths: Sequence[int] = WIDTHS, *, fold: int = 2) -> None:
        """Build the network.

        Args:
            attributes: number of values of each attribute, for each of which there is a head.
            widths: number of channels of each level, multiples of 8.
            fold: side of the blocks of pixels that are folded into channels first.
        """
        super().__init__()
        previous = fold**2 * 3
        self.names = tuple(attributes)
        self.fold = nn.PixelUnshuffle(fold)  # a stride would drop texture marks, which are a few pixels wide
        self.levels = nn.ModuleList()
        for depth, width in enumerate(widths):
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(previous, width, 3, stride=1 if depth == 0 else 2, padding=1),
                    nn.GroupNorm(8, width),
                    nn.SiLU(),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.GroupNorm(8, width),
                    nn.SiLU(),
                )
            )
            previous = width
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * 16, EMBEDDING), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(EMBEDDING, size) for name, size in attributes.items()})

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        x, statistics = self.fold(images), []
        for level in self.levels[:-1]:
            x = level(x)
            statistics += [x.mean((2, 3)), x.std((2, 3))]
        embedding = self.embed(self.levels[-1](x))
        logits = {name: head(embedding) for name, head in self.heads.items()}
        return logits, torch.cat([embedding, *statistics], 1)

    @torch.no_grad()
    def assess(self, images: Tensor, attributes: Tensor, *, chunk: int = 128) -> Reading:
        """Read pictures, and compare them with what is asked.

        Args:
            images: (n, 3, 32 fold, 32 fold) in [-1, 1].
            attributes: (n, k) ground truth from the captions, `NONE` where a scene has no such attribute.
            chunk: number of pictures that are read at once.
        """
        parts = []
        for part, truth in zip(images.split(chunk), attributes.split(chunk), strict=True):
            logits, features = self(part)
            named = torch.stack([logits[name].argmax(1) for name in self.names], 1)
            odds = torch.stack([log_odds(logits[name], truth[:, i]) for i, name in enumerate(self.names)], 1)
            parts.append(Reading((named == truth) | (truth == NONE), odds, features))
        return Reading(*(torch.cat([getattr(part, name) for part in parts]) for name in Reading.__dataclass_fields__))


def log_odds(logits: Tensor, asked: Tensor) -> Tensor:
    """Return the log-odds (n,) of the class that is asked against all others, in nats; NaN where none is asked.

    Args:
        logits: (n, c) logits of c classes, of which there are at least two.
        asked: (n,) classes, or `NONE`.
    """
    index = asked.clamp(min=0)[:, None]
    others = logits.scatter(1, index, -math.inf).logsumexp(1)
    return torch.where(asked == NONE, math.nan, logits.gather(1, index)[:, 0] - others)


def legibility(odds: Tensor) -> Measured:
    """Return how clearly the judge sees what captions ask for: mean log-odds in nats, with its 95 % interval.

    The mean of each sample over its attributes is averaged over the samples; a single sample has no interval.

    Args:
        odds: (n, k), see `Reading.odds`; every sample must have an attribute that is asked.
    """
    each = odds.double().nanmean(1)
    value = float(each.mean())
    if len(each) == 1:
        return Measured(value=value)
    half = Z95 * float(each.std()) / math.sqrt(len(each))
    return Measured(value=value, low=value - half, high=value + half)


def accuracy(right: Tensor, attributes: Tensor, names: Sequence[str]) -> Measured:
    """Return the share of samples with every requested attribute right, with Wilson's 95 % interval.

    The parts are the shares of each attribute alone, among the samples whose captions name it.

    Args:
        right: (n, k) bool, whether each attribute is right, see `Reading.right`.
        attributes: (n, k) ground truth, `NONE` where a scene has no such attribute. Such entries do not count, and
            an attribute that no scene has is left out of the parts.
        names: the k attributes.

    Raises:
        RMDError: the shapes differ, or there is no sample.
    """
    count = len(attributes)
    if count == 0 or right.shape != attributes.shape or right.shape != (count, len(names)):
        raise RMDError(
            f"expected two tables of {len(names)} attributes per sample, got the shapes "
            f"{tuple(right.shape)} and {tuple(attributes.shape)}"
        )
    asked = attributes != NONE
    counts = zip(names, (right & asked).sum(0).tolist(), asked.sum(0).tolist(), strict=True)
    parts = {name: hits / total for name, hits, total in counts if total}
    return share_of(int((right | ~asked).all(1).sum()), count, parts)


def load_judge(folder: Path, judge: Judge) -> Judge:
    """Read the weights of an untrained judge from a folder; return it in float32 and in evaluation mode.

    Raises:
        RMDError: the folder has none.
    """
    path = folder / "judge.safetensors"
    if not path.exists():
        raise RMDError(f"no judge in {folder}: build one with `python -m research.scenes train-judge --out {folder}`")
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
