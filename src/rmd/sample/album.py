"""Albums of pictures or clips as files, each stored with the settings that make it again; resumable.

Picture j of prompt i uses the generator of seed + i * count + j, in every batch and on every device that draws on the
CPU. A PNG file contains its settings, a clip has them in a file beside it (`NAME.mp4.json`). A picture that exists with
the same settings is left as it is. Batches are always those of the whole album, so an interrupted album ends with the
same bytes as one that was not interrupted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, overload

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field

from rmd.common.clips import check_suffix, save_clip
from rmd.common.errors import RMDError, check_text, shown
from rmd.common.files import LOCK, disk_errors, locked, parse_model, read_model, reason, replacing, write_text
from rmd.common.typed import Strict
from rmd.core.randomness import check_seeds
from rmd.data.captions import check_prompts
from rmd.sample.makers import Made, Maker, Sample

KEY = "rmd"
"""Name of the PNG text chunk that holds a picture's making, as JSON."""
MAX_ALBUM = 1_000_000
"""Largest number of pictures in an album."""
MAX_NAME = 200
"""Longest file name, in bytes, that is accepted: names derived from it must fit the 255 that file systems allow."""


class Making(Strict):
    """Everything needed to make a picture again: model, prompt, seed, and the settings that were given."""

    version: str
    """Version of RMD."""
    model: str
    prompt: str
    seed: Annotated[int, Field(ge=0)]
    steps: int | None = None
    """Number of steps in a student's plan."""
    num_inference_steps: int | None = None
    """Sampling steps of any other pipeline."""
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    stage: int | None = None
    """Stage of a cascade whose result this picture shows; empty: the last stage."""
    use_resolution_binning: bool | None = None
    max_sequence_length: int | None = None

    @classmethod
    def current_version(cls) -> int | None:
        """Return None: `version` is the version of RMD."""
        return None


