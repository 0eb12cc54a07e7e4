"""RMDPipeline: a distilled student around an official diffusers pipeline, called the way diffusers pipelines are."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rmd.common.errors import RMDError, integer, one_of, shown
from rmd.core.finite import check_pictures
from rmd.core.plan import Step, StepPlan
from rmd.core.randomness import GeneratorNoise
from rmd.core.sampling import sample_cascade
from rmd.data.captions import check_prompts
from rmd.models.adapter import LORA_NAME, check_active, lora_file
from rmd.models.base import Backbone, Cond
from rmd.models.generate import predictor
from rmd.models.hub import check_hub_id
from rmd.models.registry import wrap
from rmd.models.share import required_teacher, upload
from rmd.models.student import (
    StudentConfig,
    apply_student,
    load_student,
    read_student,
    student_folder,
    write_config,
)

StepCallback = Callable[["RMDPipeline", int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]
OUTPUTS = ("pil", "np", "pt", "latent")
MAX_PICTURES = 4096
"""Largest number of pictures in one call: all of them are in memory together."""


@dataclass(frozen=True)
class RMDOutput:
    """What a call made: pictures as `output_type` asks for, and, with `return_stages`, those of every stage.

    A family of videos has a list of frames, or an array of them, in every picture's place.
    """

    images: Any
    stages: tuple[Any, ...] = ()

    @property
    def frames(self) -> Any:
        """`images`, by the name that it has in diffusers' video pipelines."""
        return self.images


