"""Features of DINOv2: of distances between sets of pictures, and of the diversity of one prompt's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Dinov2Model

from rmd.scores.pixels import squashed_pixels
from rmd.scores.result import Preparation, Settings
from rmd.scores.weights import Source

DINO = "facebook/dinov2-large"
"""The network's repository on the Hub."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation by which DINOv2's pixels are normalised."""
MOST = 32
"""Largest number of pictures of one prompt that the network sees at once."""


@dataclass(frozen=True)
class Features:
    """Features of pictures.

    Attributes:
        of: returns the features (n, d) of pictures.
        preparation: everything that decides them.
        modules: the networks.
    """

    of: Callable[[Sequence[Image.Image]], Tensor]
    preparation: Preparation
    modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Diversity:
    """The distances of pictures of one prompt from each other; their mean is the mean distance of all pairs.

    Attributes:
        features: features of pictures.
        preparation: everything that decides a value.
    """

    features: Features
    preparation: Preparation

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks."""
        return self.features.modules

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the mean distance (n,) of each picture from the others, in [0, 2]; the prompts are not read.

        Args:
            images: all pictures of one prompt, at least two.
            prompts: their prompts.
        """
        parts = [self.features.of(images[start : start + MOST]) for start in range(0, len(images), MOST)]
        return mean_distances(torch.cat(parts)).float()


def diversity(source: Source, device: torch.device, dtype: torch.dtype) -> Diversity:
    """Load the diversity of pictures of one prompt.

    Raises:
        RMDError: the network cannot be loaded.
    """
    features = dino_features(source, device, dtype)
    settings: Settings = {**features.preparation.settings, "distance": "1 - cosine, mean over the other seeds"}
    return Diversity(features, features.preparation.model_copy(update={"settings": settings}))


def mean_distances(features: Tensor) -> Tensor:
    """Return the mean of 1 - cosine (n,) of each of n >= 2 features (n, d) with the others, in float64."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return (1 - unit @ unit.T).fill_diagonal_(0).sum(-1) / (len(unit) - 1)


def dino_features(source: Source, device: torch.device, dtype: torch.dtype) -> Features:
    """Load the features of DINOv2: the last state of the token of the class.

    Raises:
        RMDError: the network cannot be loaded.
    """
    folder = source.path("config.json").parent
    source.path("model.safetensors")
    model = Dinov2Model.from_pretrained(folder, local_files_only=True).to(device, dtype).eval()
    side = 16 * int(model.config.patch_size)
    settings: Settings = {"pixels": "squashed to a square", "side": side}

    @torch.no_grad()
    def features_of(images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([squashed_pixels(image, side, statistics=IMAGENET) for image in images])
        tokens: Tensor = model(pixels.to(next(model.parameters()))).last_hidden_state
        return tokens[:, 0].float().cpu()  # the token of the class

    return Features(features_of, Preparation(networks=(source.network,), settings=settings), (model,))
