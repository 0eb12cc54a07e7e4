"""Samplers: one interface to everything that turns prompts and seeds into pictures or clips.

`rmd generate` and `rmd evaluate` work with distilled students and with any other pipeline of diffusers. The two are
called differently: a student has its plan and no guidance, a pipeline its own scheduler and arguments. The classes here
hide the difference. Both use one generator per sample, so that a sample depends on its prompt and seed only, not on the
batch that it is computed in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from PIL import Image

from rmd.common.errors import RMDError, finite, shown
from rmd.common.version import __version__
from rmd.core.plan import MAX_FRAMES, MAX_SIDE
from rmd.core.randomness import seeded
from rmd.data.captions import check_prompts
from rmd.models.base import Backbone
from rmd.sample.pipeline import RMDPipeline

MAX_STEPS = 10_000
"""Largest number of sampling steps of a pipeline; schedulers are trained with a thousand times."""
Media = Image.Image | Sequence[Image.Image]
"""A picture, or the frames of a clip."""


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        media: the picture or clip.
        stages: the result of every stage of a cascade, if requested.
    """

    media: Media
    stages: tuple[Media, ...] = ()


class Sampler(Protocol):
    """Generates one sample for each prompt and seed."""

    @property
    def moving(self) -> bool:
        """True if the samples are clips."""

    @property
    def stage_count(self) -> int:
        """Number of stages that each sample includes; 0 if none were requested."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the samples beside prompt and seed, and `fps` of clips, as JSON values."""

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        """Return one sample per prompt and seed."""
        ...


@dataclass(frozen=True)
class StudentSampler:
    """Samples of a distilled student.

    Attributes:
        pipe: the student.
        height, width, frames: size of the samples; the plan's by default.
        fps: frames per second of clips.
        stages: whether samples include the result of every stage.
    """

    pipe: RMDPipeline
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int = 16
    stages: bool = False

    @property
    def moving(self) -> bool:
        """True if the student generates clips."""
        return self.pipe.backbone.moving

    @property
    def stage_count(self) -> int:
        """Number of stages of the plan, or 0 if samples do not include them."""
        return len(self.pipe.plan.stages) if self.stages else 0

    @property
    def settings(self) -> Mapping[str, Any]:
        """Version of RMD, the student, its number of steps, and the size."""
        plan = self.pipe.plan
        final = plan.stages[-1]
        size = {
            "height": final.height if self.height is None else self.height,
            "width": final.width if self.width is None else self.width,
        }
        if self.moving:
            size |= {"frames": plan.frames if self.frames is None else self.frames, "fps": self.fps}
        return {"version": __version__, "model": self.pipe.student.source, "steps": len(plan.steps), **size}

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        """Return one sample per prompt and seed."""
        output = self.pipe(
            prompts,
            generator=[seeded(seed) for seed in seeds],
            return_stages=self.stages,
            height=self.height,
            width=self.width,
            num_frames=self.frames,
        )
        return [
            Sample(media, tuple(stage[index] for stage in output.stages or ())) for index, media in enumerate(output[0])
        ]


