"""Carries out a request for pictures or clips, with a student or with any diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmd.common.clips import SUFFIXES, check_fps
from rmd.common.errors import RMDError
from rmd.common.workers import ALONE, Worker, own_errors
from rmd.models import Backbone, load_backbone
from rmd.models.registry import family_class, load_pipeline
from rmd.models.student import base_of, read_student
from rmd.sample.album import Album, Picture, make_album, plan_album, planned_album, share, writing
from rmd.sample.plans import SUFFIX, VideoPlan
from rmd.sample.samplers import PipelineSampler, Sampler, StudentSampler, student_sampler

Counter = Callable[[str, int], Callable[[int], None]]
"""Starts to count finished items, given a name and their total; returns a function to call with each new number."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A sampling job: the prompts, the model and the settings.

    Attributes:
        model: a student or a diffusers pipeline, given as a folder or a repository on the Hub.
        student: whether it is a student (`rmd.models.student.holds_student`).
        prompts: the prompts, each of which gets `count` samples.
        videos: a plan, whose prompts, seeds and files take the place of `prompts`, `count` and `seed`.
        worker: the worker, of which each makes its share of the samples.
        out: the folder of the samples, or the file of a single one.
        count: number of samples for each prompt.
        seed: the seed of the first sample; each further sample gets the next one.
        height, width, frames: the size of a sample; None: the model's own.
        fps: frames per second at which clips play.
        clip_format: mp4, webp or gif; None: as `out` ends, or else mp4.
        batch_size: number of samples that are made at once.
        steps, guidance: sampling steps and guidance scale of a pipeline; None: its own.
        stages: whether to save the result of every stage of a student's cascade.
        teacher_steps: sampling steps of the student's teacher, whose samples are saved beside the student's; None: none
            are made.
        teacher: the location of the student's teacher, if it has moved.
        variant: the variant of the weight files.
        device: the device to compute on.
        dtype: the type in which the networks compute.
    """

    model: str
    student: bool
    prompts: Sequence[str] = ()
    videos: VideoPlan | None = None
    worker: Worker = ALONE
    out: Path
    count: int = 1
    seed: int = 0
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int = 16
    clip_format: str | None = None
    batch_size: int = 4
    steps: int | None = None
    guidance: float | None = None
    stages: bool = False
    teacher_steps: int | None = None
    teacher: str | None = None
    variant: str | None = None
    device: torch.device
    dtype: torch.dtype = torch.float32

    def plan(self, *, moving: bool) -> Album:
        """Return the album of the samples; raise RMDError if it cannot be made of clips (`moving`) or of pictures."""
        if self.clip_format is not None and not moving:
            raise RMDError(f"--format is for clips, but {self.model} makes single pictures: leave it out")
        if self.videos is not None:
            if not moving:
                raise RMDError(f"a plan is for clips, but {self.model} makes single pictures: give another model")
            check_fps(SUFFIX, self.fps)
            return planned_album(self.videos, self.out)
        suffix = self._clip_suffix() if moving else ".png"
        if moving:
            check_fps(suffix, self.fps)
        return plan_album(self.prompts, self.out, count=self.count, seed=self.seed, suffix=suffix)

    def share(self, album: Album) -> Sequence[Picture]:
        """Return the pictures of an album that the worker makes; raise WorkerError if none is left for it."""
        with own_errors():
            return share(album, self.worker, self.batch_size)

    def _clip_suffix(self) -> str:
        if self.clip_format is not None:
            return f".{self.clip_format}"
        return self.out.suffix.lower() if self.out.suffix.lower() in SUFFIXES else SUFFIXES[0]


@contextmanager
def prepared(request: Request) -> Iterator[tuple[Sampler, Sequence[Picture]]]:
    """Check a request, lock its folder and load its model; what can be checked before the weights is checked first.

    Yields:
        the sampler, and the pictures or clips that the request asks for: a share of the album.

    Raises:
        RMDError: the model cannot be loaded, does not fit the request, or the folder cannot be written to.
    """
    size: dict[str, Any] = {name: getattr(request, name) for name in ("height", "width", "frames", "fps")}
    if request.student:
        config = read_student(request.model)
        album = request.plan(moving=family_class(config.family).moving)
        if request.teacher_steps is not None:
            base_of(config, request.teacher)  # raises RMDError if the teacher is missing
        pictures = request.share(album)
        with writing(album, request.worker):
            sampler = student_sampler(
                request.model, dtype=request.dtype, device=request.device, teacher=request.teacher,
                variant=request.variant, **size, stages=request.stages,
            )  # fmt: skip
            yield sampler, pictures
        return
    pipeline = load_pipeline(request.model, dtype=request.dtype, variant=request.variant).to(request.device)
    ordinary = PipelineSampler(pipeline, request.model, steps=request.steps, guidance=request.guidance, **size)
    album = request.plan(moving=ordinary.moving)
    pictures = request.share(album)
    with writing(album, request.worker):
        yield ordinary, pictures


def make(request: Request, sampler: Sampler, pictures: Sequence[Picture], counter: Counter) -> int:
    """Make the samples of a request that do not exist yet, and return their number.

    Args:
        request: the request.
        sampler, pictures: what `prepared` yielded for it.
        counter: counts the samples that are done.

    Raises:
        RMDError: a file cannot be written or belongs to another sample, or the samples are not finite.
    """
    with own_errors():
        made = make_album(
            sampler, pictures, batch_size=request.batch_size, progress=counter("pictures", len(pictures))
        )  # fmt: skip
    if request.teacher_steps is not None and isinstance(sampler, StudentSampler):
        teacher = _teacher_sampler(sampler, request, request.teacher_steps)
        beside = [picture.beside("teacher") for picture in pictures]
        make_album(teacher, beside, batch_size=1, progress=counter("teacher", len(beside)))
    return made


def _teacher_sampler(student: StudentSampler, request: Request, steps: int) -> PipelineSampler:
    """Return a sampler of the teacher's samples at the student's size, with the guidance distilled into the student."""
    config, plan = student.pipe.student, student.pipe.plan
    source = str(base_of(config, request.teacher))
    teacher: Backbone = load_backbone(source, dtype=request.dtype, variant=request.variant)
    teacher.pipe.to(request.device)
    final, length = plan.stages[-1], student.frames or plan.frames
    return PipelineSampler(
        teacher.pipe, config.teacher or source, steps=steps, guidance=config.guidance,
        height=student.height or final.height, width=student.width or final.width,
        frames=length if teacher.moving else None, fps=student.fps,
        options={**teacher.official_options(length), **teacher.official_guidance(config.guidance)},
    )  # fmt: skip
