"""The models of the page: students, and the teacher of the first one; each is loaded when it is first used."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rmd.common.errors import RMDError, one_of
from rmd.core.plan import Stage
from rmd.models.base import Backbone
from rmd.models.registry import family_class, load_backbone
from rmd.models.resolve import is_packaged
from rmd.models.student import base_of, read_student
from rmd.models.student_config import StudentConfig
from rmd.sample.samplers import PipelineSampler, Sampler, StudentSampler, student_sampler, teacher_sampler
from rmd.worlds.registry import world_of_teacher

TEACHER_STEPS = 25
"""Steps of a teacher unless somebody asks for others, as in `rmd generate --compare-teacher`."""
_CAPTION_SEED = 43
"""Seed of the captions that the page proposes."""


@dataclass(frozen=True)
class Size:
    """The size of samples in pixels, and their number of frames; None is the model's own."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None


class Models:
    """The students by their names, and the teacher of the first one.

    Attributes:
        students: the configs of the students by name.
        teacher: name of the teacher; None if it cannot be found.
        missing: the reason why there is no teacher; empty if there is one.
    """

    def __init__(
        self, sources: Sequence[str], *, teacher: str | None = None, device: torch.device,
        dtype: torch.dtype = torch.float32, variant: str | None = None,
    ) -> None:  # fmt: skip
        """Read the students' configs; no weights are loaded yet.

        Args:
            sources: folders of students, or repositories on the Hub.
            teacher: location of their teacher, if it is not the one that they name.
            device, dtype, variant: where the models compute, in which precision, and from which files.

        Raises:
            RMDError: a source is no student, is given twice, or the given teacher does not exist.
        """
        configs = [read_student(source) for source in sources]
        self.students: dict[str, StudentConfig] = dict(zip(short_names(sources), configs, strict=True))
        self.teacher: str | None = None
        self.missing, self._base = "there is no student", ""
        self._given = teacher
        self._device, self._dtype, self._variant = device, dtype, variant
        self._loaded: dict[str, StudentSampler] = {}
        self._teacher: Backbone | None = None
        self._lock = threading.RLock()
        if configs:
            self._find_teacher(configs[0])

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of everything that can be compared: the students, and the teacher if there is one."""
        return (*self.students, *([] if self.teacher is None else [self.teacher]))

    @property
    def first(self) -> StudentConfig | None:
        """The config of the first student; None if there is none."""
        return next(iter(self.students.values()), None)

    def moving(self, name: str) -> bool:
        """Return whether a student generates clips."""
        return family_class(self._config(name).family).moving

    def final(self, name: str) -> Stage:
        """Return the final stage of a student's plan, whose size its samples have by default."""
        return self._config(name).plan.stages[-1]

    def student(self, name: str, size: Size | None = None) -> StudentSampler:
        """Return the sampler of a student at a size, by default its own; it is loaded if necessary.

        Raises:
            RMDError: there is no student of this name, or it cannot be loaded.
        """
        config = self._config(name)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = student_sampler(
                    config.source, dtype=self._dtype, device=self._device, teacher=self._given, variant=self._variant,
                    fps=family_class(config.family).fps,
                )  # fmt: skip
            size = size or Size()
            return replace(self._loaded[name], height=size.height, width=size.width, frames=size.frames)

    def beside(self, student: StudentSampler, *, steps: int = TEACHER_STEPS) -> PipelineSampler:
        """Return the sampler of the teacher at a student's size, with the guidance distilled into the student.

        Raises:
            RMDError: there is no teacher, or it cannot be loaded.
        """
        if self.teacher is None:
            raise RMDError(self.missing)
        with self._lock:
            if self._teacher is None:
                self._teacher = load_backbone(self._base, dtype=self._dtype, variant=self._variant)
                self._teacher.pipe.to(self._device)
            return teacher_sampler(student, self._teacher, source=self._base, steps=steps)

    def system(self, name: str, size: Size | None = None) -> Sampler:
        """Return the sampler of one of `systems`; the teacher's samples are those beside the first student's."""
        one_of("model", name, self.systems)
        if name == self.teacher:
            return self.beside(self.student(next(iter(self.students)), size))
        return self.student(name, size)

    def captions(self, count: int) -> list[str]:
        """Return captions that the first student can draw: of the world of its packaged teacher, or else none."""
        teacher = None if self.first is None else self.first.teacher
        if teacher is None or not is_packaged(teacher):
            return []
        return list(world_of_teacher(teacher).captions(count, seed=_CAPTION_SEED, training=False))

    def _config(self, name: str) -> StudentConfig:
        one_of("student", name, tuple(self.students))
        return self.students[name]

    def _find_teacher(self, config: StudentConfig) -> None:
        """Note the teacher of a student, or why there is none; one that was asked for must exist."""
        try:
            self._base = str(base_of(config, self._given))
            if Path(self._base).is_absolute() and not Path(self._base).exists():
                raise RMDError(f"there is no folder {self._base}: give the folder of the teacher")
        except RMDError as error:
            if self._given is not None:
                raise
            self.missing = str(error)
            return
        named = self._given or config.teacher or self._base
        self.teacher, self.missing = f"teacher {Path(named).name}", ""


def short_names(sources: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; a folder named `student` gets its parent's name, too.

    Raises:
        RMDError: two sources are the same.
    """
    parts = [Path(source).parts for source in sources]
    for length in range(1, max(map(len, parts), default=0) + 1):
        ends = ["/".join(each[-max(length, 2 if each[-1] == "student" else 1) :]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    if sources:
        raise RMDError(f"a student is given twice: {', '.join(sources)}; leave one of them out")
    return []
