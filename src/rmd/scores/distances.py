"""Distances between two sets of pictures by published features: CMMD, and KID and the Frechet distance of DINOv2.

Unlike scores of single pictures, they measure whether a set has the variety and look of another one: of real pictures,
or of the teacher's own samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from rmd.common.errors import RMDError
from rmd.common.typed import Strict
from rmd.core.metrics import frechet_distance, kernel_distance
from rmd.sample.found import find_samples
from rmd.scores.clip import embed_images
from rmd.scores.dino import DINO, Features, dino_features
from rmd.scores.kinds import PICTURES
from rmd.scores.metrics import Place, image_side
from rmd.scores.pixels import squashed_pixels
from rmd.scores.result import Preparation, Settings

SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Width of CMMD's Gaussian kernel, and the factor of its published values."""
MOST = 100_000
"""Largest number of pictures in a set."""


@dataclass(frozen=True)
class Distance:
    """A distance of two sets of features.

    Attributes:
        name, title: what the command line and tables call it.
        features: loads its features from a place.
        measure: returns the value, and its 95 % interval where there is one.
    """

    name: str
    title: str
    features: Callable[[Place], Features]
    measure: Callable[[Tensor, Tensor], tuple[float, float | None, float | None]]


class SetDistance(Strict):
    """A distance of two sets of pictures."""

    value: float
    low: float | None
    high: float | None
    count: int
    """Number of pictures of the first set."""
    reference: int
    """Number of pictures of the second set."""
    preparation: Preparation


def cmmd(x: Tensor, y: Tensor) -> float:
    """Return the squared MMD of normalised embeddings with a Gaussian kernel, times 1000.

    It is the estimate with each picture's similarity with itself, as published.

    Args:
        x, y: embeddings (n, d) and (m, d).

    Source: Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image Generation (CVPR 2024).
    """
    x, y = x.double(), y.double()

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * SIGMA**2)).mean()

    return CMMD_SCALE * float(similarity(x, x) + similarity(y, y) - 2 * similarity(x, y))


def measure_distances(
    place: str, reference: str, distances: Sequence[Distance], networks: Place, *, batch_size: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, SetDistance]:  # fmt: skip
    """Measure distances between two folders of pictures.

    Args:
        place, reference: folders, or patterns of files.
        distances: what is measured.
        networks: where networks are found and run.
        batch_size: number of pictures at once.
        progress: receives the number of pictures that are done.

    Raises:
        RMDError: a set has too few or too many pictures, one is damaged, or a network cannot be loaded.
    """
    sets = [find_samples(each, suffixes=PICTURES.suffixes) for each in (place, reference)]
    for each, paths in zip((place, reference), sets, strict=True):
        if not 3 <= len(paths) <= MOST:
            raise RMDError(f"{each} has {len(paths)} pictures: a distance needs 3 to {MOST}")
    known: dict[str, tuple[Features, list[Tensor]]] = {}
    results = {}
    for distance in distances:
        features = distance.features(networks)
        key = features.preparation.model_dump_json()
        if key not in known:
            read = [_read(paths, features, batch_size, distance.title, progress) for paths in sets]
            known[key] = features, read
        x, y = known[key][1]
        value, low, high = distance.measure(x, y)
        results[distance.name] = SetDistance(
            value=value, low=low, high=high, count=len(x), reference=len(y), preparation=features.preparation
        )
    return results


def _read(
    paths: Sequence[Path], features: Features, batch_size: int, title: str,
    progress: Callable[[str, int, int], None] | None,
) -> Tensor:  # fmt: skip
    parts = []
    for start in range(0, len(paths), batch_size):
        if progress is not None:
            progress(title, start, len(paths))
        parts.append(features.of([PICTURES.read(path) for path in paths[start : start + batch_size]]))
    if progress is not None:
        progress(title, len(paths), len(paths))
    return torch.cat(parts)


def _clip(place: Place) -> Features:
    source = place.source("openai/clip-vit-large-patch14-336")
    folder = source.path("config.json").parent
    source.path("model.safetensors")
    model = CLIPModel.from_pretrained(folder, local_files_only=True).to(place.device, place.dtype).eval()
    side = image_side(model)
    settings: Settings = {"pixels": "squashed to a square", "side": side}

    def features_of(images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([squashed_pixels(image, side) for image in images])
        return embed_images(model, pixels.to(next(model.parameters()))).float().cpu()

    return Features(features_of, Preparation(networks=(source.network,), settings=settings))


def _dino(place: Place) -> Features:
    return dino_features(place.source(DINO), place.device, place.dtype)


def _kid(x: Tensor, y: Tensor) -> tuple[float, float | None, float | None]:
    found = kernel_distance(x, y)
    return found.value, found.low, found.high


DISTANCES = {
    distance.name: distance
    for distance in (
        Distance("cmmd", "CMMD", _clip, lambda x, y: (cmmd(x, y), None, None)),
        Distance("kid-dinov2", "KID of DINOv2, x1000", _dino, _kid),
        Distance("fd-dinov2", "Frechet distance of DINOv2", _dino, lambda x, y: (frechet_distance(x, y), None, None)),
    )
}
"""All distances by name."""
