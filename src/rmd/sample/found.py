"""Samples in a folder: those of `rmd generate` know their prompts and seeds, and all others only their names."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from rmd.common.clips import SUFFIXES as CLIPS
from rmd.common.errors import RMDError
from rmd.common.files import read_errors, user_path
from rmd.data.formats import is_hidden
from rmd.data.images import SUFFIXES as PICTURES
from rmd.sample.album import read_settings

SUFFIXES = tuple(dict.fromkeys((*PICTURES, *CLIPS)))
"""The names of samples end in one of these."""
RECORDED = (".png", *CLIPS)
"""The names of samples that may say how they were made end in one of these."""
_BESIDE = re.compile(r"-(teacher|stage\d+)$")
"""`rmd generate` adds this to the names of files beside a student's sample."""


def find_samples(place: str, *, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the samples of a folder or a pattern, sorted by name.

    A folder's files beside a student's samples, such as the results of single stages, are left out; a pattern can name
    them.

    Args:
        place: a folder, or a pattern of files.
        suffixes: what their names may end in, in lower case.

    Raises:
        RMDError: there are none, or the folder cannot be read.
    """
    path = user_path(place)
    if path.is_dir():
        with read_errors(path):
            found = [file for file in path.iterdir() if not _BESIDE.search(file.stem)]
    else:
        found = [Path(file) for file in glob.glob(str(path))]
    files = sorted(f for f in found if f.is_file() and f.suffix.lower() in suffixes and not is_hidden(f.name))
    if not files:
        raise RMDError(f"there are no samples ({', '.join(suffixes)}) in {place}: give a folder or a pattern of files")
    return files


def by_prompt_and_seed(paths: Sequence[Path]) -> dict[tuple[str, int], Path] | None:
    """Return samples by prompt and seed, or None if one of them does not say how it was made.

    Raises:
        RMDError: two of them have the same prompt and seed, or one is damaged.
    """
    found: dict[tuple[str, int], Path] = {}
    for path in paths:
        settings = read_settings(path) if path.suffix.lower() in RECORDED else None
        if settings is None:
            return None
        key = (str(settings["prompt"]), int(settings["seed"]))
        if key in found:
            raise RMDError(f"{path} and {found[key]} have the same prompt and seed: name one of them by a pattern")
        found[key] = path
    return found
