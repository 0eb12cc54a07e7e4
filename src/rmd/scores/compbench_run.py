"""Runs T2V-CompBench's scripts in environments of their own, category by category.

The scripts belong into the folders of the tools that they use, as the benchmark's README says: `LLaVA`, `dot`,
`Grounded-Segment-Anything` and `Depth-Anything`, beside the benchmark's `meta_data`. They write frames beside the
videos and take every file for a video, so they are given links to the videos and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rmd.common.clips import clip_shape
from rmd.common.errors import RMDError, one_of
from rmd.sample.plans import VideoPlan
from rmd.sample.progress import Progress
from rmd.scores.compbench import CATEGORIES, NAMES, Category, category_score
from rmd.scores.planned import check_videos, contents_hashes, link_videos
from rmd.scores.upstream import LOGS, Calls, Record, interpreter, keep, run_parts
from rmd.scores.weights import sha256

LLAVA, SEGMENT, DEPTH, TRACK = "LLaVA", "Grounded-Segment-Anything", "Depth-Anything", "dot"
TOOLS = (LLAVA, SEGMENT, DEPTH, TRACK)
"""Folders of the tools that the scripts use."""
MODEL = "rmd"
"""The name that the scripts give the model; their result files begin with it."""


@dataclass(frozen=True)
class Script:
    """A script of the benchmark.

    Attributes:
        path: its place in the checkout.
        inside: whether it runs in its tool's folder, and otherwise in that of the checkout.
        arguments: its arguments; names in braces are filled in.
    """

    path: str
    arguments: Mapping[str, str]
    inside: bool = False

    @property
    def tool(self) -> str:
        """The tool that it uses."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.path.rpartition("/")[2]


def _judge(name: str) -> tuple[Script, ...]:
    """Return the script of a category that a language model judges."""
    arguments = {
        "--video-path": "{videos}", "--output-path": "{work}", "--read-prompt-file": "{meta}", "--t2v-model": "{model}",
    }  # fmt: skip
    return (Script(f"{LLAVA}/llava/eval/{name}", arguments),)


def _track(name: str) -> Script:
    """Return a script that follows points."""
    arguments = {
        "--video_folder": "{video_standard}", "--mask_folder": "{work}/masks", "--read-prompt-file": "{meta}",
        "--t2v_model": "{model}", "--output_path": "{work}", "--output_dir": "{work}/tracks",
    }  # fmt: skip
    return Script(f"{TRACK}/{name}", arguments, inside=True)


SCRIPTS = {
    "consistent_attr": _judge("eval_consistent_attr.py"),
    "dynamic_attr": _judge("eval_dynamic_attr.py"),
    "action_binding": _judge("eval_action_binding.py"),
    "interaction": _judge("eval_interaction.py"),
    "spatial_relationships": (
        Script(f"{DEPTH}/run_depth.py", {
            "--video-path": "{videos}", "--output_dir": "{work}/depth", "--read-prompt-file": "{meta}",
            "--t2v-model": "{model}",
        }, inside=True),
        Script(f"{SEGMENT}/eval_spatial_relationships.py", {
            "--frame_folder": "{frames}", "--depth_folder": "{work}/depth", "--output-path": "{work}",
            "--read-prompt-file": "{meta}", "--t2v-model": "{model}", "--output_dir_2d": "{work}/boxes2d",
            "--output_dir_3d": "{work}/boxes3d",
        }),
    ),
    "generative_numeracy": (
        Script(f"{SEGMENT}/GroundingDINO/demo/eval_numeracy.py", {
            "--video-path": "{videos}", "--output-path": "{work}", "--read-prompt-file": "{meta}",
            "--t2v-model": "{model}", "--output_dir": "{work}/boxes",
        }),
    ),
    "motion_binding": (
        Script(f"{SEGMENT}/motion_binding_seg.py", {
            "--video_folder": "{videos}", "--read-prompt-file": "{meta}", "--t2v-model": "{model}",
            "--total_frame": "{total_frame}", "--fps": "{fps}", "--output_dir": "{work}/masks",
        }),
        _track("eval_motion_binding_foreground.py"),
        _track("eval_motion_binding_background.py"),
        Script(f"{TRACK}/motion_binding_score_cal.py", {"--t2v-model": "{model}", "--output_path": "{work}"},
               inside=True),
    ),
}  # fmt: skip
"""The scripts of every category, in their order."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation by T2V-CompBench.

    Attributes:
        plan: the videos.
        videos: their folder.
        checkout: folder of the tools with the benchmark's scripts, and of `meta_data`.
        pythons: interpreters by tool.
        more: more arguments by the name of the script.
        calls: the calls, which know the folder of the results.
    """

    plan: VideoPlan
    videos: Path
    checkout: Path
    pythons: Mapping[str, str]
    more: Mapping[str, Sequence[str]]
    calls: Calls

    def results(self, category: Category) -> list[Path]:
        """Return the result files of a category."""
        return [self.calls.out / f"{MODEL}{ending}" for ending in category.results]

    def is_done(self, name: str) -> bool:
        """Return whether a category has its result files; raise RMDError if they are damaged."""
        category = CATEGORIES[NAMES.index(name)]
        files = self.results(category)
        if all(file.exists() for file in files):
            category_score(category, files)
            return True
        return False

    def measure(self, name: str) -> None:
        """Let the scripts measure a category, and keep their result files.

        Raises:
            RMDError: a script fails, or they end without results.
        """
        category = CATEGORIES[NAMES.index(name)]
        work = self.calls.work(name)
        link_videos(self.plan.below([name]), self.videos, work / "video")
        known = self._values(category, work)
        for script in SCRIPTS[name]:
            arguments = [word.format(**known) for pair in script.arguments.items() for word in pair]
            path = (self.checkout / script.path).resolve()
            cwd = self.checkout / script.tool if script.inside else self.checkout
            command = [self.pythons[script.tool], str(path), *arguments, *self.more.get(script.name, ())]
            self.calls(f"{name}-{script.name.removesuffix('.py')}", command, cwd=cwd)
        found = [work / f"{MODEL}{ending}" for ending in category.results]
        for file in found:
            if not file.is_file():
                raise RMDError(f"T2V-CompBench ended without {file.name}: see its logs in {self.calls.out / LOGS}")
        category_score(category, found)
        for file, target in zip(found, self.results(category), strict=True):
            keep(file, target)

    def _values(self, category: Category, work: Path) -> dict[str, str]:
        """Return what is filled into the arguments of scripts."""
        first = self.plan.below([category.name]).videos[0]
        shape = clip_shape(self.videos / first.path)
        folder = work / "video"
        return {
            "videos": str(folder / category.name), "frames": str(folder / "frames" / category.name),
            "video_standard": str(folder / "video_standard" / category.name), "work": str(work), "model": MODEL,
            "meta": str((self.checkout / "meta_data" / category.meta).resolve()), "fps": f"{round(shape.fps)}",
            "total_frame": f"{shape.frames}",
        }  # fmt: skip


