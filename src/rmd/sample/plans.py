"""Plans of benchmarks: the videos that a model is to make, with prompts, seeds and the exact names of the files.

A benchmark's own program finds its videos by their names. A plan is made once from the benchmark's list of prompts and
then says the same to everyone: to `rmd generate --plan`, which makes the videos, and to the check before they are
evaluated.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rmd.common.errors import RMDError, check_text, shown
from rmd.common.files import disk_errors, read_model, write_text
from rmd.common.typed import Strict
from rmd.core.randomness import MAX_SEED
from rmd.data.prompt_set import PromptSet

SUFFIX = ".mp4"
"""The only format of clips that all parts of the benchmarks read."""
MAX_NAME = 240
"""Longest file name in bytes: the names derived from it must not exceed the 255 bytes that file systems allow."""


class PlannedVideo(Strict):
    """One video of a plan."""

    path: str
    """Its file below the folder of the videos, with slashes between folders."""
    prompt: Annotated[str, Field(min_length=1)]
    """The prompt that the model is given."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]

    @property
    def folder(self) -> str:
        """The first part of its path."""
        return self.path.partition("/")[0]

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        check_text("the path of a video", path)
        parts = path.split("/")
        if len(parts) < 2 or "\\" in path or any(not part or part.startswith(".") for part in parts):
            raise RMDError(f"{shown(path)} cannot be the path of a video: it should be that of a file in a folder")
        if any(len(os.fsencode(part)) > MAX_NAME for part in parts):
            raise RMDError(f"{shown(path)} cannot be the path of a video: names have at most {MAX_NAME} bytes")
        if not path.endswith(SUFFIX):
            raise RMDError(f"{shown(path)} cannot be the path of a video: it should end in {SUFFIX}")
        return path


class VideoPlan(Strict):
    """The videos of a benchmark that a model is to make."""

    version: int = 1
    benchmark: Literal["vbench", "compbench"]
    layout: str
    """The form of the paths, in words."""
    prompts: PromptSet
    """The prompts that the model is given, in the order of the benchmark's list."""
    sources: dict[str, str]
    """SHA-256 of every file that the plan was made from, by its name."""
    videos: Annotated[tuple[PlannedVideo, ...], Field(min_length=1)]

    @field_validator("videos")
    @classmethod
    def _each_once(cls, videos: tuple[PlannedVideo, ...]) -> tuple[PlannedVideo, ...]:
        for what in ("path", "seed"):
            ((value, often),) = Counter(getattr(video, what) for video in videos).most_common(1)
            if often > 1:
                raise RMDError(f"{often} videos have the {what} {shown(value)}: make the plan again")
        return videos

    def folders(self) -> tuple[str, ...]:
        """Return the first part of every path, each once."""
        return tuple(dict.fromkeys(video.folder for video in self.videos))

    def below(self, folders: Sequence[str]) -> VideoPlan:
        """Return the plan of the videos in some of its folders.

        Raises:
            RMDError: a folder has no videos.
        """
        for folder in folders:
            if folder not in self.folders():
                raise RMDError(f"the plan has no videos of {folder}: it has those of {', '.join(self.folders())}")
        kept = tuple(video for video in self.videos if video.folder in folders)
        return self.model_copy(update={"videos": kept})


def read_plan(path: Path) -> VideoPlan:
    """Read a plan.

    Raises:
        RMDError: the file is missing, or is not a plan.
    """
    return read_model(path, VideoPlan)


def write_plan(plan: VideoPlan, path: Path) -> None:
    """Write a plan to a file.

    Raises:
        RMDError: the file cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, plan.model_dump_json(indent=1) + "\n")
