"""Real images with captions, for the methods that ask for them; everything else here needs prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from rmd.config import Recipe
from rmd.data.prompts import SCENES, positions
from rmd.errors import RMDError
from rmd.pictures import from_image
from rmd.plan import Stage
from rmd.scenes.dataset import SceneSet, make_scenes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
RENDERS = 2048
"""Scenes that stand for real images."""
RENDER_SEED = 2_000_003
"""Far from those of other renders."""


@dataclass(frozen=True)
class ImageFolder:
    """Pictures of a folder and the captions beside them, in the order of their names."""

    paths: Sequence[Path]
    captions: Sequence[str]

    @staticmethod
    def read(folder: Path) -> ImageFolder:
        """Find the pictures; RMDError if there is none, or one has no caption."""
        paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise RMDError(f"data.images: there is no picture ({', '.join(SUFFIXES)}) in {folder}")
        captions = []
        for path in paths:
            beside = path.with_suffix(".txt")
            if not beside.is_file():
                raise RMDError(f"data.images: {path} has no caption: write it to {beside.name} beside it")
            captions.append(beside.read_text(encoding="utf-8").strip())
        return ImageFolder(paths, captions)

    def pixels(self, index: Tensor, size: Stage) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1], scaled to cover the size and cut to it around their middle."""
        found = []
        for i in index.tolist():
            try:
                with Image.open(self.paths[i]) as image:
                    found.append(from_image(ImageOps.fit(image.convert("RGB"), (size.width, size.height))))
            except OSError as error:
                raise RMDError(f"data.images: {self.paths[i]} is no picture: remove it") from error
        return torch.stack(found)


class Images:
    """Real images in the order that a seed puts them in: sample p's is a pure function of (seed, p)."""

    def __init__(self, source: ImageFolder | SceneSet, size: Stage, *, seed: int) -> None:
        """Args:
        size: that pictures are brought to; renders have it already.
        """
        self.source, self.size, self.seed = source, size, seed

    def batch(self, samples: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (n, 3, H, W) in [-1, 1] of global sample numbers, and their captions."""
        captions = self.source.captions
        index = positions(len(captions), samples, seed=self.seed)
        if isinstance(self.source, SceneSet):
            pixels = self.source.pixels(torch.tensor(index))
        else:
            pixels = self.source.pixels(torch.tensor(index), self.size)
        return pixels, [captions[i] for i in index]


def load_images(recipe: Recipe) -> Images | None:
    """The real images of a recipe; None where its method needs none.

    Raises:
        RMDError: the method needs images and there are none, or they are of no use to it.
    """
    method, source = recipe.method, recipe.data.images
    if method.adversarial == 0:
        if source is not None:
            raise RMDError("data.images are of no use to this method: set method.adversarial, or leave them out")
        return None
    if method.name != "dmd2":
        raise RMDError(f"method.adversarial is DMD2's, but the method is {method.name}: set it to 0")
    if source is None:
        raise RMDError("method.adversarial needs real images: set data.images to a folder of them, or to scenes")
    if recipe.train.recompute:
        raise RMDError("method.adversarial does not go with recomputed activations: set train.recompute to false")
    stage = recipe.build_plan().stages[-1]
    if source == SCENES:
        scenes = make_scenes(RENDERS, seed=RENDER_SEED + recipe.train.seed, training=True, size=stage.height)
        return Images(scenes, stage, seed=recipe.train.seed)
    folder = Path(source)
    if not folder.is_dir():
        raise RMDError(f"data.images: there is no folder {folder}")
    return Images(ImageFolder.read(folder), stage, seed=recipe.train.seed)
