"""Real images with captions, for the methods that ask for them; everything else here needs prompts alone."""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.files import reason, user_path
from rmd.common.pictures import from_image
from rmd.core.plan import Stage
from rmd.data.captions import caption_of
from rmd.data.prompts import positions
from rmd.data.shards import hidden
from rmd.data.text import decode
from rmd.recipes.schema import Recipe
from rmd.worlds.base import Renders
from rmd.worlds.registry import WORLDS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jfif", ".jp2")
"""Image formats that are not read; one of them in a folder is an error, since it would be left out silently."""
MAX_PIXELS = 178_956_970
"""Largest number of pixels in a picture; above it, Pillow warns of a decompression bomb."""
MAX_CAPTION_FILE = 2**20
"""Largest size of a caption file in bytes."""
_TAIL = 65536
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
_NO_PICTURE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Exceptions that Pillow raises for files that are damaged or are no pictures at all."""
RENDERS = 2048
"""Scenes that stand for real images."""
RENDER_SEED = 2_000_003
"""First seed of these scenes: far from the seeds of other renders."""


@dataclass(frozen=True)
class ImageFolder:
    """Pictures of a folder and the captions beside them, in the order of their names."""

    paths: Sequence[Path]
    captions: Sequence[str]

    @staticmethod
    def read(folder: Path) -> ImageFolder:
        """Find the pictures of a folder, open each of them, and read their captions; hidden files are left out.

        Raises:
            RMDError: there is no picture, or one is damaged, too large, of another format, or without a caption.
        """
        files = sorted(path for path in _files(folder) if not hidden(path.name))
        paths = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise RMDError(f"data.images: there is no picture ({', '.join(SUFFIXES)}) in {folder}")
        if other := [path for path in files if path.suffix.lower() in OTHER_SUFFIXES]:
            raise RMDError(f"data.images: {other[0]} is of a format that is not read: make it a PNG, or remove it")
        beside = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
        captions = []
        for path in paths:
            if path.stem not in beside:
                name = path.with_suffix(".txt").name
                raise RMDError(f"data.images: {path} has no caption: write it to {name} beside it")
            captions.append(_caption(beside[path.stem]))
            _check(path)
        return ImageFolder(paths, captions)

    def pixels(self, index: Tensor, size: Stage) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1], scaled to cover the size and cut to it around their middle."""
        found = []
        for i in index.tolist():
            with _opened(self.paths[i]) as image:
                found.append(from_image(ImageOps.fit(as_seen(image), (size.width, size.height))))
        return torch.stack(found)


class Images:
    """Real images in the order that a seed puts them in: sample p's is a pure function of (seed, p)."""

    def __init__(self, source: ImageFolder | Renders, size: Stage, *, seed: int) -> None:
        """Take pictures from a source.

        Args:
            size: the size to which a folder's pictures are brought; renders have it already.
            seed: seed of the order.
        """
        self.source, self.size, self.seed = source, size, seed

    def batch(self, samples: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (n, 3, H, W) in [-1, 1] of global sample numbers, and their captions."""
        captions = self.source.captions
        index = positions(len(captions), samples, seed=self.seed)
        if isinstance(self.source, ImageFolder):
            pixels = self.source.pixels(torch.tensor(index), self.size)
        else:
            pixels = self.source.pixels(torch.tensor(index))
        return pixels, [captions[i] for i in index]


def as_seen(image: Image.Image) -> Image.Image:
    """Return the picture in RGB as a person sees it on a white page.

    It is rotated as its EXIF data say, transparency becomes white, 16-bit grey becomes 8-bit, and only the first frame
    of an animation is used. A colour profile in the file is not applied.
    """
    with suppress(*_NO_PICTURE):  # unreadable EXIF data are ignored; a damaged picture also fails below
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
        grey = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


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
    if recipe.train.gradient_checkpointing:
        raise RMDError(
            "method.adversarial does not go with recomputed activations: set train.gradient_checkpointing to false"
        )
    stage = recipe.build_plan().stages[-1]
    if source in WORLDS.names():
        scenes = WORLDS.get(source).renders(RENDERS, seed=RENDER_SEED + recipe.train.seed, size=stage.height)
        return Images(scenes, stage, seed=recipe.train.seed)
    folder = user_path(source)
    if not folder.is_dir():
        raise RMDError(f"data.images: there is no folder {folder}")
    return Images(ImageFolder.read(folder), stage, seed=recipe.train.seed)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the regular files of a folder, and links to regular files."""
    try:
        yield from (path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise RMDError(f"data.images: cannot read {folder}: {reason(error)}") from error


def _caption(path: Path) -> str:
    try:
        if stat.S_ISREG(path.stat().st_mode) and path.stat().st_size > MAX_CAPTION_FILE:
            raise RMDError(f"data.images: {path} is too large for a caption: at most {MAX_CAPTION_FILE // 2**20} MB")
        found = caption_of(decode(path.read_bytes(), f"data.images: {path}"))
    except OSError as error:
        raise RMDError(f"data.images: cannot read {path}: {reason(error)}") from error
    if not isinstance(found, str):
        raise RMDError(f"data.images: {path}{found.sentence}")
    text = " ".join(found.split())
    if not text:
        raise RMDError(f"data.images: {path} is empty: write the caption of its picture to it")
    return text


def _check(path: Path) -> None:
    """Raise RMDError unless a file is a whole picture; only an unusual header or end makes it read the rest."""
    with _opened(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise RMDError(f"data.images: {path} has {width} x {height} pixels, which is too large: scale it down")
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            tail = file.read()
        if _ENDS.get(image.format or "", b"") not in tail:
            image.load()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of one of the supported formats; raise RMDError, naming the file, for anything wrong with it."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures, which are allowed up to MAX_PIXELS, and of damage that is not visible.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise RMDError(f"data.images: {path} is too large to be read safely: scale it down") from error
    except _NO_PICTURE as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error)[:100]})"
        raise RMDError(f"data.images: {path} is no picture, or a damaged one{reason}: remove it") from error
