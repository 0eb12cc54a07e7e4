"""Real images with captions, for adversarial training; every other part of a method needs prompts only."""

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
from rmd.common.files import read_errors, user_path
from rmd.common.pictures import from_image
from rmd.core.plan import Stage
from rmd.data.captions import caption_of
from rmd.data.formats import decode, is_hidden
from rmd.data.prompts import positions
from rmd.recipes.schema import Recipe
from rmd.worlds.base import Renders
from rmd.worlds.registry import WORLDS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jfif", ".jp2")
"""Image formats that RMD does not read. Such a file in a folder is an error, since it would be left out silently."""
MAX_PIXELS = 178_956_970
"""Largest number of pixels in a picture: above it, Pillow treats a picture as a decompression bomb."""
MAX_CAPTION_FILE = 2**20
"""Largest size of a caption file in bytes."""
_TAIL = 65536
"""Number of bytes at the end of a file in which the marker of its format's end is searched for."""
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
_NO_PICTURE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Exceptions that Pillow raises for files that are damaged or not pictures at all."""
RENDERS = 2048
"""Number of rendered scenes that take the place of real images."""
RENDER_SEED = 2_000_003
"""Seed of these scenes, to which the recipe's seed is added; far from the seeds of other renders."""


@dataclass(frozen=True)
class ImageFolder:
    """The pictures of a folder, sorted by name, and the captions beside them."""

    paths: Sequence[Path]
    captions: Sequence[str]
    setting: str = "data.images"
    """The setting or option that names the folder, for error messages."""

    @staticmethod
    def read(folder: Path, *, captions: bool = True, setting: str = "data.images") -> ImageFolder:
        """Find and check the pictures of a folder, and read their captions; hidden files are left out.

        Args:
            folder: the folder.
            captions: whether the pictures have captions; otherwise all are "".
            setting: the setting or option that names the folder, for error messages.

        Raises:
            RMDError: there is no picture, or one is damaged, too large, of another format, or without a caption.
        """
        files = sorted(path for path in _files(folder, setting) if not is_hidden(path.name))
        paths = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise RMDError(f"{setting}: there is no picture ({', '.join(SUFFIXES)}) in {folder}: add some")
        if other := [path for path in files if path.suffix.lower() in OTHER_SUFFIXES]:
            raise RMDError(f"{setting}: RMD does not read the format of {other[0]}: convert it to PNG, or remove it")
        texts = _captions(files, paths) if captions else [""] * len(paths)
        for path in paths:
            _check(path, setting)
        return ImageFolder(paths, texts, setting)

    def pixels(self, index: Tensor, size: Stage) -> Tensor:
        """Return pictures (n, 3, H, W) in [-1, 1], scaled to cover the size and cropped to it at their centre."""
        pictures = []
        for i in index.tolist():
            with opened(self.paths[i], self.setting) as image:
                pictures.append(from_image(ImageOps.fit(as_seen(image), (size.width, size.height))))
        return torch.stack(pictures)


class Images:
    """Real images in the order of a seed: the image of sample p depends on (seed, p) only."""

    def __init__(self, source: ImageFolder | Renders, size: Stage, *, seed: int) -> None:
        """Choose a source of images.

        Args:
            source: pictures of a folder, or rendered scenes.
            size: the size to which a folder's pictures are scaled; rendered scenes already have it.
            seed: the seed of the order.
        """
        self.source, self.size, self.seed = source, size, seed

    def batch(self, samples: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Return the pictures (n, 3, H, W) in [-1, 1] of n global sample numbers, and their captions."""
        captions = self.source.captions
        index = positions(len(captions), samples, seed=self.seed)
        if isinstance(self.source, ImageFolder):
            pixels = self.source.pixels(torch.tensor(index), self.size)
        else:
            pixels = self.source.pixels(torch.tensor(index))
        return pixels, [captions[i] for i in index]


def as_seen(image: Image.Image) -> Image.Image:
    """Return the picture in RGB as a person sees it on a white page.

    It is rotated as its EXIF data say, transparent areas become white, 16-bit grey is scaled to 8 bits, and only the
    first frame of an animation is used. A colour profile in the file is not applied.
    """
    with suppress(*_NO_PICTURE):  # unreadable EXIF data are ignored; a damaged picture fails below as well
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them at 255
        grey = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def load_images(recipe: Recipe) -> Images | None:
    """Load the real images of a recipe, or return None if its method needs none.

    Raises:
        RMDError: the method needs images and there are none, or it has no use for those that the recipe names.
    """
    method, source = recipe.method, recipe.data.images
    if not method.needs_images:
        if source is not None:
            raise RMDError("data.images has no effect with this method: set method.adversarial, or leave it out")
        return None
    if source is None:
        raise RMDError("method.adversarial needs real images: set data.images to a folder of them, or to scenes")
    if recipe.train.gradient_checkpointing:
        raise RMDError(
            "method.adversarial does not work with gradient checkpointing: set train.gradient_checkpointing to false"
        )
    stage = recipe.build_plan().stages[-1]
    if source in WORLDS.names():
        scenes = WORLDS.get(source).renders(RENDERS, seed=RENDER_SEED + recipe.train.seed, size=stage.height)
        return Images(scenes, stage, seed=recipe.train.seed)
    folder = user_path(source)
    if not folder.is_dir():
        raise RMDError(f"data.images: there is no folder {folder}: name an existing one")
    return Images(ImageFolder.read(folder), stage, seed=recipe.train.seed)


def _files(folder: Path, setting: str) -> Iterator[Path]:
    """Yield the regular files of a folder, including links to regular files."""
    with read_errors(folder, f"{setting}: "):
        yield from (path for path in folder.iterdir() if path.is_file())


def _captions(files: Sequence[Path], paths: Sequence[Path]) -> list[str]:
    """Return the captions of pictures, from the text files beside them."""
    beside = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    for path in paths:
        if path.stem not in beside:
            name = path.with_suffix(".txt").name
            raise RMDError(f"data.images: {path} has no caption: write it to {name} beside it")
    return [_caption(beside[path.stem]) for path in paths]


def _caption(path: Path) -> str:
    with read_errors(path, "data.images: "):
        if stat.S_ISREG(path.stat().st_mode) and path.stat().st_size > MAX_CAPTION_FILE:
            raise RMDError(f"data.images: {path} is too large for a caption: at most {MAX_CAPTION_FILE // 2**20} MB")
        caption = caption_of(decode(path.read_bytes(), f"data.images: {path}"))
    if not isinstance(caption, str):
        raise RMDError(f"data.images: {path}{caption.sentence}")
    text = " ".join(caption.split())
    if not text:
        raise RMDError(f"data.images: {path} is empty: write the caption of its picture to it")
    return text


def _check(path: Path, setting: str) -> None:
    """Raise RMDError unless a file is a whole picture; the pixels are decoded only if its end looks unusual."""
    with opened(path, setting) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise RMDError(f"{setting}: {path} has {width} x {height} pixels, which is too large: scale it down")
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            tail = file.read()
        if _ENDS.get(image.format or "", b"") not in tail:
            image.load()


@contextmanager
def opened(path: Path, setting: str) -> Iterator[Image.Image]:
    """Open a picture of one of the supported formats; any error within the block becomes an RMDError with its name."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures, which are allowed up to MAX_PIXELS, and about invisible damage.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise RMDError(f"{setting}: {path} is too large to be read safely: scale it down") from error
    except _NO_PICTURE as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error)[:100]})"
        raise RMDError(f"{setting}: {path} is not a picture, or is damaged{why}: remove it") from error