def run_compbench(
    plan_file: Path, plan: VideoPlan, videos: Path, checkout: Path, pythons: Mapping[str, Path], calls: Calls, *,
    more: Mapping[str, Sequence[str]] | None = None, categories: Sequence[str] = (), progress: Progress | None = None,
) -> list[Path]:  # fmt: skip
    """Let T2V-CompBench measure its categories; those that have results already are not measured again.

    Args:
        plan_file: the file of the plan, which the results belong to.
        plan: the plan.
        videos: folder of the videos.
        checkout: folder of the tools with the benchmark's scripts, and of `meta_data`.
        pythons: interpreters by tool; that of "" is for all others.
        calls: the calls, which know the folder of the results.
        more: more arguments by the name of the script, such as places of networks.
        categories: what is measured; by default all categories of which the plan has the videos.
        progress: receives what is done, how much of it, and how much there is.

    Returns:
        The result files.

    Raises:
        RMDError: videos are missing or are not the plan's, a script is missing or fails, or the results are of other
            videos.
    """
    if plan.benchmark != "compbench":
        raise RMDError(f"{plan_file} is a plan of another benchmark: make one with `rmd eval compbench plan`")
    wanted = list(dict.fromkeys(one_of("category", name, NAMES) for name in categories)) or list(plan.folders())
    needed = plan.below(wanted)
    known = [script.name for scripts in SCRIPTS.values() for script in scripts]
    for name in more or {}:
        one_of("script", name, tuple(known))
    used = [script for name in wanted for script in SCRIPTS[name]]
    chosen = {script.tool: _python(pythons, script.tool) for script in used}
    for path in [*(script.path for script in used), *(f"meta_data/{c.meta}" for c in CATEGORIES if c.name in wanted)]:
        if not (checkout / path).is_file():
            raise RMDError(f"{checkout} has no {path}: put it there, as T2V-CompBench's README says")
    check_videos(needed, videos).require(videos)
    evaluation = Evaluation(plan, videos, checkout, chosen, more or {}, calls)
    hashes = contents_hashes(needed, videos, progress)
    record = Record(benchmark="compbench", prompts=plan.prompts, plan=sha256(plan_file), videos=hashes)
    run_parts({name: partial(evaluation.measure, name) for name in wanted}, evaluation.is_done, calls, record, progress)
    return [file for name in wanted for file in evaluation.results(CATEGORIES[NAMES.index(name)])]


def _python(pythons: Mapping[str, Path], tool: str) -> str:
    python = pythons.get(tool, pythons.get(""))
    if python is None:
        raise RMDError(f"no interpreter is named for {tool}: give --python {tool}=PATH")
    return interpreter(python)
