"""An album: pictures or clips of prompts as files, each with what it takes to make it again; resumable.

Picture j of prompt i has the generator of seed + i * count + j, in every batch and on every device that draws on the
CPU. A PNG file holds its making itself, a clip in a file beside it (`NAME.mp4.json`). A picture that is there with the
same making is not made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rmd.clips import check_suffix, save_clip
from rmd.errors import RMDError
from rmd.makers import Made, Maker

KEY = "rmd"
"""Name of the PNG text chunk that holds a picture's making, as JSON."""


@dataclass(frozen=True)
class Picture:
    """One picture to make."""

    prompt: str
    seed: int
    path: Path

    def beside(self, what: str) -> Picture:
        """Another picture of the same prompt and seed, in a file beside this one's."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}-{what}{self.path.suffix}"))


def plan_album(prompts: Sequence[str], folder: Path, *, count: int, seed: int, suffix: str = ".png") -> list[Picture]:
    """The pictures of an album, `count` of each prompt, in the order of their seeds.

    Args:
        folder: where they go; or, for a single one, the file itself, whose name ends in `suffix`.
        suffix: .png for pictures; of clips one of `rmd.clips.SUFFIXES`.

    Raises:
        RMDError: there is no prompt, or one file for several pictures, or no clip can be written to such files.
    """
    if not prompts:
        raise RMDError("there is no prompt: give one, or --prompts FILE")
    if suffix != ".png":
        check_suffix(Path(f"clip{suffix}"))
    if folder.suffix.lower() == suffix:
        if len(prompts) * count > 1:
            raise RMDError(
                f"{len(prompts) * count} samples do not go into the one file {folder}: give a folder as --out"
            )
        return [Picture(prompts[0], seed, folder)]
    pictures = []
    for i, prompt in enumerate(prompts):
        for j in range(count):
            name = f"{i:05d}-{j:02d}-{_slug(prompt)}{suffix}"
            pictures.append(Picture(prompt, seed + i * count + j, folder / name))
    return pictures


def make_album(
    maker: Maker, pictures: Sequence[Picture], *, batch_size: int = 4, progress: Callable[[int], None] | None = None
) -> int:
    """Make the pictures that are not there yet; returns how many were made.

    What every stage ended with, where the maker gives it, lies beside as NAME-stage1.png and so on.

    Raises:
        RMDError: a file of that name is another picture, or a file cannot be written.
    """
    making = dict(maker.making)
    wanted = [picture for picture in pictures if not _is_there(picture, making | _own(picture))]
    if progress is not None:
        progress(len(pictures) - len(wanted))
    for batch in _batches(wanted, batch_size):
        samples = maker.make([picture.prompt for picture in batch], [picture.seed for picture in batch])
        for picture, sample in zip(batch, samples, strict=True):
            whole = making | _own(picture)
            for stage, made in enumerate(sample.stages, start=1):
                _save(made, picture.beside(f"stage{stage}").path, whole | {"stage": stage})
            _save(sample.made, picture.path, whole)
        if progress is not None:
            progress(len(batch))
    return len(wanted)


def read_making(path: Path) -> dict[str, Any] | None:
    """How a picture was made, or None where the file does not say; RMDError if it is no picture."""
    if path.suffix.lower() != ".png":
        beside = _sidecar(path)
        return dict(json.loads(beside.read_text(encoding="utf-8"))) if beside.is_file() else None
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except OSError as error:
        raise RMDError(f"{path} is no picture: remove it, or choose another --out") from error
    return None if text is None else dict(json.loads(text))


def _own(picture: Picture) -> dict[str, Any]:
    return {"prompt": picture.prompt, "seed": picture.seed}


def _is_there(picture: Picture, making: dict[str, Any]) -> bool:
    if not picture.path.exists():
        return False
    if read_making(picture.path) != making:
        raise RMDError(f"{picture.path} is another picture: remove it, or choose another --out")
    return True


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _save(made: Made, path: Path, making: dict[str, Any]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(made, Image.Image):
            info = PngInfo()
            info.add_text(KEY, json.dumps(making))
            made.save(partial, format="PNG", pnginfo=info)
        else:
            save_clip(made, partial, fps=making["fps"])
            _sidecar(path).write_text(json.dumps(making, indent=1), encoding="utf-8")
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
