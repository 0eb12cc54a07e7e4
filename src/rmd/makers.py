"""What makes samples of prompts and seeds: a distilled student, or any diffusers pipeline by its own call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from PIL import Image

import rmd
from rmd.errors import RMDError
from rmd.pipeline import RMDPipeline

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
    def making(self) -> Mapping[str, Any]:
        plan = self.pipe.plan
        final = plan.stages[-1]
        size = {"height": self.height or final.height, "width": self.width or final.width}
        if self.moving:
            size |= {"frames": self.frames or plan.frames, "fps": self.fps}
        return {"version": rmd.__version__, "model": self.pipe.config.source, "steps": len(plan.steps), **size}

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        output = self.pipe(
            prompts,
            generator=_generators(seeds),
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
        """RMDError if the pipeline takes no prompts, or not what was given."""
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
        arguments = {"output_type": "pil", **self._given, **self.options}
        output = self.pipe(prompt=list(prompts), generator=_generators(seeds), **arguments)
        return [Sample(made) for made in (output.frames if self.moving else output.images)]


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


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One a sample, on the CPU: the same noise on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
