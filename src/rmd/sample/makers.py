"""What makes samples of prompts and seeds: a distilled student, or any diffusers pipeline by its own call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from PIL import Image

import rmd
from rmd.common.errors import RMDError, finite, shown
from rmd.core.plan import MAX_FRAMES, MAX_SIDE
from rmd.core.randomness import seeded
from rmd.data.captions import check_prompts
from rmd.sample.pipeline import RMDPipeline

MAX_STEPS = 10_000
"""Largest number of a pipeline's sampling steps; schedulers were trained with a thousand times."""
Made = Image.Image | Sequence[Image.Image]
"""A picture, or a clip's frames."""


@dataclass(frozen=True)
class Sample:
    """What was made of a prompt, and what every stage of a cascade had ended with, where that was asked for."""

    made: Made
    stages: tuple[Made, ...] = ()


class Maker(Protocol):
    """Makes one sample of each prompt and seed; a sample does not depend on its neighbours."""

    @property
    def moving(self) -> bool:
        """Whether it makes clips."""

    @property
    def stage_count(self) -> int:
        """Number of stages that each sample shows; 0 if none were requested."""

    @property
    def making(self) -> Mapping[str, Any]:
        """What decides its samples beside prompt and seed, as JSON values; of clips also `fps`."""

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]: ...


@dataclass(frozen=True)
class StudentMaker:
    """A student with its own plan; sides and frames are the plan's where they are not given."""

    pipe: RMDPipeline
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int = 16
    stages: bool = False

    @property
    def moving(self) -> bool:
        return self.pipe.backbone.moving

    @property
    def stage_count(self) -> int:
        return len(self.pipe.plan.stages) if self.stages else 0

    @property
    def making(self) -> Mapping[str, Any]:
        plan = self.pipe.plan
        final = plan.stages[-1]
        size = {
            "height": final.height if self.height is None else self.height,
            "width": final.width if self.width is None else self.width,
        }
        if self.moving:
            size |= {"frames": plan.frames if self.frames is None else self.frames, "fps": self.fps}
        return {"version": rmd.__version__, "model": self.pipe.config.source, "steps": len(plan.steps), **size}

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        output = self.pipe(
            prompts,
            generator=[seeded(seed) for seed in seeds],
            return_stages=self.stages,
            height=self.height,
            width=self.width,
            num_frames=self.frames,
        )
        return [
            Sample(made, tuple(images[index] for images in output.stages)) for index, made in enumerate(output.images)
        ]


@dataclass(frozen=True)
class PipelineMaker:
    """Any diffusers pipeline that takes prompts, with its own scheduler; what is not given it decides itself.

    Attributes:
        source: where it comes from.
        guidance: its `guidance_scale`.
        options: more arguments of its call.
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
        """Raise RMDError if the pipeline takes no prompts, does not take a given option, or a value is out of range."""
        for name, value, limit in (
            ("steps", self.steps, MAX_STEPS), ("height", self.height, MAX_SIDE), ("width", self.width, MAX_SIDE),
            ("frames", self.frames, MAX_FRAMES),
        ):  # fmt: skip
            if value is not None and not 1 <= value <= limit:
                raise RMDError(f"{name} must be between 1 and {limit}, got {shown(value)}")
        if self.guidance is not None and not finite("guidance", self.guidance) >= 0:
            raise RMDError(f"guidance must be at least 0, got {self.guidance:g}")
        names = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_frames": "frames"}
        takes = _parameters(self.pipe)
        for name in ("prompt", *self._given):
            if name not in takes:
                raise RMDError(
                    f"{self.source} is a {type(self.pipe).__name__}, which takes no {names.get(name, name)}"
                    + ("" if name == "prompt" else ": leave it out")
                )

    @property
    def moving(self) -> bool:
        return "num_frames" in _parameters(self.pipe)

    @property
    def stage_count(self) -> int:
        return 0

    @property
    def making(self) -> Mapping[str, Any]:
        about = {"version": rmd.__version__, "model": self.source, **self._given}
        return about | ({"fps": self.fps} if self.moving else {})

    @property
    def _given(self) -> dict[str, Any]:
        arguments = {
            "num_inference_steps": self.steps, "guidance_scale": self.guidance,
            "height": self.height, "width": self.width, "num_frames": self.frames,
        }  # fmt: skip
        return _sized(self.pipe) | {name: value for name, value in arguments.items() if value is not None}

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        check_prompts(prompts)
        # Checked as numbers, since values that are not finite would turn black in a picture.
        arguments = {**self._given, **self.options, "output_type": "np"}
        try:
            output = self.pipe(prompt=list(prompts), generator=[seeded(seed) for seed in seeds], **arguments)
        except ValueError as error:  # a pipeline's own complaint about arguments, such as unsupported sides
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise RMDError(f"{self.source} refuses what it was given: {reason}") from error
        made = [np.asarray(sample) for sample in (output.frames if self.moving else output.images)]
        for prompt, sample in zip(prompts, made, strict=True):
            if not np.isfinite(sample).all():
                raise RMDError(
                    f"{self.source} gave values that are not finite for the prompt {shown(prompt)}: work in float32 or "
                    "bfloat16 if this is float16, and check its weights"
                )
        pictures = [DiffusionPipeline.numpy_to_pil(sample) for sample in made]
        return [Sample(frames if self.moving else frames[0]) for frames in pictures]


def _parameters(pipe: DiffusionPipeline) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def _sized(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Arguments without which a miniature would sample as it was not trained to; none for models of the usual size.

    PixArt's calls round sizes to those of models whose VAE divides them by eight; calls that pad captions do so to a
    length of their own, even if the tokenizer ends before it.
    """
    found: dict[str, Any] = {}
    if isinstance(pipe, (PixArtAlphaPipeline, PixArtSigmaPipeline)) and pipe.vae_scale_factor != 8:
        found["use_resolution_binning"] = False
    length = _parameters(pipe).get("max_sequence_length")
    tokenizers = [part for name, part in pipe.components.items() if name.startswith("tokenizer")]
    if length is not None and tokenizers and None not in tokenizers:
        longest = max(part.model_max_length for part in tokenizers)
        if isinstance(length.default, int) and longest < length.default:
            found["max_sequence_length"] = longest
    return found
