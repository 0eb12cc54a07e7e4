"""Runs VBench in an environment of its own, one process for each dimension.

VBench is given folders that have the videos of one dimension and nothing else: it takes the ending of the first file
that it happens to find for that of all videos. Temporal flickering is measured on the first five videos of each prompt
that VBench's filter finds to stand still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rmd.common.errors import RMDError, one_of, shown
from rmd.models.hub import read_object
from rmd.sample.plans import VideoPlan
from rmd.sample.progress import Progress
from rmd.scores.planned import check_videos, contents_hashes, link_videos
from rmd.scores.upstream import Calls, Record, interpreter, keep, run_parts
from rmd.scores.vbench import folder_of, read_scores
from rmd.scores.vbench_plan import FLICKERING, NAMES
from rmd.scores.weights import sha256

STATIC = "temporal_flickering_static.json"
"""The filter's own record of the videos that stand still."""
_EVALUATE = ("-m", "vbench.launch.evaluate")
_FILTER = ("-c", "from vbench.cli.vbench import main; main()", "static_filter")
_FILTERED = "filtered_videos", "filtered_static_video.json"
"""The folder and the record that the filter writes."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation by VBench.

    Attributes:
        plan: the videos.
        info: VBench's list of prompts, from which the plan was made.
        videos: folder of the videos.
        python: interpreter of VBench's environment.
        calls: the calls, which know the folder of the results.
    """

    plan: VideoPlan
    info: Path
    videos: Path
    python: str
    calls: Calls

    def result(self, dimension: str) -> Path:
        """Return the file of a dimension's score."""
        return self.calls.out / f"{dimension}_eval_results.json"

    def is_done(self, dimension: str) -> bool:
        """Return whether a dimension has its score; raise RMDError if the file has anything else."""
        path = self.result(dimension)
        if path.exists():
            _check_score(path, dimension)
        return path.exists()

    def measure(self, dimension: str) -> None:
        """Let VBench measure a dimension, and keep its score.

        Raises:
            RMDError: VBench fails, or ends without a score.
        """
        work, folder = self.calls.work(dimension), folder_of(dimension)
        link_videos(self.plan.below([folder]), self.videos, work / "videos")
        videos = work / "videos" / folder
        if dimension == FLICKERING:
            videos = self._standing(videos, work)
        arguments = {
            "--videos_path": videos, "--dimension": dimension, "--output_path": work / "results",
            "--full_json_dir": self.info.resolve(),
        }  # fmt: skip
        self.calls(dimension, [self.python, *_EVALUATE, *_words(arguments)])
        found = sorted((work / "results").glob("*_eval_results.json"))
        if len(found) != 1:
            raise RMDError(f"VBench ended without a result of {dimension}: its log is {self.calls.log(dimension)}")
        _check_score(found[0], dimension)
        keep(found[0], self.result(dimension))

    def _standing(self, videos: Path, work: Path) -> Path:
        """Let VBench's filter pick the videos that stand still, and return the folder to which it copies them."""
        arguments = {"--videos_path": videos, "--result_path": work}
        self.calls(f"{FLICKERING}-filter", [self.python, *_FILTER, *_words(arguments)])
        folder, record = (work / name for name in _FILTERED)
        if not any(static_counts(record, self.plan).values()):
            raise RMDError(
                f"VBench's filter finds no video of {FLICKERING} that stands still, and this dimension is measured on "
                "such videos only: leave it out with --dimensions, or plan again with other seeds"
            )
        keep(record, self.calls.out / STATIC)
        return folder


def run_vbench(
    plan_file: Path, plan: VideoPlan, info: Path, videos: Path, python: Path, calls: Calls, *,
    dimensions: Sequence[str] = (), progress: Progress | None = None,
) -> list[Path]:  # fmt: skip
    """Let VBench measure its dimensions; those that have a result already are not measured again.

    Args:
        plan_file: the file of the plan, which the results belong to.
        plan: the plan.
        info: VBench's list of prompts, from which the plan was made.
        videos: folder of the videos.
        python: interpreter of VBench's environment.
        calls: the calls, which know the folder of the results.
        dimensions: what is measured; by default all dimensions of which the plan has the videos.
        progress: receives what is done, how much of it, and how much there is.

    Returns:
        The files of the scores.

    Raises:
        RMDError: videos are missing or are not the plan's, VBench fails, or the results are of other videos.
    """
    if plan.benchmark != "vbench":
        raise RMDError(f"{plan_file} is a plan of another benchmark: make one with `rmd eval vbench plan`")
    if sha256(info) not in plan.sources.values():
        raise RMDError(f"the plan was not made from {info}: give the file that {plan_file} was made from")
    wanted = [one_of("dimension", name, NAMES) for name in dimensions] or [
        name for name in NAMES if folder_of(name) in plan.folders()
    ]
    needed = plan.below(list(dict.fromkeys(map(folder_of, wanted))))
    check_videos(needed, videos).require(videos)
    evaluation = Evaluation(plan, info, videos, interpreter(python), calls)
    hashes = contents_hashes(needed, videos, progress)
    # The filter needs a network that VBench fetches for the dynamic degree.
    order = sorted(dict.fromkeys(wanted), key=lambda name: (name == FLICKERING, NAMES.index(name)))
    record = Record(benchmark="vbench", prompts=plan.prompts, plan=sha256(plan_file), videos=hashes)
    parts = {name: partial(evaluation.measure, name) for name in order}
    run_parts(parts, evaluation.is_done, calls, record, progress)
    return [evaluation.result(name) for name in order]


def static_counts(record: Path, plan: VideoPlan) -> dict[str, int]:
    """Return how many videos of each prompt of temporal flickering stand still, by the record of VBench's filter.

    Raises:
        RMDError: the record cannot be read, or lacks a prompt of the plan.
    """
    counts = {}
    found = read_object(record)
    for video in plan.below([FLICKERING]).videos:
        name = video.path.removeprefix(f"{FLICKERING}/").rpartition("-")[0]
        known = found.get(name)
        if not isinstance(known, dict) or not isinstance(known.get("static_count"), int):
            raise RMDError(f"{record} does not know the prompt {shown(name)}: install the VBench that the list is from")
        counts[name] = known["static_count"]
    return counts


def _check_score(path: Path, dimension: str) -> None:
    """Raise RMDError unless a result file has a dimension's score and nothing else."""
    scores = read_scores([path])
    if scores.keys() != {dimension} or not 0 <= scores[dimension] <= 1:
        raise RMDError(f"{path} has no score of {dimension} between 0 and 1, but {shown(scores)}: remove it")


def _words(arguments: Mapping[str, object]) -> list[str]:
    return [str(word) for pair in arguments.items() for word in pair]
