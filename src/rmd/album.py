"""An album: pictures of prompts as PNG files, each with what it takes to make it again; resumable.

Picture j of prompt i has the generator of seed + i * count + j, in every batch and on every device that draws on the
CPU. A picture that is there with the same making is not made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import rmd
from rmd.errors import RMDError
from rmd.pipeline import RMDPipeline

KEY = "rmd"
"""Name of the PNG text chunk that holds a picture's making, as JSON."""


@dataclass(frozen=True)
class Picture:
    """One picture to make."""

    prompt: str
    seed: int
    path: Path

    def beside(self, what: str) -> Path:
        """The file of a picture that belongs to this one."""
        return self.path.with_name(f"{self.path.stem}-{what}.png")


def plan_album(prompts: Sequence[str], folder: Path, *, count: int, seed: int) -> list[Picture]:
    """The pictures of an album, `count` of each prompt, in the order of their seeds."""
    if not prompts:
        raise RMDError("there is no prompt: give one, or --prompts FILE")
    pictures = []
    for i, prompt in enumerate(prompts):
        for j in range(count):
            name = f"{i:05d}-{j:02d}-{_slug(prompt)}.png"
            pictures.append(Picture(prompt, seed + i * count + j, folder / name))
    return pictures


def make_album(
    pipe: RMDPipeline, pictures: Sequence[Picture], *, height: int | None = None, width: int | None = None,
    batch_size: int = 4, stages: bool = False, progress: Callable[[int], None] | None = None,
) -> int:  # fmt: skip
    """Make the pictures that are not there yet; returns how many were made.

    Args:
        stages: also write what every stage ended with, as NAME-stage1.png and so on.

    Raises:
        RMDError: a file of that name is another picture, or a file cannot be written.
    """
    final = pipe.plan.stages[-1]
    size = {"height": height or final.height, "width": width or final.width}
    model = {"version": rmd.__version__, "model": pipe.config.source, "steps": len(pipe.plan.steps), **size}
    wanted = [picture for picture in pictures if not _is_there(picture, model | _making(picture))]
    if progress is not None:
        progress(len(pictures) - len(wanted))
    for batch in _batches(wanted, batch_size):
        output = pipe(
            [picture.prompt for picture in batch],
            generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
            return_stages=stages,
            height=size["height"],
            width=size["width"],
        )
        for index, picture in enumerate(batch):
            making = model | _making(picture)
            for stage, images in enumerate(output.stages, start=1):
                _save(images[index], picture.beside(f"stage{stage}"), making | {"stage": stage})
            _save(output.images[index], picture.path, making)
        if progress is not None:
            progress(len(batch))
    return len(wanted)


def add_teacher(
    teacher: DiffusionPipeline, pictures: Sequence[Picture], *, steps: int, guidance: float, height: int, width: int,
    progress: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Write NAME-teacher.png beside every picture: the official pipeline with its own scheduler and the same seed."""
    for picture in pictures:
        making = _making(picture) | {"teacher steps": steps, "guidance": guidance, "height": height, "width": width}
        path = picture.beside("teacher")
        if not _is_there(Picture(picture.prompt, picture.seed, path), making):
            image = teacher(
                prompt=picture.prompt,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(picture.seed),
            ).images[0]
            _save(image, path, making)
        if progress is not None:
            progress(1)


def read_making(path: Path) -> dict[str, Any] | None:
    """How a picture was made, or None where the file does not say; RMDError if it is no picture."""
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except OSError as error:
        raise RMDError(f"{path} is no picture: remove it, or choose another --out") from error
    return None if text is None else dict(json.loads(text))


def _making(picture: Picture) -> dict[str, Any]:
    return {"prompt": picture.prompt, "seed": picture.seed}


def _is_there(picture: Picture, making: dict[str, Any]) -> bool:
    if not picture.path.exists():
        return False
    if read_making(picture.path) != making:
        raise RMDError(f"{picture.path} is another picture: remove it, or choose another --out")
    return True


def _save(image: Image.Image, path: Path, making: dict[str, Any]) -> None:
    info = PngInfo()
    info.add_text(KEY, json.dumps(making))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=info)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RMDError(f"cannot write {path}: {error.strerror or error}") from error


def _batches(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _slug(prompt: str) -> str:
    """Letters and digits of the prompt's beginning, for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "picture"
