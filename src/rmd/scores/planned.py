"""The check of a folder of videos against a plan, before a benchmark's own program looks for them by name.

Such programs leave out a video that is missing, or take another one for it, and then print a score as if nothing had
happened. Therefore nothing is evaluated before every video of the plan is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmd.common.errors import RMDError, shown
from rmd.common.files import disk_errors, read_errors
from rmd.sample.album import read_settings
from rmd.sample.plans import VideoPlan
from rmd.sample.progress import Progress
from rmd.scores.weights import sha256


@dataclass(frozen=True)
class Check:
    """The difference between a folder and a plan, by the paths below the folder.

    Attributes:
        total: number of videos of the plan.
        missing: videos of the plan that are not there.
        different: videos whose settings beside them name another prompt or seed than the plan.
        superfluous: files that the plan does not name.
    """

    total: int
    missing: Sequence[str]
    different: Sequence[str]
    superfluous: Sequence[str]

    def require(self, folder: Path) -> None:
        """Raise RMDError unless all videos are there and none is another one; superfluous files are allowed."""
        for paths, what, advice in (
            (self.missing, "missing", f"make them with `rmd generate --plan PLAN --out {folder}`"),
            (self.different, "of another prompt or seed", "remove them, and make them again"),
        ):
            if paths:
                raise RMDError(
                    f"{len(paths)} of the plan's {self.total} videos are {what} in {folder}, such as "
                    f"{shown(paths[0])}: {advice}"
                )

    @property
    def exact(self) -> bool:
        """True if the folder has the plan's videos and no others."""
        return not (self.missing or self.different or self.superfluous)


def check_videos(plan: VideoPlan, folder: Path) -> Check:
    """Compare a folder with a plan.

    Hidden files and the settings that `rmd generate` writes beside a video belong to no list.

    Raises:
        RMDError: the folder cannot be read, or the settings beside a video are damaged.
    """
    if not folder.is_dir():
        raise RMDError(f"there is no folder {folder}: name the one that has the plan's videos")
    with read_errors(folder):
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        files = {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}
    planned = {video.path: video for video in plan.videos}
    different = []
    for path in sorted(files & planned.keys()):
        settings, video = read_settings(folder / path), planned[path]
        if settings is not None and (settings["prompt"], settings["seed"]) != (video.prompt, video.seed):
            different.append(path)
    beside = {f"{path}.json" for path in planned}
    missing = [path for path in planned if path not in files]
    return Check(len(planned), missing, different, sorted(files - planned.keys() - beside))


def contents_hashes(plan: VideoPlan, folder: Path, progress: Progress | None = None) -> dict[str, str]:
    """Return a SHA-256 of the contents of the videos in each of a plan's folders.

    Args:
        plan: the plan.
        folder: the folder that has its videos.
        progress: receives the number of videos that are read, and of all.

    Raises:
        RMDError: a video cannot be read.
    """
    digests = {name: hashlib.sha256() for name in plan.folders()}
    for number, video in enumerate(plan.videos):
        if progress is not None:
            progress("reading", number, len(plan.videos))
        path = folder / video.path
        with read_errors(path):
            digests[video.folder].update(f"{video.path}\0{sha256(path)}\n".encode())
    if progress is not None:
        progress("reading", len(plan.videos), len(plan.videos))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def link_videos(plan: VideoPlan, videos: Path, folder: Path) -> None:
    """Fill a new folder with links to the videos of a plan and nothing else.

    The programs of the benchmarks take every file of a folder for a video.

    Raises:
        RMDError: the disk reports an error.
    """
    with disk_errors(folder):
        for video in plan.videos:
            link = folder / video.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((videos / video.path).resolve())
