"""Albums: folders of generated pictures or clips, each stored with the settings that reproduce it.

An album has `each` pictures per prompt. Picture j of prompt i has the seed `seed + i * each + j`, whatever the batch
size. Its settings are in the PNG file itself, as a text chunk; those of a clip are in a file beside it
(`NAME.mp4.json`). If a file with the same settings exists, it is kept, which makes albums resumable. Batches are always
those of the whole album, because the last bits of a sample depend on the batch size: an album that was interrupted ends
with the same bytes as one that was not. The album of a plan has the plan's prompts, seeds and files instead.
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
from rmd.common.workers import ALONE, Worker, working
from rmd.core.randomness import check_seeds
from rmd.data.captions import check_prompts
from rmd.sample.plans import SUFFIX, PlannedVideo, VideoPlan
from rmd.sample.samplers import Media, Sample, Sampler

KEY = "rmd"
"""Name of the PNG text chunk that holds the settings of a picture, as JSON."""
MAX_ALBUM = 1_000_000
"""Largest number of pictures in an album."""
MAX_NAME = 200
"""Longest file name in bytes: the names derived from it must not exceed the 255 bytes that file systems allow."""


class Settings(Strict):
    """Everything needed to reproduce a picture: the model, the prompt, the seed, and the options that were given."""

    version: str
    """Version of RMD."""
    model: str
    prompt: str
    seed: Annotated[int, Field(ge=0)]
    steps: int | None = None
    """Number of steps of a student's plan."""
    num_inference_steps: int | None = None
    """Number of sampling steps of any other pipeline."""
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    stage: int | None = None
    """Stage of a cascade whose result the picture shows; None for the last one."""
    use_resolution_binning: bool | None = None
    max_sequence_length: int | None = None

    @classmethod
    def current_version(cls) -> int | None:
        """Return None, because the field `version` is the version of RMD, not of this format."""
        return None


@dataclass(frozen=True)
class Picture:
    """One picture or clip of an album: its prompt, seed and file."""

    prompt: str
    seed: int
    path: Path

    def beside(self, what: str) -> Picture:
        """Return another picture of the same prompt and seed, in a file beside this one."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}-{what}{self.path.suffix}"))


@dataclass(frozen=True)
class Album(Sequence[Picture]):
    """The pictures of a list of prompts, in the order of their seeds; file names are computed on access.

    Attributes:
        prompts: one prompt per group of `each` pictures.
        place: folder of the pictures; if `single`, the file of the only picture.
        each: number of pictures per prompt.
        seed: seed of the first picture.
        suffix: suffix of the files.
        single: whether the album is one file.
        planned: the videos of a plan, which name the prompts, seeds and files instead.
    """

    prompts: Sequence[str]
    place: Path
    each: int
    seed: int
    suffix: str
    single: bool
    planned: Sequence[PlannedVideo] = ()

    def __len__(self) -> int:
        return len(self.planned) or len(self.prompts) * self.each

    @overload
    def __getitem__(self, index: int) -> Picture: ...

    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...

    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if self.planned:
            video = self.planned[index]
            return Picture(video.prompt, video.seed, self.place / video.path)
        number, repeat = divmod(index, self.each)
        prompt = self.prompts[number]
        path = self.place if self.single else self.place / f"{number:05d}-{repeat:02d}-{_slug(prompt)}{self.suffix}"
        return Picture(prompt, self.seed + index, path)


def plan_album(prompts: Sequence[str], folder: Path, *, count: int, seed: int, suffix: str = ".png") -> Album:
    """Return an album with `count` pictures per prompt.

    Args:
        prompts: the prompts.
        folder: folder for the pictures; for a single picture, also the file itself, with a name that ends in `suffix`.
        count: number of pictures per prompt.
        seed: seed of the first picture; each further picture has the next seed.
        suffix: .png for pictures; for clips, one of `rmd.common.clips.SUFFIXES`.

    Raises:
        RMDError: there is no prompt, or one that is not usable text; there are too many pictures, or seeds beyond the
            largest; a single file is given for several pictures; or clips cannot be written with this suffix.
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
        raise RMDError(
            f"{len(prompts) * count} samples cannot be saved in the one file {folder}: give a folder as --out"
        )
    if single and len(os.fsencode(folder.name)) > MAX_NAME:
        raise RMDError(f"the name of the file {folder} is too long: use at most {MAX_NAME} bytes")
    return Album(prompts, folder, count, seed, suffix, single)


def planned_album(plan: VideoPlan, folder: Path) -> Album:
    """Return the album of a plan's videos.

    Raises:
        RMDError: a prompt is not usable text, there are too many videos, or MP4 files cannot be written.
    """
    check_prompts(dict.fromkeys(video.prompt for video in plan.videos))
    check_text("the name of the album", str(folder))
    if len(plan.videos) > MAX_ALBUM:
        raise RMDError(f"an album has 1 to {MAX_ALBUM} pictures, not {len(plan.videos)}")
    check_suffix(Path(f"clip{SUFFIX}"))
    return Album((), folder, 1, 0, SUFFIX, single=False, planned=plan.videos)


def share(pictures: Sequence[Picture], worker: Worker, batch_size: int) -> Sequence[Picture]:
    """Return the pictures that a worker makes: every n-th batch of the whole album, unchanged.

    Raises:
        RMDError: there are fewer batches than workers, and none is left for this one.
    """
    number, workers = worker
    if workers == 1:
        return pictures
    starts = range(0, len(pictures), batch_size)
    chosen = [picture for start in starts[number::workers] for picture in pictures[start : start + batch_size]]
    if not chosen:
        raise RMDError(f"nothing is left for worker {number}/{workers}: there are only {len(starts)} batches")
    return chosen