class RMDPipeline:
    """Runs a student's plan with an official pipeline's parts.

    The pipeline is at `.pipe`: offloading, VAE tiling and slicing, attention backends, quantisation and compilation
    are its own business and are set there.
    """

    def __init__(self, backbone: Backbone, config: StudentConfig) -> None:
        self.backbone, self.config, self.plan = backbone, config, config.plan

    @property
    def pipe(self) -> DiffusionPipeline:
        return self.backbone.pipe

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        teacher: str | Path | None = None,
        **options: Any,
    ) -> RMDPipeline:
        """Load a student from a folder or a repository on the Hub.

        Args:
            dtype: precision of the weights; float32 by default.
            torch_dtype: the earlier diffusers name of `dtype`.
            teacher: location of a LoRA student's base, if it is not where it was distilled.
            options: passed on to `DiffusionPipeline.from_pretrained` (quantization_config, device_map, revision, ...).

        Raises:
            RMDError: there is no student, it does not fit its teacher, or weights are not finite.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise RMDError(f"dtype is {dtype} and torch_dtype is {torch_dtype}, which mean the same: give one of them")
        student = load_student(source, dtype=dtype or torch_dtype or torch.float32, teacher=teacher, **options)
        return cls(student.backbone, student.config)

    @classmethod
    def from_pipe(cls, pipe: DiffusionPipeline, student: str | Path) -> RMDPipeline:
        """Put a LoRA student on a pipeline of its teacher that is already loaded; the pipeline is changed.

        Adapters that are active on it stay active, with their weights. A student that is already on it is activated
        again.

        Raises:
            RMDError: the student is a full one (use `from_pretrained`), does not fit the pipeline, or cannot work
                beside what is on it: another student, or adapters that are fused.
        """
        config = read_student(student)
        backbone = wrap(pipe, config.conditioning)
        apply_student(backbone, config)
        return cls(backbone, config)

    def to(self, *args: Any, **kwargs: Any) -> RMDPipeline:
        """Move or cast the pipeline's parts."""
        self.pipe.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the student, as `from_pretrained` reads it: the whole pipeline, or the adapter of a LoRA student.

        Raises:
            RMDError: the folder holds something that is no student, or cannot be written.
        """
        with student_folder(Path(folder)) as partial:
            if self.config.mode == "full":
                self.pipe.save_pretrained(partial)
            else:
                partial.mkdir(parents=True)
                shutil.copyfile(lora_file(self.config.source), partial / LORA_NAME)
            write_config(self.config, partial)
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, token: str | None = None, base_model: str | None = None
    ) -> str:
        """Upload the output of `save_pretrained` to a repository on the Hub, created if necessary; return its address.

        Args:
            base_model: the teacher's repository on the Hub, OWNER/NAME, if the student's config names none.

        Raises:
            RMDError: the teacher is a local folder and `base_model` is not given, or the Hub does not accept the
                upload.
        """
        check_hub_id("the repository", repo_id)
        required_teacher(self.config.teacher, base_model)
        with tempfile.TemporaryDirectory() as folder:
            student = self.save_pretrained(Path(folder) / "student")
            return upload(student, repo_id, private=private, token=token, base_model=base_model)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_stages: bool = False,
        callback_on_step_end: StepCallback | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: float | None = None,
    ) -> RMDOutput:
        """Make pictures or videos.

        Args:
            prompt: one prompt or several; or give their embeddings (`prompt_embeds` and the family's other tensors).
            height, width: size of the pictures in pixels; the plan's by default. Stages keep their proportion to it.
            num_frames: number of frames of a video; the plan's by default.
            num_images_per_prompt: pictures per prompt; those of one prompt are adjacent in the result.
            generator: one generator for all pictures in turn, or one per picture, which makes each picture independent
                of its neighbours.
            latents: initial noise at the first stage's resolution.
            output_type: "pil", "np" (n, H, W, 3) or "pt" (n, 3, H, W) in [0, 1], with a dimension of frames after n for
                videos; or "latent".
            return_stages: also decode the result of every stage.
            callback_on_step_end: called with (self, step index from 0, model time, {"x0", "latents"}); the value it
                returns under "x0" replaces the step's clean prediction.
            negative_prompt, guidance_scale: accepted with a warning, since a distilled student has no guidance.

        Raises:
            RMDError: the arguments do not fit each other or the model, the student's adapter is not active, or a step
                or the VAE produced values that are not finite.
        """
        one_of("output_type", output_type, OUTPUTS)
        if self.config.mode == "lora":
            check_active(self.backbone, self.config.source)
        _warn_of_guidance(negative_prompt, guidance_scale)
        plan = self._plan(height, width, num_frames)
        given = {
            "prompt_embeds": prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
        }
        cond = self._cond(prompt, given, num_images_per_prompt)
        device = self.pipe._execution_device
        noise = GeneratorNoise(_generators(generator, len(cond)), device)
        ends: list[Tensor] = []
        with self.pipe.progress_bar(total=len(plan.steps)) as bar:

            def on_step(step: Step, x0: Tensor, x_t: Tensor) -> Tensor | None:
                bar.update()
                replaced = None
                if callback_on_step_end is not None:
                    answer = callback_on_step_end(self, step.index - 1, step.model_time, {"x0": x0, "latents": x_t})
                    replaced = None if answer is None else answer.get("x0")
                    if replaced is not None and replaced.shape != x0.shape:
                        raise RMDError(
                            f"callback_on_step_end gave an x0 of shape {tuple(replaced.shape)} at step {step.index}, "
                            f"which needs {tuple(x0.shape)}"
                        )
                if return_stages and plan.ends_stage(step):
                    ends.append(x0 if replaced is None else replaced)
                return replaced

            x0 = sample_cascade(
                predictor(self.backbone, self.backbone.denoiser, plan, cond.to(device)),
                plan,
                self.backbone.schedule,
                lambda stage: self.backbone.latent_shape(len(cond), stage.height, stage.width, plan.frames),
                noise,
                x=None if latents is None else latents.to(device, torch.float32),
                on_step=on_step,
            )
        images = self._pictures(x0, output_type)
        stages = tuple(self._pictures(end, output_type) for end in ends)
        self.pipe.maybe_free_model_hooks()
        return RMDOutput(images, stages)

    def _plan(self, height: int | None, width: int | None, frames: int | None) -> StepPlan:
        plan, final = self.plan, self.plan.stages[-1]
        if frames is not None:
            self.backbone.check_frames(integer("num_frames", frames))
            plan = replace(plan, frames=frames)
        wanted = (final.height if height is None else height, final.width if width is None else width)
        if wanted == (final.height, final.width):
            return plan
        return plan.resized(*wanted, self.backbone.size_multiple)

    def _cond(self, prompt: str | Sequence[str] | None, given: Mapping[str, Tensor | None], each: int) -> Cond:
        names = self.backbone.cond_names
        tensors = {names[name]: value for name, value in given.items() if value is not None and name in names}
        if prompt is None:
            missing = [name for name in names if given[name] is None]
            if missing:
                wanted = f"all of {', '.join(names)}" if len(names) > 1 else missing[0]
                raise RMDError(f"give a prompt, or {wanted}: {missing[0]} is missing")
            counts = {name: len(tensors[ours]) for name, ours in names.items()}
            if len(set(counts.values())) > 1:
                found = ", ".join(f"{name} {count}" for name, count in counts.items())
                raise RMDError(f"the embeddings are of different numbers of prompts: {found}")
            _check_count(next(iter(counts.values())), each)
            cond = Cond(tensors)
        elif any(value is not None for value in given.values()):
            raise RMDError("give a prompt or its embeddings, not both")
        else:
            prompts = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
            check_prompts(prompts)
            _check_count(len(prompts), each)
            cond = self.backbone.encode(prompts)
        return cond.map(lambda tensor: tensor.repeat_interleave(each, dim=0))

    def _pictures(self, x0: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x0
        pictures = self.backbone.decode(x0)
        check_pictures(pictures)
        if pictures.ndim == 5:
            return self.pipe.video_processor.postprocess_video(pictures, output_type=output_type)
        return self.pipe.image_processor.postprocess(pictures, output_type=output_type)


def _check_count(prompts: int, each: int) -> None:
    if integer("num_images_per_prompt", each) < 1:
        raise RMDError(f"num_images_per_prompt must be at least 1, got {each}")
    if prompts * each > MAX_PICTURES:
        raise RMDError(
            f"{shown(prompts * each)} pictures are too many for one call: make at most {MAX_PICTURES} at once"
        )


def _generators(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    if generator is None:
        fresh = torch.Generator()
        fresh.seed()
        return [fresh] * count
    if isinstance(generator, torch.Generator):
        return [generator] * count
    if len(generator) != count:
        raise RMDError(f"{count} pictures need one generator or {count} of them, got {len(generator)}")
    return list(generator)


def _warn_of_guidance(negative_prompt: object, guidance_scale: float | None) -> None:
    useless = [
        name
        for name, given in (
            ("negative_prompt", bool(negative_prompt)),
            ("guidance_scale", guidance_scale not in (None, 0.0, 1.0)),
        )
        if given
    ]
    if useless:
        warnings.warn(
            f"{' and '.join(useless)} changed nothing: the teacher's guidance is distilled into the student, "
            "which runs without",
            stacklevel=3,
        )
