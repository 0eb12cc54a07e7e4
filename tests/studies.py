"""Small studies for the tests: pictures with the settings of `rmd generate`, votes, and a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from processes import serving

from rmd.study.build import build_study
from rmd.study.design import Task, tasks_of
from rmd.study.folder import Study, open_study
from rmd.study.store import Choice, StoredVote


def picture(path: Path, colour: tuple[int, int, int], *, prompt: str = "", seed: int = 0, side: int = 16) -> None:
    """Write a picture, with settings if it has a prompt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    if prompt:
        settings = {"version": "0", "model": path.parent.name, "prompt": prompt, "seed": seed}
        info.add_text("rmd", json.dumps(settings))
    Image.new("RGB", (side, side), colour).save(path, pnginfo=info)


def albums(root: Path, *systems: str, prompts: int = 6) -> list[tuple[str, str]]:
    """Write an album of each system; return names and folders."""
    for number, system in enumerate(systems):
        for index in range(prompts):
            colour = (40 * number, 20 * index, 99)
            picture(root / system / f"{index:05d}-00-x.png", colour, prompt=f"prompt {index}", seed=index)
    return [(system, str(root / system)) for system in systems]


def small_study(root: Path, *systems: str, prompts: int = 6, tasks: int = 4, checks: int = 1) -> Study:
    """Build and open a study of albums without a least time."""
    sources = albums(root / "albums", *systems, prompts=prompts)
    build_study(sources, root / "study", tasks=tasks, repeats=1, checks=checks, min_seconds=0.0)
    return open_study(root / "study")


def votes_by(study: Study, raters: int, choose: Callable[[int, Task], Choice]) -> list[StoredVote]:
    """Return all votes of raters who choose by a function of the rater and the task."""
    return [
        StoredVote(rater, number, choose(rater, task), 2.0)
        for rater in range(raters)
        for number, task in enumerate(tasks_of(study.design, rater))
    ]


def served(study: Study, out: Path) -> AbstractContextManager[tuple[str, BaseProcess]]:
    """Serve a study in a process of its own; the block gets its address and the process, which is ended at last."""
    return serving("-m", "rmd", "study", "serve", str(study.folder), "--port", "0", out=out)
