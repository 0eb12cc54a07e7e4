"""The students of a server on their one base model, and the samples that they make."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from rmd.common.clips import check_suffix
from rmd.common.errors import RMDError, located, one_of, shown
from rmd.common.memory import is_out_of_memory
from rmd.core.plan import StepPlan
from rmd.core.randomness import seeded
from rmd.models.adapter import ADAPTER
from rmd.models.student import base_of, read_student
from rmd.models.student_config import StudentConfig
from rmd.sample.pipeline import RMDPipeline
from rmd.sample.samplers import Media
from rmd.serve.batching import Shape

AfterStep = Callable[[float], bool]
"""Called after every step with the finished share of all steps; returns whether somebody still waits for the batch."""
_NAME = re.compile(r"[\w][\w.-]{0,99}")
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class AbandonedError(Exception):
    """Nobody waits for the samples of a batch any more."""


@dataclass(frozen=True)
class Served:
    """A student of a server.

    Attributes:
        name: the name by which requests choose it.
        adapter: its name on the pipeline.
        config: its plan and origin.
        shapes: the shapes that it makes, the default one first.
        moving: whether it makes videos.
        fps: frames per second of its videos.
    """

    name: str
    adapter: str
    config: StudentConfig
    shapes: tuple[Shape, ...]
    moving: bool
    fps: int = 16

    @property
    def sizes(self) -> tuple[str, ...]:
        """Its sizes as requests name them, WIDTHxHEIGHT."""
        return tuple(written(shape) for shape in self.shapes)

    @property
    def seconds(self) -> float:
        """Length of its videos."""
        return self.shapes[0].frames / self.fps


def written(shape: Shape) -> str:
    """Return the size of a shape as requests name it, WIDTHxHEIGHT."""
    return f"{shape.width}x{shape.height}"


def named(sources: Sequence[str]) -> dict[str, str]:
    """Return students by name; each is given as NAME=SOURCE, or as a source whose last part is its name.

    Raises:
        RMDError: two have one name, or a name has other characters than letters, digits, `_`, `-` and `.`.
    """
    result: dict[str, str] = {}
    for text in sources:
        name, _, source = text.rpartition("=")
        name = name or PurePath(source).name
        if not _NAME.fullmatch(name):
            raise RMDError(f"{shown(text)}: a student's name has letters, digits, _, - and .: give one by NAME=STUDENT")
        if name in result:
            raise RMDError(f"two students have the name {name}: give them other names by NAME=STUDENT")
        result[name] = source
    return result


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of a size that is written as WIDTHxHEIGHT; raise RMDError if it is not."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RMDError(f"{shown(text)} is not a size: write it as WIDTHxHEIGHT, such as 1024x1024")
    return int(match[2]), int(match[1])


class Engine:
    """A pipeline and the students on it. Only one thread at a time may use it."""

    def __init__(self, pipe: RMDPipeline, students: Mapping[str, Served]) -> None:
        self.pipe, self.students = pipe, students

    def sample(self, shape: Shape, prompts: Sequence[str], seeds: Sequence[int], after_step: AfterStep) -> list[Media]:
        """Return one sample for each prompt and seed.

        Raises:
            RMDError: values are not finite.
            AbandonedError: nobody waits for the samples any more.
            torch.OutOfMemoryError: the batch is too large for the device. What it occupied is free again.
        """
        student = self.students[shape.student]
        steps = len(student.config.plan.steps)

        def check(pipe: Any, index: int, time: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if not after_step((index + 1) / steps):
                raise AbandonedError
            return {}

        self.pipe.set_student(student.adapter)
        try:
            result = self.pipe(
                list(prompts), generator=[seeded(seed) for seed in seeds], height=shape.height, width=shape.width,
                num_frames=shape.frames if student.moving else None, callback_on_step_end=check,
                callback_on_step_end_tensor_inputs=(),
            )  # fmt: skip
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):  # the traceback would keep the tensors of the call
                traceback.clear_frames(error.__traceback__)
                torch.cuda.empty_cache()
            raise
        return list(result[0])

    def warm_up(self, count: int = 1) -> None:
        """Make a batch of every student, so that the first request does not wait for what is done once.

        Raises:
            RMDError: a student makes values that are not finite.
        """
        for student in self.students.values():
            self.sample(student.shapes[0], ["a picture"] * count, [0] * count, lambda share: True)


def load_engine(
    sources: Mapping[str, str], *, device: torch.device, dtype: torch.dtype = torch.float32, teacher: str | None = None,
    variant: str | None = None, sizes: Sequence[str] = (), frames: int | None = None, fps: int = 16,
) -> Engine:  # fmt: skip
    """Load students that share one base model.

    Args:
        sources: folders or repositories of the students by name; several must be LoRA students of one teacher.
        device: where to compute.
        dtype: precision of the weights.
        teacher: the students' base, if it has moved.
        variant: the variant of the weight files.
        sizes: further sizes, WIDTHxHEIGHT, that requests may ask for beside those of the students' plans.
        frames: number of frames of videos; the plan's by default.
        fps: frames per second of videos.

    Raises:
        RMDError: a student cannot be loaded or does not make such samples, or they have different bases.
    """
    wanted = [parse_size(size) for size in sizes]
    configs = {name: read_student(source) for name, source in sources.items()}
    _check_one_base(configs, teacher)
    (first, config), *others = configs.items()
    pipe = RMDPipeline.from_pretrained(config.source, dtype=dtype, teacher=teacher, variant=variant).to(device)
    pipe.set_progress_bar_config(disable=True)
    adapters = {first: ADAPTER} | {name: f"{ADAPTER}{number}" for number, (name, _) in enumerate(others, start=1)}
    for name, other in others:
        pipe.load_student(other.source, adapters[name])
    students: dict[str, Served] = {}
    for name, config in configs.items():
        pipe.set_student(adapters[name])
        shapes, moving = _shapes(pipe, name, wanted, frames), pipe.backbone.moving
        if moving:
            check_suffix(Path("video.mp4"))  # are the packages there that write it?
        students[name] = Served(name, adapters[name], config, shapes, moving, fps)
    return Engine(pipe, students)


def choose(students: Mapping[str, Served], name: str | None, *, moving: bool) -> Served:
    """Return the student of a request: the one that it names, or the first that makes what it asks for.

    Raises:
        RMDError: there is none of this name, or it makes something else.
    """
    kind, other = ("videos", "images/generations") if moving else ("pictures", "videos")
    if name is None:
        fitting = [student for student in students.values() if student.moving == moving]
        if not fitting:
            raise RMDError(f"no model of this server makes {kind}: use /v1/{other}")
        return fitting[0]
    student = students[one_of("model", name, tuple(students))]
    if student.moving != moving:
        raise RMDError(f"the model {name} makes no {kind}: use /v1/{other}")
    return student


def _check_one_base(configs: Mapping[str, StudentConfig], teacher: str | None) -> None:
    """Raise RMDError if there are several students, and they are not LoRA students of one base."""
    if len(configs) == 1:
        return
    full = next((name for name, config in configs.items() if config.mode == "full"), None)
    if full is not None:
        raise RMDError(f"{full} is a full student, which cannot share a server with others: start one for each")
    bases = {name: str(base_of(config, teacher)) for name, config in configs.items()}
    first, *others = bases
    for name in others:
        if bases[name] != bases[first]:
            raise RMDError(
                f"{first} is a student of {bases[first]} and {name} of {bases[name]}: start a server for each"
            )


def _shapes(
    pipe: RMDPipeline, name: str, sizes: Sequence[tuple[int, int]], frames: int | None
) -> tuple[Shape, ...]:  # fmt: skip
    """Return the shapes of the pipeline's active student: its plan's, and those of further sizes."""
    plan: StepPlan = pipe.plan
    final = plan.stages[-1]
    length = plan.frames if frames is None else frames
    with located(name):
        pipe.backbone.check_frames(length)
        for height, width in sizes:
            plan.resized(height, width, pipe.backbone.size_multiple)
    return tuple(dict.fromkeys(Shape(name, *size, length) for size in ((final.height, final.width), *sizes)))