@dataclass(frozen=True)
class PipelineSampler:
    """Samples of any diffusers pipeline that takes prompts, with its own scheduler.

    Attributes:
        pipe: the pipeline.
        source: folder or repository that it comes from.
        steps, guidance, height, width, frames: arguments of its call; the pipeline's own defaults if None.
        fps: frames per second of clips.
        options: more arguments of its call.

    Raises:
        RMDError: the pipeline takes no prompts, does not take one of the given arguments, or a value is out of range.
    """

    pipe: DiffusionPipeline
    source: str
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("steps", self.steps, MAX_STEPS), ("height", self.height, MAX_SIDE), ("width", self.width, MAX_SIDE),
            ("frames", self.frames, MAX_FRAMES),
        ):  # fmt: skip
            if value is not None and not 1 <= value <= limit:
                raise RMDError(f"{name} must be between 1 and {limit}, got {shown(value)}")
        if self.guidance is not None and not finite("guidance", self.guidance) >= 0:
            raise RMDError(f"guidance must be at least 0, got {self.guidance:g}")
        names = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_frames": "frames"}
        accepted = _parameters(self.pipe)
        for name in ("prompt", *self._arguments):
            if name not in accepted:
                raise RMDError(
                    f"{self.source} is a {type(self.pipe).__name__}, which takes no {names.get(name, name)}"
                    + ("" if name == "prompt" else ": leave it out")
                )

    @property
    def moving(self) -> bool:
        """True if the pipeline generates clips."""
        return "num_frames" in _parameters(self.pipe)

    @property
    def stage_count(self) -> int:
        """0: an ordinary pipeline has no stages."""
        return 0

    @property
    def settings(self) -> Mapping[str, Any]:
        """Version of RMD, the pipeline, and the arguments of its call."""
        values = {"version": __version__, "model": self.source, **self._arguments}
        return values | ({"fps": self.fps} if self.moving else {})

    @property
    def _arguments(self) -> dict[str, Any]:
        """The arguments of the pipeline's call that were given, and those that its size makes necessary."""
        arguments = {
            "num_inference_steps": self.steps, "guidance_scale": self.guidance,
            "height": self.height, "width": self.width, "num_frames": self.frames,
        }  # fmt: skip
        return _required_by_size(self.pipe) | {name: value for name, value in arguments.items() if value is not None}

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        """Return one sample per prompt and seed.

        Raises:
            RMDError: a prompt is not usable text, the pipeline refuses its arguments, or a sample is not finite.
        """
        check_prompts(prompts)
        # Arrays rather than pictures, in which values that are not finite would silently become black.
        arguments = {**self._arguments, **self.options, "output_type": "np"}
        try:
            output = self.pipe(prompt=list(prompts), generator=[seeded(seed) for seed in seeds], **arguments)
        except ValueError as error:  # raised by pipelines for arguments such as unsupported sides
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise RMDError(f"{self.source} refuses its arguments: {reason}") from error
        arrays = [np.asarray(sample) for sample in (output.frames if self.moving else output.images)]
        for prompt, array in zip(prompts, arrays, strict=True):
            if not np.isfinite(array).all():
                raise RMDError(
                    f"{self.source} returned values that are not finite for the prompt {shown(prompt)}: use float32 or "
                    "bfloat16 instead of float16, and check its weights"
                )
        pictures = [DiffusionPipeline.numpy_to_pil(array) for array in arrays]
        return [Sample(frames if self.moving else frames[0]) for frames in pictures]


def student_sampler(
    model: str, *, dtype: torch.dtype, device: torch.device, teacher: str | None, variant: str | None, **options: Any
) -> StudentSampler:
    """Load a student silently and return its sampler; `options` are further arguments of `StudentSampler`."""
    pipe = RMDPipeline.from_pretrained(model, dtype=dtype, teacher=teacher, variant=variant).to(device)
    pipe.set_progress_bar_config(disable=True)
    return StudentSampler(pipe, **options)


def teacher_sampler(student: StudentSampler, teacher: Backbone, *, source: str, steps: int) -> PipelineSampler:
    """Return a sampler of the teacher's samples at the student's size, with the guidance distilled into the student.

    Args:
        student: the student's sampler.
        teacher: its loaded teacher.
        source: where the teacher comes from, if the student's config does not name it.
        steps: number of the teacher's sampling steps.

    Raises:
        RMDError: as `PipelineSampler`.
    """
    config, plan = student.pipe.student, student.pipe.plan
    final, length = plan.stages[-1], student.frames or plan.frames
    return PipelineSampler(
        teacher.pipe, config.teacher or source, steps=steps, guidance=config.guidance,
        height=student.height or final.height, width=student.width or final.width,
        frames=length if teacher.moving else None, fps=student.fps,
        options={**teacher.official_options(length), **teacher.official_guidance(config.guidance)},
    )  # fmt: skip


def _parameters(pipe: DiffusionPipeline) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def _required_by_size(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return the arguments that models much smaller than usual need to sample as they were trained.

    The calls of PixArt round sizes to those of models whose VAE divides them by eight. Calls that pad captions pad them
    to a fixed length, even if the tokenizer supports only a shorter one.
    """
    arguments: dict[str, Any] = {}
    if isinstance(pipe, (PixArtAlphaPipeline, PixArtSigmaPipeline)) and pipe.vae_scale_factor != 8:
        arguments["use_resolution_binning"] = False
    length = _parameters(pipe).get("max_sequence_length")
    tokenizers = [part for name, part in pipe.components.items() if name.startswith("tokenizer")]
    if length is not None and tokenizers and None not in tokenizers:
        longest = max(part.model_max_length for part in tokenizers)
        if isinstance(length.default, int) and longest < length.default:
            arguments["max_sequence_length"] = longest
    return arguments
