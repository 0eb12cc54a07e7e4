"""The files of a study's folder, and their reading."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.typed import Strict
from rmd.study.design import Design, check_design

DESIGN, KEY, MEDIA = "study.json", "key.json", "media"
"""The design, the names of the systems, and the folder of the pictures or clips."""


class Key(Strict):
    """The names of the systems, which raters must not know, and the rule by which raters are left out."""

    version: int = 1
    systems: tuple[str, ...]
    """Names of the systems in the order of their numbers."""
    sources: tuple[tuple[str, ...], ...]
    """For every prompt, the original file of each system."""
    most_missed: Annotated[float, Field(ge=0, le=1)]
    """Raters who miss a larger share of their attention checks are left out."""


@dataclass(frozen=True)
class Study:
    """A study's folder and its design."""

    folder: Path
    design: Design

    @property
    def media(self) -> Path:
        """The folder of the pictures or clips."""
        return self.folder / MEDIA

    @property
    def hash(self) -> str:
        """A hash of the design, to which votes belong."""
        return hashlib.sha256(self.design.model_dump_json().encode()).hexdigest()[:24]

    def key(self) -> Key:
        """Read the names of the systems.

        Raises:
            RMDError: there is no key, or it belongs to another study.
        """
        key = read_model(self.folder / KEY, Key)
        if any(len(files) != len(key.systems) for files in self.design.files):
            raise RMDError(f"{self.folder / KEY} does not name the systems of this study: restore the file")
        return key


def open_study(folder: Path) -> Study:
    """Read a study, and check that its files are there.

    Raises:
        RMDError: the folder has no design, or lacks a file of it.
    """
    if not (folder / DESIGN).is_file():
        raise RMDError(f"{folder} has no {DESIGN}: build a study with `rmd study build`")
    design = check_design(read_model(folder / DESIGN, Design))
    names = {name for files in (*design.files, *design.checks) for name in files}
    missing = sorted(name for name in names if not (folder / MEDIA / name).is_file())
    if missing:
        raise RMDError(
            f"{folder / MEDIA} lacks {len(missing)} of {len(names)} files, such as {missing[0]}: build the study again"
        )
    return Study(folder, design)
