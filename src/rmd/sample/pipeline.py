"""RMDPipeline: a distilled student in an official diffusers pipeline, called the way diffusers pipelines are.

A student needs only a few steps, at more than one resolution. No pipeline of diffusers changes its resolution while it
samples, so this class takes the parts of the official one (text encoders, denoiser, VAE) and runs the student's own
plan with them: encode the prompts, sample the cascade (Alg. 2), decode.
"""

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
"""Largest number of pictures in one call, which are all in memory at the same time."""


@dataclass(frozen=True)
class RMDOutput:
    """The result of a call.

    Attributes:
        images: the pictures, in the form that `output_type` asks for. Each is a list or an array of frames if the model
            generates videos.
        stages: with `return_stages`, what every stage ended with, in the same form.
    """

    images: Any
    stages: tuple[Any, ...] = ()

    @property
    def frames(self) -> Any:
        """The same as `images`, under the name that video pipelines of diffusers use."""
        return self.images


class RMDPipeline:
    """Generates pictures or videos from prompts with a distilled student.

    Example:
        >>> from rmd import RMDPipeline
        >>> pipe = RMDPipeline.from_pretrained("runs/demo/student")
        >>> pipe("a big red striped ball on the left, at sunset").images[0].save("ball.png")

    The official pipeline is the attribute `pipe`. Offloading, VAE tiling and slicing, attention backends, quantisation
    and compilation are set there, as for any diffusers pipeline: `pipe.pipe.vae.enable_tiling()`.

    Attributes:
        backbone: the official pipeline as RMD sees it.
        config: contents of the student's `rmd_config.json`.
        plan: the steps and resolutions that the student was distilled for.
    """

    def __init__(self, backbone: Backbone, config: StudentConfig) -> None:
        self.backbone, self.config, self.plan = backbone, config, config.plan
        self.files: object = None
        """Keeps the temporary folder of a student that was made in this process."""

    @property
    def pipe(self) -> DiffusionPipeline:
        """The official pipeline."""
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
        """Load a student from a folder or from a repository on the Hub.

        Args:
            source: the folder, or OWNER/NAME on the Hub.
            dtype: precision of the weights; float32 by default.
            torch_dtype: the earlier diffusers name of `dtype`.
            teacher: location of a LoRA student's base model, if it has moved since the student was distilled.
            options: further arguments of `DiffusionPipeline.from_pretrained`, such as `quantization_config`,
                `device_map` or `revision`.

        Raises:
            RMDError: there is no student, it does not match its teacher, or its weights are not finite.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise RMDError(f"dtype is {dtype} and torch_dtype is {torch_dtype}, which mean the same: give one of them")
        student = load_student(source, dtype=dtype or torch_dtype or torch.float32, teacher=teacher, **options)
        return cls(student.backbone, student.config)

    @classmethod
    def from_pipe(cls, pipe: DiffusionPipeline, student: str | Path) -> RMDPipeline:
        """Add a LoRA student to a pipeline of its teacher that is already loaded.

        The pipeline itself is changed. Adapters that are active on it stay active, with their weights. If the student
        is on it already, it is activated again.

        Args:
            pipe: the teacher's pipeline.
            student: folder of the student, or its repository on the Hub.

        Raises:
            RMDError: the student is a full one (use `from_pretrained`), does not match the pipeline, or cannot be
                combined with what the pipeline carries: another student, or fused adapters.
        """
        config = read_student(student)
        backbone = wrap(pipe, config.conditioning)
        apply_student(backbone, config)
        return cls(backbone, config)

    def to(self, *args: Any, **kwargs: Any) -> RMDPipeline:
        """Move or cast the parts of the pipeline, as `DiffusionPipeline.to` does."""
        self.pipe.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save the student so that `from_pretrained` can load it: a whole pipeline, or a LoRA student's adapter.

        Args:
            folder: a new folder, or one with a student to replace.

        Returns:
            The folder.

        Raises:
            RMDError: the folder contains something other than a student, or cannot be written.
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
        """Upload the student to a repository on the Hub, which is created if necessary.

        Args:
            repo_id: the repository, OWNER/NAME.
            private: whether a new repository is private.
            token: access token; by default, the one that you are logged in with.
            base_model: the teacher's repository on the Hub, OWNER/NAME, if the student's config does not name one.

        Returns:
            Address of the upload.

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
        self, prompt: str | Sequence[str] | None = None, *, height: int | None = None, width: int | None = None,
        num_frames: int | None = None, num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None, pooled_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None, output_type: str = "pil", return_stages: bool = False,
        callback_on_step_end: StepCallback | None = None, negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: float | None = None,
    ) -> RMDOutput:  # fmt: skip
        """Generate pictures or videos.

        Args:
            prompt: one or several prompts; or give their embeddings (`prompt_embeds` and the family's other tensors).
            height, width: size in pixels; the plan's by default. All stages keep their proportion to it.
            num_frames: number of frames of a video; the plan's by default.
            num_images_per_prompt: pictures per prompt; those of one prompt are adjacent in the result.
            generator: one for all pictures in turn, or one per picture, which makes the pictures independent.
            latents: initial noise at the first stage's resolution.
            output_type: "pil", "np" (n, H, W, 3) or "pt" (n, 3, H, W) in [0, 1]; or "latent". Videos have a dimension
                of frames after n.
            return_stages: also decode the result of every stage.
            callback_on_step_end: called with (self, step index from 0, model time, {"x0", "latents"}); a tensor that it
                returns under "x0" replaces the step's clean prediction.
            negative_prompt, guidance_scale: ignored with a warning, because guidance is distilled into the student.

        Raises:
            RMDError: the arguments contradict each other or do not suit the model, the student's adapter is not active,
                or a step or the VAE returned values that are not finite.
        """
        one_of("output_type", output_type, OUTPUTS)
        if self.config.mode == "lora":
            check_active(self.backbone, self.config.source)
        _warn_of_guidance(negative_prompt, guidance_scale)
        plan = self._plan(height, width, num_frames)
        embeddings = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}
        embeddings["prompt_attention_mask"] = prompt_attention_mask
        cond = self._cond(prompt, embeddings, num_images_per_prompt)
        noise = GeneratorNoise(_generators(generator, len(cond)), self.pipe._execution_device)
        ends: list[Tensor] | None = [] if return_stages else None
        x0 = self._sample(plan, cond, noise, latents, callback_on_step_end, ends)
        images = self._decoded(x0, output_type)
        stages = tuple(self._decoded(end, output_type) for end in ends or ())
        self.pipe.maybe_free_model_hooks()
        return RMDOutput(images, stages)

    def _sample(
        self, plan: StepPlan, cond: Cond, noise: GeneratorNoise, latents: Tensor | None, callback: StepCallback | None,
        ends: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """Run the plan and return clean latents; append the clean latents of every stage to `ends`, if it is given."""
        device = noise.device
        with self.pipe.progress_bar(total=len(plan.steps)) as bar:

            def on_step(step: Step, x0: Tensor, x_t: Tensor) -> Tensor | None:
                bar.update()
                replaced = None if callback is None else self._call_back(callback, step, x0, x_t)
                if ends is not None and plan.ends_stage(step):
                    ends.append(x0 if replaced is None else replaced)
                return replaced

            return sample_cascade(
                predictor(self.backbone, self.backbone.denoiser, plan, cond.to(device)),
                plan,
                self.backbone.schedule,
                lambda stage: self.backbone.latent_shape(len(cond), stage.height, stage.width, plan.frames),
                noise,
                x=None if latents is None else latents.to(device, torch.float32),
                on_step=on_step,
            )

    def _call_back(self, callback: StepCallback, step: Step, x0: Tensor, x_t: Tensor) -> Tensor | None:
        """Call the user's callback and return the tensor that replaces x0, if there is one."""
        answer = callback(self, step.index - 1, step.model_time, {"x0": x0, "latents": x_t})
        replaced = None if answer is None else answer.get("x0")
        if replaced is not None and replaced.shape != x0.shape:
            raise RMDError(
                f"callback_on_step_end returned an x0 of shape {tuple(replaced.shape)} at step {step.index}, "
                f"which needs {tuple(x0.shape)}"
            )
        return replaced

    def _plan(self, height: int | None, width: int | None, frames: int | None) -> StepPlan:
        """Return the student's plan for the requested size and number of frames."""
        plan, final = self.plan, self.plan.stages[-1]
        if frames is not None:
            self.backbone.check_frames(integer("num_frames", frames))
            plan = replace(plan, frames=frames)
        size = (final.height if height is None else height, final.width if width is None else width)
        return plan if size == (final.height, final.width) else plan.resized(*size, self.backbone.size_multiple)

    def _cond(self, prompt: str | Sequence[str] | None, embeddings: Mapping[str, Tensor | None], each: int) -> Cond:
        """Return the encoded prompts, or the given embeddings, repeated for `each` pictures per prompt."""
        if prompt is None:
            cond = self._given_cond(embeddings)
            _check_count(len(cond), each)
        elif any(value is not None for value in embeddings.values()):
            raise RMDError("give a prompt or its embeddings, not both")
        else:
            prompts = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
            check_prompts(prompts)
            _check_count(len(prompts), each)
            cond = self.backbone.encode(prompts)
        return cond.map(lambda tensor: tensor.repeat_interleave(each, dim=0))

    def _given_cond(self, embeddings: Mapping[str, Tensor | None]) -> Cond:
        """Return the embeddings under the backbone's names; raise RMDError if one is missing or has another length."""
        names = self.backbone.cond_names
        tensors = {names[name]: value for name, value in embeddings.items() if value is not None and name in names}
        missing = [name for name in names if embeddings[name] is None]
        if missing:
            needed = f"all of {', '.join(names)}" if len(names) > 1 else missing[0]
            raise RMDError(f"give a prompt, or {needed}: {missing[0]} is missing")
        counts = {name: len(tensors[ours]) for name, ours in names.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise RMDError(f"the embeddings belong to different numbers of prompts: {listed}")
        return Cond(tensors)

    def _decoded(self, x0: Tensor, output_type: str) -> Any:
        """Return latents as pictures or videos of the requested type."""
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
            f"{shown(prompts * each)} pictures are too many for one call: generate at most {MAX_PICTURES} at once"
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
    ignored = ["negative_prompt"] if negative_prompt else []
    if guidance_scale not in (None, 0.0, 1.0):
        ignored.append("guidance_scale")
    if ignored:
        warnings.warn(
            f"{' and '.join(ignored)} changed nothing: the teacher's guidance is distilled into the student, "
            "which runs without guidance",
            stacklevel=3,
        )