@contextmanager
def writing(album: Album, worker: Worker = ALONE) -> Iterator[None]:
    """Hold the lock of an album's folder, or of its single file, and remove a new folder that remains empty.

    Raises:
        RMDError: another process holds the lock, or the folder cannot be written.
    """
    folder, name = (album.place.parent, f".{album.place.name}.lock") if album.single else (album.place, LOCK)
    try:
        if folder.exists() and not folder.is_dir():
            raise RMDError(f"{folder} is a file: give a folder as --out")
        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    except OSError as error:
        raise RMDError(f"cannot write to {folder}: {reason(error)}") from error
    if worker != ALONE:
        with working(folder, worker, begin=lambda: _check_free(folder, (LOCK,))):
            yield
        return
    try:
        with locked(folder, name):
            _check_free(folder, [path.name for path in folder.glob(".rmd-worker-*.lock")])
            yield
    finally:
        with suppress(OSError):
            if new_folders and [path.name for path in folder.iterdir()] == [name]:
                (folder / name).unlink()
                for path in new_folders:
                    path.rmdir()


def make_album(
    sampler: Sampler, pictures: Sequence[Picture], *, batch_size: int = 4, progress: Callable[[int], None] | None = None
) -> int:
    """Generate and save the pictures that do not exist yet.

    The results of the stages, if the sampler returns them, are saved beside a picture as NAME-stage1.png and so on. If
    only some pictures of a batch exist, the whole batch is computed, because the last bits of a sample depend on the
    batch size.

    Args:
        sampler: generates the pictures.
        pictures: the album.
        batch_size: number of pictures to generate at once.
        progress: called with the numbers of pictures that exist already, and then that each batch added.

    Returns:
        Number of new pictures.

    Raises:
        RMDError: a file exists and is another picture, a file cannot be written, or samples are not finite or
            exceed the device's memory.
    """
    settings, stages = dict(sampler.settings), sampler.stage_count
    missing = [i for i, picture in enumerate(pictures) if not _exists(picture, settings | _own(picture), stages)]
    if progress is not None:
        progress(len(pictures) - len(missing))
    missing_set = set(missing)
    for start in sorted({index - index % batch_size for index in missing}):
        batch = pictures[start : start + batch_size]
        samples = _sample(sampler, batch)
        new = [offset for offset in range(len(batch)) if start + offset in missing_set]
        for offset in new:
            _save_sample(samples[offset], batch[offset], settings | _own(batch[offset]))
        if progress is not None:
            progress(len(new))
    return len(missing)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings of a picture or clip, or None if it has none.

    Raises:
        RMDError: the file is not a picture, or its settings are damaged.
    """
    if path.suffix.lower() != ".png":
        beside = _sidecar(path)
        return read_model(beside, Settings).model_dump(exclude_none=True) if beside.is_file() else None
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RMDError(f"{path} is not a picture: remove it, or choose another --out") from error
    return None if text is None else parse_model(str(text), Settings, f"{path} ({KEY})").model_dump(exclude_none=True)


def _sample(sampler: Sampler, batch: Sequence[Picture]) -> list[Sample]:
    """Return the samples of a batch; raise RMDError if the memory is not sufficient."""
    try:
        return sampler.sample([picture.prompt for picture in batch], [picture.seed for picture in batch])
    except RuntimeError as error:
        # torch has an exception class for GPU memory, but only a message for CPU memory.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RMDError(
                f"there is not enough memory for a batch of {len(batch)}: use a smaller batch or size, or half "
                "precision"
            ) from error
        raise


def _check_free(folder: Path, names: Sequence[str]) -> None:
    """Raise RMDError if another process holds one of a folder's locks."""
    for name in names:
        with locked(folder, name):
            pass


def _own(picture: Picture) -> dict[str, Any]:
    return {"prompt": picture.prompt, "seed": picture.seed}


def _exists(picture: Picture, settings: dict[str, Any], stages: int) -> bool:
    """Return whether a picture exists with its stages; raise RMDError if its file has other settings."""
    if not picture.path.exists():
        return False
    if read_settings(picture.path) != settings:
        raise RMDError(f"{picture.path} is another picture: remove it, or choose another --out")
    return all(picture.beside(f"stage{stage}").path.exists() for stage in range(1, stages + 1))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _save_sample(sample: Sample, picture: Picture, settings: dict[str, Any]) -> None:
    """Save the stages of a sample first: the picture's own file says that all of them are complete."""
    for stage, media in enumerate(sample.stages, start=1):
        _save(media, picture.beside(f"stage{stage}").path, settings | {"stage": stage})
    _save(sample.media, picture.path, settings)


def _save(media: Media, path: Path, settings: dict[str, Any]) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise RMDError(f"{path} is a folder: remove it, or choose another --out")
        if isinstance(media, Image.Image):
            info = PngInfo()
            info.add_text(KEY, json.dumps(settings))
            with replacing(path) as partial:
                media.save(partial, format="PNG", pnginfo=info)
        else:
            # The settings are written first, so that a clip never exists without them.
            write_text(_sidecar(path), json.dumps(settings, indent=1))
            save_clip(media, path, fps=settings["fps"])


def _slug(prompt: str) -> str:
    """Return the beginning of a prompt in lower-case letters and digits, for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt[:400].lower()).strip("-")[:40].strip("-") or "picture"