@dataclass(frozen=True)
class Picture:
    """One picture to make."""

    prompt: str
    seed: int
    path: Path

    def beside(self, what: str) -> Picture:
        """Another picture of the same prompt and seed, in a file beside this one's."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}-{what}{self.path.suffix}"))


@dataclass(frozen=True)
class Album(Sequence[Picture]):
    """The pictures of some prompts in the order of their seeds; file names are computed on access.

    Attributes:
        place: the folder of the pictures; if `single`, the file of the only picture.
        each: number of pictures per prompt.
        beside: suffix of the names of pictures beside these, such as "teacher".
    """

    prompts: Sequence[str]
    place: Path
    each: int
    seed: int
    suffix: str
    single: bool
    beside: str = ""

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    @overload
    def __getitem__(self, index: int) -> Picture: ...

    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...

    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        number, turn = divmod(index, self.each)
        prompt = self.prompts[number]
        path = self.place if self.single else self.place / f"{number:05d}-{turn:02d}-{_slug(prompt)}{self.suffix}"
        picture = Picture(prompt, self.seed + index, path)
        return picture.beside(self.beside) if self.beside else picture


def plan_album(prompts: Sequence[str], folder: Path, *, count: int, seed: int, suffix: str = ".png") -> Album:
    """Return the pictures of an album, `count` of each prompt, in the order of their seeds.

    Args:
        folder: the folder for the pictures; for a single picture, the file itself, whose name ends in `suffix`.
        suffix: .png for pictures; for clips, one of `rmd.common.clips.SUFFIXES`.

    Raises:
        RMDError: there is no prompt, or one that is no text; there are too many pictures, or seeds that are too large;
            one file is named for several pictures; or clips cannot be written to such files.
    """
    check_prompts(prompts)
    check_text("the name of the album", str(folder))
    if not 1 <= len(prompts) * count <= MAX_ALBUM:
        raise RMDError(f"an album has 1 to {MAX_ALBUM} pictures, not {shown(len(prompts) * count)}")
    check_seeds(seed, len(prompts) * count)
    if suffix != ".png":
        check_suffix(Path(f"clip{suffix}"))
    single = folder.suffix.lower() == suffix
    if single and len(prompts) * count > 1:
        raise RMDError(f"{len(prompts) * count} samples do not go into the one file {folder}: give a folder as --out")
    if single and len(os.fsencode(folder.name)) > MAX_NAME:
        raise RMDError(f"the name of the file {folder} is too long: use at most {MAX_NAME} bytes")
    return Album(prompts, folder, count, seed, suffix, single)


@contextmanager
def writing(album: Album) -> Iterator[None]:
    """Hold the lock of an album's folder, or of its one file; a new folder that stays empty is removed again.

    Raises:
        RMDError: another process writes to it, or it cannot be written to.
    """
    folder, name = (album.place.parent, f".{album.place.name}.lock") if album.single else (album.place, LOCK)
    try:
        if folder.exists() and not folder.is_dir():
            raise RMDError(f"{folder} is a file: give a folder as --out")
        made = [path for path in (folder, *folder.parents) if not path.exists()]
    except OSError as error:
        raise RMDError(f"cannot write to {folder}: {reason(error)}") from error
    try:
        with locked(folder, name):
            yield
    finally:
        with suppress(OSError):
            if made and [path.name for path in folder.iterdir()] == [name]:
                (folder / name).unlink()
                for path in made:
                    path.rmdir()


def make_album(
    maker: Maker, pictures: Sequence[Picture], *, batch_size: int = 4, progress: Callable[[int], None] | None = None
) -> int:
    """Make the pictures that do not exist yet; return the number of pictures made.

    If the maker returns the result of every stage, these are written beside the picture as NAME-stage1.png and so on. A
    batch that exists in part is made as a whole, since a sample's last bits depend on how many are computed together.

    Raises:
        RMDError: a file of that name is another picture, a file cannot be written, or the samples are not finite or do
            not fit the device's memory.
    """
    making, stages = dict(maker.making), maker.stage_count
    wanted = [i for i, picture in enumerate(pictures) if not _is_there(picture, making | _own(picture), stages)]
    if progress is not None:
        progress(len(pictures) - len(wanted))
    missing = set(wanted)
    for start in sorted({index - index % batch_size for index in wanted}):
        batch = pictures[start : start + batch_size]
        samples = _made(maker, batch)
        new = [place for place in range(len(batch)) if start + place in missing]
        for picture, sample in ((batch[place], samples[place]) for place in new):
            whole = making | _own(picture)
            for stage, made in enumerate(sample.stages, start=1):
                _save(made, picture.beside(f"stage{stage}").path, whole | {"stage": stage})
            _save(sample.made, picture.path, whole)
        if progress is not None:
            progress(len(new))
    return len(wanted)


def read_making(path: Path) -> dict[str, Any] | None:
    """Return how a picture was made, or None if the file does not say; raise RMDError if the file is damaged."""
    if path.suffix.lower() != ".png":
        beside = _sidecar(path)
        return read_model(beside, Making).model_dump(exclude_none=True) if beside.is_file() else None
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RMDError(f"{path} is no picture: remove it, or choose another --out") from error
    return None if text is None else parse_model(str(text), Making, f"{path} ({KEY})").model_dump(exclude_none=True)


def _made(maker: Maker, batch: Sequence[Picture]) -> list[Sample]:
    try:
        return maker.make([picture.prompt for picture in batch], [picture.seed for picture in batch])
    except RuntimeError as error:
        # torch has an exception class of its own for GPU memory, but only a message for the CPU's.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RMDError(
                f"there is not enough memory for {len(batch)} at once: use a smaller batch or size, or half precision"
            ) from error
        raise


def _own(picture: Picture) -> dict[str, Any]:
    return {"prompt": picture.prompt, "seed": picture.seed}


def _is_there(picture: Picture, making: dict[str, Any], stages: int) -> bool:
    if not picture.path.exists():
        return False
    if read_making(picture.path) != making:
        raise RMDError(f"{picture.path} is another picture: remove it, or choose another --out")
    return all(picture.beside(f"stage{stage}").path.exists() for stage in range(1, stages + 1))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _save(made: Made, path: Path, making: dict[str, Any]) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise RMDError(f"{path} is a folder: remove it, or choose another --out")
        if isinstance(made, Image.Image):
            info = PngInfo()
            info.add_text(KEY, json.dumps(making))
            with replacing(path) as partial:
                made.save(partial, format="PNG", pnginfo=info)
        else:
            # Written first, so that a clip never exists without it.
            write_text(_sidecar(path), json.dumps(making, indent=1))
            save_clip(made, path, fps=making["fps"])


def _slug(prompt: str) -> str:
    """Letters and digits of the prompt's beginning, for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt[:400].lower()).strip("-")[:40].strip("-") or "picture"
