"""Building of a study: media without anything that could tell the systems apart, the design and the key."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rmd.common.clips import copy_mp4, read_clip, save_clip
from rmd.common.errors import RMDError, check_text
from rmd.common.files import check_new_folder, new_folder, write_text
from rmd.common.pictures import webp
from rmd.core.randomness import check_seeds, generator
from rmd.data.images import as_seen, opened
from rmd.study.design import QUESTIONS, Design, Question, check_design, every_pair
from rmd.study.folder import DESIGN, KEY, MEDIA, Key
from rmd.study.sources import Item, find_items

CHECKS = 12
"""Largest number of attention checks from which those of a rater are drawn."""
_LONG_AGO = 946_684_800
"""Time of all media files, 2000-01-01: their order of creation would tell systems apart."""
_SIDE = 8
"""Side in pixels to which the spoilt picture of an attention check is reduced."""


def build_study(
    sources: Sequence[tuple[str, str]], out: Path, *, title: str = "Which one do you prefer?",
    prompts: str | None = None, against: str | None = None, questions: Sequence[Question] = QUESTIONS,
    tasks: int = 30, repeats: int = 2, checks: int = 2, min_seconds: float = 1.0, most_missed: float = 0.5,
    seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> Design:  # fmt: skip
    """Write the folder of a study, and return its design.

    Args:
        sources: name of each system, and its folder or a pattern of files; see `rmd.study.sources.find_items`.
        out, title: a new folder, and the title of the page.
        prompts: a file of prompts for samples that do not name them.
        against: a system with which all others are compared; by default, all pairs are.
        questions: what raters are asked, one pass each.
        tasks: number of pairs that a rater sees in each question, at most the number of prompts.
        repeats, checks: numbers of repeated pairs and attention checks in each question.
        min_seconds: time for which a pair must be looked at.
        most_missed: raters who miss a larger share of their attention checks are left out of the analysis.
        seed: seed of the order, the sides and the names of files.
        progress: called with the number of files so far and their total.

    Raises:
        RMDError: the samples do not match or are damaged, differ in size, or the folder cannot be written.
    """
    check_text("--title", title)
    check_seeds(seed)
    check_new_folder(out)
    media, items = find_items(sources, prompts=prompts)
    order = torch.randperm(len(sources), generator=generator(seed, "systems")).tolist()
    names = [sources[i][0] for i in order]
    items = [Item(item.prompt, tuple(item.files[i] for i in order)) for item in items]
    if against is not None and against not in names:
        raise RMDError(f"--against {against} is none of the systems {', '.join(names)}")
    pair = None if against is None else names.index(against)
    design = check_design(Design(
        title=title, media=media, questions=tuple(questions), prompts=tuple(item.prompt for item in items),
        **_names(media, items, checks, seed), pairs=every_pair(len(names), against=pair), tasks=min(tasks, len(items)),
        repeats=min(repeats, tasks, len(items)), checks_each=min(checks, CHECKS, len(items)), min_seconds=min_seconds,
        seed=seed,
    ))  # fmt: skip
    key = Key(
        systems=tuple(names), sources=tuple(tuple(str(path) for path in item.files) for item in items),
        most_missed=most_missed,
    )  # fmt: skip
    with new_folder(out) as folder:
        (folder / MEDIA).mkdir(parents=True)
        _write_media(design, items, folder / MEDIA, progress)
        write_text(folder / DESIGN, design.model_dump_json(indent=1) + "\n")
        write_text(folder / KEY, key.model_dump_json(indent=1) + "\n")
    return design


def _names(media: str, items: Sequence[Item], checks: int, seed: int) -> dict[str, Any]:
    """Return the names of all files, which tell nothing about them, as fields of a design."""
    pool = min(CHECKS, len(items)) if checks else 0
    suffix = ".png" if media == "pictures" else _clip_suffix(items[0].files[0])
    count = len(items) * len(items[0].files) + 2 * pool
    draws = torch.randint(256, (count, 12), generator=generator(seed, "names"))
    names = iter([bytes(row.tolist()).hex() + suffix for row in draws])
    files = tuple(tuple(next(names) for _ in item.files) for item in items)
    return {"files": files, "checks": tuple((next(names), next(names)) for _ in range(pool))}


def _write_media(
    design: Design, items: Sequence[Item], folder: Path, progress: Callable[[int, int], None] | None
) -> None:
    """Write all files without their metadata and with the same times."""
    copy, spoil = (_copy_picture, _spoil_picture) if design.media == "pictures" else (_copy_clip, _spoil_clip)
    total, done = len(items) * len(items[0].files) + 2 * len(design.checks), 0
    for number, (item, names) in enumerate(zip(items, design.files, strict=True)):
        shapes = []
        for source, name in zip(item.files, names, strict=True):
            shapes.append(copy(source, folder / name))
        if len(set(shapes)) > 1:
            first, other = next((0, i) for i, shape in enumerate(shapes) if shape != shapes[0])
            raise RMDError(
                f"raters could tell systems by their sizes: {item.files[first]} has {shapes[first]}, and "
                f"{item.files[other]} has {shapes[other]}; generate them alike"
            )
        done += len(names)
        if number < len(design.checks):
            whole, spoilt = design.checks[number]
            copy(item.files[0], folder / whole)
            spoil(item.files[0], folder / spoilt)
            done += 2
        if progress is not None:
            progress(done, total)
    for path in folder.iterdir():
        os.utime(path, (_LONG_AGO, _LONG_AGO))


def _copy_picture(source: Path, target: Path) -> str:
    """Write a picture as a PNG file of its pixels alone; return its size in words."""
    picture = _picture(source)
    picture.save(target, "PNG")
    return f"{picture.width} x {picture.height} pixels"


def _spoil_picture(source: Path, target: Path) -> None:
    _spoilt(_picture(source)).save(target, "PNG")


def _picture(path: Path) -> Image.Image:
    with opened(path, "--system") as image:
        return as_seen(image)


def _spoilt(image: Image.Image) -> Image.Image:
    """Return a picture of coarse blocks, with which nobody could be content."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _clip_suffix(path: Path) -> str:
    """Return how the files of clips end: GIF becomes WebP, which is lossless, too."""
    return ".mp4" if path.suffix.lower() == ".mp4" else ".webp"


def _copy_clip(source: Path, target: Path) -> str:
    """Write a clip without its metadata; return its size in words."""
    clip = read_clip(source)
    if target.suffix == ".mp4":
        copy_mp4(source, target)
    else:
        target.write_bytes(webp(clip.frames, fps=clip.fps))
    width, height = clip.frames[0].size
    return f"{width} x {height} pixels, {len(clip.frames)} frames at {clip.fps:g} a second"


def _spoil_clip(source: Path, target: Path) -> None:
    clip = read_clip(source)
    save_clip([_spoilt(frame) for frame in clip.frames], target, fps=round(clip.fps))
